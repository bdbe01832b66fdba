"""One sweep on the lab's two nodes, or on this machine, and what a store tells of it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kldcloud.errors import KldcloudError
from kldcloud.pipeline.life import DriverLife, read_driver
from kldcloud.store import open_store
from kldcloud.store.base import Store

TESTS = Path(__file__).resolve().parents[1] / "tests"
POLL_SECONDS = 1.0
TAIL_BYTES = 4000
WORKERS = 2
"""One a node of the lab; on this machine as many, each with one thread as there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run.

    Attributes:
        run: its id.
        summary: bytes of summary.json.
        launch_seconds: of the whole command, machines found, set up and given back included.
        run_seconds: of the driver's part.
        staging_seconds: until the base stage was whole.
        measuring_seconds: from there until the last partial was committed.
        staged_bytes: that the store lists as stages.
        peak_bytes: resident, of each worker.
        worker_cpu_seconds: of all workers at work.
        driver_cpu_seconds: of the driver.
        moved: node -> bytes received and sent; empty on this machine.
        engine: facts of llama.cpp that are part of every key.
    """

    run: str
    summary: bytes
    launch_seconds: float
    run_seconds: float
    staging_seconds: float
    measuring_seconds: float
    staged_bytes: int
    peak_bytes: tuple[float, ...]
    worker_cpu_seconds: float
    driver_cpu_seconds: float
    moved: Mapping[str, tuple[int, int]]
    engine: Mapping[str, str]


class Phases:
    """When the driver went from staging to measuring and on to reducing, from its heartbeats."""

    def __init__(self, store: Store, tell: Callable[[str], None]) -> None:
        self._store = store
        self._tell = tell
        self._began: dict[str, float] = {}
        self._told = ""

    def look(self) -> None:
        """Read the newest heartbeat; a store that does not answer is asked again later."""
        try:
            keys = [i.key for i in self._store.list("runs/") if i.key.endswith("/driver.json")]
            life = read_driver(self._store, keys[-1]) if keys else None
        except KldcloudError:
            return
        if life is None:
            return
        # Only staging and measuring date their beginning themselves.
        begins = life.since if life.state in {"staging", "measuring"} else life.updated
        if begins:
            self._began.setdefault(life.state, begins)
        self._report(life)

    def seconds(self) -> tuple[float, float]:
        """Of staging and of measuring; NaN for what went by unseen."""
        nan = float("nan")
        staging, measuring = self._began.get("staging", nan), self._began.get("measuring", nan)
        ended = [self._began[name] for name in ("reducing", "finished") if name in self._began]
        return measuring - staging, min(ended, default=nan) - measuring

    def _report(self, life: DriverLife) -> None:
        told = f"{life.state} {life.done} of {life.total}"
        if told != self._told:
            self._tell(told)
        self._told = told


def on_two_nodes(job: Path, visible: list[Path], log: Path, tell: Callable[[str], None]) -> Outcome:
    """Launch the job through SkyPilot on a lab of its own; its output goes to `log`.

    Raises:
        SystemExit: the launch failed; with the end of its output.
    """
    from lab.lifetime import bring_up, store_from_outside, take_down
    from lab.places import NODES

    tell("bringing the lab up")
    lab = bring_up(Path(tempfile.mkdtemp(prefix="fc-")), visible, tied=True)
    try:
        cluster = job.with_name("lab.yaml")
        cluster.write_text(
            yaml.safe_dump(
                {
                    "provider": "skypilot",
                    "nodes": len(NODES),
                    "resources": {"infra": "slurm/lab", "cpus": "1+"},
                    "workers": WORKERS // len(NODES),
                    "threads_per_worker": 1,
                    "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
                    "max_duration": "12h",
                }
            )
        )
        uri = lab.store_uri("full")
        before = {node: _traffic(lab, node) for node in NODES}
        with store_from_outside(lab) as server, _environment(lab.s3_env, server.endpoint):
            store = open_store(uri)
            process = lab.popen(_command(job, uri, cluster), log, env=lab.s3_env)
            launched, phases = _wait(process, store, log, tell)
            after = {node: _traffic(lab, node) for node in NODES}
            moved = {
                node: (after[node][0] - before[node][0], after[node][1] - before[node][1])
                for node in NODES
            }
            return _outcome(store, launched, phases, moved)
    finally:
        take_down(lab)


def on_this_machine(job: Path, folder: Path, log: Path, tell: Callable[[str], None]) -> Outcome:
    """Launch the job here, with a folder for a store.

    Raises:
        SystemExit: the launch failed; with the end of its output.
    """
    cluster = job.with_name("one-node.yaml")
    facts = {"provider": "local", "workers": WORKERS, "threads_per_worker": 1}
    cluster.write_text(yaml.safe_dump(facts))
    store = open_store(str(folder))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            _command(job, str(folder), cluster), stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        launched, phases = _wait(process, store, log, tell)
    finally:
        process.terminate()
        process.wait()
    return _outcome(store, launched, phases, {})


def lab_obstacle() -> str | None:
    """Why the lab cannot come up here, or None; it is the tests' own, which this puts on the path.

    Call it before `on_two_nodes`.
    """
    sys.path.insert(0, str(TESTS))
    from lab.needs import obstacle

    found: str | None = obstacle()
    return found


def _command(job: Path, store: str, cluster: Path) -> list[str]:
    words = [sys.executable, "-m", "kldcloud.cli.main", "launch", str(job), "-y"]
    return [*words, "--store", store, "--cluster", str(cluster)]


def _wait(
    process: subprocess.Popen[bytes], store: Store, log: Path, tell: Callable[[str], None]
) -> tuple[float, Phases]:
    """Follow a launch to its end; its seconds, and its phases."""
    started = time.monotonic()
    phases = Phases(store, tell)
    while process.poll() is None:
        phases.look()
        time.sleep(POLL_SECONDS)
    phases.look()
    if process.returncode != 0:
        tail = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        raise SystemExit(f"the launch failed with exit code {process.returncode}:\n{tail}")
    return time.monotonic() - started, phases


def _outcome(
    store: Store, launched: float, phases: Phases, moved: Mapping[str, tuple[int, int]]
) -> Outcome:
    listed = list(store.list("runs/"))
    summary = next(info.key for info in listed if info.key.endswith("/summary.json"))
    ended = next(info.key for info in listed if info.key.endswith("/ended.json"))
    life = json.loads(store.read(ended))
    stages = list(store.list("stages/"))
    manifest = next(info.key for info in stages if info.key.endswith("/manifest.json"))
    staging, measuring = phases.seconds()
    workers = life["worker_usage"]
    return Outcome(
        run=summary.split("/")[1],
        summary=store.read(summary),
        launch_seconds=launched,
        run_seconds=life["seconds"],
        staging_seconds=staging,
        measuring_seconds=measuring,
        staged_bytes=sum(info.size for info in stages),
        peak_bytes=tuple(worker["peak_bytes"] for worker in workers),
        worker_cpu_seconds=sum(worker["cpu_seconds"] for worker in workers),
        driver_cpu_seconds=life["driver_cpu_seconds"],
        moved=moved,
        engine=json.loads(store.read(manifest))["engine"],
    )


def _traffic(lab: Any, node: str) -> tuple[int, int]:  # noqa: ANN401 - the lab is imported late
    """Bytes that a node's network card has received and sent."""
    lines = lab.on_node(node, ["cat", "/proc/net/dev"]).stdout.splitlines()
    card = next(line for line in lines if line.strip().startswith("eth0:"))
    counts = card.split(":")[1].split()
    return int(counts[0]), int(counts[8])


@contextmanager
def _environment(s3: Mapping[str, str], endpoint: str) -> Iterator[None]:
    """Reach the lab's S3 server from this process, by another address than the nodes use."""
    before = dict(os.environ)
    os.environ.update({**s3, "AWS_ENDPOINT_URL": endpoint})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
