"""Machines that fail in the middle cost time, never a byte of the result, and no shard twice."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from .launches import (
    LAUNCH_SECONDS,
    Desk,
    Kept,
    processes_with,
    signal_all,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

WORKER = "ray::SweepWorker"
Desks = Callable[[str], Desk]


def measuring(desk: Desk) -> bool:
    return desk.partials() > 10


def untouched(desk: Desk, earlier: dict[str, Kept]) -> bool:
    """Whether what was committed earlier is there as it was."""
    assert len(earlier) > 10
    now = desk.commits()
    return {key: now.get(key) for key in earlier} == earlier


def test_a_node_whose_ray_is_killed_joins_again(
    desk_for: Desks, local_bytes: dict[str, bytes]
) -> None:
    desk = desk_for("ray-killed")
    launched = desk.begin()
    until(lambda: measuring(desk), seconds=LAUNCH_SECONDS)
    # While the other node's worker stands still, only one that came back can go on.
    other = processes_with(desk.lab, "n1", WORKER)
    signal_all(other, signal.SIGSTOP)
    killed = processes_with(desk.lab, "n2", "ray::", "/raylet/raylet ")
    assert len(killed) > 2
    signal_all(killed, signal.SIGKILL)
    earlier = desk.commits()
    pids = {each.pid for each in killed}
    until(lambda: {each.pid for each in processes_with(desk.lab, "n2", WORKER)} - pids)
    until(lambda: len(desk.commits()) > len(earlier) + 5)
    signal_all(other, signal.SIGCONT)
    assert launched.wait(LAUNCH_SECONDS) == 0, desk.output.read_text()
    assert desk.result_bytes() == local_bytes
    assert untouched(desk, earlier)
    assert len(desk.attempts()) == 1


def test_a_lost_machine_that_slurm_waits_for_holds_nobody_up(
    desk_for: Desks, local_bytes: dict[str, bytes]
) -> None:
    desk = desk_for("lost")
    launched = desk.begin()
    until(lambda: measuring(desk), seconds=LAUNCH_SECONDS)
    # What ran the job there is gone, and Slurm's daemon, which would notice a dead machine, is not.
    lost = [each for each in desk.lab.processes("n2") if not each.command.startswith("slurmd ")]
    signal_all(lost, signal.SIGKILL)
    earlier = desk.commits()
    assert launched.wait(LAUNCH_SECONDS) == 0, desk.output.read_text()
    assert desk.result_bytes() == local_bytes
    assert untouched(desk, earlier)
    assert len(desk.attempts()) == 1
    until(desk.machines_are_gone)


def test_after_the_drivers_machine_is_lost_the_same_command_goes_on(
    desk_for: Desks, local_bytes: dict[str, bytes]
) -> None:
    desk = desk_for("driver-lost")
    launched = desk.begin()
    until(lambda: measuring(desk), seconds=LAUNCH_SECONDS)
    desk.lab.kill_node("n1")
    desk.lab.start_node("n1")
    assert launched.wait(LAUNCH_SECONDS) == 1, desk.output.read_text()
    # Nobody was left on that machine to say why.
    assert desk.output.read_text().splitlines()[-1] == (
        "kldcloud: the job ended without a word: cancelled from elsewhere, or killed on its "
        "machines; the same command goes on from what is committed"
    )
    until(desk.machines_are_gone)
    earlier = desk.commits()

    again = desk.launch()
    assert again.returncode == 0, again.stderr
    assert desk.result_bytes() == local_bytes
    assert untouched(desk, earlier)
    assert len(desk.attempts()) == 2


def test_a_managed_job_that_is_preempted_recovers_by_itself(
    desk_for: Desks, local_bytes: dict[str, bytes]
) -> None:
    desk = desk_for("preempted")
    desk.write(managed=True)
    launched = desk.begin()
    until(lambda: measuring(desk), seconds=LAUNCH_SECONDS)
    (job,) = desk.lab.squeue()
    desk.lab.scancel(job.job_id)
    until(lambda: job.job_id not in {each.job_id for each in desk.lab.squeue()})
    until(lambda: not processes_with(desk.lab, "n1", WORKER))
    earlier = desk.commits()
    assert launched.wait(LAUNCH_SECONDS) == 0, desk.output.read_text()
    assert desk.result_bytes() == local_bytes
    assert untouched(desk, earlier)
    assert len(desk.attempts()) == 2
    assert desk.launch_record()["managed"]
    until(desk.machines_are_gone)


def test_a_worker_that_hangs_gives_its_shards_to_another(
    desk_for: Desks, local_bytes: dict[str, bytes]
) -> None:
    desk = desk_for("hung")
    desk.write(shard_deadline="20s")
    launched = desk.begin()
    until(lambda: measuring(desk), seconds=LAUNCH_SECONDS)
    hung = processes_with(desk.lab, "n2", f"{WORKER}.run")
    assert hung
    signal_all(hung, signal.SIGSTOP)
    assert launched.wait(LAUNCH_SECONDS) == 0, desk.output.read_text()
    assert desk.result_bytes() == local_bytes
    assert len(desk.attempts()) == 1
    until(desk.machines_are_gone)
