"""What a launch shows while it measures: on a real terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest
import yaml
from command_line import Desk

from kldcloud.divergence.summary import Reduction
from kldcloud.store import open_store
from tests.status.kept_runs import RUN, KeptRun, shards

WIDTH, HEIGHT = 80, 24
# Advances the bar by what it is told, until it is told nothing more.
MEASURE = """
import sys
from kldcloud.cli.terminal import TerminalProgress
from kldcloud.store import open_store
with TerminalProgress().measuring(open_store(sys.argv[1]), sys.argv[2], 20) as bar:
    for line in sys.stdin:
        bar.advance(int(line))
"""


_OF_ONE_REDRAW = 0.02


class Terminal:
    """A terminal of 80 x 24 that a process writes to, and what a person sees on it."""

    def __init__(self) -> None:
        self._screen, self.descriptor = pty.openpty()
        termios.tcsetwinsize(self.descriptor, (HEIGHT, WIDTH))
        self._display = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.ByteStream(self._display)
        self.written = b""
        self.frames: list[tuple[str, ...]] = []
        """Every screen that differed from the one before."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while data := self._next():
            self.written += data
            self._stream.feed(data)
            # Nobody sees a redraw that arrives in parts; those of ours are further apart.
            if not select.select([self._screen], [], [], _OF_ONE_REDRAW)[0]:
                self._keep()
        self._keep()

    def _next(self) -> bytes:
        """What was written since; nothing once the last writer has gone."""
        try:
            return os.read(self._screen, 65536)
        except OSError:
            return b""

    def _keep(self) -> None:
        frame = tuple(line.rstrip() for line in self._display.display)
        if not self.frames or frame != self.frames[-1]:
            self.frames.append(frame)

    def close(self) -> None:
        """Nobody here writes any more."""
        os.close(self.descriptor)

    def wait_for(self, pattern: str) -> str:
        """The first screen that matches."""
        deadline = time.monotonic() + 60
        seen = 0
        while time.monotonic() < deadline:
            for frame in self.frames[seen:]:
                text = "\n".join(frame)
                if re.search(pattern, text, re.MULTILINE):
                    return text
                seen += 1
            time.sleep(0.02)
        raise AssertionError(f"{pattern} never came; last:\n" + "\n".join(self.frames[-1]))

    def end(self) -> str:
        """The screen once all writers have gone."""
        self._reader.join(60)
        return "\n".join(self.frames[-1]).strip() if self.frames else ""


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def kept(tmp_path: Path) -> KeptRun:
    kept = KeptRun(open_store(str(tmp_path / "store")))
    kept.measuring()
    return kept


