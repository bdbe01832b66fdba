"""Model Optimizer's commands at work: run in order, each once, and what they say meanwhile."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from kldcloud.errors import EngineError, UserError
from kldcloud.qad.looks import Look, Progressed
from kldcloud.qad.modelopt.workplace import Step, Workplace
from kldcloud.qad.whole_file import written

_CHECKPOINT: Final = re.compile(r"checkpoint-([0-9]{1,10})")
_STATE: Final = "trainer_state.json"
_BAR: Final = re.compile(
    r"^ *[0-9]{1,3}%\|[^|\r\n]*\| ([0-9]{1,10})/([0-9]{1,10}) \[[^\]\r\n]*\](?!\x1b\[A)",
    re.MULTILINE,
)
"""A bar without a name that is not drawn below another one: evaluation's goes back up a line."""
_MOST_STATE: Final = 64 << 20
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at how far training is."""
_LAST_WORDS: Final = 60.0
"""Seconds that a command has to end once it is told to."""
_TAIL_BYTES: Final = 64 << 10
_SHOWN: Final = 300


def run_steps(
    steps: Sequence[Step],
    work: Workplace,
    variables: Mapping[str, str],
    told: Callable[[str], None],
) -> None:
    """Run what has not come to its end before; the training script goes on from its checkpoints.

    Args:
        steps: the commands.
        work: their folder; one run at a time works in it.
        variables: all that their environment has.
        told: called with a step's name before it runs, every second while it does, and after it.

    Raises:
        UserError: another process is at work there.
        EngineError: one of them failed.
        StoreError: no room.
    """
    with _alone(work) as lock:
        for step in steps:
            done = work.root / f"{step.name}.done"
            if done.exists():
                continue
            _run(step, work, variables, told, lock)
            with written(done):
                done.touch()


def read_progress(work: Workplace, look_every: int) -> Progressed:
    """How far training is, by the newest file of its state; step 0 before there is one.

    Args:
        work: the run's folder.
        look_every: steps between two evaluations. What the script logs in between is of its best
            checkpoint, loaded again at the end.
    """
    states = [work.trained / _STATE, *(path / _STATE for path in _checkpoints(work))]
    for path in states:
        facts = _state(path)
        step = facts.get("global_step")
        if type(step) is int and step >= 0:
            return Progressed(step, tuple(_looks(facts, look_every)))
    return Progressed(0, ())


def logged_step(work: Workplace, steps: int) -> int:
    """The step that the training script's bar shows, for people between two checkpoints; or 0."""
    shown = log_tail(work, _TAIL_BYTES).decode(errors="replace").replace("\r", "\n")
    found = [int(match[1]) for match in _BAR.finditer(shown) if int(match[2]) == steps]
    return min(found[-1], steps) if found else 0


def log_tail(work: Workplace, size: int) -> bytes:
    """The last bytes of what the commands said; empty if they said nothing."""
    try:
        with work.log.open("rb") as file:
            file.seek(max(0, work.log.stat().st_size - size))
            return file.read(size)
    except OSError:
        return b""


def _run(
    step: Step,
    work: Workplace,
    variables: Mapping[str, str],
    told: Callable[[str], None],
    lock: int,
) -> None:
    with written(work.log):
        log = work.log.open("ab")
    with log:
        log.write(f"kldcloud: {step.name}: {' '.join(step.argv)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(  # noqa: S603 - a list of our own making, and no shell
                step.argv,
                cwd=work.root,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is ours: all that it started is ended together.
                start_new_session=True,
                # Whoever comes after us waits for it, should we be killed.
                pass_fds=(lock,),
            )
        except OSError as error:
            raise EngineError(f"{step.argv[0]}: cannot be run: {error.strerror}") from error
        try:
            told(step.name)
            while True:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(_LOOK_EVERY)
                    break
                told(step.name)
        except BaseException:
            _end(process)
            raise
    told(step.name)
    if code != 0:
        raise EngineError(
            f"Model Optimizer's step {step.name} ended with {_ending(code)}: {_last_line(work)}",
            hint=f"{work.log} has all that it said; on this machine the same command goes on",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS)
            return


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _last_line(work: Workplace) -> str:
    lines = log_tail(work, _TAIL_BYTES).decode(errors="replace").splitlines()
    said = (line.strip() for line in reversed(lines))
    return next((line[:_SHOWN] for line in said if line), "in silence")


@contextmanager
def _alone(work: Workplace) -> Iterator[int]:
    """A lock that our commands hold as well: one that outlives us is not joined by another."""
    with written(work.root):
        work.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{work.root}: another process trains there",
                hint="wait for it, or end it, and launch again",
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _checkpoints(work: Workplace) -> list[Path]:
    """Those that are there, the newest first."""
    try:
        names = [path.name for path in work.trained.iterdir()]
    except OSError:
        return []
    found = ((int(match[1]), name) for name in names if (match := _CHECKPOINT.fullmatch(name)))
    return [work.trained / name for _, name in sorted(found, reverse=True)]


def _state(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_STATE:
            return {}
        found: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # not there yet, or half-written
    return found if isinstance(found, dict) else {}


def _looks(facts: Mapping[str, Any], look_every: int) -> Iterator[Look]:
    entries = facts.get("log_history")
    seen: set[int] = set()
    for each in entries if isinstance(entries, list) else ():
        if not isinstance(each, dict):
            continue
        step, kld = each.get("step"), each.get("eval_loss")
        if type(step) is not int or step in seen or step % look_every:
            continue
        if isinstance(kld, int | float) and math.isfinite(kld):
            seen.add(step)
            yield Look(step, float(kld), None)
