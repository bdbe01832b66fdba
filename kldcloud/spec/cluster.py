"""What a cluster file says: where a job runs, and with how much of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from kldcloud.errors import SpecError
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.fields import ByteCount, SpecModel, Whole, WorkerCount
from kldcloud.spec.load import plain
from kldcloud.spec.nearest import did_you_mean
from kldcloud.spec.refusal import refusal
from kldcloud.spec.yaml_tree import read_tree

FOLDER: Final = Path("clusters")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SUFFIXES: Final = (".yaml", ".yml")
_MOST_THREADS: Final = 1024


class ClusterSpec(SpecModel):
    """A cluster file of `provider: local`: this machine.

    Attributes:
        provider: who lends the machine.
        workers: processes that each hold one model; auto fills the machine.
        threads_per_worker: CPU threads of one worker; None divides the machine among them.
        memory_per_worker: bytes that one worker may use; None sets no bound.
        engine: options that replace those of the job; the ones not written down do not.
    """

    provider: Literal["local"] = "local"
    workers: WorkerCount = "auto"
    threads_per_worker: Annotated[Whole, Field(ge=1, le=_MOST_THREADS)] | None = None
    memory_per_worker: ByteCount | None = None
    engine: EngineOptions = EngineOptions()

    def engine_for(self, job: EngineOptions) -> EngineOptions:
        """Return a job's engine options with this cluster's in their place."""
        return job.replaced_by(self.engine)


def load_cluster(name_or_path: str, *, folder: Path = FOLDER) -> ClusterSpec:
    """Read a cluster definition.

    A name is `<name>.yaml` in the folder `clusters`; `local` needs no file and is this machine
    with every default. Whatever has a '/' or ends in .yaml is a path, relative to the current
    folder.

    Args:
        name_or_path: what a job's `cluster` or `--cluster` says.
        folder: where names are looked up.

    Raises:
        SpecError: one line: an unknown name and the known ones, or what is wrong in the file.
    """
    if "/" in name_or_path or name_or_path.endswith(_SUFFIXES):
        return _read(Path(name_or_path).expanduser())
    known = _names_in(folder)
    if name_or_path in known:
        return _read(known[name_or_path])
    if name_or_path == "local":
        return ClusterSpec()
    shown = repr(name_or_path[:60])
    hint = did_you_mean(name_or_path, {"local": None, **known}, kind="known clusters")
    raise SpecError(f"there is no cluster {shown} in {folder}/", hint=hint)


def _names_in(folder: Path) -> dict[str, Path]:
    try:
        files = sorted(folder.iterdir(), reverse=True)  # x.yaml is read rather than x.yml
    except OSError:
        return {}
    named = {each.stem: each for each in files if each.suffix in _SUFFIXES}
    return {name: named[name] for name in sorted(named) if _NAME.fullmatch(name)}


def _read(path: Path) -> ClusterSpec:
    tree = read_tree(path)
    try:
        return ClusterSpec.model_validate(plain(tree))
    except ValidationError as error:
        raise refusal(error, ClusterSpec, tree) from None
