"""GGUF headers: what a good file says, and that no bad file costs more than one error line."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from kldcloud.errors import FormatError, UserError
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.gguf_header import ArrayInfo, GgufHeader, read_gguf_header, read_tensor_bytes

EMBEDDING = np.arange(6 * 32, dtype=np.float32).reshape(6, 32)
NORM = np.linspace(0.5, 1.5, 32, dtype=np.float32)


def write_model(path: Path) -> Path:
    """A small valid model: one F32 matrix, one Q8_0 matrix, one vector, every kind of value."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", val=True)
    writer.add_string("tokenizer.chat_template", "{{ messages }} ünd so")
    writer.add_int64("example.negative", -5)
    writer.add_array("example.numbers", [3, 1, 2])
    writer.add_array("example.long", list(range(5000)))
    writer.add_token_list([f"<{index}>" for index in range(6)])
    writer.add_token_scores([-float(index) for index in range(6)])
    writer.add_tensor("token_embd.weight", EMBEDDING)
    quantised = gguf.quants.quantize(EMBEDDING, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", NORM)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture(scope="module")
def header(model: Path) -> GgufHeader:
    return read_gguf_header(model)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def tensor(name: str = "a", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def handmade(
    path: Path,
    *,
    magic: bytes = b"GGUF",
    version: bytes = b"\3\0\0\0",
    pairs: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (),
    counts: tuple[int, int] | None = None,
    data: int = 256,
) -> Path:
    """Any header, valid or not, written byte by byte."""
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = magic + version + struct.pack("<QQ", tensor_count, pair_count)
    body = head + b"".join(pairs) + b"".join(tensors)
    path.write_bytes(body + bytes(-len(body) % 32 + data))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_gguf_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert caught.value.hint
    assert len(message) < 400 + len(str(path))
    return message


def test_metadata_is_read_with_its_types(header: GgufHeader) -> None:
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["tokenizer.chat_template"] == "{{ messages }} ünd so"
    assert header.metadata["example.negative"] == -5


def test_short_arrays_are_kept_and_long_ones_only_counted(header: GgufHeader) -> None:
    assert header.metadata["example.numbers"] == ArrayInfo("i32", 3, (3, 1, 2))
    assert header.metadata["example.long"] == ArrayInfo("i32", 5000, None)
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayInfo("string", 6, None)
    assert header.vocabulary_size == 6


def test_sizes_follow_from_the_tensor_table(header: GgufHeader, model: Path) -> None:
    assert header.parameters == 6 * 32 + 6 * 32 + 32
    assert header.tensor_bytes == 6 * 32 * 4 + 6 * 34 + 32 * 4
    assert header.bits_per_weight == 8 * header.tensor_bytes / header.parameters
    assert header.file_bytes == model.stat().st_size


def test_the_tensor_table_agrees_with_the_reference_reader(header: GgufHeader, model: Path) -> None:
    expected = {
        entry.name: (
            tuple(int(size) for size in entry.shape),
            entry.tensor_type.name,
            int(entry.data_offset),
            int(entry.n_bytes),
        )
        for entry in gguf.GGUFReader(model).tensors
    }
    ours = {
        name: (info.shape, info.type_name, info.offset, info.nbytes)
        for name, info in header.tensors.items()
    }
    assert ours == expected


def test_tensor_bytes_are_the_stored_ones(header: GgufHeader, model: Path) -> None:
    raw = read_tensor_bytes(model, header.tensors["token_embd.weight"])
    assert not raw.flags.writeable
    np.testing.assert_array_equal(raw.view(np.float32).reshape(6, 32), EMBEDDING)
    norm = read_tensor_bytes(model, header.tensors["output_norm.weight"])
    np.testing.assert_array_equal(norm.view(np.float32), NORM)


def test_tensor_bytes_of_a_file_that_shrank_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    info = read_gguf_header(path).tensors["output_norm.weight"]
    os.truncate(path, info.offset + info.nbytes - 1)
    with pytest.raises(FormatError, match=r"ends within the tensor 'output_norm.weight'"):
        read_tensor_bytes(path, info)


def test_every_block_size_is_ggmls() -> None:
    reference = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    # The package counts two float32 in a Q8_1 block; ggml's struct holds two float16.
    reference[9] = ("Q8_1", 32, 36)
    ours = {
        number: (kind.name, kind.block_elements, kind.block_bytes)
        for number, kind in GGML_TYPES.items()
    }
    assert {number: ours[number] for number in reference} == reference
    assert set(ours) - set(reference) <= {42}


def test_block_sizes_agree_with_the_engine() -> None:
    engine = pytest.importorskip("llama_cpp._ggml").libggml
    engine.ggml_type_size.restype = ctypes.c_size_t
    engine.ggml_blck_size.restype = ctypes.c_int64
    for number, kind in GGML_TYPES.items():
        sizes = (engine.ggml_blck_size(number), engine.ggml_type_size(number))
        assert sizes == (kind.block_elements, kind.block_bytes), kind.name


def test_a_version_2_file_is_read(tmp_path: Path) -> None:
    path = handmade(tmp_path / "v2.gguf", version=b"\2\0\0\0", tensors=(tensor(),))
    assert read_gguf_header(path).tensors["a"].nbytes == 32


def test_a_vocabulary_without_weights_is_read(tmp_path: Path) -> None:
    header = read_gguf_header(handmade(tmp_path / "vocabulary.gguf", data=0))
    assert header.parameters == 0
    assert header.bits_per_weight == 0.0
    assert header.vocabulary_size == 0


def test_a_large_vocabulary_is_walked_not_kept(tmp_path: Path) -> None:
    count = 262_144
    strings = b"".join(text(str(index)) for index in range(count))
    tokens = pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, count) + strings)
    path = handmade(tmp_path / "large.gguf", pairs=(ARCHITECTURE, tokens), tensors=(tensor(),))
    assert read_gguf_header(path).vocabulary_size == count


