"""What a distillation job would do, as far as its file says: no model or text is opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Literal

from kldcloud.spec.cluster import cluster_name
from kldcloud.spec.qad_job import QadJob

SCHEMA: Final = "kldcloud.qad-plan/1"
_MARGIN: Final = 12


@dataclass(frozen=True, slots=True)
class QadPlan:
    """A job, counted out."""

    job: QadJob

    @property
    def chunks(self) -> int | None:
        """Training chunks, unless the text is shorter; None where the job takes all of it."""
        tokens = self.job.data.tokens
        return None if tokens == "all" else tokens // self.job.data.context

    @property
    def steps(self) -> int | None:
        """Training steps, unless the text is shorter; None where the job takes all of it."""
        train = self.job.train
        return None if self.chunks is None else self.chunks // train.global_batch * train.epochs

    @property
    def files(self) -> list[str]:
        """What is made on the way, in that order."""
        init, export = self.job.student.init, self.job.export
        made = [f"the teacher as {self.job.teacher.convert}"] if self.job.teacher.convert else []
        if init is None:
            made.append("the layers as NVFP4, rounded to nearest")
        elif init.quantize is not None:
            made.append(f"{init.quantize} rounded to nearest")
            made += ["an importance matrix of the training text"] if init.imatrix == "auto" else []
            made += [f"{init.quantize} with importances"] if init.imatrix != "none" else []
        made.append("the trained file in the store")
        made += ["a folder of safetensors in the store"] if export.to == "hf" else []
        return [*made, f"its copy {export.path}"] if export.path is not None else made

    def to_json(self) -> str:
        """The plan for scripts: one object of schema `kldcloud.qad-plan/1`; unknown is null."""
        facts = {
            "schema": SCHEMA,
            "chunks": self.chunks,
            "steps": self.steps,
            "files": self.files,
            "job": self.job.model_dump(mode="json"),
        }
        return json.dumps(facts, indent=2)

    def to_text(self) -> str:
        """The plan for a person, a subject a line."""
        job, kept = self.job, self.job.checkpoints
        init = job.student.init
        student = "NVFP4" if init is None else init.quantize or str(init.model)
        where = cluster_name(job.cluster)
        lines = [f"{job.name}: {student}, distilled from {job.teacher.display_name} on {where}"]
        for label, line in (
            ("text", self._text()),
            ("training", self._training()),
            ("evaluation", self._evaluation()),
            ("checkpoints", f"every {_counted(kept.every, 'step')}, {kept.keep} kept"),
            ("files", "; ".join(self.files)),
            ("proof", self._proof()),
            ("store", job.store),
        ):
            lines.append(f"  {label:<{_MARGIN}}{line}")
        return "\n".join(lines)

    def _text(self) -> str:
        data = self.job.data
        kept = f"the last {100 * data.heldout:.3g} % of it are held out"
        if self.chunks is None:
            return f"{data.text}: all of it in chunks of {data.context} tokens; {kept}"
        chunks = _counted(self.chunks, "chunk")
        tokens = f"the first {data.tokens:,} tokens at most, {chunks}"
        return f"{data.text}: {tokens} of {data.context}; {kept}"

    def _training(self) -> str:
        train = self.job.train
        steps = "steps" if self.steps is None else _counted(self.steps, "step")
        passes = f" in {train.epochs} passes" if train.epochs > 1 else ""
        parts = {
            "codes": train.train_codes,
            "norms": train.train_norms,
            "head": train.train_head,
        }
        trained = ", ".join(name for name, is_trained in parts.items() if is_trained)
        batch = _counted(train.global_batch, "chunk")
        inputs = "; activations in NVFP4" if self.job.student.activations else ""
        return f"{steps} of {batch}{passes}: {trained}; lr {train.lr:g}{inputs}"

    def _evaluation(self) -> str:
        found = self.job.eval
        every, chunks = _counted(found.every, "step"), _counted(found.chunks, "chunk")
        return f"before, after and every {every}: {chunks} held out"

    def _proof(self) -> str:
        found = self.job.eval
        texts = f"{_counted(found.heldout_chunks, 'chunk')} held out after those"
        if found.second_text is not None:
            texts += f", {_counted(found.second_chunks, 'chunk')} of {found.second_text}"
        return f"a sweep with the teacher as its base: {texts}"


def _counted(count: int | Literal["all"], noun: str) -> str:
    return f"{count if count == 'all' else f'{count:,}'} {noun}{'' if count == 1 else 's'}"
