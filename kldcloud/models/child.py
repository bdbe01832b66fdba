"""llama.cpp at work in a process of its own, which tells how far it is.

It aborts on some damaged files, takes no signal while it works, and gives memory back to the
machine only when its process ends.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Progress = Callable[[int, int], None]
"""Called with steps done and in all."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the process ended.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        reason: why, in one line; its own last one, if it had a last word.
    """

    code: int
    reason: str


def run_child(
    module: str, arguments: Sequence[str], progress: Progress | None, *, order: str = ""
) -> Ended:
    """Run one of our modules until it ends; whatever ends us before that ends it as well.

    Args:
        module: its dotted name; lines such as `[ 3/ 40]` of its output are progress.
        arguments: for it.
        progress: told of them.
        order: what it reads from its standard input, before it prints anything.
    """
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(  # noqa: S603 - our own module, arguments as a list
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last = ""
    try:
        _tell(process, order)
        for line in process.stdout or ():
            if match := re.match(r"\[\s*(\d+)/\s*(\d+)\]", line):
                if progress:
                    progress(int(match[1]), int(match[2]))
            elif line.strip():
                last = line.strip()
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Ended(code, _reason(code, last))


def _reason(code: int, last: str) -> str:
    if code >= 0:
        return last or f"exit code {code}"
    killed = f"it was killed by signal {-code}"
    # Whoever ends itself says why; whoever is killed was saying something else.
    return f"{killed}: {last}" if -code == signal.SIGABRT and last else killed


def _tell(process: subprocess.Popen[str], order: str) -> None:
    assert process.stdin is not None  # noqa: S101 - it was made with a pipe
    try:
        with process.stdin as pipe:
            pipe.write(order)
    except BrokenPipeError:
        pass  # it ended without reading: its last words say why
