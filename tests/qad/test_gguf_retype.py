"""A GGUF at another type: the rest is byte for byte the source's, and llama.cpp's peer reads it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from kldcloud.errors import FormatError, StoreError, UserError
from kldcloud.models.gguf_header import read_gguf_header, read_tensor_bytes
from kldcloud.qad.gguf_retype import NewTensor, retype_gguf

WIDTH = 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A GGUF with its own alignment, a file type, and text that looks like one."""
    path = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    decoy = b"\x11\0\0\0\0\0\0\0general.file_type\x04\0\0\0\x07\0\0\0".decode()
    writer.add_string("general.description", decoy)
    writer.add_file_type(1)
    writer.add_token_list([f"<{index}>" for index in range(9)])
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.standard_normal((9, WIDTH)).astype(np.float16))
    writer.add_tensor("blk.0.ffn_up.weight", rng.standard_normal((3, WIDTH)).astype(np.float16))
    writer.add_tensor("output_norm.weight", rng.standard_normal(WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def new(count: int = 3 * 36) -> list[NewTensor]:
    def numbers() -> np.ndarray:
        return np.arange(count, dtype=np.uint8)

    return [
        NewTensor("blk.0.ffn_up.weight", (WIDTH, 3), "NVFP4", numbers),
        NewTensor("blk.0.ffn_up.scale", (1,), "F32", lambda: np.array([0.25], np.float32)),
    ]


def test_a_tensor_changes_its_type_and_nothing_else_a_byte(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "target.gguf"
    retype_gguf(source, target, new(), 39)
    before, after = read_gguf_header(source), read_gguf_header(target)
    assert list(after.tensors) == [
        "token_embd.weight",
        "blk.0.ffn_up.weight",
        "blk.0.ffn_up.scale",
        "output_norm.weight",
    ]
    assert {**before.metadata, "general.file_type": 39} == dict(after.metadata)
    for name in ("token_embd.weight", "output_norm.weight"):
        assert np.array_equal(
            read_tensor_bytes(source, before.tensors[name]),
            read_tensor_bytes(target, after.tensors[name]),
        )
    end = before.tensors["token_embd.weight"].offset
    one, other = source.read_bytes()[24:end], target.read_bytes()[24:end]
    metadata = one.index(b"token_embd.weight") - 8
    assert sum(a != b for a, b in zip(one[:metadata], other[:metadata], strict=True)) == 1
    assert all(info.offset % 128 == 0 for info in after.tensors.values())
    read = {each.name: each for each in gguf.GGUFReader(target).tensors}
    assert read["blk.0.ffn_up.weight"].tensor_type == gguf.GGMLQuantizationType.NVFP4
    assert read["blk.0.ffn_up.weight"].data.reshape(-1).tolist() == list(range(108))
    assert read["blk.0.ffn_up.scale"].data.tolist() == [0.25]
    assert [each.name for each in target.parent.iterdir()] == ["target.gguf"]


def test_without_new_tensors_it_is_the_same_file(source: Path, tmp_path: Path) -> None:
    retype_gguf(source, tmp_path / "same.gguf", [], 1)
    assert (tmp_path / "same.gguf").read_bytes() == source.read_bytes()


def test_what_cannot_be_written_leaves_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.gguf"
    with pytest.raises(FormatError, match=r"'blk\.0\.ffn_up\.weight' takes 108 bytes, and 109"):
        retype_gguf(source, target, new(109), 39)
    with pytest.raises(UserError, match="is the file that it is made of"):
        retype_gguf(source, source, new(), 39)
    with pytest.raises(StoreError, match="cannot be written"):
        retype_gguf(source, source / "target.gguf", new(), 39)

    def refuse(_: Path) -> None:
        raise FormatError("no good")

    with pytest.raises(FormatError, match="no good"):
        retype_gguf(source, target, new(), 39, check=refuse)
    assert [each.name for each in tmp_path.iterdir()] == ["source.gguf"]
