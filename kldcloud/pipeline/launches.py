"""A launch on other machines: what goes ahead into the store, and what its folder says.

launches/<launch>/machine.json      what was rented; see `life.LaunchRecord`
launches/<launch>/attempts/*.json   each time that the machines ran it
models/<sha256>                     files that only the launching machine had
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from kldcloud.errors import FormatError, UserError
from kldcloud.models.digests import model_sha256
from kldcloud.models.folder_copy import upload_folder_once
from kldcloud.models.folder_digest import folder_sha256
from kldcloud.models.long_text import LongText
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.store_copy import upload_once
from kldcloud.pipeline.life import LaunchRecord, launch_key, read_launch
from kldcloud.pipeline.prepare import check_conversations, check_models
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.qad_files import check_given, given_files
from kldcloud.pipeline.runs import job_bytes, what_counts
from kldcloud.pipeline.sources import FETCHED_ANYWHERE, ShippedFile, Sources
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.spec.load import KINDS, Job, load_job
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.stage import canonical_json
from kldcloud.store import open_store
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

JOB_FILE = "job.yaml"
LAUNCH_FILE = "launch.json"
MAX_FILE_BYTES = 16 << 20
_ID_DIGITS = 8
_LONGEST_NAME = 20
"""SkyPilot makes host names of a cluster's: clouds stop at 30 to 60 characters."""


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What the machines are told, as `launch.json` beside `job.yaml`.

    Attributes:
        launch: its id.
        store: URI of the store.
        cluster: the cluster file's content.
        shipped: files that went ahead.
        seconds: that all attempts together may take.
        allow_mixed: whether machines may differ.
    """

    launch: str
    store: str
    cluster: ClusterSpec
    shipped: tuple[ShippedFile, ...]
    seconds: float
    allow_mixed: bool = False

    def to_json(self) -> bytes:
        facts = {
            "launch": self.launch,
            "store": self.store,
            "cluster": self.cluster.model_dump(mode="json", exclude_unset=True),
            "shipped": [asdict(each) for each in self.shipped],
            "seconds": self.seconds,
            "allow_mixed": self.allow_mixed,
        }
        return canonical_json(facts)

    def sources(self, store: Store) -> Sources:
        return Sources(store, {each.uri: each for each in self.shipped})


def read_order(folder: Path) -> tuple[LaunchOrder, Job]:
    """The order and the job of a folder that travelled.

    Raises:
        UserError: if it is not one.
    """
    try:
        facts = json.loads(_bounded(folder / LAUNCH_FILE))
        shipped = TypeAdapter(tuple[ShippedFile, ...]).validate_python(
            [dict(each) for each in facts["shipped"]]
        )
        order = LaunchOrder(
            launch=str(facts["launch"]),
            store=str(facts["store"]),
            cluster=ClusterSpec.model_validate(facts["cluster"]),
            shipped=shipped,
            seconds=float(facts["seconds"]),
            allow_mixed=facts["allow_mixed"] is True,
        )
        content = yaml.safe_load(_bounded(folder / JOB_FILE))
        job = KINDS[content["kind"]].model_validate(content)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError, ValidationError) as error:
        raise FormatError(f"{folder} is not the folder of a launch: {error}") from error
    return order, job


def write_order(folder: Path, order: LaunchOrder, job: Job) -> None:
    """Write what `read_order` reads."""
    (folder / LAUNCH_FILE).write_bytes(order.to_json())
    (folder / JOB_FILE).write_bytes(job_bytes(job))


def launch_id(job: Job, store: str, cluster: ClusterSpec, shipped: tuple[ShippedFile, ...]) -> str:
    """The same command has the same id, so that it finds its own machines again."""
    facts = {
        "job": what_counts(job.model_dump(mode="json")),
        "store": store,
        "cluster": cluster.model_dump(mode="json"),
        "shipped": [asdict(each) for each in shipped],
    }
    name = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")[:_LONGEST_NAME].rstrip("-")
    return f"kld-{name or 'job'}-{sha256_bytes(canonical_json(facts))[:_ID_DIGITS]}"


def is_launch_id(name: str) -> bool:
    """Whether a name is one that `launch_id` makes; what else begins with kld- is not ours."""
    return re.fullmatch(rf"kld-[a-z0-9-]+-[0-9a-f]{{{_ID_DIGITS}}}", name) is not None


def job_digest(job: Job) -> str:
    """Of what moves a number in a job: the same for the same job anywhere."""
    return sha256_bytes(canonical_json(what_counts(job.model_dump(mode="json"))))


def read_launches(store: Store) -> list[LaunchRecord]:
    """All launches in a store, the oldest first."""
    names = sorted({info.key.split("/")[1] for info in store.list("launches/")})
    records = [read_launch(store, launch_key(name)) for name in names]
    return sorted((each for each in records if each is not None), key=lambda each: each.launched)


def launch_of_job(path: Path, store: str | None) -> tuple[LaunchRecord, Store] | None:
    """The latest launch of a job file, and the store that has it; None if it has none.

    Args:
        path: the job file.
        store: where to look instead of where the job says.
    """
    job = load_job(path, [f"store={store}"] if store else [])
    kept = open_store(job.store)
    digest = job_digest(job)
    found = [each for each in read_launches(kept) if each.job == digest]
    return (found[-1], kept) if found else None


def ship(job: Job, store: Store, progress: Progress) -> tuple[ShippedFile, ...]:
    """Upload what only this machine has; each file once, by digest.

    Models and conversations are looked at first, so that what is none is refused before hours of
    upload.

    Raises:
        UserError: for what is not there, or not what it should be.
    """
    if isinstance(job, QadJob):
        check_given(job, progress)
    else:
        check_models(job, progress)
        check_conversations(job, progress)
    shipped: dict[str, ShippedFile] = {}
    for uri, is_text in named_sources(job):
        if uri.scheme in FETCHED_ANYWHERE or str(uri) in shipped:
            continue
        path = _text_file(uri, job, progress) if is_text else Sources().fetch_model(uri, progress)
        if path.is_dir():
            shipped[str(uri)] = _ship_folder(uri, path, store, progress)
            continue
        size = path.stat().st_size
        if size == 0:
            raise UserError(f"{uri} is empty")
        with progress.bar(f"hashing {uri.filename}", size) as bar:
            digest = model_sha256(path, bar.advance)
        with progress.bar(f"uploading {uri.filename}", size) as bar:
            upload_once(store, path, digest, bar.reach)
        shipped[str(uri)] = ShippedFile(str(uri), digest, size)
    return tuple(shipped.values())


def _ship_folder(uri: SourceUri, path: Path, store: Store, progress: Progress) -> ShippedFile:
    size = read_model_folder(path).tensor_bytes
    with progress.bar(f"hashing {uri.filename}", size) as bar:
        digest = folder_sha256(path, bar.advance)
    with progress.bar(f"uploading {uri.filename}", size) as bar:
        upload_folder_once(store, path, digest, bar.reach)
    return ShippedFile(str(uri), digest, size, folder=True)


def named_sources(job: Job) -> Iterator[tuple[SourceUri, bool]]:
    """Every file that a job names, and whether it is a text."""
    if isinstance(job, QadJob):
        yield from ((uri, False) for uri in given_files(job))
        yield from ((uri, True) for uri in (job.data.text, job.eval.second_text) if uri is not None)
        return
    yield from _named_by_sweep(job)


def _named_by_sweep(job: SweepJob) -> Iterator[tuple[SourceUri, bool]]:
    for uri in (job.base.model, job.base.logits):
        if uri is not None:
            yield uri, False
    for candidate in job.candidates:
        if candidate.model is not None:
            yield candidate.model, False
        if candidate.imatrix is not None:
            yield candidate.imatrix.source, candidate.imatrix.text is not None
    for corpus in job.corpora:
        yield corpus.text, True


def _text_file(uri: SourceUri, job: Job, progress: Progress) -> Path:
    """A text as a file, of which every byte was looked at."""
    path = Sources().text_file(uri, progress)
    if isinstance(job, QadJob) and uri == job.data.text:
        LongText(path, str(uri))
    else:
        Sources().read_text(uri, progress)
    return path


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
    return path.read_bytes()
