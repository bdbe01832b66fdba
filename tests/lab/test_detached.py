"""A launch that nobody watches goes on: it is found again, followed, cancelled, and taken down."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from .launches import LAUNCH_SECONDS, Desk, processes_with, signal_all, until
from .places import NODES
from .ports import RAY, answers, listeners, ray_token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WORKER = "ray::SweepWorker"
REFUSED = {"UNAUTHENTICATED", "401", "403"}


@dataclass(frozen=True, slots=True)
class Detached:
    """A launch whose terminal is gone, and what it said there."""

    desk: Desk
    said: subprocess.CompletedProcess[str]

    @property
    def launch(self) -> str:
        return self.said.stdout.strip()

    def signal_workers(self, number: signal.Signals) -> None:
        for node in NODES:
            signal_all(processes_with(self.desk.lab, node, WORKER), number)


@pytest.fixture(scope="module")
def detached(desk_for: Callable[[str], Desk]) -> Iterator[Detached]:
    desk = desk_for("detached")
    model = desk.job_facts["candidates"][0]["model"]
    # More than is done while the tests let it go on for a moment.
    desk.write({"candidates": [{"model": model, "name": f"again-{at}"} for at in range(20)]})
    said = desk.launch("-d")
    assert said.returncode == 0, said.stderr
    yield Detached(desk, said)
    desk.command("down", "--all")


@pytest.fixture(scope="module")
def measuring(detached: Detached) -> Detached:
    """It measures, and its workers stand still, so that it stays as it is."""
    until(lambda: detached.desk.partials() > 5, seconds=LAUNCH_SECONDS)
    detached.signal_workers(signal.SIGSTOP)
    return detached


def follow(desk: Desk, *words: str) -> tuple[int, str]:
    """Start a command that follows the job, press Ctrl-C once it does; its exit code and output."""
    process = desk.begin(*words)
    until(lambda: ") attempt " in desk.output.read_text() or process.poll() is not None)
    desk.lab.interrupt(process)
    return process.wait(LAUNCH_SECONDS), desk.output.read_text()


def test_a_detached_launch_prints_its_id_and_how_to_come_back(detached: Detached) -> None:
    assert detached.said.stdout == f"{detached.desk.launch_record()['launch']}\n"
    store = detached.desk.uri
    come_back = f"kldcloud status {detached.launch} --store {store} -w shows how far it is"
    assert detached.said.stderr.splitlines()[-1] == come_back
    assert not any(key.endswith("summary.json") for key in detached.desk.kept("runs/"))


def test_ctrl_c_on_logs_leaves_the_job_running(measuring: Detached) -> None:
    desk = measuring.desk
    code, output = follow(desk, "logs", measuring.launch, "--store", desk.uri)
    assert code == 0, output
    assert output.splitlines()[-1] == (
        f"the job goes on; kldcloud logs {measuring.launch} --store {desk.uri} comes back to it"
    )
    assert processes_with(desk.lab, "n1", WORKER)


def test_launching_it_again_joins_it_and_ctrl_c_leaves_it_running(measuring: Detached) -> None:
    desk = measuring.desk
    code, output = follow(desk)
    assert code == 0, output
    assert f"launch {measuring.launch} is under way already\n" in output
    assert output.splitlines()[-1].startswith("the job goes on without this terminal; ")
    assert len(desk.lab.squeue()) == 1
    assert processes_with(desk.lab, "n1", WORKER)
    assert not desk.launch_record()["down"]


@pytest.mark.parametrize(
    ("node", "kinds"),
    [
        ("n1", {"gcs", "raylet", "agent", "worker", "driver", "SkyPilot", "Slurm"}),
        ("n2", {"raylet", "agent", "worker", "Slurm"}),
    ],
)
def test_nothing_of_ours_listens_but_ray_without_its_dashboard_client_server_and_metrics(
    measuring: Detached, node: str, kinds: set[str]
) -> None:
    found = listeners(measuring.desk.lab, node)
    assert {each.kind for each in found} == kinds
    assert {each.address for each in found if each.kind == "agent"} == {NODES[node]}
    # Of each of Ray's processes, a port for each of the services that `ports.py` asks.
    numbers = [each.kind for each in found if each.kind in RAY]
    assert [numbers.count(kind) for kind in ("gcs", "raylet", "driver", "agent")] in (
        [1, 2, 1, 1],
        [0, 2, 0, 1],
    )
    assert not {each.port for each in found} & {6379, 8080, 8265, 10001, 52365}


def test_every_port_of_rays_refuses_a_client_without_the_token(measuring: Detached) -> None:
    lab = measuring.desk.lab
    ray = [
        (address, each)
        for node, address in NODES.items()
        for each in listeners(lab, node)
        if each.kind in RAY
    ]
    # A raylet is not asked with the token: nobody but Ray knows what it makes of an empty question.
    others = [each for each in ray if each[1].kind != "raylet"]
    token = ray_token(lab, "n1")
    # Whoever stands still cannot refuse.
    measuring.signal_workers(signal.SIGCONT)
    without, wrong = answers(lab, ray, ["", "0" * 64])
    (known,) = answers(lab, others, [token])
    measuring.signal_workers(signal.SIGSTOP)
    for port, *said in zip(ray, without, wrong, strict=True):
        assert all(each & REFUSED and each <= REFUSED | {"UNIMPLEMENTED"} for each in said), port
    # The same questions are answered to those who know it.
    assert set().union(*known) == {"OK", "200"}


def test_cancel_ends_it_and_gives_its_machines_back(measuring: Detached) -> None:
    desk = measuring.desk
    said = desk.command("cancel", str(desk.job))
    assert said.returncode == 0, said.stderr
    assert said.stdout == (
        f"{measuring.launch}: ended; launching its job again goes on from what is committed\n"
    )
    until(desk.machines_are_gone)
    after = desk.command("logs", measuring.launch, "--store", desk.uri)
    assert after.returncode == 2
    assert f"the machines of {measuring.launch} are gone" in after.stderr
    seen = json.loads(desk.command("status", "latest", "--store", desk.uri, "--json").stdout)
    assert seen["done"] > 0
    assert seen["launches"][0]["down"]


def test_down_all_takes_whatever_is_up(measuring: Detached) -> None:
    desk = measuring.desk
    again = desk.launch("-d")
    assert again.stdout.strip() == measuring.launch, again.stderr
    said = desk.command("down", "--all")
    assert said.returncode == 0, said.stderr
    assert said.stdout == f"{measuring.launch}: down\n"
    until(desk.machines_are_gone)
    # Whoever names it afterwards finds nothing to do.
    named = desk.command("down", measuring.launch, "--store", desk.uri)
    assert (named.returncode, named.stdout) == (0, f"{measuring.launch}: down\n")
