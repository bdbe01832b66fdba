"""safetensors headers: what a good file says, and that no bad file costs more than a line."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kldcloud.errors import FormatError, UserError
from kldcloud.models.safetensors_header import _BITS, read_safetensors_header

TENSORS = {
    "model.norm.weight": torch.linspace(0.5, 1.5, 32),
    "lm_head.weight": torch.arange(6 * 32).reshape(6, 32).to(torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "scales": torch.ones(3, 5).to(torch.float8_e4m3fn),
    "ünd.so": torch.zeros(3, dtype=torch.bool),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def tensor(
    shape: Any = (8,), dtype: Any = "F32", begin: Any = 0, end: Any = 32
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def handmade(path: Path, header: object, *, data: int = 32, length: int | None = None) -> Path:
    """Any header, valid or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_safetensors_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert caught.value.hint
    assert len(message) < 400 + len(str(path))
    return message


def test_the_header_agrees_with_the_tensors_themselves(model: Path) -> None:
    header = read_safetensors_header(model)
    whole = model.read_bytes()
    assert header.file_bytes == len(whole)
    assert set(header.tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        found = header.tensors[name]
        raw = whole[found.offset : found.offset + found.nbytes]
        assert found.shape == tuple(expected.shape)
        assert raw == expected.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert header.tensors["lm_head.weight"].dtype == "BF16"
    assert header.tensor_bytes == sum(each.nbytes for each in TENSORS.values())


def test_sizes_of_types_are_the_librarys(tmp_path: Path) -> None:
    for dtype, bits in _BITS.items():
        path = handmade(tmp_path / "m", {"a": tensor((8,), dtype, 0, bits)}, data=bits)
        with safe_open(path, "np") as file:
            assert file.get_slice("a").get_dtype() == dtype
        assert read_safetensors_header(path).tensor_bytes == bits
        handmade(path, {"a": tensor((8,), dtype, 0, bits + 1)}, data=bits + 1)
        with pytest.raises(SafetensorError):
            safe_open(path, "np")
        assert "its shape" in refusal(path)


def test_a_header_may_be_padded_and_a_model_may_have_no_tensors(tmp_path: Path) -> None:
    assert read_safetensors_header(handmade(tmp_path / "m", b"{}      ", data=0)).tensors == {}


TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2)
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"PK\3\4", "is not a safetensors file (its header begins with b'PK"),
        (b"{", "is not valid JSON"),
        (b"{\xff}", "is not valid JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (DEEP, "is not valid JSON"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 deep"),
        (b'{"a":[' + b"[]," * (1 << 21) + b"[]]}", "has more than 4,194,304 values"),
        (TWICE, "names 'a' twice"),
        ({"": tensor()}, "impossible name"),
        ({"a" * 2000: tensor()}, "impossible name"),
        ({"a\nb": tensor()}, "impossible name"),
        ({"\ud800": tensor()}, "impossible name"),
        ({"a": 1}, "has no dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [8]}}, "has no dtype, shape and data_offsets"),
        ({"a": {**tensor(), "more": 1}}, "or has more"),
        ({"a": tensor(dtype="F128")}, "the unknown type 'F128'"),
        ({"a": tensor(dtype=["F32"])}, "the unknown type"),
        ({"a": tensor(shape=8)}, "impossible shape"),
        ({"a": tensor(shape=[8.0])}, "impossible shape"),
        ({"a": tensor(shape=[True])}, "impossible shape"),
        ({"a": tensor(shape=[-8])}, "impossible shape"),
        ({"a": tensor(shape=[1 << 40, 1 << 40])}, "impossible shape"),
        ({"a": tensor(shape=[1 << 64])}, "impossible shape"),
        ({"a": tensor(shape=[1] * 17)}, "impossible shape"),
        ({"a": tensor(shape=[3], dtype="F4", end=1)}, "not a whole number of bytes"),
        ({"a": tensor(begin="0")}, "impossible data_offsets"),
        ({"a": {**tensor(), "data_offsets": [0]}}, "impossible data_offsets"),
        ({"a": tensor(begin=-1)}, "impossible data_offsets"),
        ({"a": tensor(end=31)}, "has 31 bytes, and its shape 32"),
        ({"a": tensor(begin=32, end=0)}, "has -32 bytes"),
        ({"a": tensor(begin=8, end=40)}, "leaves a gap"),
        ({"a": tensor(), "b": tensor()}, "overlaps"),
        ({"a": tensor(), "b": tensor(begin=16, end=48)}, "overlaps"),
        ({"a": tensor(shape=[9], end=36)}, "the file ends within the tensor 'a'"),
        ({"a": tensor(shape=[7], end=28)}, "4 bytes that belong to no tensor"),
        ({"__metadata__": {"format": 1}, "a": tensor()}, "does not map texts to texts"),
        ({"__metadata__": [], "a": tensor()}, "does not map texts to texts"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_in_one_line(
    tmp_path: Path, header: object, expected: str
) -> None:
    assert expected in refusal(handmade(tmp_path / "bad.safetensors", header))


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1 << 63, "is not a safetensors file"),
        (60_000_000, "the file ends within its header"),
    ],
)
def test_a_length_beyond_the_file_is_refused_unread(
    tmp_path: Path, length: int, expected: str
) -> None:
    assert expected in refusal(handmade(tmp_path / "m", b"{}", length=length))


def test_a_header_past_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = handmade(tmp_path / "m", b"{", length=100_000_001)
    os.truncate(path, 200_000_000)
    assert "claims a header of 100,000,001 bytes" in refusal(path)


def test_a_pointer_that_git_lfs_left_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert refusal(path) == (
        f"{path}: is a Git LFS pointer, not the weights; run git lfs pull in its folder"
    )


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none", tmp_path / "nul\0"):
        with pytest.raises(UserError) as caught:
            read_safetensors_header(path)
        assert not isinstance(caught.value, FormatError)


def test_every_truncation_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(model.read_bytes())
    for size in range(model.stat().st_size - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(FormatError):
            read_safetensors_header(path)


def refused(path: Path) -> bool:
    try:
        read_safetensors_header(path)
    except FormatError as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_cost_a_line_and_what_is_believed_the_library_believes_too(
    model: Path, tmp_path: Path, seed: int
) -> None:
    whole = np.fromfile(model, dtype=np.uint8)
    end = min(each.offset for each in read_safetensors_header(model).tensors.values())
    rng = np.random.default_rng(seed)
    path = tmp_path / "flipped.safetensors"
    outcomes = []
    for _ in range(500):
        damaged = whole.copy()
        flipped = rng.choice(end, size=rng.integers(1, 3))
        # Half of them stay among JSON's own characters, where a header still means something.
        alphabet = np.frombuffer(b'0123456789[]{},:" FIBU', np.uint8)
        damaged[flipped] = rng.choice(alphabet if rng.random() < 0.5 else np.arange(256))
        damaged.tofile(path)
        outcomes.append(refused(path))
        if not outcomes[-1]:
            with safe_open(path, "np") as file:
                assert set(file.keys()) == set(read_safetensors_header(path).tensors)
    assert 10 < outcomes.count(False) < 250
