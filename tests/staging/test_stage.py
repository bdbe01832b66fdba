"""Base stages in a store: whole or refused, chunk by chunk, whatever stands in their objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kldcloud.corpus.chunks import Shard, cut_shards
from kldcloud.errors import FormatError
from kldcloud.staging.head import AfterHead, OutputHead
from kldcloud.staging.shard_file import MAGIC, PREFIX, build_shard
from kldcloud.staging.stage import (
    StageIdentity,
    canonical_json,
    finish_stage,
    is_complete,
    stage_shards,
    tokens_bytes,
    write_shard,
)
from kldcloud.staging.stage_reader import StageReader
from kldcloud.store import Store, open_store
from kldcloud.store.digest import sha256_bytes

CHUNKS, CONTEXT, VOCABULARY, WIDTH = 5, 16, 50, 8
TOKENS = np.arange(CHUNKS * CONTEXT, dtype=np.int32).reshape(CHUNKS, CONTEXT) % VOCABULARY
IDENTITY = StageIdentity(
    base_sha256="ab" * 32,
    tokens_sha256=sha256_bytes(tokens_bytes(TOKENS)),
    context=CONTEXT,
    chunks=CHUNKS,
    vocabulary=VOCABULARY,
    encoding="hidden",
    engine={"name": "llama.cpp"},
)
HEAD = OutputHead(
    np.arange(VOCABULARY * WIDTH, dtype="<f4").view(np.uint8), "F32", WIDTH, VOCABULARY
)
MANIFEST = f"{IDENTITY.prefix}/manifest.json"


def frame_of(chunk: int) -> bytes:
    """What stands for a chunk's frame, of a length of its own."""
    return bytes([chunk]) * (10 + chunk)


@pytest.fixture
def staged(tmp_path: Path) -> Store:
    """A store with one whole stage of three shards."""
    store = open_store(str(tmp_path))
    shards = list(cut_shards(CHUNKS, 2))
    for shard in shards:
        write_shard(store, IDENTITY, shard, [frame_of(chunk) for chunk in shard.chunks])
    finish_stage(store, IDENTITY, shards, TOKENS, HEAD)
    return store


def test_a_stage_gives_back_its_tokens_frames_and_head(staged: Store) -> None:
    reader = StageReader(staged, IDENTITY.key)
    assert reader.identity == IDENTITY
    assert (reader.tokens() == TOKENS).all()
    for chunk in (4, 0, 3, 1, 2, 4):
        assert bytes(reader.frame(chunk)) == frame_of(chunk)
    assert reader.encoding.name == "hidden"
    head = reader._head()
    assert head is not None
    assert (head.type_name, head.width, head.data.tobytes()) == ("F32", WIDTH, HEAD.data.tobytes())


