"""Who used the processors during a run: the driver, the processes it started, everybody else."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """What a stretch of time cost.

    Attributes:
        wall_seconds: that passed.
        driver_seconds: CPU time of this process, all its threads.
        ours: share of all cores that this process and its descendants took.
        others: share that everybody else took; both None where there is no /proc.
    """

    wall_seconds: float
    driver_seconds: float
    ours: float | None
    others: float | None


class Stopwatch:
    """Runs from its making. Descendants that end meanwhile count as others: these were killed."""

    def __init__(self) -> None:
        self._tree, self._machine = _tree_seconds(), _machine_seconds()
        self._driver = time.process_time()
        self._began = time.perf_counter()

    def stop(self) -> Usage:
        """What it took until now."""
        wall = time.perf_counter() - self._began
        driver = time.process_time() - self._driver
        if self._machine is None or (machine := _machine_seconds()) is None:
            return Usage(wall, driver, None, None)
        now = _tree_seconds()
        ours = sum(seconds - self._tree.get(process, 0.0) for process, seconds in now.items())
        busy, total = machine[0] - self._machine[0], machine[1] - self._machine[1]
        return Usage(wall, driver, ours / total, max(busy - ours, 0.0) / total)


def _machine_seconds() -> tuple[float, float] | None:
    """Seconds that all cores were busy, and all there were."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    hertz = os.sysconf("SC_CLK_TCK")
    return busy / hertz, (busy + idle + iowait) / hertz


def _tree_seconds() -> dict[int, float]:
    """CPU seconds of this process and of each living descendant, by process id."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    hertz = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # The name in parentheses may hold anything; fields count from behind it.
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            process = int(entry.parent.name)
            parents[process] = int(fields[1])
            seconds[process] = (int(fields[11]) + int(fields[12])) / hertz
    ours = {os.getpid()}
    size = 0
    while size != len(ours):
        size = len(ours)
        ours |= {process for process, parent in parents.items() if parent in ours}
    return {process: seconds[process] for process in ours if process in seconds}
