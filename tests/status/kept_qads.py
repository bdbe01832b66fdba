"""Distillations as their stores hold them, written without training anything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from kldcloud.pipeline.runs import job_bytes
from kldcloud.qad.looks import Look
from kldcloud.qad.progress_file import TrainingProgress
from kldcloud.qad.result_file import SCHEMA, QadResult, write_result
from kldcloud.report.status_text import status_lines
from kldcloud.spec.qad_job import QadJob
from kldcloud.status.qad import QadStatus
from kldcloud.status.reader import StatusReader
from kldcloud.status.subject import StatusSubject
from kldcloud.store.base import Store
from tests.status.kept_runs import NOW

QAD = "small-0123456789ab"
SWEEP = "small-proof-ba9876543210"
LOOKS = (Look(0, 0.25, 0.75), Look(5, 0.19, 0.8), Look(10, 0.2, 0.79))


@dataclass(frozen=True, slots=True)
class KeptQad:
    """One distillation of ten steps."""

    store: Store
    run: str = QAD

    def job(self, **changes: Any) -> QadJob:
        """Leave its job."""
        facts = {
            "kind": "qad",
            "name": "small",
            "teacher": "/models/teacher.gguf",
            "student": {"init": {"quantize": "Q4_0"}},
            "data": {"text": "/texts/a.txt"},
        }
        job = QadJob.model_validate(facts | changes)
        self.store.write(f"qad/{self.run}/job.yaml", job_bytes(job))
        return job

    def progress(self, now: float = NOW, **changes: Any) -> None:
        """Leave its progress, by default of one that trains and wrote it three seconds ago."""
        facts = {
            "stage": "training",
            "step": 7,
            "steps": 10,
            "tokens_a_step": 1024,
            "started": now - 600,
            "moved": now - 5,
            "seen": now - 3,
            "kld": 0.21,
            "start": LOOKS[0],
            "latest": LOOKS[1],
            "best": LOOKS[1],
            "tokens_per_second": 64.0,
        }
        progress = TrainingProgress(**(facts | changes))
        self.store.write(f"qad/{self.run}/progress.json", json.dumps(asdict(progress)).encode())

    def result(self, **changes: Any) -> QadResult:
        """Leave what came of it, by default a better file."""
        facts = {
            "schema": SCHEMA,
            "run": self.run,
            "teacher": "teacher",
            "init": "Q4_0-imat",
            "student": "Q4_0-imat-qad",
            "steps": 10,
            "tokens": 10240,
            "looks": LOOKS,
            "export": f"qad/{self.run}/student.gguf",
            "sweep": SWEEP,
            "verdict": ("held-out: KLD 0.1900 against 0.2500 of Q4_0-imat (-24.0%)",),
            "failed": None,
        }
        result = QadResult(**(facts | changes))
        write_result(self.store, f"qad/{self.run}", result)
        return result

    def status(self) -> QadStatus:
        """Look once, at `NOW`."""
        found = StatusReader(StatusSubject(self.store, qad=self.run)).read(NOW)
        assert isinstance(found, QadStatus)
        return found

    def shown(self) -> str:
        """What a person would read."""
        return "\n".join(line.text for line in status_lines(self.status(), NOW))
