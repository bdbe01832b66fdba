"""Running means of a run while its candidates are measured, for a view that is drawn meanwhile."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from kldcloud.status.progress import ProgressReader, ResultStatus
from kldcloud.status.run_files import PlanNote, list_run, read_plan_note
from kldcloud.store.base import Store


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """What the commits say at one moment.

    Attributes:
        results: candidates on corpora.
        tokens_a_second: since this piece of work began; None before anything was committed.
        seconds_left: at that pace; None if there is none, or nothing left.
        may_stop: before all of that is measured.
    """

    results: tuple[ResultStatus, ...]
    tokens_a_second: float | None
    seconds_left: float | None
    may_stop: bool = False


class LiveReader:
    """Looks at one run again and again; of each new partial it reads the footer, once.

    Args:
        store: where the run is.
        run: its id.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._progress = ProgressReader(store, run)
        self._plan = PlanNote()
        self._began = 0.0
        self._before: int | None = None
        # Whoever draws may have gone on while its last look was still under way.
        self._looking = threading.Lock()

    def begin(self, now: float) -> None:
        """A piece of the work begins: the pace is counted from here.

        Args:
            now: seconds of any clock.
        """
        with self._looking:
            self._began, self._before = now, None

    def look(self, now: float) -> LiveStatus:
        """Look once.

        Args:
            now: seconds of the same clock.

        Raises:
            StoreError: the store could not be read.
        """
        with self._looking:
            return self._look(now)

    def _look(self, now: float) -> LiveStatus:
        if not self._plan.contexts:
            self._plan = read_plan_note(self._store, self._run) or self._plan
        results = self._progress.read(list_run(self._store, self._run)).results
        done = sum(self._tokens(each, each.chunks_done) for each in results)
        if self._before is None:
            self._before = done
        seconds = now - self._began
        new = done - self._before
        rate = new / seconds if new > 0 and seconds > 0 else None
        left = sum(self._tokens(each, each.chunks or 0) for each in results) - done
        return LiveStatus(
            results, rate, left / rate if rate and left > 0 else None, bool(self._plan.checkpoints)
        )

    def _tokens(self, result: ResultStatus, chunks: int) -> int:
        return chunks * self._plan.contexts.get(result.corpus, 0)
