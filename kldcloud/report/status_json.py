"""A status for scripts: plain values, times as ISO 8601 in UTC, money in US dollars."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kldcloud.status.launch import LaunchStatus
from kldcloud.status.qad import QadStatus
from kldcloud.status.run_list import RunLine
from kldcloud.status.status import Status
from kldcloud.status.vitals import WorkerFinding, WorkersStatus

_YEAR_10000 = 253_402_300_800


def status_facts(status: Status | QadStatus) -> dict[str, Any]:
    """A status as JSON holds it.

    Returns:
        Fields as `Status` or `QadStatus` documents them, with these differences: `kind` is sweep or
        qad; `run` is null where there is none; `tokens_per_second`; `results` have `kld` and
        `same_top`, each with `mean` and `error`; `cost` sums the launches', and `hourly` is of
        those whose machines are not down.
    """
    if isinstance(status, QadStatus):
        return _qad_facts(status)
    return {
        "kind": "sweep",
        "store": status.store,
        "run": status.run or None,
        "state": status.state,
        "stage": status.stage or None,
        "label": status.label,
        "encoding": status.encoding or None,
        "started": _iso(status.started),
        "updated": _iso(status.updated),
        "attempts": status.attempts,
        "done": status.done,
        "total": status.total or None,
        "tokens_per_second": _number(status.tokens_a_second),
        "eta": _iso(status.eta),
        "stages": [
            {
                "corpus": each.corpus,
                "shards_done": each.shards_done,
                "shards": each.shards,
                "chunks_done": each.chunks_done,
                "complete": each.complete,
            }
            for each in status.stages
        ],
        "results": [
            {
                "corpus": each.corpus,
                "candidate": each.candidate,
                "chunks_done": each.chunks_done,
                "chunks": each.chunks,
                "kld": {"mean": _number(each.kld), "error": _number(each.error)},
                "same_top": {
                    "mean": _number(each.same_top),
                    "error": _number(each.same_top_error),
                },
            }
            for each in status.results
        ],
        "workers": status.workers and _workers(status.workers),
        "failures": list(status.failures),
        "error": status.error,
        **_launches(status.launches),
        "odd": dict(status.odd),
    }


def _qad_facts(status: QadStatus) -> dict[str, Any]:
    looks = {"start": status.start, "latest": status.latest, "best": status.best}
    return {
        "kind": "qad",
        "store": status.store,
        "run": status.run,
        "state": status.state,
        "stage": status.stage or None,
        "label": status.label,
        "started": _iso(status.started),
        "updated": _iso(status.updated),
        "step": status.step,
        "steps": status.steps,
        "kld": status.kld,
        "heldout": {name: look and asdict(look) for name, look in looks.items()},
        "tokens_per_second": status.tokens_a_second,
        "eta": _iso(status.eta),
        "still": status.still,
        "result": status.result and asdict(status.result),
        "error": status.error,
        "warning": status.warning,
        **_launches(status.launches),
    }


def run_facts(run: RunLine) -> dict[str, Any]:
    """A line of `kldcloud runs` as JSON holds it."""
    return {
        "id": run.id,
        "kind": run.kind,
        "name": run.name,
        "state": run.state,
        "done": run.done,
        "total": run.total,
        "started": _iso(run.started),
        "updated": _iso(run.updated),
    }


def _workers(workers: WorkersStatus) -> dict[str, Any]:
    return {
        "count": workers.count,
        "alive": workers.alive,
        "stuck": _findings(workers.stuck),
        "silent": _findings(workers.silent),
    }


def _findings(found: Sequence[WorkerFinding]) -> list[dict[str, Any]]:
    return [
        {
            "worker": each.worker,
            "host": each.host,
            "task": each.task,
            "seconds": round(each.seconds, 1),
        }
        for each in found
    ]


def _launches(launches: Sequence[LaunchStatus]) -> dict[str, Any]:
    running = [each for each in launches if each.record and not each.record.down]
    return {
        "launches": [_launch(each) for each in launches],
        "cost": round(math.fsum(each.cost for each in launches), 4),
        "hourly": math.fsum(each.hourly for each in running),
    }


def _launch(launch: LaunchStatus) -> dict[str, Any]:
    record = launch.record
    return {
        "launch": launch.launch,
        "cluster": record and record.cluster,
        "machine": record and record.machine,
        "nodes": record and record.nodes,
        "managed": record and record.managed,
        "hourly": record and record.hourly,
        "cost": round(launch.cost, 4),
        "launched": _iso(record.launched if record else None),
        "down": _iso(record.down if record else None),
        "maybe_up": launch.maybe_up,
        "attempts": [
            {
                "attempt": each.attempt,
                "run": each.run or None,
                "host": each.host,
                "started": _iso(each.started),
                "updated": _iso(each.updated),
                "state": each.state,
                "label": each.label,
                "error": each.error,
            }
            for each in launch.attempts
        ],
    }


def _iso(seconds: float | None) -> str | None:
    if seconds is None or not 0 < seconds < _YEAR_10000:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
