"""`kldcloud compare` as people type it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Said

from kldcloud.store import open_store
from tests.cli.test_start import imported_by
from tests.pipeline.finished_runs import Model, finished_run

Command = Callable[..., Said]
OURS, THEIRS = "ours-0123456789ab", "theirs-ba9876543210"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two runs of three candidates, one of which is in both."""
    folder = tmp_path / "store"
    kept = open_store(str(folder))
    near = Model("Q4_K_M", "q4", 1.0)
    finished_run(kept, OURS, [Model("Q8_0", "q8", 0.1), near])
    finished_run(kept, THEIRS, [near, Model("UD-Q4_K_XL", "ud", 1.001)])
    return folder


def test_two_runs_are_one_table(store: Path, command: Command) -> None:
    said = command("compare", "ours", "theirs", "--store", store)
    assert (said.code, said.err) == (0, "")
    rows = [line.split()[:2] for line in said.out.splitlines() if " ± " in line and "." in line]
    assert rows[:3] == [["Q8_0", "1"], ["Q4_K_M", "2-3"], ["UD-Q4_K_XL", "2-3"]]
    assert "Not distinguishable on text: Q4_K_M and UD-Q4_K_XL" in said.out.replace(
        "UD-Q4_K_XL and Q4_K_M", "Q4_K_M and UD-Q4_K_XL"
    )
    assert said.out.endswith(f"Of {OURS}: Q8_0, Q4_K_M.\nOf {THEIRS}: UD-Q4_K_XL.\n")


def test_the_formats_are_for_scripts_and_pages(store: Path, command: Command) -> None:
    runs = ("compare", OURS, THEIRS, "--store", store, "--format")
    found = json.loads(command(*runs, "json").out)
    assert found["runs"] == [OURS, THEIRS]
    rows = list(csv.DictReader(io.StringIO(command(*runs, "csv").out)))
    assert [row["run"] for row in rows] == [OURS, OURS, THEIRS]
    assert command(*runs, "md").out.startswith("# KL divergence: `ours, theirs`\n")
    assert command(*runs, "pdf").complaint == (
        'no format "pdf" for a comparison; choose one of md, csv, json'
    )


def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    store: Path, command: Command
) -> None:
    finished_run(
        open_store(str(store)),
        "long-000000000000",
        [Model("Q2_K", "q2", 2.0)],
        corpora={"text": 12},
    )
    line = command("compare", "ours", "long", "--store", store).complaint
    assert line.startswith(f"runs {OURS} and long-000000000000 differ in the chunks of corpus text")


def test_a_run_that_is_not_there_is_refused(store: Path, command: Command) -> None:
    assert command("compare", OURS, "nope", "--store", store).complaint.startswith(
        f"no run nope in {store}; it has "
    )
    assert "Missing argument" in command("compare", "--store", store).complaint


def test_a_comparison_needs_neither_ray_nor_an_engine(store: Path) -> None:
    found = imported_by("compare", OURS, THEIRS, "--store", str(store))
    assert "pyarrow" in found  # it read partials
    assert not found & {"sky", "ray", "numba", "llama_cpp", "boto3", "huggingface_hub"}
    assert not imported_by("compare", "--help") & {"numpy", "pyarrow", "scipy", "yaml", "boto3"}
