"""A launch on machines that SkyPilot finds: from a validated job to its result in the store."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from kldcloud.clusters import skypilot
from kldcloud.clusters.sealed import seal
from kldcloud.clusters.sky_task import RAY_TOKEN, LaunchFolder, secrets_of, task_config
from kldcloud.clusters.skypilot import LogTee, SkyJob
from kldcloud.clusters.wheel import build_wheel
from kldcloud.errors import EngineError, KldcloudError, SpecError, UserError
from kldcloud.models.cache import cache_dir
from kldcloud.pipeline.launches import (
    LaunchOrder,
    job_digest,
    launch_id,
    launch_of_job,
    read_launches,
    ship,
    write_order,
)
from kldcloud.pipeline.life import (
    AttemptRecord,
    LaunchRecord,
    launch_key,
    read_attempt,
    read_launch,
)
from kldcloud.pipeline.progress import Progress
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.store import check_usable, open_store
from kldcloud.store.base import Store

_MINUTE: Final = 60


@dataclass(frozen=True, slots=True)
class Machine:
    """What was chosen, for the record.

    Attributes:
        words: cloud, instance, accelerators, spot or not.
        hourly: US dollars an hour of all machines.
    """

    words: str = ""
    hourly: float = 0.0


@dataclass(frozen=True, slots=True)
class RemoteLaunch:
    """A launch that is on its way.

    Attributes:
        record: what the store says of it.
        job: SkyPilot's.
    """

    record: LaunchRecord
    job: SkyJob


def check_store(store: Store, cluster_name: str) -> None:
    """Refuse a store that other machines cannot reach.

    Raises:
        SpecError: it is a folder of this machine.
    """
    if not store.uri.startswith("s3:"):
        raise SpecError(
            f"store {store.uri} is a folder here, out of reach for the machines of {cluster_name}",
            hint="write store: s3://bucket/prefix in the job, or add --store s3://bucket/prefix",
        )


def start(
    job: SweepJob,
    cluster: ClusterSpec,
    cluster_name: str,
    store: Store,
    machine: Machine,
    progress: Progress,
    *,
    seconds: float,
    allow_mixed: bool = False,
) -> RemoteLaunch:
    """Upload what the machines need, find them, and start the job; or find it under way.

    Args:
        job: what is measured.
        cluster: where.
        cluster_name: what people call that.
        store: which the machines can reach.
        machine: what the plan chose.
        progress: for the person at the terminal.
        seconds: of machines that all attempts together may take.
        allow_mixed: whether machines whose engines differ may share the work.
    """
    check_store(store, cluster_name)
    check_usable(store)
    values = secrets_of(cluster)
    shipped = ship(job, store, progress)
    launch = launch_id(job, store.uri, cluster, shipped)
    known = read_launch(store, launch_key(launch))
    if known is not None and not known.down:
        under_way = _under_way(known)
        if under_way is not None:
            progress.note(f"launch {launch} is under way already")
            return RemoteLaunch(known, under_way)
    record = LaunchRecord(
        launch,
        cluster=cluster_name,
        managed=cluster.spot,
        nodes=cluster.nodes,
        machine=machine.words,
        hourly=machine.hourly,
        launched=time.time(),
        max_duration=seconds,
        job=job_digest(job),
    )
    order = LaunchOrder(launch, store.uri, cluster, shipped, seconds, allow_mixed)
    folder = _folder(order, job)
    values[RAY_TOKEN] = secrets.token_hex(32)
    config = task_config(launch, cluster, folder, seal(values, folder.path))
    _write_record(store, record)
    progress.note(f"launch {launch}: asking SkyPilot for {cluster.nodes} x {cluster_name}")
    try:
        sky_job = skypilot.submit(
            config, launch, managed=record.managed, idle_minutes=max(1, cluster.autodown // _MINUTE)
        )
    except BaseException:
        # Machines may be up, and nothing on them yet that would ever take them down.
        give_back(record, store, progress)
        raise
    return RemoteLaunch(record, sky_job)


def finish(launch: RemoteLaunch, store: Store, progress: Progress) -> str:
    """Follow a launch to its end, give its machines back, and return the id of its run.

    Raises:
        KldcloudError: what the driver said when it failed; the machines are gone all the same.
        KeyboardInterrupt: passes through: the job goes on.
    """
    log = LogTee()
    code = skypilot.follow(launch.job, log)
    attempt = last_attempt(store, launch.record.launch)
    give_back(launch.record, store, progress)
    if code == skypilot.SUCCEEDED and attempt is not None and attempt.run:
        return attempt.run
    if attempt is None or attempt.started < launch.record.launched:
        said = " | ".join(list(log.last)[-3:]) or "it said nothing"
        raise EngineError(
            f"the machines did not get as far as the job: {said}",
            hint="mend what it says in the cluster file's setup, and launch again",
        )
    raise EngineError(
        f"the job failed on the machines ({attempt.state}): {attempt.error or 'without a word'}",
        hint="the same command goes on from what is committed",
    )


def give_back(record: LaunchRecord, store: Store, progress: Progress) -> None:
    """Give a launch's machines back and note it; a failure is a warning that says what to do."""
    try:
        skypilot.down(record.launch, managed=record.managed)
    except KldcloudError as error:
        progress.warn(
            f"machines of {record.launch} may still be up: {error.message}; "
            f"kldcloud down {record.launch} tries again"
        )
        return
    _write_record(store, replace(record, down=time.time()))


