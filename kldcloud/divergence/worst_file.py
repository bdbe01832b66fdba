"""The worst positions of one candidate on one shard, with both top tokens, as an object.

One line of JSON that says whose they are, how many, and the SHA-256 of the rest; then the columns,
little-endian, one after the other. It is no part of a partial: no statistic needs it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.kernel import NO_TOKEN
from kldcloud.divergence.partial import PartialIdentity
from kldcloud.divergence.top_tokens import TOP, TopTokens, join_tops
from kldcloud.divergence.worst import KEPT_A_CHUNK, WorstRows
from kldcloud.errors import FormatError

_VERSION: Final = 1
_MOST_HEADER_BYTES: Final = 1 << 14
_LAYOUT: Final = np.dtype(
    [
        ("chunk", "<i4"),
        ("position", "<i4"),
        ("base", "<i4", TOP),
        ("base_probability", "<f4", TOP),
        ("candidate", "<i4", TOP),
        ("candidate_probability", "<f4", TOP),
    ]
)
_AGAIN: Final = "delete it, and its run's summary.json and partials, and launch the job again"
# A probability from codes may end a hair above one.
_MOST_PROBABILITY: Final = 1.001


@dataclass(frozen=True, slots=True, eq=False)
class WorstPositions:
    """Positions in (chunk, position) order, with what base and candidate would have said.

    Attributes:
        chunk: int32 [n], as in token records.
        position: int32 [n], as in token records.
        base: the base's top tokens there.
        candidate: the candidate's.
    """

    chunk: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    base: TopTokens
    candidate: TopTokens


def most_bytes(chunks: int) -> int:
    """No object of so many chunks is larger."""
    return _MOST_HEADER_BYTES + chunks * KEPT_A_CHUNK * _LAYOUT.itemsize


def of_chunks(chunks: Sequence[WorstRows], *, first: int, first_position: int) -> WorstPositions:
    """The worst positions of consecutive chunks.

    Args:
        chunks: each one's own.
        first: number of the first of them.
        first_position: index in a chunk of its first scored position.
    """
    sizes = [len(each.rows) for each in chunks]
    return WorstPositions(
        np.repeat(np.arange(first, first + len(chunks), dtype=np.int32), sizes),
        np.concatenate([each.rows for each in chunks]) + np.int32(first_position),
        join_tops([each.base for each in chunks]),
        join_tops([each.candidate for each in chunks]),
    )


def dump_worst(worst: WorstPositions, identity: PartialIdentity) -> bytes:
    """The bytes of the object; the same positions give the same bytes."""
    rows = np.empty(len(worst.chunk), _LAYOUT)
    rows["chunk"], rows["position"] = worst.chunk, worst.position
    for name, tops in (("base", worst.base), ("candidate", worst.candidate)):
        rows[name], rows[f"{name}_probability"] = tops.tokens, tops.probabilities
    body = rows.tobytes()
    header = {
        "version": _VERSION,
        **asdict(identity),
        "positions": len(rows),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return json.dumps(header, sort_keys=True).encode() + b"\n" + body


def parse_worst(data: bytes, *, expected: PartialIdentity, name: str) -> WorstPositions:
    """Read and check the bytes of an object.

    Args:
        data: all of them.
        expected: whose they must be.
        name: what errors call the object.

    Raises:
        FormatError: not what its key says, or damaged.
    """
    line, _, body = data.partition(b"\n")
    header = _header(line, name)
    wanted: dict[str, Any] = {
        "version": _VERSION,
        **asdict(expected),
        "positions": len(body) // _LAYOUT.itemsize,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    if header != wanted or len(body) % _LAYOUT.itemsize:
        field = next((each for each in wanted if header.get(each) != wanted[each]), "length")
        raise FormatError(f"{name}: its {field} is not what it must be", hint=_AGAIN)
    rows = np.frombuffer(body, _LAYOUT)
    worst = WorstPositions(
        rows["chunk"].astype(np.int32),
        rows["position"].astype(np.int32),
        _tops(rows, "base", name),
        _tops(rows, "candidate", name),
    )
    last = expected.first_chunk + expected.chunk_count
    if not ((worst.chunk >= expected.first_chunk) & (worst.chunk < last)).all():
        raise FormatError(f"{name}: has positions of other chunks", hint=_AGAIN)
    return worst


def _header(line: bytes, name: str) -> dict[str, Any]:
    try:
        header = json.loads(line) if len(line) <= _MOST_HEADER_BYTES else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise FormatError(f"{name}: does not begin with a line of JSON", hint=_AGAIN)
    return header


def _tops(rows: npt.NDArray[np.void], of: str, name: str) -> TopTokens:
    tokens = rows[of].astype(np.int32)
    probabilities = rows[f"{of}_probability"].astype(np.float32)
    possible = (probabilities >= 0) & (probabilities <= _MOST_PROBABILITY)
    if not (possible.all() and (tokens >= NO_TOKEN).all()):
        raise FormatError(f"{name}: holds what is no probability of a token", hint=_AGAIN)
    return TopTokens(tokens, probabilities)
