"""What a cluster file says: where a job runs, and with how much of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from kldcloud.errors import SpecError
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.fields import (
    ByteCount,
    Duration,
    SpecModel,
    Switch,
    Whole,
    WorkerCount,
    refused,
)
from kldcloud.spec.load import plain
from kldcloud.spec.nearest import did_you_mean
from kldcloud.spec.refusal import refusal
from kldcloud.spec.yaml_tree import read_tree

FOLDER: Final = Path("clusters")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SUFFIXES: Final = (".yaml", ".yml")
_MOST_THREADS: Final = 1024
_MOST_NODES: Final = 1024
_MOST_ENTRIES: Final = 256
_LONGEST_TEXT: Final = 64 << 10
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LOOKS_SECRET: Final = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE
)
# Of PEP 508, what has no address, path or condition in it, and no space.
_VERSION: Final = r"(?:===?|~=|!=|<=?|>=?)[A-Za-z0-9][A-Za-z0-9.*+!_-]{0,63}"
_EXTRA: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_REQUIREMENT: Final = re.compile(
    rf"[A-Za-z0-9](?:[A-Za-z0-9._-]{{0,62}}[A-Za-z0-9])?(?:\[{_EXTRA}(?:,{_EXTRA})*\])?"
    rf"(?:{_VERSION}(?:,{_VERSION})*)?"
)
_OURS: Final = ("RAY_", "SKYPILOT_", "KLDCLOUD_JOB_")


def _check_requirement(text: str) -> str:
    if not _REQUIREMENT.fullmatch(text):
        raise refused(f"{text[:60]!r} is not a package with versions, such as 'gptqmodel>=4'")
    return text


Requirement = Annotated[str, Field(max_length=256), AfterValidator(_check_requirement)]


class ClusterSpec(SpecModel):
    """A cluster file: this machine (`provider: local`), or what SkyPilot finds.

    Attributes:
        provider: who lends the machines.
        nodes: machines in the cluster.
        resources: SkyPilot's own `resources:` section, handed over as it is.
        managed: whether SkyPilot starts the job again elsewhere when machines are taken away; None
            does so where it may choose spot machines.
        workers: processes on one machine that each hold one model; auto fills the machine.
        gpus_per_worker: GPUs of one worker; None divides those of the machine.
        threads_per_worker: CPU threads of one worker; None divides the machine among them.
        memory_per_worker: bytes that one worker may use; None sets no bound.
        setup: shell commands for each machine, before kldcloud is installed there.
        packages: requirements of pip's, such as ``"gptqmodel>=4"``, that are installed on each
            machine together with kldcloud: names and versions only, so that the same file
            means the same packages for whoever is given it.
        envs: environment of set-up and job; no secrets.
        secrets: names of variables that are taken from the launching environment and reach the
            machines as environment only; a name that ends in '?' may be missing.
        max_duration: seconds after which the job ends and the machines go, whatever it is doing.
        autodown: seconds of idleness after which the machines go by themselves.
        shard_deadline: seconds that a worker may hold a shard without a step forward (a chunk, a
            part of a download, a loaded model) before it is ended and another takes the shard.
        engine: options that replace those of the job; the ones not written down do not.
    """

    provider: Literal["local", "skypilot"] = "local"
    nodes: Annotated[Whole, Field(ge=1, le=_MOST_NODES)] = 1
    resources: Mapping[str, Any] = Field(default_factory=dict, max_length=_MOST_ENTRIES)
    managed: Switch | None = None
    workers: WorkerCount = "auto"
    gpus_per_worker: Annotated[Whole, Field(ge=0, le=_MOST_THREADS)] | None = None
    threads_per_worker: Annotated[Whole, Field(ge=1, le=_MOST_THREADS)] | None = None
    memory_per_worker: ByteCount | None = None
    setup: Annotated[str, Field(max_length=_LONGEST_TEXT)] = ""
    packages: Annotated[tuple[Requirement, ...], Field(max_length=_MOST_ENTRIES)] = ()
    envs: Mapping[str, str] = Field(default_factory=dict, max_length=_MOST_ENTRIES)
    secrets: Annotated[tuple[str, ...], Field(max_length=_MOST_ENTRIES)] = ()
    max_duration: Duration = 86400
    autodown: Duration = 600
    shard_deadline: Duration = 900
    engine: EngineOptions = EngineOptions()

    @field_validator("envs")
    @classmethod
    def _no_secret_among_envs(cls, envs: Mapping[str, str]) -> Mapping[str, str]:
        for name, value in envs.items():
            _check_variable(name, name)
            if _LOOKS_SECRET.search(name):
                raise refused("looks like a secret: write its name under 'secrets' instead", name)
            if len(value) > _LONGEST_TEXT or "\0" in value:
                raise refused(f"must be text of at most {_LONGEST_TEXT} characters", name)
        return envs

    @field_validator("secrets")
    @classmethod
    def _names_only(cls, secrets: tuple[str, ...]) -> tuple[str, ...]:
        for index, name in enumerate(secrets):
            _check_variable(name.removesuffix("?"), index)
        return secrets

    @model_validator(mode="after")
    def _fits_its_provider(self) -> Self:
        if self.provider == "local":
            for name in ("nodes", "resources", "managed", "setup", "packages", "envs", "secrets"):
                if getattr(self, name) != type(self).model_fields[name].get_default(
                    call_default_factory=True
                ):
                    raise refused("is for provider: skypilot; this machine has no use for it", name)
        both = set(self.envs) & {name.removesuffix("?") for name in self.secrets}
        if both:
            raise refused(f"has {min(both)}, which 'secrets' has as well", "envs")
        return self

    @property
    def remote(self) -> bool:
        """Whether jobs run on other machines than this one."""
        return self.provider != "local"

    @property
    def spot(self) -> bool:
        """Whether SkyPilot may choose a machine that can be taken away."""
        alternatives = [self.resources]
        for key in ("any_of", "ordered"):
            more = self.resources.get(key)
            alternatives += (
                [each for each in more if isinstance(each, Mapping)]
                if isinstance(more, list | tuple)
                else []
            )
        return any(bool(each.get("use_spot")) for each in alternatives)

    @property
    def managed_job(self) -> bool:
        """Whether SkyPilot recovers the job; else it runs on a plain cluster."""
        return self.spot if self.managed is None else self.managed

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


def cluster_name(name_or_path: str) -> str:
    """What a cluster is called: its name, or the stem of its file."""
    return Path(name_or_path).stem if name_or_path.endswith(_SUFFIXES) else name_or_path


def _check_variable(name: str, *at: str | int) -> None:
    if not _VARIABLE.fullmatch(name):
        raise refused(f"{name[:40]!r} cannot name an environment variable", *at)
    if name.startswith(_OURS):
        raise refused(f"{name[:40]} is set by SkyPilot, Ray or kldcloud itself", *at)


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
