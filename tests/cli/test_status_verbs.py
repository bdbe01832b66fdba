"""`kldcloud status` and `kldcloud runs` as people type them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Said

from kldcloud.corpus.chunks import Shard
from kldcloud.pipeline.life import new_attempt
from kldcloud.store import open_store
from tests.cli.test_start import imported_by
from tests.status.kept_runs import LAUNCH, RUN, KeptRun, shards

Command = Callable[..., Said]


@pytest.fixture
def kept(tmp_path: Path) -> KeptRun:
    """A run that is being measured right now: the command looks at the clock itself."""
    kept = KeptRun(open_store(str(tmp_path / "store")))
    kept.measuring()
    kept.commit("Q8_0", shards()[0])
    beat(kept, new_attempt())
    return kept


def beat(kept: KeptRun, attempt: str, **facts: object) -> None:
    now = time.time()
    work = {"started": now - 100, "updated": now, "done": 4, "total": 20}
    kept.driver(attempt, **(work | facts))


def status(kept: KeptRun, *options: object) -> tuple[object, ...]:
    return ("status", *options, "--store", kept.store.uri)


def test_a_status_without_a_name_is_that_of_the_latest_run(kept: KeptRun, command: Command) -> None:
    said = command(*status(kept))
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{RUN}  running: measuring  (last sign of life ")
    assert lines[1] == "base on text as logits: 3 of 3 shards"
    assert lines[3].split()[:5] == ["text", "Q8_0", "4", "of", "10"]
    assert command(*status(kept, RUN)).out.splitlines()[1:] == lines[1:]
    assert command(*status(kept, "tiny")).out.splitlines()[1:] == lines[1:]


def test_a_status_for_scripts_is_one_object(kept: KeptRun, command: Command) -> None:
    said = command(*status(kept, "--json"))
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert (found["run"], found["state"], found["stage"]) == (RUN, "running", "measuring")
    assert found["results"][0]["chunks_done"] == 4
    assert found["store"] == kept.store.uri


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_run_that_failed_was_still_found(kept: KeptRun, command: Command, state: str) -> None:
    beat(kept, new_attempt(), state=state, error="no space left")
    beat(kept, min(_attempts(kept)), updated=1.0)
    said = command(*status(kept))
    assert (said.code, said.err) == (0, "")
    assert f"{state}: no space left" in said.out


def _attempts(kept: KeptRun) -> list[str]:
    return [info.key.split("/")[3] for info in kept.store.list(f"runs/{RUN}/life/")]


def test_a_status_of_nothing_is_refused_with_the_next_step(
    kept: KeptRun, command: Command, tmp_path: Path
) -> None:
    said = command("status", "--store", tmp_path / "empty")
    assert said.complaint == f"no run latest in {tmp_path / 'empty'}; launch the job"
    assert command(*status(kept, "other")).complaint.startswith("no run other in ")


def test_runs_lists_runs_and_launches(kept: KeptRun, command: Command) -> None:
    kept.launch(launched=time.time())
    said = command("runs", "--store", kept.store.uri)
    assert (said.code, said.err) == (0, "")
    heading, *lines = said.out.splitlines()
    assert heading.split("  ")[0] == "run or launch"
    assert sorted(line.split()[0] for line in lines) == [LAUNCH, RUN]
    found = json.loads(command("runs", "--store", kept.store.uri, "--json").out)
    assert {each["id"]: each["state"] for each in found["runs"]} == {
        RUN: "running",
        LAUNCH: "starting",
    }


def test_an_empty_store_has_no_runs(command: Command, tmp_path: Path) -> None:
    said = command("runs", "--store", tmp_path)
    assert (said.code, said.out) == (0, f"no runs in {tmp_path}\n")
    assert json.loads(command("runs", "--store", tmp_path, "--json").out)["runs"] == []


# --watch


@pytest.fixture
def watching(kept: KeptRun) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started = []

    def watch(*options: object, out: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "kldcloud.cli.main", *status(kept, "-w", *options)]
        process = subprocess.Popen(
            [str(each) for each in command],
            stdout=out,
            stderr=subprocess.PIPE,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        )
        started.append(process)
        return process

    yield watch
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_ends_a_watch_without_a_word(
    watching: Callable[..., subprocess.Popen[bytes]], options: list[str]
) -> None:
    process = watching(*options)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, b"", b"")
    if options:
        assert json.loads(first)["state"] == "running"
    else:
        assert first.decode().startswith(f"{RUN}; running: measuring")


def test_a_watch_of_what_is_over_ends_by_itself(kept: KeptRun, command: Command) -> None:
    this = new_attempt()
    for each in {*_attempts(kept), this}:
        beat(kept, each, state="failed", error="no space left")
    said = command(*status(kept, "--watch"))
    assert (said.code, said.err) == (0, "")
    assert "failed: no space left" in said.out
    said = command(*status(kept, "--watch", "--json"))
    assert [json.loads(line)["state"] for line in said.out.splitlines()] == ["failed"]


def test_a_watch_on_a_terminal_draws_what_is_new_until_the_run_is_over(
    kept: KeptRun, watching: Callable[..., subprocess.Popen[bytes]]
) -> None:
    screen, terminal = pty.openpty()
    process = watching(out=terminal)
    os.close(terminal)
    seen = _read_until(screen, b"4 of 10")
    assert b"8 of 10" not in seen
    kept.commit("Q8_0", Shard(4, 4))
    _read_until(screen, b"8 of 10")
    for each in _attempts(kept):
        beat(kept, each, state="stopped", error="KeyboardInterrupt")
    _read_until(screen, b"stopped: KeyboardInterrupt")
    assert process.wait(60) == 0
    os.close(screen)


def test_a_store_that_is_away_for_a_while_ends_no_watch(
    kept: KeptRun, watching: Callable[..., subprocess.Popen[bytes]]
) -> None:
    screen, terminal = pty.openpty()
    process = watching(out=terminal)
    os.close(terminal)
    _read_until(screen, b"4 of 10")
    runs = Path(kept.store.uri) / "runs"
    runs.rename(runs.with_name("away"))
    runs.symlink_to("away")
    assert process.stderr is not None
    assert b"symbolic link" in process.stderr.readline()
    runs.unlink()
    runs.with_name("away").rename(runs)
    kept.commit("Q8_0", Shard(4, 4))
    _read_until(screen, b"8 of 10")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    os.close(screen)


def _read_until(screen: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += os.read(screen, 65536)
    return seen


# What it needs


def test_a_status_needs_neither_skypilot_nor_ray_nor_an_engine(kept: KeptRun) -> None:
    found = imported_by(*map(str, status(kept)))
    assert "pyarrow" in found  # it read a partial
    assert not found & {"sky", "ray", "numba", "llama_cpp", "boto3", "huggingface_hub"}
    found = imported_by("runs", "--store", kept.store.uri)
    assert not found & {"sky", "ray", "numba", "llama_cpp", "boto3", "pyarrow", "huggingface_hub"}


@pytest.mark.parametrize("verb", ["status", "runs"])
def test_help_of_a_status_imports_nothing_heavy(verb: str) -> None:
    assert not imported_by(verb, "--help") & {"numpy", "pyarrow", "scipy", "yaml", "boto3"}
