"""What a distillation job says: teacher, student, the text to train on, how, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.fields import (
    Chunks,
    Name,
    Real,
    Source,
    SpecModel,
    StoreAddress,
    Switch,
    TokenCount,
    Whole,
    but_not,
    refused,
)
from kldcloud.spec.qad_fields import (
    LocalPath,
    Patience,
    share_up_to,
)
from kldcloud.spec.qad_modelopt import MODELOPT, check_options, with_its_defaults
from kldcloud.spec.qad_models import StudentSpec, TeacherSpec
from kldcloud.spec.uri import SourceUri

_LEAST_CONTEXT: Final = 16  # llama.cpp computes no importance matrix with fewer
_MOST_CONTEXT: Final = 1 << 20
_MOST_EPOCHS: Final = 10_000
_MOST_CHUNKS_A_STEP: Final = 1 << 20
_MOST_STEPS: Final = (1 << 31) - 1
_MOST_KEPT: Final = 1000
_LARGEST_SEED: Final = (1 << 32) - 1
_LARGEST_NORM: Final = 1_000_000
_MOST_NATS: Final = 100


class DataSpec(SpecModel):
    """The text, which is cut in two: the first part is trained on, the last is held out.

    Attributes:
        text: where it is; UTF-8.
        tokens: tokens of the first part that are trained on at most, from its start.
        context: tokens in a chunk.
        heldout: share of the text that is held out.
    """

    text: Source
    tokens: TokenCount = "all"
    context: Annotated[Whole, Field(ge=_LEAST_CONTEXT, le=_MOST_CONTEXT)] = 512
    heldout: Annotated[float, share_up_to(0.5, zero=False)] = 0.1


class TrainSpec(SpecModel):
    """How the student is trained: AdamW on the KL divergence from teacher to student, in nats.

    Attributes:
        epochs: passes over the training chunks.
        global_batch: chunks in a step, on all devices together.
        micro_batch: chunks that one device has in memory at once.
        lr: learning rate at its height.
        lr_norms: that of the norms; None takes `lr`.
        schedule: how the learning rate goes on after the warm-up.
        final_lr: share of the learning rate at which the cosine ends.
        warmup: share of all steps in which the learning rate rises from 0.
        clip: L2 norm that the gradient of a step is cut to.
        weight_decay: AdamW's.
        train_codes: whether quantised weights are trained.
        train_norms: whether the norms are.
        train_head: whether the output head is; where it is tied, that is the embedding as well.
        seed: of the order of chunks.
        precision: what products are computed in; auto is bfloat16 on GPUs, float32 on CPUs. Weights
            that train, AdamW's averages, norms and the residual stream are float32 in any case.
        recompute: whether a layer's activations are computed again for its gradient instead of
            kept: less memory, the same result, a third more work for the student.
        patience: evaluations without a new best before training stops.
        skip_below: nats; where the init loses less on held-out text, nothing is trained.
    """

    epochs: Annotated[Whole, Field(ge=1, le=_MOST_EPOCHS)] = 1
    global_batch: Annotated[Whole, Field(ge=1, le=_MOST_CHUNKS_A_STEP)] = 8
    micro_batch: Annotated[Whole, Field(ge=1, le=_MOST_CHUNKS_A_STEP)] = 1
    lr: Annotated[Real, Field(gt=0, le=1)] = 2e-4
    lr_norms: Annotated[Real, Field(gt=0, le=1)] | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: Annotated[float, share_up_to(1)] = 0.1
    warmup: Annotated[float, share_up_to(0.5)] = 0.05
    clip: Annotated[Real, Field(gt=0, le=_LARGEST_NORM)] = 1.0
    weight_decay: Annotated[Real, Field(ge=0, le=1)] = 0.0
    train_codes: Switch = True
    train_norms: Switch = True
    train_head: Switch = False
    seed: Annotated[Whole, Field(ge=0, le=_LARGEST_SEED)] = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute: Switch = False
    patience: Patience = 3
    skip_below: Annotated[Real, Field(gt=0, le=_MOST_NATS)] | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if not (self.train_codes or self.train_norms or self.train_head):
            raise refused("nothing is left to train: set train_codes, train_norms or train_head")
        if self.global_batch % self.micro_batch:
            reason = f"must divide global_batch, which is {self.global_batch}"
            raise refused(f"{reason}{but_not(self.micro_batch)}", "micro_batch")
        if self.lr_norms is not None and not self.train_norms:
            raise refused("is of no use while train_norms is false", "lr_norms")
        return self

    def on(self, *, gpus: bool) -> Self:
        """The same with its precision decided: the one of GPUs or that of CPUs."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bfloat16" if gpus else "float32"})


