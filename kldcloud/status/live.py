"""Running means of a run while its candidates are measured, for a view that is drawn meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from kldcloud.status.progress import ProgressReader, ResultStatus
from kldcloud.status.run_files import list_run, read_plan_note
from kldcloud.store.base import Store


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """What the commits say at one moment.

    Attributes:
        results: candidates on corpora.
        tokens_a_second: since the first look; None before anything was committed since.
        seconds_left: at that pace; None if there is none, or nothing left.
    """

    results: tuple[ResultStatus, ...]
    tokens_a_second: float | None
    seconds_left: float | None


class LiveReader:
    """Looks at one run again and again; of each new partial it reads the footer, once.

    Args:
        store: where the run is.
        run: its id.
        now: seconds of any clock, when the work began.
    """

    def __init__(self, store: Store, run: str, now: float) -> None:
        self._store = store
        self._run = run
        self._began = now
        self._progress = ProgressReader(store, run)
        self._contexts: dict[str, int] = {}
        self._before: int | None = None

    def look(self, now: float) -> LiveStatus:
        """Look once.

        Args:
            now: seconds of the same clock.

        Raises:
            StoreError: the store could not be read.
        """
        if not self._contexts and (plan := read_plan_note(self._store, self._run)):
            self._contexts = dict(plan.contexts)
        results = self._progress.read(list_run(self._store, self._run)).results
        done = sum(self._tokens(each, each.chunks_done) for each in results)
        if self._before is None:
            self._before = done
        seconds = now - self._began
        new = done - self._before
        rate = new / seconds if new > 0 and seconds > 0 else None
        left = sum(self._tokens(each, each.chunks or 0) for each in results) - done
        return LiveStatus(results, rate, left / rate if rate and left > 0 else None)

    def _tokens(self, result: ResultStatus, chunks: int) -> int:
        return chunks * self._contexts.get(result.corpus, 0)
