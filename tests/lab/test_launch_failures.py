"""Whatever goes wrong with a launch reaches the person, in one line, and costs no machine more."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_server import BUCKET

from tests.pipeline.odd_models import with_nan

from .launches import CHUNKS, Desk, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Desks = Callable[[str], Desk]


def last_line(said: subprocess.CompletedProcess[str]) -> str:
    """What the person reads last."""
    line = said.stderr.splitlines()[-1]
    assert line.startswith("kldcloud: ")
    assert line.isprintable()
    assert "Traceback" not in said.stderr
    return line.removeprefix("kldcloud: ")


def candidates(desk: Desk, *more: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [*desk.job_facts["candidates"], *more]}


# Before anything is rented


@pytest.fixture(scope="module")
def refused(desk_for: Desks) -> Desk:
    return desk_for("refused")


def nothing_was_asked_for(desk: Desk, said: subprocess.CompletedProcess[str]) -> bool:
    return "asking SkyPilot" not in said.stderr and not desk.kept() and not desk.lab.squeue()


def test_a_candidate_that_is_cut_off_is_refused_before_anything_is_rented(
    refused: Desk, tmp_path: Path
) -> None:
    whole = Path(refused.job_facts["candidates"][0]["model"]).read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    refused.write(candidates(refused, {"model": str(cut)}))
    said = refused.launch()
    assert said.returncode == 2
    assert "cut.gguf" in last_line(said)
    assert nothing_was_asked_for(refused, said)


def test_a_folder_is_refused_as_a_store_of_other_machines(refused: Desk, tmp_path: Path) -> None:
    refused.write()
    said = refused.launch("--store", str(tmp_path / "store"))
    assert said.returncode == 2
    assert last_line(said) == (
        f"store {tmp_path}/store is a folder here, out of reach for the machines of lab; "
        "write store: s3://bucket/prefix in the job, or add --store s3://bucket/prefix"
    )
    assert nothing_was_asked_for(refused, said)


def test_a_secret_that_is_not_set_is_named(refused: Desk) -> None:
    refused.write(secrets=["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"])
    said = refused.launch()
    assert said.returncode == 2
    assert last_line(said).startswith("the cluster needs the secret HF_TOKEN, which is not set")
    assert nothing_was_asked_for(refused, said)


def test_machines_that_nobody_has_are_an_error_of_the_cluster_file(desk_for: Desks) -> None:
    desk = desk_for("nowhere")
    desk.write(resources={"infra": "slurm/nowhere", "cpus": "1+"})
    said = desk.launch()
    assert said.returncode == 2
    assert "nowhere" in last_line(said)
    assert desk.machines_are_gone()


# On the machines


def test_a_set_up_that_fails_shows_its_last_words(desk_for: Desks) -> None:
    desk = desk_for("setup")
    desk.write(setup="echo no module named cuda >&2\nexit 3")
    said = desk.launch()
    assert said.returncode == 1
    assert said.stdout == ""
    assert "no module named cuda" in said.stderr
    last = last_line(said)
    assert last.startswith("the machines did not get as far as the job: no module named cuda")
    assert last.endswith("the cluster file's setup, and launch again")
    assert desk.attempts() == []
    until(desk.machines_are_gone)


def test_a_model_that_only_the_machines_fetch_is_refused_there_as_it_would_be_here(
    desk_for: Desks,
) -> None:
    desk = desk_for("garbage")
    desk.server.client().put_object(Bucket=BUCKET, Key="garbage.gguf", Body=b"no model" * 100)
    desk.write(candidates(desk, {"model": f"s3://{BUCKET}/garbage.gguf"}))
    said = desk.launch()
    assert said.returncode == 2
    assert said.stdout == ""
    last = last_line(said)
    assert last.startswith("on its machines: candidate garbage")
    assert "not a GGUF" in last
    (attempt,) = desk.attempts()
    assert (attempt["state"], attempt["exit_code"]) == ("failed", 2)
    until(desk.machines_are_gone)


def test_a_candidate_that_fails_is_missing_from_the_table_and_named(
    desk_for: Desks, tmp_path: Path
) -> None:
    desk = desk_for("broken")
    broken = with_nan(Path(desk.job_facts["candidates"][0]["model"]), tmp_path / "broken.gguf")
    desk.write(candidates(desk, {"model": str(broken)}))
    said = desk.launch()
    assert said.returncode == 1
    rows = {line.split()[0] for line in said.stdout.splitlines() if line}
    assert {"candidate", "Q8_0", "broken"} <= rows
    last = last_line(said)
    assert last.startswith("broken on text failed at runs/lab-")
    assert "candidate logits are not finite" in last
    assert last.endswith("; the same command tries just these again")
    until(desk.machines_are_gone)


def test_a_launch_ends_when_its_time_is_up(desk_for: Desks) -> None:
    desk = desk_for("endless")
    model = desk.job_facts["candidates"][0]["model"]
    hundred = [{"model": model, "name": f"again-{number}"} for number in range(100)]
    desk.write({"candidates": hundred}, max_duration="1m")
    said = desk.launch()
    assert said.returncode == 1
    assert said.stdout == ""
    last = last_line(said)
    assert last.startswith("the 60 s of kld-lab-")
    assert "raise max_duration in the cluster file, or --max-cost" in last
    (attempt,) = desk.attempts()
    assert (attempt["state"], attempt["exit_code"]) == ("out-of-time", 124)
    until(desk.machines_are_gone)
    assert desk.partials() < 100 * CHUNKS

    again = desk.launch()
    assert again.returncode == 2
    assert "has used up its 60 s of machines" in last_line(again)
    assert "asking SkyPilot" not in again.stderr