class EvalSpec(SpecModel):
    """What the student is measured on, while it is trained and afterwards.

    Attributes:
        every: steps between two evaluations on held-out chunks; one comes before the first step
            and one after the last in any case.
        chunks: held-out chunks of each of them, from the start.
        heldout_chunks: chunks of the sweep after training, from what is held out after those.
        second_text: another text for that sweep; UTF-8.
        second_chunks: chunks of it, from its start.
    """

    every: Annotated[Whole, Field(ge=1, le=_MOST_STEPS)] = 20
    chunks: Chunks = 4
    heldout_chunks: Chunks = "all"
    second_text: Source | None = None
    second_chunks: Chunks = 16

    @model_validator(mode="after")
    def _can_tell(self) -> Self:
        if self.heldout_chunks == 1:
            reason = "must be at least 2, or all: the verdict goes by how much chunks differ"
            raise refused(f"{reason}{but_not(1)}", "heldout_chunks")
        return self


class CheckpointSpec(SpecModel):
    """What a killed job goes on from.

    Attributes:
        every: steps between two of them.
        keep: how many of the latest are kept.
    """

    every: Annotated[Whole, Field(ge=1, le=_MOST_STEPS)] = 20
    keep: Annotated[Whole, Field(ge=1, le=_MOST_KEPT)] = 2


class ExportSpec(SpecModel):
    """What is made of the trained student; the store has it in any case.

    Attributes:
        to: a GGUF, or beside it a folder of safetensors as transformers and vLLM read NVFP4.
        path: where a copy goes, relative to the current folder: a file, or for hf a folder.
    """

    to: Literal["gguf", "hf"] = "gguf"
    path: LocalPath | None = None

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if self.path is None:
            return self
        is_file = self.path.suffix == ".gguf"
        if self.to == "gguf" and not is_file:
            shown = str(self.path)
            raise refused(f"must be a path here that ends in .gguf{but_not(shown)}", "path")
        if self.to == "hf" and is_file:
            raise refused("is a folder where 'to' is hf, and cannot end in .gguf", "path")
        return self


class QadJob(SpecModel):
    """A job file of `kind: qad`.

    `load.load_job` makes one from a file with its paths made absolute, but for `export.path` and
    `store`; built in Python, all of them stay as they were given.

    Attributes:
        kind: always `qad`.
        name: the job's name in reports.
        teacher: the model to come back to.
        student: what is trained, and from where.
        data: the text.
        train: how.
        eval: what it is measured on.
        checkpoints: what a killed job goes on from.
        export: the file that comes of it.
        engine: how llama.cpp evaluates the models when they are measured.
        cluster: a name from `clusters/`, or a path: see `cluster.load_cluster`.
        store: a folder, relative to the current one, or `s3://bucket/prefix`.
    """

    kind: Literal["qad"]
    name: Name
    teacher: TeacherSpec
    student: StudentSpec
    data: DataSpec
    train: TrainSpec = TrainSpec()
    eval: EvalSpec = EvalSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
    export: ExportSpec = ExportSpec()
    engine: EngineOptions = EngineOptions()
    cluster: Annotated[str, Field(min_length=1, max_length=4096)] = "local"
    store: StoreAddress = "./kldcloud-store"

    @model_validator(mode="before")
    @classmethod
    def _as_the_trainer_has_it(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic hands it over
        return with_its_defaults(data)

    @model_validator(mode="after")
    def _trainer_can(self) -> Self:
        if self.student.trainer == MODELOPT:
            check_options(self)
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        batch, context, tokens = self.train.global_batch, self.data.context, self.data.tokens
        if tokens != "all" and tokens < batch * context:
            reason = f"is less than one step of {batch} chunks of {context} tokens"
            raise refused(f"{reason}{but_not(tokens)}", "data", "tokens")
        if self.eval.second_text == self.data.text:
            raise refused("is the training text: give another, or none", "eval", "second_text")
        init = self.student.init
        if init is not None and init.model == self.teacher.model:
            raise refused("is the teacher itself: there is nothing to win back", "student", "init")
        if self.student.format == "nvfp4":
            if self.train.train_head:
                reason = "an nvfp4 student has the teacher's own head: write false"
                raise refused(reason, "train", "train_head")
        elif self.export.to == "hf":
            raise refused("only nvfp4 students are exported to hf: write gguf", "export", "to")
        if self.export.path is not None:
            place = SourceUri("file", "", str(self.export.path)).resolved(Path())
            for source in self._read():
                if source.resolved(Path()) == place:
                    raise refused("would overwrite a file that this job reads", "export", "path")
        return self

    def _read(self) -> list[SourceUri]:
        init = self.student.init
        named: list[object] = [self.teacher.model, self.data.text, self.eval.second_text]
        if init is not None:
            named += [init.model, init.imatrix]
        return [each for each in named if isinstance(each, SourceUri)]