def last_attempt(store: Store, launch: str) -> AttemptRecord | None:
    """The latest time that machines ran a launch."""
    keys = [info.key for info in store.list(f"launches/{launch}/attempts/")]
    return read_attempt(store, keys[-1]) if keys else None


def find_launch(name: str, store: str | None) -> tuple[LaunchRecord, Store]:
    """The launch that a person means, and the store that has it.

    Args:
        name: its id, a prefix of it, its run's id, a job file, or `latest`.
        store: where to look; a job file names its own.

    Raises:
        UserError: there is none, or there are several.
    """
    if name.endswith((".yaml", ".yml")):
        found_by_job = launch_of_job(Path(name), store)
        if found_by_job is None:
            raise UserError(f"{name} has not been launched on other machines")
        return found_by_job
    if store is None:
        raise UserError(
            "which store does the launch write to?",
            hint="name its job file instead, or add --store s3://bucket/prefix",
        )
    kept = open_store(store)
    records = read_launches(kept)
    if name == "latest":
        found = records[-1:]
    else:
        found = [each for each in records if each.launch == name]
        found = found or [each for each in records if each.launch.startswith(name)]
        found = found or [each for each in records if _runs(kept, each, name)]
    if len(found) > 1:
        names = ", ".join(each.launch for each in found[:5])
        raise UserError(f"{name} could be any of {names}", hint="give more of its id")
    if not found:
        names = ", ".join(each.launch for each in records[-3:]) or "none"
        raise UserError(f"no launch {name} in {kept.uri}", hint=f"it has {names}")
    return found[0], kept


def _runs(store: Store, record: LaunchRecord, run: str) -> bool:
    attempt = last_attempt(store, record.launch)
    return attempt is not None and attempt.run != "" and attempt.run.startswith(run)


def _under_way(record: LaunchRecord) -> SkyJob | None:
    """The launch's job, if it has one that has not ended."""
    return skypilot.find_job(record.launch, managed=record.managed, active=True)


def _write_record(store: Store, record: LaunchRecord) -> None:
    store.write(launch_key(record.launch), json.dumps(asdict(record)).encode())


def _folder(order: LaunchOrder, job: SweepJob) -> LaunchFolder:
    """The folder that travels, made anew: SkyPilot may read it again when it recovers a job."""
    path = cache_dir() / "launches" / order.launch
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, mode=0o700)
    wheel = build_wheel(path)
    write_order(path, order, job)
    sources = [job.base.model, job.base.logits, *(each.model for each in job.candidates)]
    sources += [each.text for each in job.corpora]
    hub = any(each is not None and each.scheme == "hf" for each in sources)
    return LaunchFolder(Path(path), wheel.name, hub)