def test_the_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    alignment = pair("general.alignment", 4, struct.pack("<I", 64))
    tensors = (tensor("a"), tensor("b", offset=64))
    path = handmade(tmp_path / "aligned.gguf", pairs=(ARCHITECTURE, alignment), tensors=tensors)
    header = read_gguf_header(path)
    assert header.tensors["a"].offset % 64 == 0
    assert header.tensors["b"].offset == header.tensors["a"].offset + 64


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"magic": b"PK\3\4"}, "not a GGUF file"),
        ({"version": b"\0\0\0\3"}, "big-endian"),
        ({"version": b"\1\0\0\0"}, "version 1"),
        ({"version": b"\4\0\0\0"}, "version 4"),
        ({"counts": (1 << 63, 1)}, "claims 9,223,372,036,854,775,808 tensors"),
        ({"counts": (0, 1 << 40)}, "claims 1,099,511,627,776 metadata keys"),
        ({"pairs": ()}, "names no architecture"),
        ({"pairs": (pair("general.architecture", 4, bytes(4)),)}, "names no architecture"),
        ({"pairs": (ARCHITECTURE, ARCHITECTURE)}, "twice"),
        ({"pairs": (pair("", 4, bytes(4)),)}, "metadata key 0 is empty"),
        ({"pairs": (text(b"\xff\xfe") + bytes(8),)}, "not UTF-8"),
        ({"pairs": (struct.pack("<Q", 1 << 62),)}, "claims 4,611,686,018,427,387,904 bytes"),
        ({"pairs": (pair("k", 8, struct.pack("<Q", 1 << 40)),)}, "claims 1,099,511,627,776 bytes"),
        ({"pairs": (pair("k", 8, struct.pack("<Q", 1 << 20)),)}, "ends within metadata 'k'"),
        ({"pairs": (pair("k", 13, bytes(8)),)}, "unknown type number 13"),
        ({"pairs": (pair("k", 7, b"\2"),)}, "neither 0 nor 1"),
        ({"pairs": (pair("k", 9, struct.pack("<IQ", 9, 1)),)}, "array of arrays"),
        ({"pairs": (pair("k", 9, struct.pack("<IQ", 99, 1)),)}, "unknown type number 99"),
        ({"pairs": (pair("k", 9, struct.pack("<IQ", 4, 1 << 62)),)}, "ends within metadata 'k'"),
        ({"pairs": (pair("k", 9, struct.pack("<IQ", 8, 1 << 62)),)}, "strings, more than"),
        ({"pairs": (pair("k", 9, struct.pack("<IQ", 8, 1 << 20)),)}, "ends within metadata 'k'"),
        ({"tensors": (tensor("x" * 64),)}, "claims 64 bytes"),
        ({"tensors": (tensor("a"), tensor("a", offset=32))}, "tensor 'a' twice"),
        ({"tensors": (tensor(shape=()),)}, "0 dimensions"),
        ({"tensors": (tensor(shape=(1, 1, 1, 1, 1)),)}, "5 dimensions"),
        ({"tensors": (tensor(shape=(8, 0)),)}, "impossible shape"),
        ({"tensors": (tensor(shape=(1 << 63, 1 << 63)),)}, "impossible shape"),
        ({"tensors": (tensor(kind=4),)}, "unknown type number 4"),
        ({"tensors": (tensor(shape=(33,), kind=8),)}, "not whole blocks of Q8_0"),
        ({"tensors": (tensor(offset=8),)}, "not aligned to 32 bytes"),
        ({"tensors": (tensor(offset=1 << 62),)}, "ends within the tensor 'a'"),
        ({"tensors": (tensor(shape=(65,)),)}, "ends within the tensor 'a'"),
        ({"tensors": (tensor("a", shape=(16,)), tensor("b", offset=32))}, "overlap"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    assert expected in refusal(handmade(tmp_path / "bad.gguf", **changes))  # type: ignore[arg-type]  # the keywords are the table's


@pytest.mark.parametrize("alignment", [0, 3, 1 << 21])
def test_an_absurd_alignment_is_refused(tmp_path: Path, alignment: int) -> None:
    pairs = (ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", alignment)))
    assert "general.alignment" in refusal(handmade(tmp_path / "bad.gguf", pairs=pairs))


def test_a_part_of_a_split_model_is_refused_with_the_tool_that_merges(tmp_path: Path) -> None:
    pairs = (ARCHITECTURE, pair("split.count", 2, struct.pack("<H", 3)))
    message = refusal(handmade(tmp_path / "model-00001-of-00003.gguf", pairs=pairs))
    assert "one of 3 parts" in message
    assert "llama-gguf-split --merge" in message


def test_a_split_model_of_one_part_is_read(tmp_path: Path) -> None:
    pairs = (ARCHITECTURE, pair("split.count", 2, struct.pack("<H", 1)))
    path = handmade(tmp_path / "model.gguf", pairs=pairs, tensors=(tensor(),))
    assert read_gguf_header(path).parameters == 8


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    assert "empty file" in refusal(tmp_path / "empty.gguf")


@pytest.mark.parametrize("name", ["missing.gguf", "nul\0.gguf"])
def test_a_path_without_a_file_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="check the path") as caught:
        read_gguf_header(tmp_path / name)
    assert not isinstance(caught.value, FormatError)


def test_a_folder_or_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="is not a file"):
            read_gguf_header(path)


def test_every_truncation_of_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    last = max(info.offset + info.nbytes for info in read_gguf_header(model).tensors.values())
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:last])
    assert read_gguf_header(path).parameters == 416
    for size in range(last - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(FormatError):
            read_gguf_header(path)


def refused(path: Path) -> bool:
    try:
        read_gguf_header(path)
    except FormatError as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_cost_at_most_one_error_line(model: Path, tmp_path: Path, seed: int) -> None:
    whole = np.fromfile(model, dtype=np.uint8)
    end = min(info.offset for info in read_gguf_header(model).tensors.values())
    # The long array's 20,000 bytes would swallow nearly all flips.
    long_array = model.read_bytes().index(b"example.long")
    positions = np.r_[: long_array + 30, long_array + 20_030 : end]
    rng = np.random.default_rng(seed)
    path = tmp_path / "flipped.gguf"
    outcomes = []
    for _ in range(500):
        damaged = whole.copy()
        flipped = rng.choice(positions, size=rng.integers(1, 4))
        damaged[flipped] = rng.integers(0, 256, size=flipped.size)
        damaged.tofile(path)
        outcomes.append(refused(path))
    assert 50 < sum(outcomes) < 450
