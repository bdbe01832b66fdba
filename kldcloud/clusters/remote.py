"""A launch on machines that SkyPilot finds: from a validated job to its result in the store."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kldcloud.clusters import following, skypilot
from kldcloud.clusters.following import Followed, under_way
from kldcloud.clusters.giving_back import folder_of, give_back, write_record
from kldcloud.clusters.known_launches import attempts_of, is_complete, is_whole, last_attempt
from kldcloud.clusters.node import MORE_TIME, TRY_AGAIN, seconds_used
from kldcloud.clusters.sealed import seal
from kldcloud.clusters.sky_task import RAY_TOKEN, LaunchFolder, secrets_of, task_config
from kldcloud.clusters.skypilot import SkyJob
from kldcloud.clusters.wheel import build_wheel
from kldcloud.errors import (
    EngineError,
    PartialFailureError,
    SpecError,
    UserError,
)
from kldcloud.models.digests import model_sha256
from kldcloud.pipeline.launches import (
    LaunchOrder,
    job_digest,
    launch_id,
    named_sources,
    ship,
    write_order,
)
from kldcloud.pipeline.life import (
    LaunchRecord,
    launch_key,
    read_launch,
)
from kldcloud.pipeline.progress import Progress
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.load import Job
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.qad_modelopt import MODELOPT
from kldcloud.spec.recipes import RECIPES
from kldcloud.store import check_usable, store_option
from kldcloud.store.base import Store

_MINUTE: Final = 60
_SHOWN_LINES: Final = 3
_SET_UP: Final = re.compile(r"\(setup[^)]*\) ")


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
        job: SkyPilot's; None if there is nothing left to do.
    """

    record: LaunchRecord
    job: SkyJob | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A launch that came to its end.

    Attributes:
        run: its id.
        failed: of a sweep, which candidates are missing from it; None if all are there.
    """

    run: str
    failed: PartialFailureError | None


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
    job: Job,
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
        job: what is measured or trained.
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
        job_there = under_way(known)
        if job_there is not None:
            progress.note(f"launch {launch} is under way already")
        else:
            try:
                job_there = await_machines(known, progress)
            except KeyboardInterrupt:
                progress.note(
                    "its machines are still being set up, for whoever asked first; "
                    f"kldcloud cancel {launch} {store_option(store.uri)} gives them back"
                )
                raise
        if job_there is not None:
            return RemoteLaunch(known, job_there)
    order = LaunchOrder(launch, store.uri, cluster, shipped, seconds, allow_mixed)
    folder = _folder(order, job)
    wheel = model_sha256(folder.path / folder.wheel)
    last = last_attempt(store, launch)
    if known is not None and known.wheel == wheel and is_complete(store, last):
        shutil.rmtree(folder.path, ignore_errors=True)
        if not known.down:
            give_back(known, store, progress)
        return RemoteLaunch(known, None)
    used = seconds_used(store, launch)
    if used >= seconds:
        raise UserError(
            f"launch {launch} has used up its {seconds:.0f} s of machines", hint=MORE_TIME
        )
    record = LaunchRecord(
        launch,
        cluster=cluster_name,
        managed=cluster.managed_job,
        nodes=cluster.nodes,
        machine=machine.words,
        hourly=machine.hourly,
        launched=time.time(),
        max_duration=seconds,
        job=job_digest(job),
        wheel=wheel,
        before=attempts[-1] if (attempts := attempts_of(store, launch)) else "",
    )
    values[RAY_TOKEN] = secrets.token_hex(32)
    config = task_config(launch, cluster, folder, seal(values, folder.path))
    write_record(store, record)
    progress.note(f"launch {launch}: asking SkyPilot for {cluster.nodes} x {cluster_name}")
    try:
        sky_job = skypilot.submit(
            config, launch, managed=record.managed, idle_minutes=max(1, cluster.autodown // _MINUTE)
        )
    except BaseException:
        # Machines may be up, and nothing on them yet that would ever take them down.
        if give_back(record, store, progress):
            progress.note(f"no machine of {launch} is up any more")
        raise
    return RemoteLaunch(record, sky_job)


def follow(launch: RemoteLaunch, store: Store) -> Followed:
    """Show a launch's log to its end; see `following.follow`."""
    if launch.job is None:
        return Followed(skypilot.SUCCEEDED, ())
    return following.follow(launch.job, launch.record, store)


def finish(launch: RemoteLaunch, followed: Followed, store: Store, progress: Progress) -> Ended:
    """Give a launch's machines back, for its job has ended, and find out how.

    Raises:
        KldcloudError: what the driver said when it failed; the machines are gone all the same.
    """
    attempt = last_attempt(store, launch.record.launch)
    if launch.job is None and attempt is not None:
        progress.note(f"run {attempt.run} is complete already")
        return Ended(attempt.run, None)
    give_back(launch.record, store, progress)
    if attempt is None or attempt.attempt == launch.record.before:
        # Around what a set-up says, SkyPilot and Slurm tell at length that it ended.
        said = [line for line in followed.last if _SET_UP.match(line)] or followed.last
        words = [_SET_UP.sub("", line) for line in said[-_SHOWN_LINES:]]
        raise EngineError(
            f"the machines did not get as far as the job: {' | '.join(words) or 'in silence'}",
            hint="mend what that says, such as the cluster file's setup, and launch again",
        )
    # SkyPilot's code may be that of a connection which broke off: what is in the store counts.
    if attempt.run and (attempt.state == "finished" or is_whole(store, attempt.run)):
        failed = PartialFailureError(attempt.error, hint=TRY_AGAIN) if attempt.error else None
        return Ended(attempt.run, failed)
    if attempt.state == "out-of-time":
        raise EngineError(
            f"the {launch.record.max_duration:.0f} s of {launch.record.launch} are over",
            hint=MORE_TIME,
        )
    if attempt.exit_code == UserError.exit_code:
        raise UserError(f"on its machines: {attempt.error}")
    what = f"the job failed on its machines: {attempt.error}"
    if not attempt.error:
        what = "the job ended without a word: cancelled from elsewhere, or killed on its machines"
    raise EngineError(what, hint="the same command goes on from what is committed")


def await_machines(record: LaunchRecord, progress: Progress) -> SkyJob | None:
    """The job of a launch whose machines somebody else is having set up, once they are.

    Returns:
        None where nobody is.

    Raises:
        KldcloudError: they could not be had, or were given back meanwhile.
    """
    request = None if record.managed else skypilot.asked_for(record.launch)
    if request is None:
        return None
    progress.note(f"launch {record.launch} is under way already: its machines are being set up")
    return skypilot.joined(request, record.launch)


def _folder(order: LaunchOrder, job: Job) -> LaunchFolder:
    """The folder that travels, made anew: SkyPilot may read it again when it recovers a job."""
    path = folder_of(order.launch)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, mode=0o700)
    wheel = build_wheel(path)
    write_order(path, order, job)
    named = [uri for uri, _ in named_sources(job)]
    quants = () if isinstance(job, QadJob) else [each.quantize for each in job.candidates]
    return LaunchFolder(
        Path(path),
        wheel.name,
        needs_hub=any(uri.scheme == "hf" for uri in named),
        trains=isinstance(job, QadJob),
        runs_folders=any(uri.is_repository for uri in named)
        or any(each.folder for each in order.shipped),
        recipes=any(quant in RECIPES for quant in quants),
        modelopt=isinstance(job, QadJob) and job.student.trainer == MODELOPT,
    )
