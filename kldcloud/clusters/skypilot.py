"""SkyPilot's client: jobs started, followed, cancelled, and their machines given back.

With `sky_library` and `prices` the only module that imports sky, inside functions: that takes
seconds, writes below ~/.sky, and is an optional extra.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kldcloud.clusters.sky_library import LogTee, sky_errors, sky_library
from kldcloud.errors import KldcloudError
from kldcloud.pipeline.launches import is_launch_id

SUCCEEDED: Final = 0
_LAUNCH: Final = "sky.launch"


@dataclass(frozen=True, slots=True)
class SkyJob:
    """A job that SkyPilot has.

    Attributes:
        name: of the cluster or the managed job.
        managed: whether it is one that SkyPilot recovers.
        number: SkyPilot's own.
    """

    name: str
    managed: bool
    number: int | None


def submit(config: Mapping[str, Any], name: str, *, managed: bool, idle_minutes: int) -> SkyJob:
    """Find machines and start a job on them; returns once it is in their queue.

    Args:
        config: the task; see `sky_task.task_config`.
        name: of the cluster or managed job.
        managed: whether SkyPilot shall recover it when machines are taken away.
        idle_minutes: after which a plain cluster goes down by itself.
    """
    with sky_library() as sky:
        task = sky.Task.from_yaml_config(dict(config))
        if managed:
            import sky.jobs

            request = sky.jobs.launch(task, name=name)
            ids, _ = sky.stream_and_get(request, output_stream=LogTee())
            number = ids[0] if isinstance(ids, list) and ids else ids
            return SkyJob(name, managed, number)
        request = sky.launch(
            task,
            cluster_name=name,
            idle_minutes_to_autostop=None if _no_autostop(task) else idle_minutes,
            down=not _no_autostop(task),
        )
        number, _ = sky.stream_and_get(request, output_stream=LogTee())
        return SkyJob(name, managed, number)


def asked_for(name: str) -> str | None:
    """SkyPilot's request for a cluster that it is still setting up; None if there is none.

    Until such a request is done the cluster has no job, or is said not to be up; a second one would
    wait for it, and start the job again beside the first.
    """
    with sky_library() as sky:
        return _request(sky, name)


def joined(request: str, name: str) -> SkyJob:
    """The job of a request that somebody made, once it is in the cluster's queue.

    Args:
        request: from `asked_for`.
        name: of its cluster.
    """
    with sky_library() as sky:
        number, _ = sky.stream_and_get(request, output_stream=LogTee())
        return SkyJob(name, managed=False, number=number)


class Tail(threading.Thread):
    """A job's log, shown as it comes, beside whatever the caller watches meanwhile.

    Attributes:
        code: once the thread has ended, of the job: 0 if it succeeded; None if the log broke off.
        error: why it broke off.
    """

    def __init__(self, job: SkyJob, log: LogTee) -> None:
        super().__init__(daemon=True, name="log")
        self._job = job
        self._log = log
        self.code: int | None = None
        self.error: KldcloudError | None = None

    def run(self) -> None:
        try:
            with sky_errors() as sky:
                code = self._follow(sky)
                self.code = None if code is None else int(code)
        except KldcloudError as error:
            self.error = error

    def _follow(self, sky: Any) -> Any:  # noqa: ANN401 - a module, and what it returns
        job = self._job
        if job.managed:
            import sky.jobs

            return sky.jobs.tail_logs(job_id=job.number, follow=True, output_stream=self._log)
        return sky.tail_logs(job.name, job.number, follow=True, output_stream=self._log)


@contextlib.contextmanager
def tail(job: SkyJob, log: LogTee) -> Iterator[Tail]:
    """Show a job's log in a thread until it ends, or for the length of the block."""
    with sky_library():
        started = Tail(job, log)
        started.start()
        yield started


def find_job(name: str, *, managed: bool, active: bool = False) -> SkyJob | None:
    """The latest job of that name; None if there is none, or no such machines.

    Args:
        name: of the cluster or managed job.
        managed: which of the two.
        active: whether one that has ended does not count.
    """
    with sky_library() as sky:
        if managed:
            import sky.jobs

            reply = sky.get(sky.jobs.queue_v2(refresh=False, skip_finished=active))
            records = [r for r in reply[0] if _field(r, "job_name") == name]
        else:
            if name not in _clusters(sky):
                return None
            try:
                records = sky.get(sky.queue(name, skip_finished=active))
            except (sky.exceptions.ClusterNotUpError, sky.exceptions.ClusterDoesNotExist):
                # It was taken away, or went down by itself: SkyPilot only now finds out.
                return None
            except sky.exceptions.CommandError:
                # A machine that does not answer may be no more; whoever lent it knows.
                if _is_up(sky, name):
                    raise
                return None
        numbers = [int(_field(record, "job_id")) for record in records]
        return SkyJob(name, managed, max(numbers)) if numbers else None


def cancel(job: SkyJob) -> None:
    """End a job; a plain cluster's machines stay, a managed job's go."""
    with sky_library() as sky:
        if job.managed:
            import sky.jobs

            sky.get(sky.jobs.cancel(job_ids=[job.number]))
        else:
            sky.get(sky.cancel(job.name, job_ids=[job.number]))


def down(name: str, *, managed: bool) -> None:
    """Give machines back; nothing happens if there are none."""
    if managed:
        job = find_job(name, managed=True, active=True)
        if job is not None:
            cancel(job)
        return
    with sky_library() as sky:
        request = _request(sky, name)
        if request is not None:  # not a cluster yet, and one in a moment
            sky.get(sky.api_cancel([request], silent=True))
        if name in _clusters(sky):
            sky.stream_and_get(sky.down(name), output_stream=LogTee())


def our_clusters() -> list[str]:
    """Names of all clusters of ours that SkyPilot has, up or stopped."""
    with sky_library() as sky:
        return [name for name in _clusters(sky) if is_launch_id(name)]


def our_managed_jobs() -> list[SkyJob]:
    """Managed jobs of ours that have not ended."""
    with sky_library() as sky:
        import sky.jobs

        records = sky.get(sky.jobs.queue_v2(refresh=False, skip_finished=True))[0]
        return [
            SkyJob(str(_field(record, "job_name")), True, int(_field(record, "job_id")))
            for record in records
            if is_launch_id(str(_field(record, "job_name")))
        ]


def _request(sky: Any, name: str) -> str | None:  # noqa: ANN401 - a module
    found = [
        each
        for each in sky.api_status()  # those that are not done
        if each.name == _LAUNCH and each.cluster_name == name
    ]
    return str(min(found, key=lambda each: each.created_at).request_id) if found else None


def _clusters(sky: Any) -> list[str]:  # noqa: ANN401 - a module
    return [str(_field(each, "name")) for each in sky.get(sky.status())]


def _is_up(sky: Any, name: str) -> bool:  # noqa: ANN401 - a module
    """Ask the cloud itself whether a cluster's machines are there."""
    found = sky.get(sky.status([name], refresh=sky.StatusRefreshMode.FORCE))
    return any(_field(each, "status") == sky.ClusterStatus.UP for each in found)


def _field(record: Any, name: str) -> Any:  # noqa: ANN401 - a mapping or an object, by version
    return record[name] if isinstance(record, Mapping) else getattr(record, name)


def _no_autostop(task: Any) -> bool:  # noqa: ANN401 - SkyPilot's class
    """Whether all machines that the task may get are of a kind that cannot stop by themselves."""
    clouds = {str(each.cloud).lower() for each in task.resources}
    return clouds == {"slurm"}