@pytest.mark.parametrize("after", [AfterHead(), AfterHead(0.25), AfterHead(1.0, 30.0)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_what_follows_the_heads_product_is_kept(
    tmp_path: Path, after: AfterHead, biased: bool
) -> None:
    bias = np.linspace(-2, 2, VOCABULARY, dtype=np.float32) if biased else None
    head = replace(HEAD, bias=bias, after=after)
    store = open_store(str(tmp_path))
    (shard,) = cut_shards(CHUNKS, CHUNKS)
    write_shard(store, IDENTITY, shard, [frame_of(chunk) for chunk in shard.chunks])
    finish_stage(store, IDENTITY, [shard], TOKENS, head)
    found = StageReader(store, IDENTITY.key)._head()
    assert found is not None
    assert found.after == after
    states = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    rows = np.empty((2, 3, VOCABULARY), np.float32)
    head.logits(states, out=rows[0])
    found.logits(states, out=rows[1])
    assert rows[0].tobytes() == rows[1].tobytes()
    weight = HEAD.widened(0, VOCABULARY).astype(np.float64)
    exact = states @ weight.T + (0 if bias is None else bias)
    exact = exact * after.scale
    if after.softcap is not None:
        exact = after.softcap * np.tanh(exact / after.softcap)
    np.testing.assert_allclose(rows[0], exact, rtol=1e-5, atol=1e-4)


def test_a_stage_is_complete_with_its_manifest_and_not_before(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shards = list(cut_shards(CHUNKS, 3))
    for shard in shards:
        assert not is_complete(store, IDENTITY)
        write_shard(store, IDENTITY, shard, [frame_of(chunk) for chunk in shard.chunks])
    assert not is_complete(store, IDENTITY)
    finish_stage(store, IDENTITY, shards, TOKENS, HEAD)
    assert is_complete(store, IDENTITY)


def test_the_first_chunks_can_be_read_before_the_rest_is_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shards = stage_shards(store, IDENTITY, 2, edges=(3,))
    assert shards == [Shard(0, 2), Shard(2, 1), Shard(3, 2)]
    for shard in shards[:2]:
        write_shard(store, IDENTITY, shard, [frame_of(chunk) for chunk in shard.chunks])
    finish_stage(store, IDENTITY, shards[:2], TOKENS, HEAD, upto=3)
    assert is_complete(store, IDENTITY, 3)
    assert not is_complete(store, IDENTITY)
    reader = StageReader(store, IDENTITY.key, 3)
    assert [bytes(reader.frame(chunk)) for chunk in range(3)] == [frame_of(c) for c in range(3)]
    with pytest.raises(FormatError, match="no shard holds chunk 3"):
        reader.frame(3)
    encoding = reader.encoding

    write_shard(store, IDENTITY, shards[2], [frame_of(3), frame_of(4)])
    finish_stage(store, IDENTITY, shards, TOKENS, HEAD)
    reader.look(None)
    assert bytes(reader.frame(4)) == frame_of(4)
    assert bytes(reader.frame(0)) == frame_of(0)
    assert reader.encoding is encoding, "a large head is not loaded twice"


def test_a_stage_with_a_missing_shard_is_not_finished(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shards = list(cut_shards(CHUNKS, 3))
    write_shard(store, IDENTITY, shards[0], [frame_of(chunk) for chunk in shards[0].chunks])
    with pytest.raises(FormatError, match=r"0000003-0002\.shard: missing or cut short"):
        finish_stage(store, IDENTITY, shards, TOKENS, HEAD)
    assert not is_complete(store, IDENTITY)


def test_the_first_to_stage_decides_how_it_is_cut(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert stage_shards(store, IDENTITY, 2) == [Shard(0, 2), Shard(2, 2), Shard(4, 1)]
    assert stage_shards(store, IDENTITY, 5) == [Shard(0, 2), Shard(2, 2), Shard(4, 1)]


@pytest.mark.parametrize(
    "plan", [b"", b"[]", b"{}", b'{"shard_chunks":0}', b'{"shard_chunks":"1"}']
)
def test_a_plan_that_says_no_size_is_refused(plan: bytes, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(f"{IDENTITY.prefix}/plan.json", plan)
    with pytest.raises(FormatError, match=r"plan\.json"):
        stage_shards(store, IDENTITY, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_sha256": "cd" * 32},
        {"tokens_sha256": "cd" * 32},
        {"context": 32},
        {"chunks": 6},
        {"vocabulary": 51},
        {"encoding": "logits"},
        {"engine": {"name": "llama.cpp", "flash_attention": "off"}},
    ],
)
def test_whatever_determines_a_row_is_in_the_key(changes: dict[str, Any]) -> None:
    assert replace(IDENTITY, **changes).key != IDENTITY.key


def changed(store: Store, key: str, change: Callable[[bytearray], object]) -> None:
    data = bytearray(store.read(key))
    change(data)
    store.write(key, bytes(data))


@pytest.mark.parametrize("where", ["frame", "header", "magic", "cut", "longer", "empty"])
def test_a_damaged_shard_is_refused_by_name(where: str, staged: Store) -> None:
    key = IDENTITY.shard_key(Shard(2, 2))

    def damage(data: bytearray) -> None:
        at = {"frame": len(data) - 1, "header": PREFIX.size + 4, "magic": 0}.get(where)
        if at is not None:
            data[at] ^= 1
        elif where == "longer":
            data.append(0)
        else:
            del data[len(data) // 2 if where == "cut" else 0 :]

    changed(staged, key, damage)
    reader = StageReader(staged, IDENTITY.key)
    assert bytes(reader.frame(0)) == frame_of(0)
    with pytest.raises(FormatError, match=r"0000002-0002\.shard"):
        reader.frame(3)


def test_a_shard_of_other_chunks_is_refused(staged: Store) -> None:
    other = staged.read(IDENTITY.shard_key(Shard(0, 2)))
    staged.write(IDENTITY.shard_key(Shard(2, 2)), other)
    with pytest.raises(FormatError, match="not the shard that the manifest lists"):
        StageReader(staged, IDENTITY.key).frame(2)


@pytest.mark.parametrize("name", ["tokens", "head"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer"])
def test_damaged_tokens_and_heads_are_refused_by_name(
    name: str, damage: str, staged: Store
) -> None:
    def change(data: bytearray) -> None:
        if damage == "flip":
            data[5] ^= 1
        elif damage == "cut":
            del data[-4:]
        else:
            data.extend(bytes(4))

    changed(staged, f"{IDENTITY.prefix}/{name}", change)
    reader = StageReader(staged, IDENTITY.key)
    with pytest.raises(FormatError, match=f"{IDENTITY.prefix}/{name}"):
        reader.tokens() if name == "tokens" else reader.encoding


NOT_MANIFESTS: list[Any] = [
    None,
    [],
    "manifest",
    {},
    {"schema": "kldcloud.stage/9"},
    {"context": "many"},
    {"context": float("inf")},
    {"context": 2**60},
    {"context": -8},
    {"chunks": 0},
    {"chunks": 2**40},
    {"vocabulary": 2**31},
    {"vocabulary": None},
    {"encoding": "pickle"},
    {"engine": "llama.cpp"},
    {"engine": None},
    {"shards": None},
    {"shards": [[0, 2]]},
    {"shards": [[None, 2, 10, "ab"]]},
    {"shards": [[{}, [], 10, "ab"]]},
    {"shards": [[0, float("inf"), 10, "ab"]]},
    {"shards": "0123"},
    {"head": []},
    {"head": {"type": "F32"}},
    {"head": {"type": "F32", "width": 2**40, "sha256": "ab"}},
    {"head": {"type": "F32", "width": 0, "sha256": "ab"}},
    {"head": {"type": "Q8_0", "width": 33, "sha256": "ab"}},
    {"head": {"type": ["F32"], "width": 8, "sha256": "ab"}},
    *(
        {"head": {"type": "F32", "width": 8, "sha256": "ab", "after": after}}
        for after in (
            None,
            {},
            {"scale": 1.0},
            {"scale": 0.0, "softcap": None},
            {"scale": float("nan"), "softcap": None},
            {"scale": 1e300, "softcap": None},
            {"scale": 1.0, "softcap": 0.0},
            {"scale": 1.0, "softcap": "many"},
        )
    ),
]


@pytest.mark.parametrize("changes", NOT_MANIFESTS, ids=lambda each: json.dumps(each)[:50])
def test_what_is_no_manifest_is_refused_by_name(changes: Any, staged: Store) -> None:
    manifest = json.loads(staged.read(MANIFEST))
    content = manifest | changes if changes and isinstance(changes, dict) else changes
    staged.write(MANIFEST, json.dumps(content).encode())
    with pytest.raises(FormatError, match=r"manifest\.json"):
        StageReader(staged, IDENTITY.key)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"chunks": 1e999999}'])
def test_a_manifest_that_is_no_json_is_refused_by_name(data: bytes, staged: Store) -> None:
    staged.write(MANIFEST, data)
    with pytest.raises(FormatError, match=r"manifest\.json"):
        StageReader(staged, IDENTITY.key)


def test_the_manifest_of_another_stage_is_refused(staged: Store) -> None:
    other = replace(IDENTITY, base_sha256="cd" * 32)
    staged.write(f"{other.prefix}/manifest.json", staged.read(MANIFEST))
    with pytest.raises(FormatError, match="belongs to another stage"):
        StageReader(staged, other.key)


def test_a_chunk_that_no_shard_holds_is_named(staged: Store) -> None:
    manifest = json.loads(staged.read(MANIFEST))
    staged.write(MANIFEST, canonical_json(manifest | {"shards": manifest["shards"][:1]}))
    with pytest.raises(FormatError, match="no shard holds chunk 2"):
        StageReader(staged, IDENTITY.key).frame(2)


HOSTILE_FRAMES: list[Any] = [
    None,
    {},
    [],
    [[2, 0, 12, "ab"]],
    [[2, 0, 12, "ab"], [3, 12, 13]],
    [[2, 0, 12, "ab"], [3, 12, -1, "ab"]],
    [[2, 0, 12, "ab"], [3, 13, 12, "ab"]],
    [[2, 0, 12, "ab"], [3, 0, 13, "ab"]],
    [[2, 0, 12, "ab"], [4, 12, 13, "ab"]],
    [[2, 0, 12, "ab"], [3, 12, 2**50, "ab"]],
    [[2, 0, 12, "ab"], [3, 12, 13.0, "ab"]],
    [[2, 0, "12", "ab"], [3, 12, 13, "ab"]],
    [[2, 0, 25, "ab"], [3, 25, 0, "ab"], [4, 25, 0, "ab"]],
]


@pytest.mark.parametrize("frames", HOSTILE_FRAMES, ids=lambda each: json.dumps(each)[:50])
def test_a_shard_whose_header_does_not_fit_is_refused_even_if_the_manifest_lists_it(
    frames: Any, staged: Store
) -> None:
    header = json.dumps({"frames": frames}).encode()
    prefix = PREFIX.pack(MAGIC, len(header), hashlib.sha256(header).digest())
    data = prefix + header + frame_of(2) + frame_of(3)
    _replace_shard(staged, data, header)
    with pytest.raises(FormatError, match="its header does not fit its content"):
        StageReader(staged, IDENTITY.key).frame(2)


@pytest.mark.parametrize("length", [25, 2**20 + 1, 2**32 - 1])
def test_a_shard_that_claims_a_huge_header_is_refused_before_it_is_read(
    length: int, staged: Store
) -> None:
    _replace_shard(staged, PREFIX.pack(MAGIC, length, bytes(32)) + bytes(24), b"")
    with pytest.raises(FormatError, match="not a shard of a base stage"):
        StageReader(staged, IDENTITY.key).frame(2)


def test_the_frames_above_are_refused_for_what_is_wrong_with_them(staged: Store) -> None:
    data = build_shard(Shard(2, 2), [frame_of(2), frame_of(3)])
    _replace_shard(staged, data, data[PREFIX.size : -len(frame_of(2) + frame_of(3))])
    assert bytes(StageReader(staged, IDENTITY.key).frame(3)) == frame_of(3)


def _replace_shard(store: Store, data: bytes, header: bytes) -> None:
    """Put another second shard in place, with a manifest that vouches for it."""
    store.write(IDENTITY.shard_key(Shard(2, 2)), data)
    manifest = json.loads(store.read(MANIFEST))
    manifest["shards"][1][2:] = [len(data), sha256_bytes(header)]
    store.write(MANIFEST, canonical_json(manifest))
