"""A partial: what one candidate yields on one shard, as one object with its identity inside."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Self

import numpy as np

from kldcloud.divergence.histogram import LogHistogram
from kldcloud.divergence.llama_statistics import LlamaSums
from kldcloud.divergence.moments import VARIABLES, Moments, chunk_moments
from kldcloud.divergence.records import (
    COLUMNS,
    DEFAULT_MAX_ROWS,
    LLAMA_FLOATS,
    Floats,
    TokenRecords,
    from_parquet,
    to_parquet,
)
from kldcloud.errors import EngineError, FormatError

_VERSION = 1
IDENTITY_KEY = "kldcloud.partial"
MOMENTS_KEY = "kldcloud.moments"
_LLAMA_SUMS = "kldcloud.llama_sums"
_HISTOGRAM = "kldcloud.kld_histogram"
_SIGNED = (IDENTITY_KEY, MOMENTS_KEY, _LLAMA_SUMS, _HISTOGRAM)
_DIGEST = "kldcloud.sha256"
_MAX_IDENTITY_BYTES = 1 << 16
_TRIANGLE = np.tril_indices(len(VARIABLES))
_MOMENT_NUMBERS = 1 + len(VARIABLES) + len(_TRIANGLE[0])
# A moment that was summed by another processor may differ by its exponentials' last bits.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class PartialIdentity:
    """Which partial this is: everything that a wrongly placed object would get wrong."""

    run: str
    candidate: str
    corpus: str
    first_chunk: int
    chunk_count: int

    def __str__(self) -> str:
        last = self.first_chunk + self.chunk_count - 1
        return f"partial of {self.candidate} on {self.corpus}, chunks {self.first_chunk}..{last}"


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """One candidate x one shard.

    Attributes:
        identity: whose and which chunks.
        records: the shard's token records.
        moments: one a chunk, in order, of ``moments.VARIABLES``.
        llama_sums: one a chunk, in order; empty where llama.cpp's numbers are off.
        kld_histogram: of the records' ``kld``.
    """

    identity: PartialIdentity
    records: TokenRecords
    moments: tuple[Moments, ...]
    llama_sums: tuple[LlamaSums, ...]
    kld_histogram: LogHistogram

    @classmethod
    def from_records(cls, records: TokenRecords, *, identity: PartialIdentity) -> Self:
        """Reduce a shard's records.

        Raises:
            FormatError: the records are not those of the shard's chunks, in order.
            EngineError: a divergence or likelihood is NaN or infinite; says where.
        """
        _check_chunks(records, identity)
        _check_finite(records, identity)
        histogram = LogHistogram()
        histogram.add(records.kld)
        sums: tuple[LlamaSums, ...] = ()
        if records.has_llama():
            sums = tuple(LlamaSums.from_records(chunk) for chunk in records.chunks())
        return cls(identity, records, chunk_moments(records), sums, histogram)

    def to_bytes(self) -> bytes:
        """One Parquet object; the same partial gives the same bytes."""
        identity = {"version": _VERSION, "variables": VARIABLES, **asdict(self.identity)}
        moments = [[item.count, *item.mean, *item.comoment[_TRIANGLE]] for item in self.moments]
        sums = [astuple(item) for item in self.llama_sums]
        metadata = {
            IDENTITY_KEY: json.dumps(identity, sort_keys=True).encode(),
            MOMENTS_KEY: _encode(np.array(moments, "<f8").tobytes()),
            _LLAMA_SUMS: _encode(np.array(sums, "<f8").tobytes()),
            _HISTOGRAM: _encode(self.kld_histogram.to_bytes()),
        }
        return to_parquet(
            self.records, {**metadata, _DIGEST: _content_digest(self.records, metadata)}
        )

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        expected: PartialIdentity | None = None,
        max_rows: int = DEFAULT_MAX_ROWS,
        name: str = "partial",
    ) -> Self:
        """Read and check a partial.

        Args:
            data: the whole object.
            expected: what the reader asked for; None believes the object's own identity.
            max_rows: the most records a shard may have.
            name: what errors call the object, for example its key in the store.

        Raises:
            FormatError: not a partial, not the expected one, or one whose moments, sums or
                histogram do not describe its records.
        """
        file = from_parquet(data, max_rows=max_rows, name=name)
        missing = {*_SIGNED, _DIGEST} - set(file.metadata)
        if missing:
            raise FormatError(f"{name}: token records without {', '.join(sorted(missing))}")
        identity = decode_identity(file.metadata[IDENTITY_KEY], name)
        if expected is not None and identity != expected:
            field = next(
                item.name
                for item in fields(expected)
                if getattr(identity, item.name) != getattr(expected, item.name)
            )
            raise FormatError(
                f"{name}: belongs to another {field}: {getattr(identity, field)!r}, "
                f"not {getattr(expected, field)!r}"
            )
        moments = decode_moments(file.metadata[MOMENTS_KEY], identity, name)
        sums = _read_sums(file.metadata[_LLAMA_SUMS], identity, name)
        histogram = LogHistogram.from_bytes(
            _decode(file.metadata[_HISTOGRAM], f"{name}: histogram"), name=f"{name}: histogram"
        )
        try:
            derived = cls.from_records(file.records, identity=identity)
        except EngineError as error:
            raise FormatError(f"{name}: {error.message}") from error
        partial = cls(identity, file.records, moments, sums, histogram)
        partial._check_against(derived, name)
        signed = {key: file.metadata[key] for key in _SIGNED}
        if file.metadata[_DIGEST] != _content_digest(file.records, signed):
            raise FormatError(
                f"{name}: its content does not have the digest that it carries",
                hint="it was damaged: delete it and run the same command again",
            )
        return partial

    def _check_against(self, derived: Partial, name: str) -> None:
        """Stored numbers are used, not derived ones: they stay what the worker committed."""
        stored = zip(self.moments, derived.moments, strict=True)
        if not all(
            a.count == b.count and _close(a.mean, b.mean) and _close(a.comoment, b.comoment)
            for a, b in stored
        ):
            raise FormatError(f"{name}: its moments do not describe its records")
        mine, theirs = (
            np.array([astuple(item) for item in sums])
            for sums in (self.llama_sums, derived.llama_sums)
        )
        if mine.shape != theirs.shape or not _close(mine, theirs):
            raise FormatError(f"{name}: its llama.cpp sums do not describe its records")
        a, b = self.kld_histogram, derived.kld_histogram
        if (a.count, a.minimum, a.maximum) != (b.count, b.minimum, b.maximum):
            raise FormatError(f"{name}: its histogram does not describe its records")


def _content_digest(records: TokenRecords, metadata: Mapping[str, bytes]) -> bytes:
    """SHA-256 in hex of all columns and metadata: what Parquet's page checksums do not cover."""
    digest = hashlib.sha256()
    for column in COLUMNS:
        digest.update(np.ascontiguousarray(getattr(records, column)).data)
    for key in sorted(metadata):
        digest.update(f"{key}={len(metadata[key])}:".encode() + metadata[key])
    return digest.hexdigest().encode()


