"""The folder that a run of Model Optimizer works in, and the commands that do the work there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kldcloud.qad.modelopt.environment import Environment

_PLACING: Final = Path(__file__).with_name("place_chunks.py")


@dataclass(frozen=True, slots=True)
class Workplace:
    """Paths of a run's files; all of them absolute.

    Attributes:
        root: of this run alone.
    """

    root: Path

    @property
    def teacher(self) -> Path:
        """A model as transformers reads it, with a tokenizer of token ids."""
        return self.root / "teacher"

    @property
    def training_chunks(self) -> Path:
        return self.root / "training.npy"

    @property
    def looked_at_chunks(self) -> Path:
        return self.root / "heldout.npy"

    @property
    def blend(self) -> Path:
        """Its dataset configuration."""
        return self.root / "blend.yaml"

    @property
    def tokenized(self) -> Path:
        """Its cache of tokenised datasets."""
        return self.root / "tokenized"

    @property
    def accelerate(self) -> Path:
        return self.root / "fsdp2.yaml"

    @property
    def quantize(self) -> Path:
        return self.root / "quantize.yaml"

    @property
    def train(self) -> Path:
        return self.root / "train.yaml"

    @property
    def norms(self) -> Path:
        """Learning rates by parameter."""
        return self.root / "lr.yaml"

    @property
    def quantized(self) -> Path:
        """The student before training."""
        return self.root / "quantized"

    @property
    def trained(self) -> Path:
        """Its checkpoints, and the student in the end."""
        return self.root / "trained"

    @property
    def exported(self) -> Path:
        return self.root / "exported"

    @property
    def log(self) -> Path:
        """What all of its commands say."""
        return self.root / "modelopt.log"

    @property
    def libraries(self) -> Path:
        """What Hugging Face's libraries keep."""
        return self.root / "huggingface"


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        name: what it does, for people.
        argv: the program and its arguments; no shell reads them, and none is a secret.
    """

    name: str
    argv: tuple[str, ...]


def steps(environment: Environment, work: Workplace, context: int) -> tuple[Step, ...]:
    """The commands of a run, in their order.

    Args:
        environment: that has them.
        work: the files that they read and write; see `configuration.write_configuration`.
        context: tokens in a chunk.
    """
    python, example = str(environment.python), environment.example
    # Isolated, so that no file beside ours is taken for a package of that name.
    place = (python, "-I", str(_PLACING), str(example), str(work.blend), str(work.teacher))
    chunks = (str(work.training_chunks), str(work.looked_at_chunks))
    launch = (str(environment.accelerate), "launch", "--config-file", str(work.accelerate))
    export = ("--pyt_ckpt_path", str(work.trained), "--export_path", str(work.exported))
    return (
        Step("chunks", (*place, str(context), str(work.tokenized), *chunks)),
        Step("quantize", (python, str(example / "quantize.py"), "--config", str(work.quantize))),
        Step("train", (*launch, str(example / "train.py"), "--config", str(work.train))),
        Step("export", (python, str(example / "export.py"), *export)),
    )
