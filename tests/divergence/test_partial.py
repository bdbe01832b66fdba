"""Partials: complete, reproducible, and refused where they are not what was asked for."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_records import identity, records

from kldcloud.divergence.histogram import LogHistogram
from kldcloud.divergence.llama_statistics import LlamaSums
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import COLUMNS, from_parquet, to_parquet
from kldcloud.errors import EngineError, FormatError

WHOSE = identity(6, 4)


def partial(*, llama: bool = True) -> Partial:
    return Partial.from_records(records(4, first=6, llama=llama), identity=WHOSE)


@pytest.mark.parametrize("llama", [True, False])
def test_a_partial_survives_its_bytes_to_the_last_bit(llama: bool) -> None:
    source = partial(llama=llama)
    data = source.to_bytes()
    found = Partial.from_bytes(data, expected=WHOSE)
    assert found.identity == WHOSE
    for name in COLUMNS:
        assert getattr(found.records, name).tobytes() == getattr(source.records, name).tobytes()
    for a, b in zip(found.moments, source.moments, strict=True):
        assert a.count == b.count
        assert np.array_equal(a.mean, b.mean)
        assert np.array_equal(a.comoment, b.comoment)
    assert found.llama_sums == source.llama_sums
    assert len(found.llama_sums) == (4 if llama else 0)
    assert found.kld_histogram == source.kld_histogram
    assert found.to_bytes() == data == partial(llama=llama).to_bytes()


def test_a_partial_is_tens_of_bytes_a_token() -> None:
    source = records(16, rows=255)
    assert len(Partial.from_records(source, identity=identity(0, 16)).to_bytes()) < 80 * 4080


@pytest.mark.parametrize(
    ("field", "value"),
    [("run", "run2"), ("candidate", "q8"), ("corpus", "code"), ("first_chunk", 5)],
)
def test_a_partial_of_something_else_is_refused(field: str, value: object) -> None:
    data = partial().to_bytes()
    changed = {name: getattr(WHOSE, name) for name in PartialIdentity.__slots__} | {field: value}
    with pytest.raises(FormatError, match=f"another {field}"):
        Partial.from_bytes(data, expected=PartialIdentity(**changed))


def test_records_of_other_chunks_are_refused() -> None:
    source = records(4, first=6)
    for wrong in (identity(5, 4), identity(6, 3), identity(6, 5), identity(6, 10**12)):
        with pytest.raises(FormatError, match=r"4 chunks, 6\.\.9"):
            Partial.from_records(source, identity=wrong)
    with pytest.raises(FormatError, match=r"3 chunks, 6\.\.9"):
        Partial.from_records(source.select(source.chunk != 7), identity=WHOSE)
    with pytest.raises(FormatError, match="0 chunks"):
        Partial.from_records(source.select(slice(0, 0)), identity=WHOSE)
    with pytest.raises(FormatError, match="ascending"):
        Partial.from_records(source.select(slice(None, None, -1)), identity=WHOSE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_divergence_that_is_no_number_says_where(value: float) -> None:
    source = records(4, first=6)
    source.reverse_kld[33] = value
    with pytest.raises(EngineError, match=r"q4 on wiki.*reverse_kld is .* chunk 7, position 33"):
        Partial.from_records(source, identity=WHOSE)


def tampered(**changes: bytes | None) -> bytes:
    """A partial with metadata exchanged, or left out where the change is None."""
    file = from_parquet(partial().to_bytes())
    metadata = dict(file.metadata)
    for name, value in changes.items():
        key = f"kldcloud.{name}"
        assert key in metadata
        if value is None:
            del metadata[key]
        else:
            metadata[key] = value
    return to_parquet(file.records, metadata)


def told(**changes: object) -> bytes:
    stored = json.loads(from_parquet(partial().to_bytes()).metadata["kldcloud.partial"])
    return json.dumps(stored | changes).encode()


def numbers(name: str, **edits: float) -> bytes:
    stored = base64.b64decode(from_parquet(partial().to_bytes()).metadata[f"kldcloud.{name}"])
    values = np.frombuffer(stored, "<f8").copy()
    for index, value in edits.items():
        values[int(index[1:])] = value
    return base64.b64encode(values.tobytes())


def test_metadata_put_back_unchanged_is_accepted() -> None:
    data = tampered(partial=told(), moments=numbers("moments"), llama_sums=numbers("llama_sums"))
    assert Partial.from_bytes(data).to_bytes() == partial().to_bytes()


def other_histogram() -> bytes:
    other = LogHistogram()
    other.add([1.0])
    return base64.b64encode(other.to_bytes())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"partial": None}, "without kldcloud.partial"),
        ({"moments": None, "llama_sums": None}, "without kldcloud.llama_sums, kldcloud.moments"),
        ({"partial": b"{"}, "not JSON"),
        ({"partial": b"[" * 60_000}, "not JSON"),
        ({"partial": b" " * 70_000}, "too many"),
        ({"partial": b"[]"}, "version"),
        ({"partial": told(version=2)}, "version"),
        ({"partial": told(variables=["kld"])}, "version"),
        ({"partial": told(extra=1)}, "identity lacks"),
        ({"partial": told(first_chunk=True)}, "identity lacks"),
        ({"partial": told(chunk_count=2**70)}, "not those of"),
        ({"partial": told(chunk_count=-1)}, "not those of"),
        ({"partial": told(first_chunk=7)}, "4 chunks, 6..9"),
        ({"moments": b"!!"}, "base64"),
        ({"moments": base64.b64encode(b"12345678")}, "not those of 4 chunks"),
        ({"moments": numbers("moments", _5=np.nan)}, "finite"),
        ({"moments": numbers("moments", _0=30.5)}, "finite numbers after a count"),
        ({"moments": numbers("moments", _0=30)}, "do not describe"),
        ({"moments": numbers("moments", _1=0.5)}, "do not describe"),
        ({"llama_sums": numbers("llama_sums", _4=1.0)}, "do not describe"),
        ({"llama_sums": b""}, "do not describe"),
        ({"kld_histogram": b"AAAA"}, "histogram: 3 bytes"),
        ({"kld_histogram": other_histogram()}, "does not describe"),
    ],
)
def test_tampered_metadata_is_refused(changes: dict[str, bytes | None], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        Partial.from_bytes(tampered(**changes))


def test_records_without_a_partials_metadata_are_refused() -> None:
    with pytest.raises(FormatError, match="without kldcloud"):
        Partial.from_bytes(to_parquet(records(4, first=6), {}))


def test_stored_infinite_records_are_a_format_error() -> None:
    file = from_parquet(partial().to_bytes())
    kld = file.records.kld.copy()
    kld[0] = np.inf
    data = to_parquet(replace(file.records, kld=kld), file.metadata)
    with pytest.raises(FormatError, match="kld is inf"):
        Partial.from_bytes(data)


def test_more_rows_than_the_shard_has_are_refused() -> None:
    with pytest.raises(FormatError, match="at most 100"):
        Partial.from_bytes(partial().to_bytes(), max_rows=100)


def test_truncated_and_damaged_bytes_are_refused_or_equal() -> None:
    data = partial().to_bytes()
    for length in (0, 10, len(data) // 3, len(data) - 1):
        with pytest.raises(FormatError):
            Partial.from_bytes(data[:length])
    rng = np.random.default_rng(11)
    for _ in range(150):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        try:
            found = Partial.from_bytes(bytes(damaged))
        except FormatError:
            continue
        assert found.records.kld.tobytes() == partial().records.kld.tobytes()


def test_a_flipped_bit_is_refused_or_changes_nothing() -> None:
    data = partial().to_bytes()
    random = np.random.default_rng(5)
    for at in random.integers(0, 8 * len(data), 1500):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << (at % 8)
        try:
            found = Partial.from_bytes(bytes(damaged), expected=WHOSE)
        except FormatError:
            continue
        assert found.to_bytes() == data, f"bit {at}"


def test_llama_sums_are_per_chunk() -> None:
    source = partial()
    for sums, chunk in zip(source.llama_sums, source.records.chunks(), strict=True):
        assert sums == LlamaSums.from_records(chunk)
