"""A candidate's worst positions: found in its token records, told with text and top tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kldcloud.corpus.chunks import ChunkShape, Shard, Tokens
from kldcloud.corpus.token_texts import TokenTexts
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.top_tokens import TopTokens
from kldcloud.divergence.worst import largest_rows
from kldcloud.divergence.worst_file import most_bytes, parse_worst
from kldcloud.store.base import Store
from kldcloud.store.s3_parallel import run_in_flight

TOLD: Final = 200
"""Positions of a candidate on a corpus."""
BEFORE: Final = 24
AFTER: Final = 8
"""Tokens of the text around one: enough to see what it is about."""
_READS_IN_FLIGHT: Final = 16
_DIGITS: Final = 4

Place = tuple[int, int]
"""A chunk and a position in it."""
BothTops = tuple[TopTokens, TopTokens]
"""Of base and candidate."""


@dataclass(frozen=True, slots=True)
class _Position:
    """One position, as token records have it.

    Attributes:
        around: divergences at which tokens near it were predicted, by their index in the chunk.
    """

    place: Place
    shard: Shard
    around: Mapping[int, float]
    kld: float
    entropy_base: float
    nll_base: float
    nll: float


class WorstFound:
    """Adds partials in order; keeps the `TOLD` largest divergences of what it has seen."""

    def __init__(self, shape: ChunkShape) -> None:
        self._shape = shape
        self._found: list[_Position] = []

    def add(self, partial: Partial) -> None:
        """Look through one more partial."""
        records = partial.records
        rows = largest_rows(records.kld, TOLD)
        if len(self._found) == TOLD:
            rows = rows[records.kld[rows] > self._found[-1].kld]
        self._found.extend(self._position(partial, int(row)) for row in rows)
        # A stable sort: of equal divergences the one that comes first in the text stays first.
        self._found.sort(key=lambda each: -each.kld)
        del self._found[TOLD:]

    @property
    def positions(self) -> Sequence[_Position]:
        """The worst first."""
        return self._found

    def _position(self, partial: Partial, row: int) -> _Position:
        records, identity = partial.records, partial.identity
        position = int(records.position[row])
        # A chunk's records are all there, one after the other: the token at index t was predicted
        # one position earlier.
        first = row - (position - self._shape.first)
        nearby = range(
            max(position + 1 - BEFORE, self._shape.first + 1),
            min(position + 2 + AFTER, self._shape.context),
        )
        around = {t: float(records.kld[first + t - 1 - self._shape.first]) for t in nearby}
        return _Position(
            (int(records.chunk[row]), position),
            Shard(identity.first_chunk, identity.chunk_count),
            around,
            kld=float(records.kld[row]),
            entropy_base=float(records.entropy_base[row]),
            nll_base=float(records.nll_base[row]),
            nll=float(records.nll[row]),
        )


def read_tops(
    store: Store,
    found: WorstFound,
    identity_of: Callable[[Shard], PartialIdentity],
    key_of: Callable[[Shard], str],
) -> dict[Place, BothTops]:
    """What base and candidate would have said at the positions found, where it was kept.

    Partials of an earlier kldcloud have nothing beside them; their positions stay without.

    Raises:
        FormatError: an object is not what its key says.
    """
    wanted = {each.place for each in found.positions}
    shards = sorted({each.shard for each in found.positions}, key=lambda each: each.first)

    def read(shard: Shard, _: threading.Event) -> dict[Place, BothTops]:
        key = key_of(shard)
        if store.size(key) is None:
            return {}
        data = store.read(key, limit=most_bytes(shard.count))
        worst = parse_worst(data, expected=identity_of(shard), name=key)
        places = zip(worst.chunk.tolist(), worst.position.tolist(), strict=True)
        return {
            place: (worst.base.select(np.array([at])), worst.candidate.select(np.array([at])))
            for at, place in enumerate(places)
            if place in wanted
        }

    tops: dict[Place, BothTops] = {}
    for some in run_in_flight(read, shards, width=_READS_IN_FLIGHT):
        tops |= some
    return tops


def worst_facts(
    found: WorstFound,
    tops: dict[Place, BothTops],
    chunks: Tokens,
    texts: TokenTexts,
) -> list[dict[str, Any]]:
    """The positions as worst.json says them, the worst first.

    Args:
        found: the positions.
        tops: top tokens of base and candidate, by place.
        chunks: int32 [chunks, n_ctx], of the corpus.
        texts: of the vocabulary.
    """
    facts = []
    for each in found.positions:
        chunk, position = each.place
        start, stop = max(position + 1 - BEFORE, 0), min(position + 2 + AFTER, chunks.shape[1])
        told = [
            [text, _short(each.around.get(at))]
            for at, text in enumerate(texts.running(chunks[chunk, start:stop].tolist()), start)
        ]
        at = position + 1 - start
        base, candidate = tops.get(each.place, (None, None))
        facts.append(
            {
                "chunk": chunk,
                "position": position,
                "kld": each.kld,
                "entropy_base": each.entropy_base,
                "token": texts.alone(int(chunks[chunk, position + 1])),
                "probability_base": float(np.exp(-each.nll_base)),
                "probability": float(np.exp(-each.nll)),
                "before": told[:at],
                "after": told[at + 1 :],
                "top_base": _guesses(base, texts),
                "top": _guesses(candidate, texts),
            }
        )
    return facts


def _guesses(tops: TopTokens | None, texts: TokenTexts) -> list[list[Any]]:
    if tops is None:
        return []
    pairs = zip(tops.tokens[0].tolist(), tops.probabilities[0].tolist(), strict=True)
    return [[texts.alone(token), _short(share)] for token, share in pairs if token >= 0]


def _short(value: float | None) -> float | None:
    """For colours and lists; tokens.parquet has every digit."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")