def _close(a: Floats, b: Floats) -> bool:
    return bool(np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE))


def _check_chunks(records: TokenRecords, identity: PartialIdentity) -> None:
    if identity.first_chunk < 0 or identity.chunk_count < 1 or not records.is_ordered():
        raise FormatError(f"{identity}: records are not in ascending (chunk, position) order")
    # Counting first: the claimed number of chunks must not decide what is allocated.
    present = np.unique(records.chunk)
    if present.size != identity.chunk_count or not (
        present[0] == identity.first_chunk and present[-1] - present[0] + 1 == present.size
    ):
        raise FormatError(
            f"{identity}: holds records of {present.size} chunks"
            + (f", {present[0]}..{present[-1]}" if present.size else "")
        )


def _check_finite(records: TokenRecords, identity: PartialIdentity) -> None:
    names = [name for name, dtype in COLUMNS.items() if dtype.kind == "f"]
    if not records.has_llama():
        names = [name for name in names if name not in LLAMA_FLOATS]
    for name in names:
        column = getattr(records, name)
        if not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise EngineError(
                f"{identity}: {name} is {column[row]} at chunk {records.chunk[row]}, "
                f"position {records.position[row]}",
                hint="check that base and candidate load and give finite logits there",
            )


def _encode(data: bytes) -> bytes:
    return base64.b64encode(data)


def _decode(data: bytes, what: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise FormatError(f"{what} is not base64") from error


def decode_identity(data: bytes, name: str) -> PartialIdentity:
    if len(data) > _MAX_IDENTITY_BYTES:
        raise FormatError(f"{name}: {len(data)} bytes are too many for an identity")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: its identity is not JSON") from error
    if (
        not isinstance(found, dict)
        or found.pop("version", None) != _VERSION
        or found.pop("variables", None) != list(VARIABLES)
    ):
        raise FormatError(f"{name}: not a partial of version {_VERSION}")
    kinds = {"run": str, "candidate": str, "corpus": str, "first_chunk": int, "chunk_count": int}
    if {key: type(value) for key, value in found.items()} != kinds:
        raise FormatError(f"{name}: its identity lacks a field, or has one of another type")
    return PartialIdentity(**found)


def _read_numbers(data: bytes, identity: PartialIdentity, columns: int, what: str) -> Floats:
    numbers = _decode(data, what)
    if len(numbers) != 8 * columns * identity.chunk_count:
        raise FormatError(f"{what} are not those of {identity.chunk_count} chunks")
    rows = np.frombuffer(numbers, "<f8").astype(np.float64).reshape(-1, columns)
    if not np.isfinite(rows).all() or (rows[:, 0] != np.floor(rows[:, 0])).any():
        raise FormatError(f"{what} are not finite numbers after a count")
    return rows


def decode_moments(data: bytes, identity: PartialIdentity, name: str) -> tuple[Moments, ...]:
    k = len(VARIABLES)
    moments = []
    for row in _read_numbers(data, identity, _MOMENT_NUMBERS, f"{name}: moments"):
        comoment = np.empty((k, k))
        comoment[_TRIANGLE] = row[1 + k :]
        comoment.T[_TRIANGLE] = row[1 + k :]
        moments.append(Moments(int(row[0]), row[1 : 1 + k].copy(), comoment))
    return tuple(moments)


def _read_sums(data: bytes, identity: PartialIdentity, name: str) -> tuple[LlamaSums, ...]:
    if not data:
        return ()
    rows = _read_numbers(data, identity, len(fields(LlamaSums)), f"{name}: llama.cpp sums")
    return tuple(LlamaSums(int(row[0]), int(row[1]), *map(float, row[2:])) for row in rows)
