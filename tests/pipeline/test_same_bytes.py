"""The same answer whatever happens: workers, shards, stores, kills and resumes move no byte."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kldcloud.report.summary_file import dump_summary, parse_summary
from kldcloud.store import open_store
from tests.pipeline.sweeps import (
    Launch,
    Notes,
    busy_workers,
    command_line,
    committed,
    corpus,
    descendants,
    facts,
    launch,
    result_bytes,
    sweep,
    until,
)
from tests.tiny_models import TinyPair, tiny_pair

CHUNKS = 8
LONG_CHUNKS = 40


@dataclass(frozen=True, slots=True)
class Reference:
    """A job, and what it came to in an undisturbed sweep on one worker."""

    pair: TinyPair
    job: dict[str, Any]
    run: str
    results: dict[str, bytes]


def reference(folder: Path, chunks: int) -> Reference:
    pair = tiny_pair(folder / "models", vocabulary=320, bos=True)
    other = tiny_pair(folder / "other", vocabulary=320, bos=True, seed=1).candidate
    candidates = [pair.candidate, {"model": str(other), "name": "other"}]
    job = facts(pair.base, candidates, [corpus(128, chunks)], encoding="logits", shard_chunks=1)
    outcome = sweep(job, folder / "store")
    return Reference(pair, job, outcome.run, result_bytes(folder / "store", outcome.run))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Reference:
    del one_ray
    return reference(tmp_path_factory.mktemp("undisturbed"), CHUNKS)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Reference:
    """Long enough to be killed in the middle."""
    del one_ray
    return reference(tmp_path_factory.mktemp("long"), LONG_CHUNKS)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose name leaves room for those of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="k-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("shard_chunks", [1, 4])
def test_workers_and_shards_change_no_byte(
    undisturbed: Reference, workers: int, shard_chunks: int, tmp_path: Path
) -> None:
    outcome = sweep(undisturbed.job | {"shard_chunks": shard_chunks}, tmp_path, workers=workers)
    assert outcome.run == undisturbed.run
    assert len(list(tmp_path.rglob("*.shard"))) == CHUNKS // shard_chunks
    assert result_bytes(tmp_path, outcome.run) == undisturbed.results


def test_the_results_are_of_something(undisturbed: Reference) -> None:
    summary = parse_summary(undisturbed.results["summary.json"])
    assert [each.status for each in summary.results] == ["complete", "complete"]
    first, second = (each.result for each in summary.results)
    assert first is not None
    assert second is not None
    assert first.tokens == second.tokens == CHUNKS * 63
    assert first.kld.mean.value != second.kld.mean.value > 0
    assert dump_summary(summary.model_dump(mode="json", by_alias=True))


def test_an_s3_store_gets_the_same_bytes(
    undisturbed: Reference,
    s3_store_uri: Callable[[str], str],
    short_folder: Path,
) -> None:
    uri = s3_store_uri("same-bytes")
    started = launch(short_folder, undisturbed.job, uri, workers=2)
    code, _, errors = started.wait()
    assert code == 0, errors
    assert result_bytes(uri, undisturbed.run) == undisturbed.results


def test_a_finished_run_is_shown_again_without_work(undisturbed: Reference, tmp_path: Path) -> None:
    first = sweep(undisturbed.job, tmp_path)
    before = _state_of(tmp_path)
    notes = Notes()
    second = sweep(undisturbed.job, tmp_path, progress=notes)
    assert notes.notes == [f"run {first.run} is complete already"]
    assert second.summary == first.summary
    assert _state_of(tmp_path) == before


def test_a_later_sweep_with_another_candidate_finds_the_base_stage_there(
    undisturbed: Reference, tmp_path: Path
) -> None:
    job, notes = undisturbed.job, Notes()
    first = sweep(job | {"candidates": job["candidates"][:1]}, tmp_path)
    staged = _state_of(tmp_path / "stages")
    second = sweep(job | {"candidates": job["candidates"][1:]}, tmp_path, progress=notes)
    assert first.run != second.run
    assert _state_of(tmp_path / "stages") == staged
    assert "base stage for text is there already" in notes.notes
    assert not [label for label in notes.bars if label.startswith("staging")]


def test_workers_killed_in_the_middle_of_shards_change_no_byte(
    long: Reference, short_folder: Path
) -> None:
    store = short_folder / "store"
    started = launch(short_folder / "t", long.job, store, workers=2)
    for shards in (3, LONG_CHUNKS // 2, LONG_CHUNKS + 3, 2 * LONG_CHUNKS):
        until(lambda least=shards: committed(store) >= least)
        os.kill(until(lambda: busy_workers(started.process.pid))[0], signal.SIGKILL)
    code, out, errors = started.wait()
    assert code == 0, errors
    assert out.startswith("tiny  against base"), "Ray's own words have no place among results"
    assert result_bytes(store, long.run) == long.results


def test_a_killed_launch_leaves_no_process_and_goes_on_where_it_was(
    long: Reference, short_folder: Path
) -> None:
    store = short_folder / "store"
    started = launch(short_folder / "t", long.job, store)
    until(lambda: committed(store) >= LONG_CHUNKS + 5)
    family = descendants(started.process.pid)
    assert any("SweepWorker" in command for command in family.values())
    assert any("raylet" in command for command in family.values())
    started.signal(signal.SIGKILL)
    until(lambda: not _alive(family), seconds=30)
    done = committed(store) - LONG_CHUNKS
    assert done < 2 * LONG_CHUNKS

    code, _, errors = launch(short_folder / "t", long.job, store).wait()
    assert code == 0, errors
    assert "base stage for text is there already" in errors
    assert f"measuring: {done} of {2 * LONG_CHUNKS} chunks are done already" in errors
    assert result_bytes(store, long.run) == long.results


@pytest.mark.slow  # tests/cli asks the same of one moment
@pytest.mark.parametrize("shards", [0, LONG_CHUNKS // 2, LONG_CHUNKS + 5])
def test_an_interrupted_launch_ends_cleanly_and_goes_on_where_it_was(
    long: Reference, short_folder: Path, shards: int
) -> None:
    store = short_folder / "store"
    started = launch(short_folder / "t", long.job, store)
    # The first time Ray has hardly begun to start.
    until(started.ray_folders if not shards else lambda: committed(store) >= shards)
    family = descendants(started.process.pid)
    started.signal(signal.SIGINT)
    code, out, errors = started.wait(30)
    assert (code, out) == (130, "")
    assert errors.splitlines()[-1] == "kldcloud: stopped; the same command goes on from here"
    assert "Traceback" not in errors
    until(lambda: not _alive(family), seconds=10)
    assert started.ray_folders() == []
    assert _temporary_files(started, store) == []

    code, _, errors = launch(short_folder / "t", long.job, store).wait()
    assert code == 0, errors
    assert result_bytes(store, long.run) == long.results


HEARTBEAT_BYTES = 512
"""More than a heartbeat has, and less than any shard or partial."""


def _state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file with what changes when it is written again; the notes of launches aside."""
    return {
        str(path.relative_to(folder)): (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        for path in folder.rglob("*")
        if path.is_file() and "life" not in path.parts and (stat := path.stat())
    }


def _alive(family: dict[int, str]) -> list[str]:
    """Those of a family that still run; a process id may have been given to somebody else."""
    return [command for pid, command in family.items() if command and command_line(pid)]


def _temporary_files(started: Launch, store: Path) -> list[Path]:
    left = [p for p in started.folder.iterdir() if p.name not in {"job.yaml", "cluster.yaml"}]
    # Ray kills workers, perhaps while one writes its heartbeat: the store sweeps that later.
    results = [p for p in (store / ".tmp").glob("*") if p.stat().st_size > HEARTBEAT_BYTES]
    return left + results


def test_the_store_of_a_run_lists_only_what_the_design_names(
    undisturbed: Reference, tmp_path: Path
) -> None:
    outcome = sweep(undisturbed.job, tmp_path)
    keys = [info.key.split("/") for info in open_store(str(tmp_path)).list("")]
    assert {parts[0] for parts in keys} == {"stages", "runs"}
    of_run = {parts[2] for parts in keys if parts[:2] == ["runs", outcome.run]}
    assert of_run == {
        "job.yaml",
        "life",
        "partials",
        "plan.json",
        "profile.json",
        "report.csv",
        "report.html",
        "report.md",
        "shards-text.json",
        "summary.json",
        "tokens.parquet",
        "worst",
        "worst.json",
    }
