"""Training chunks in the store: cut as a whole text is, kept once, and believed by digest alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kldcloud.corpus.chunks import cut_chunks
from kldcloud.errors import FormatError, KldcloudError, StoreError, UserError
from kldcloud.models.cache import cache_dir
from kldcloud.qad import training
from kldcloud.qad.process import read_refusal, train_process
from kldcloud.qad.training import Training
from kldcloud.qad.training_tokens import (
    KeptTokens,
    Tokens,
    keep_tokens,
    open_tokens,
    reference,
    write_tokens,
)
from kldcloud.store import Store, open_store
from tests.qad.small_training import order, tiny_init, tiny_teacher, training_tokens

PREFIX = "qad/x"
TEXT: Tokens = np.random.default_rng(3).integers(0, 1 << 17, 1003).astype(np.int32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    fresh: Callable[[str], str] = request.getfixturevalue("s3_store_uri")
    return open_store(fresh("tokens"))


def parts(size: int) -> Iterator[Tokens]:
    for start in range(0, len(TEXT), size):
        yield TEXT[start : start + size]


def keep(store: Store) -> KeptTokens:
    file = write_tokens(parts(100), 32, "all", None)
    kept = reference(PREFIX, file)
    keep_tokens(store, kept, file.path)
    return kept


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1003])
@pytest.mark.parametrize("limit", ["all", 1, 2, 31, 99])
def test_parts_are_cut_as_the_whole_is(size: int, limit: Any) -> None:
    wanted = cut_chunks(TEXT, 32, limit).copy()
    assert np.array_equal(write_tokens(parts(size), 32, limit, None).open(), wanted)
    wanted[:, 0] = 7
    file = write_tokens(parts(size), 32, limit, 7)
    assert np.array_equal(file.open(), wanted)
    assert file.path.read_bytes() == wanted.astype("<i4").tobytes()


def test_no_more_parts_are_taken_than_fill_the_chunks() -> None:
    taken = parts(100)
    write_tokens(taken, 32, 5, None)
    assert len(next(taken)) == 100
    assert sum(map(len, taken)) == 1003 - 300


def test_a_text_of_less_than_two_chunks_leaves_nothing(cache: Path) -> None:
    with pytest.raises(UserError, match="the text has 1003 tokens, fewer than two chunks of 502"):
        write_tokens(parts(100), 502, 1, None)
    assert list(cache.glob("tokens/*")) == []


def test_what_was_kept_is_mapped_here_and_on_a_machine_that_has_nothing(
    store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(store)
    wanted = TEXT[:992].reshape(31, 32)
    assert np.array_equal(open_tokens(kept, store), wanted)
    assert store.read(kept.key) == wanted.astype("<i4").tobytes()
    about = json.loads(store.read("qad/x/tokens.json"))
    assert (about["dtype"], about["chunks"], about["context"]) == ("<i4", 31, 32)
    assert about["sha256"] == kept.sha256
    assert not list(cache.glob("tokens/*.part"))

    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "elsewhere"))
    mapped = open_tokens(kept, open_store(store.uri))
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, wanted)
    assert not mapped.flags.writeable
    copies = list((cache_dir() / "tokens").glob(kept.sha256))
    # A folder's objects are mapped where they lie.
    assert len(copies) == ("s3:" in store.uri)


def test_a_second_launch_finds_it_there(store: Store) -> None:
    kept = keep(store)
    before = [(each.key, each.size) for each in store.list("")]
    if "s3:" not in store.uri:
        identity = (Path(store.uri) / kept.key).stat()
    assert keep(store) == kept
    assert [(each.key, each.size) for each in store.list("")] == before
    if "s3:" not in store.uri:
        assert (Path(store.uri) / kept.key).stat() == identity


def test_other_bytes_are_refused_in_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(store)
    open_tokens(kept, store)
    data = bytearray(store.read(kept.key))
    data[100] ^= 1
    store.write(kept.key, bytes(data))
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(FormatError, match=r"qad/x/tokens.bin in \S+ has SHA-256") as caught:
        open_tokens(kept, store)
    assert kept.sha256[:16] in str(caught.value)
    assert "delete" in str(caught.value)
    store.write(kept.key, bytes(data[:-4]))
    with pytest.raises(FormatError, match="has 3,964 bytes, not"):
        open_tokens(kept, store)
    with pytest.raises(FormatError, match="has 3,964 bytes, not the 3,968 of 31 chunks"):
        keep(store)
    store.delete(kept.key)
    with pytest.raises(StoreError, match="no object"):
        open_tokens(kept, store)


def test_chunks_of_another_text_are_not_trained_on(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    kept = keep(store)
    file = write_tokens([TEXT[::-1]], 32, "all", None)
    with pytest.raises(FormatError, match=r"tokens.json in \S+ is about other chunks"):
        keep_tokens(store, reference(PREFIX, file), file.path)
    with pytest.raises(FormatError, match="it was changed or damaged"):
        open_tokens(replace(kept, sha256=file.sha256), store)


def test_training_comes_to_the_bits_that_chunks_in_memory_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    teacher = tiny_teacher(tmp_path, layers=1)
    init = tiny_init(teacher)
    last = "qad/tiny-0/checkpoints/00000010/weights.safetensors"

    def trained(store: Store) -> bytes:
        for _ in Training(order(teacher, init, store), store).steps():
            pass
        return store.read(last)

    mapped = trained(open_store(str(tmp_path / "mapped")))
    monkeypatch.setattr(training, "open_tokens", lambda *_: training_tokens())
    assert trained(open_store(str(tmp_path / "memory"))) == mapped


def test_a_process_with_damaged_chunks_says_so_and_ends(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    teacher = tiny_teacher(tmp_path, layers=1)
    whole = order(teacher, teacher, store)
    (tmp_path / "store" / whole.tokens.key).write_bytes(bytes(whole.tokens.size))
    with pytest.raises(KldcloudError, match="it was changed or damaged"):
        train_process(whole, store.uri, 0, 1, "cpu")
    refusal = read_refusal(store, whole.prefix)
    assert refusal is not None
    assert "tokens.bin" in refusal.message
