"""A pilot tells how far a job that may stop would go; a launch then shows whether it was right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import run as command
from tests.pipeline.sweeps import corpus, facts
from tests.tiny_models import tiny_pair

CHUNKS = 24


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two candidates that are far apart."""
    folder = tmp_path_factory.mktemp("job")
    pair = tiny_pair(folder / "a", vocabulary=320, bos=True)
    other = tiny_pair(folder / "b", vocabulary=320, bos=True, seed=1).candidate
    candidates = [{"model": str(pair.candidate)}, {"model": str(other), "name": "other"}]
    return facts(pair.base, candidates, [corpus(64, CHUNKS)], store=str(folder / "store"))


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "job.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
def test_a_pilot_of_a_few_chunks_says_how_many_will_be_enough(
    job: dict[str, Any], tmp_path: Path
) -> None:
    short = {**job, "corpora": [{**job["corpora"][0], "chunks": 8}]}
    piloted = command("launch", write(tmp_path, short), "--json")
    assert piloted.code == 0, piloted.err
    pilot = json.loads(piloted.out)["run"]

    stopping = write(tmp_path, {**job, "stop": {"when": "ranked", "least": 8}})
    said = command("plan", stopping, "--rate", "100", "--pilot", pilot)
    assert said.code == 0, said.err
    assert "all that is at most: ends when the ranking is settled (95 % confidence)" in said.out
    assert f"text: the pilot suggests about 8 of {CHUNKS} chunks (8 to 8)" in said.out
    plan = json.loads(command("plan", stopping, "--pilot", pilot, "--json").out)
    assert plan["forecasts"]["text"]["likely"] == 8
    assert plan["stop"]["when"] == "ranked"

    launched = command("launch", stopping, "--json")
    assert launched.code == 0, launched.err
    (stop,) = json.loads(launched.out)["stops"]
    assert stop["chunks"] == plan["forecasts"]["text"]["likely"]


def test_a_job_that_never_stops_has_no_use_for_a_pilot(job: dict[str, Any], tmp_path: Path) -> None:
    said = command("plan", write(tmp_path, job), "--rate", "100", "--pilot", "latest")
    assert said.code == 2
    assert said.complaint.endswith("add stop: {when: ranked} to the job, or --set stop.when=ranked")
