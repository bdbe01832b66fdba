"""A launch on other machines ends in the bytes of a local run, and leaves nothing running."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from store_server import aws_environment

from tests.cli.command_line import Said
from tests.cli.command_line import run as command

from .launches import CHUNKS, Watched, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_launch_comes_to_the_bytes_of_a_local_run(
    watched: Watched, local_bytes: dict[str, bytes]
) -> None:
    assert watched.desk.result_bytes() == local_bytes


def test_its_table_is_on_stdout_and_all_else_on_stderr(watched: Watched) -> None:
    lines = watched.said.stdout.splitlines()
    assert lines[0].startswith("lab  against base, llama.cpp ")
    assert {"candidate", "Q8_0"} <= {line.split()[0] for line in lines if line}
    assert lines[-1].startswith("Left out at this width")
    # The plan, SkyPilot's own words, the job's log, and the way to the reports.
    for part in ("chunk evaluations", "Job submitted", "measuring: ", "kldcloud report lab-"):
        assert part in watched.said.stderr
    assert "\x1b" not in watched.said.stderr


def test_both_nodes_worked_for_it(watched: Watched) -> None:
    workers = watched.desk.records("runs/", "worker-")
    assert {each["host"] for each in workers} == {"n1", "n2"}
    (ended,) = watched.desk.records("runs/", "ended.json")
    assert [each["host"] for each in ended["nodes"]] == ["n1", "n2"]
    assert len(ended["worker_usage"]) == 2
    assert all(each["cpu_seconds"] > 0.5 for each in ended["worker_usage"])


def test_its_machines_are_gone(watched: Watched) -> None:
    until(watched.desk.machines_are_gone)


def test_launching_it_again_rents_nothing(watched: Watched) -> None:
    desk = watched.desk
    before = desk.kept()
    again = desk.launch()
    assert again.returncode == 0, again.stderr
    assert " is complete already\n" in again.stderr
    assert "asking SkyPilot" not in again.stderr
    assert again.stdout == watched.said.stdout
    assert desk.kept() == before


@pytest.fixture(scope="module")
def outside(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Said]:
    """Runs the command away from the lab, on a machine that has no SkyPilot."""
    folder = tmp_path_factory.mktemp("no-skypilot")
    (folder / "sky.py").write_text("raise SystemExit('somebody imports SkyPilot')\n")
    env = {**os.environ, **aws_environment(watched.desk.server), "PYTHONPATH": str(folder)}
    return lambda *words: command(*words, "--store", watched.desk.uri, env=env)


def test_status_from_elsewhere_tells_the_whole_story(
    watched: Watched, outside: Callable[..., Said]
) -> None:
    launch = watched.desk.launch_record()["launch"]
    said = outside("status", launch)
    assert said.code == 0, said.err
    run = json.loads(watched.desk.result_bytes()["summary.json"])["run"]
    assert f"{run}  finished" in said.out
    assert f"{CHUNKS} of {CHUNKS}" in said.out
    assert f"launch {launch}: 2 x slurm/lab" in said.out
    assert "may still be up" not in said.out

    facts = json.loads(outside("status", "latest", "--json").out)
    assert (facts["run"], facts["state"], facts["done"]) == (run, "finished", 3 * CHUNKS)
    (known,) = facts["launches"]
    assert known["launch"] == launch
    assert known["down"] is not None
    assert [each["state"] for each in known["attempts"]] == ["finished"]


def test_runs_from_elsewhere_lists_it(outside: Callable[..., Said]) -> None:
    listed = json.loads(outside("runs", "--json").out)["runs"]
    assert [each["state"] for each in listed if each["kind"] == "run"] == ["finished"]