@pytest.fixture
def measuring(kept: KeptRun) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def start(errors: int) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
        process = subprocess.Popen(
            [sys.executable, "-c", MEASURE, kept.store.uri, RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment | {"TERM": "xterm-256color"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def advance(process: subprocess.Popen[str], chunks: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{chunks}\n")
    process.stdin.flush()


def test_running_means_stand_below_the_bar_and_follow_the_commits(
    kept: KeptRun, terminal: Terminal, measuring: Callable[..., subprocess.Popen[str]]
) -> None:
    process = measuring(terminal.descriptor)
    terminal.close()
    first = terminal.wait_for(r"^Q4_K_M +0 of 10 +- +-$")
    assert re.search(r"^measuring .* 0% 0:00:0\d$", first, re.MULTILINE)
    assert re.search(r"^candidate +chunks +mean KLD +same top %$", first, re.MULTILINE)
    assert "tokens/s" not in first

    reduction = Reduction()
    for shard in shards()[:2]:
        reduction.add(kept.commit("Q8_0", shard))
    advance(process, 8)
    kld, top = reduction.result().kld_mean, reduction.result().same_top
    wanted = rf"^Q8_0 +8 of 10  {kld.value:.6f} ± {kld.error:.6f}  {100 * top.value:.1f} ± "
    second = terminal.wait_for(wanted)
    assert "40%" in terminal.wait_for(r"^measuring .* 40% ")
    assert re.search(r"^\d[\d,]* tokens/s, about \d+ s left$", second, re.MULTILINE)

    kept.commit("Q4_K_M", shards()[2])
    assert re.search(wanted, terminal.wait_for(r"^Q4_K_M +2 of 10 "), re.MULTILINE)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_it_fits_80_columns_is_redrawn_twice_a_second_at_most_and_leaves_nothing(
    kept: KeptRun, terminal: Terminal, measuring: Callable[..., subprocess.Popen[str]]
) -> None:
    kept.note_plan(candidates=["Q8_0", "Q4_K_M", "a-candidate-whose-name-is-as-long-as-they-come"])
    for shard in shards():
        kept.commit("Q8_0", shard)
    process = measuring(terminal.descriptor)
    terminal.close()
    terminal.wait_for(r"^Q8_0 +10 of 10 ")
    began, before = time.monotonic(), terminal.written.count(b"measuring")
    terminal.wait_for(r"^measuring .* 0:00:0[4-9]$")
    seconds = time.monotonic() - began
    # The label stands in every redraw; two more for those under way at either end.
    assert 1 <= terminal.written.count(b"measuring") - before <= 2 * seconds + 2
    text = "\n".join(terminal.frames[-1])
    assert re.search(r"^a-candi\S+\.\.\.\S+-come +0 of 10 ", text, re.MULTILINE)
    process.communicate(timeout=60)
    assert process.returncode == 0
    # Wrapped lines would be on the screen still.
    assert re.fullmatch(r"measuring: \d+ s", terminal.end())


def test_a_store_that_is_away_costs_a_look_and_not_the_run(
    kept: KeptRun, terminal: Terminal, measuring: Callable[..., subprocess.Popen[str]]
) -> None:
    process = measuring(terminal.descriptor)
    terminal.close()
    terminal.wait_for(r"^Q8_0 +0 of 10 ")
    runs = Path(kept.store.uri) / "runs"
    runs.rename(runs.with_name("away"))
    runs.symlink_to("away")
    advance(process, 4)
    text = terminal.wait_for(r"^measuring .* 20% ")
    assert "Q8_0" in text
    runs.unlink()
    runs.with_name("away").rename(runs)
    kept.commit("Q8_0", shards()[0])
    terminal.wait_for(r"^Q8_0 +4 of 10 ")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in terminal.end()


def test_where_stderr_is_no_terminal_there_is_no_view(
    kept: KeptRun, measuring: Callable[..., subprocess.Popen[str]]
) -> None:
    kept.commit("Q8_0", shards()[0])
    process = measuring(subprocess.PIPE)
    advance(process, 4)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert re.fullmatch(r"(measuring: \d+ s\n)?", err)


@pytest.mark.slow
def test_a_launch_on_a_terminal_shows_its_means_while_it_measures(
    desk: Desk, terminal: Terminal
) -> None:
    desk.text.write_text("the cat and the dog went to the old river in the rain. " * 3000)
    job = yaml.safe_load(desk.job.read_text())
    job["corpora"][0]["chunks"] = 400
    desk.job.write_text(yaml.safe_dump(job))
    process = subprocess.Popen(
        [sys.executable, "-m", "kldcloud.cli.main", "launch", str(desk.job)],
        stdout=subprocess.PIPE,
        stderr=terminal.descriptor,
        text=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    terminal.close()
    try:
        out, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, terminal.end()
    (summary,) = (desk.store / "runs").glob("*/summary.json")
    assert "candidate" in out
    view = terminal.wait_for(r"^candidate +\d+ of 400  0\.\d{6} ± 0\.\d{6}  \d+\.\d+ ± \d")
    assert re.search(r"^measuring ", view, re.MULTILINE)
    assert re.search(r"^[\d,]+ tokens/s", view, re.MULTILINE)
    # Once it is over, notes alone are left.
    assert "tokens/s" not in terminal.end()
    assert f"run {summary.parent.name} in " in terminal.end()
