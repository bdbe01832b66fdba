"""Running means of a run from what is committed, each partial read once and by its footer alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kldcloud.divergence.estimates import Estimate, Means
from kldcloud.divergence.moments import INDEX, Moments, merge_in_order
from kldcloud.divergence.partial import PartialIdentity
from kldcloud.errors import FormatError
from kldcloud.pipeline.committed_moments import committed_moments
from kldcloud.status.run_files import PartialFile
from kldcloud.store.base import ObjectInfo, Store
from kldcloud.store.s3_parallel import run_in_flight

READS_IN_FLIGHT = 16
_SHOWN = {"kld": 0, "same_top": 1}
_KEPT = [INDEX[name] for name in _SHOWN]


@dataclass(frozen=True, slots=True)
class RunningMean:
    """A candidate's means so far, their errors cluster-robust by chunk.

    Attributes:
        chunks: that are committed.
        kld: mean over their positions, in nats a token.
        same_top: share of their positions with the base's top token.
    """

    chunks: int
    kld: Estimate
    same_top: Estimate


class CommittedMeans:
    """What a run's committed partials say, kept from one look to the next."""

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._shards: dict[tuple[str, str], dict[int, tuple[Moments, ...]]] = {}
        self._means: dict[tuple[str, str], RunningMean] = {}
        self._seen: set[str] = set()
        self.odd: dict[str, str] = {}
        """Objects that are not the partials that their keys promise, and why."""

    def take(self, partials: Iterable[PartialFile]) -> None:
        """Read those that are new.

        Raises:
            StoreError: the store could not be read.
        """
        new = [each for each in partials if each.key not in self._seen]
        for part, moments in zip(
            new, run_in_flight(self._look, new, width=READS_IN_FLIGHT), strict=True
        ):
            self._seen.add(part.key)
            if isinstance(moments, FormatError):
                self.odd[part.key] = moments.message.removeprefix(f"{part.key}: ")
                continue
            pair = (part.candidate, part.corpus)
            self._shards.setdefault(pair, {})[part.shard.first] = moments
            self._means.pop(pair, None)

    def mean(self, candidate: str, corpus: str) -> RunningMean | None:
        """Mean over what was taken; None if that is nothing."""
        pair = (candidate, corpus)
        shards = self._shards.get(pair)
        if shards and pair not in self._means:
            self._means[pair] = _mean_of(shards)
        return self._means.get(pair)

    def _look(self, part: PartialFile, _: threading.Event) -> tuple[Moments, ...] | FormatError:
        identity = PartialIdentity(
            self._run, part.candidate, part.corpus, part.shard.first, part.shard.count
        )
        try:
            moments = committed_moments(self._store, ObjectInfo(part.key, part.size), identity)
        except FormatError as error:
            return error
        return tuple(_kept(each) for each in moments)


def _kept(moments: Moments) -> Moments:
    """The variables that are shown, at a fifth of the memory."""
    return Moments(moments.count, moments.mean[_KEPT], moments.comoment[np.ix_(_KEPT, _KEPT)])


def _mean_of(shards: Mapping[int, tuple[Moments, ...]]) -> RunningMean:
    """As a reduction does it: chunk by chunk, in order, so that the end equals the summary."""
    chunks = [moments for first in sorted(shards) for moments in shards[first]]
    total = merge_in_order(chunks, Moments.of_nothing(len(_KEPT)))
    means = Means(total, [each.count for each in chunks], [each.mean for each in chunks], _SHOWN)
    return RunningMean(len(chunks), means.mean("kld", low=0.0), means.share("same_top"))
