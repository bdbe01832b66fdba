"""What a distillation job would do, as far as its file says: no model or text is opened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final, Literal

from kldcloud.estimate.cost import (
    Price,
    asked_accelerators,
    cost_of,
    gpu_count,
    price_of,
    start_seconds,
)
from kldcloud.estimate.text import duration, machine_lines, machine_words, money_lines
from kldcloud.models.sources import model_at_hand
from kldcloud.qad.modelopt.pinned import VERSION
from kldcloud.spec.cluster import ClusterSpec, cluster_name
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.qad_modelopt import MODELOPT, check_cluster
from kldcloud.spec.uri import SourceUri

SCHEMA: Final = "kldcloud.qad-plan/1"
_MARGIN: Final = 12


@dataclass(frozen=True, slots=True)
class QadPlan:
    """A job, counted out.

    Attributes:
        job: what is wanted.
        where: on which machines.
        price: of them.
        rate: tokens a second that one process trains on; None if nobody has said.
    """

    job: QadJob
    where: ClusterSpec
    price: Price
    rate: float | None = None

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def cluster(self) -> str:
        return cluster_name(self.job.cluster)

    @property
    def provider(self) -> str:
        return self.where.provider

    @property
    def nodes(self) -> int:
        return self.where.nodes

    @property
    def machine(self) -> str:
        return machine_words(self.price.offer) if self.price.offer else ""

    @property
    def hourly(self) -> float | None:
        return self.price.hourly

    @property
    def max_seconds(self) -> int | None:
        return self.where.max_duration if self.where.remote else None

    @property
    def processes(self) -> int | None:
        """That train together; None for this machine, which is looked at when they start."""
        if self.where.workers != "auto":
            return self.nodes * self.where.workers
        if not self.where.remote:
            return None
        known = self.price.offer.accelerators if self.price.offer else ""
        gpus = gpu_count(known or asked_accelerators(self.where.resources))
        return self.nodes * max(gpus, 1)

    @property
    def tokens(self) -> int | None:
        """Tokens that are trained on in all, passes counted; None where the text decides."""
        if self.steps is None:
            return None
        return self.steps * self.job.train.global_batch * self.job.data.context

    @property
    def seconds(self) -> float | None:
        """Of training alone; None if unknown."""
        if self.tokens is None or self.rate is None:
            return None
        return self.tokens / (self.rate * (self.processes or 1))

    @property
    def cost_estimate(self) -> float | None:
        """USD until training has ended; None if unknown. The sweep after it comes on top."""
        start = start_seconds(self.where, 0)
        return cost_of(self.hourly, None if self.seconds is None else start + self.seconds)

    @property
    def cost_at_most(self) -> float | None:
        return cost_of(self.hourly, self.max_seconds)

    @property
    def says_how_fast(self) -> str:
        return "give --rate, the tokens a second that one process trains on"

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
        teacher = self.job.teacher
        made = ["the teacher as a GGUF"] if _is_folder(teacher.model) else []
        made += [f"the teacher as {teacher.convert}"] if teacher.convert else []
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
            "nodes": self.nodes,
            "processes": self.processes,
            "tokens": self.tokens,
            "tokens_a_second": self.rate,
            "training_seconds": self.seconds,
            "max_seconds": self.max_seconds,
            "offer": asdict(self.price.offer) if self.price.offer else None,
            "enabled": self.price.enabled,
            "hourly": self.price.hourly,
            "price_unknown": self.price.unknown or None,
            "cost_estimate": self.cost_estimate,
            "cost_at_most": self.cost_at_most,
            "job": self.job.model_dump(mode="json"),
        }
        return json.dumps(facts, indent=2)

    def to_text(self) -> str:
        """The plan for a person, a subject a line."""
        job, kept = self.job, self.job.checkpoints
        init = job.student.init
        student = "NVFP4" if init is None else init.quantize or str(init.model)
        student += f", distilled from {job.teacher.display_name}"
        if job.student.trainer == MODELOPT:
            student += f" by NVIDIA Model Optimizer {VERSION}"
        lines = [f"{job.name}: {student} on {self.cluster}"]
        for label, line in (
            ("text", self._text()),
            ("training", self._training()),
            ("evaluation", self._evaluation()),
            ("checkpoints", f"every {_counted(kept.every, 'step')}, {kept.keep} kept"),
            ("files", "; ".join(self.files)),
            ("proof", self._proof()),
            ("store", job.store),
            *(("time", line) for line in self._time()),
            *self._rented(),
        ):
            lines.append(f"  {label:<{_MARGIN}}{line}")
        return "\n".join(lines)

    def _time(self) -> list[str]:
        if self.seconds is None or self.rate is None:
            return []
        rate = f"{self.rate:,.3g} tokens/s a process, as --rate says"
        time = f"about {duration(self.seconds)} of training"
        many = f" by {self.processes} processes" if (self.processes or 1) > 1 else ""
        return [f"{time}{many} ({rate}); what comes before and after is not counted"]

    def _rented(self) -> list[tuple[str, str]]:
        if not self.where.remote:
            return []
        blocks = (("machine", machine_lines(self)), ("money", money_lines(self)))
        return [
            ("" if n else label, line) for label, block in blocks for n, line in enumerate(block)
        ]

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
        precision = "bfloat16 on GPUs" if train.precision == "auto" else train.precision
        return f"{steps} of {batch}{passes}: {trained}; lr {train.lr:g}; {precision}{inputs}"

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


def _is_folder(model: SourceUri) -> bool:
    """Whether a model is a folder of safetensors, as far as can be told without fetching it."""
    path = None if model.is_repository else model_at_hand(model)
    return model.is_repository or (path is not None and path.is_dir())


def _counted(count: int | Literal["all"], noun: str) -> str:
    return f"{count if count == 'all' else f'{count:,}'} {noun}{'' if count == 1 else 's'}"


def plan_qad(job: QadJob, where: ClusterSpec, rate: float | None) -> QadPlan:
    """Count a job out; prices of machines are asked of SkyPilot.

    Args:
        job: what is wanted.
        where: on which machines.
        rate: tokens a second that one process trains on; None if nobody has said.

    Raises:
        UserError: the job's trainer cannot work there.
    """
    check_cluster(job, where)
    return QadPlan(job, where, price_of(where), rate)
