"""Quantising with an importance matrix: every block is ggml's own for the weights that we give.

Compared once with llama-quantize of llama-cpp-python 0.3.36, given the same matrix: of SmolLM2-135M
as Q4_0, Q4_1, IQ4_NL, IQ4_XS, Q2_K_S and IQ2_XXS all 272 tensors were the same, byte for byte.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.errors import EngineError, FormatError
from kldcloud.models.ggml_types import GGML_TYPES
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header, read_tensor_bytes
from kldcloud.models.imatrix_file import (
    Importance,
    ImportanceMatrix,
    imatrix_bytes,
    read_imatrix,
)
from kldcloud.models.llama_library import ggml
from kldcloud.models.quantize import quantized
from kldcloud.spec.quants import (
    CANNOT_BE_MADE,
    FLOAT_FTYPES,
    FTYPES,
    NEEDS_IMPORTANCE_MATRIX,
    TAKES_NO_IMPORTANCE_MATRIX,
)
from kldcloud.store.digest import sha256_bytes, sha256_file
from tests.golden.cases import GOLDEN
from tests.models.layer_inputs import tiny_moe
from tests.tiny_models import TinyPair, tiny_pair
from tests.wide_models import wide_model

TYPE_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}
WITH_MATRIX = sorted(FTYPES.keys() - TAKES_NO_IMPORTANCE_MATRIX - CANNOT_BE_MADE)
TAKE_LONG = {"IQ1_M", "IQ1_S", "IQ2_M", "IQ2_S", "IQ3_XXS"}
ROWS = 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model(tmp_path_factory.mktemp("wide") / "wide.gguf", layers=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


def uneven(header: GgufHeader, path: Path) -> Path:
    """A matrix for all weights of the layers; importances differ by orders of magnitude."""
    random = np.random.default_rng(1)
    entries = {}
    for name, tensor in header.tensors.items():
        if len(tensor.shape) > 1 and name.startswith("blk."):
            sums = np.exp(3 * random.standard_normal(tensor.shape[0])).astype(np.float32)
            entries[name] = Importance(sums, np.array([7]))
    path.write_bytes(imatrix_bytes(ImportanceMatrix(entries, 1, 7), "made up"))
    return path


def blocks(
    kind: str, values: npt.NDArray[np.float32], weights: npt.NDArray[np.float32] | None
) -> bytes:
    """Rows [n, columns] as ggml quantises them."""
    base = ggml("base")
    quantize = base.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    quantize.argtypes += [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    number = TYPE_NUMBERS[kind]
    rows, columns = values.shape
    out = np.empty(rows * columns // GGML_TYPES[number].block_elements * 300, np.uint8)
    values = np.ascontiguousarray(values)
    size = quantize(
        number,
        values.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        columns,
        None if weights is None else np.ascontiguousarray(weights).ctypes.data,
    )
    return out[:size].tobytes()


def stored(path: Path, name: str) -> bytes:
    return read_tensor_bytes(path, read_gguf_header(path).tensors[name]).tobytes()


def assert_blocks_are_ggmls(source: Path, made: Path, matrix: ImportanceMatrix) -> None:
    """Compare the first and the last rows of every matrix."""
    before, after = read_gguf_header(source), read_gguf_header(made)
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in after.tensors.items():
        values = np.frombuffer(stored(source, name), np.float32)
        if tensor.type_name == "F32":
            assert stored(made, name) == values.tobytes()
            continue
        entry = matrix.entries.get(name)
        columns = tensor.shape[0]
        matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
        weights = [None] * matrices if entry is None else entry.weights().reshape(matrices, -1)
        found = np.frombuffer(stored(made, name), np.uint8).reshape(matrices, -1)
        for at, part in enumerate(values.reshape(matrices, -1, columns)):
            # Rows are rounded one by one, and some types take long over one.
            wanted = blocks(tensor.type_name, part[:ROWS], weights[at])
            assert found[at, : len(wanted)].tobytes() == wanted, f"{name} as {tensor.type_name}"
            wanted = blocks(tensor.type_name, part[-ROWS:], weights[at])
            assert found[at, -len(wanted) :].tobytes() == wanted, f"{name} as {tensor.type_name}"


@pytest.mark.parametrize(
    "quant",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in TAKE_LONG)) for name in WITH_MATRIX],
)
def test_every_block_is_the_one_that_ggml_makes_with_these_weights(
    wide: Path, tmp_path: Path, quant: str
) -> None:
    path = uneven(read_gguf_header(wide), tmp_path / "imatrix.gguf")
    digest = sha256_file(wide)
    made = quantized(wide, digest, quant, imatrix=path)
    assert_blocks_are_ggmls(wide, made, read_imatrix(path))
    if quant not in NEEDS_IMPORTANCE_MATRIX:
        plain = quantized(wide, digest, quant)
        assert any(stored(plain, name) != stored(made, name) for name in read_imatrix(path).entries)


@pytest.mark.parametrize("quant", sorted(TAKES_NO_IMPORTANCE_MATRIX - set(FLOAT_FTYPES)))
def test_types_that_are_said_to_heed_no_importance_heed_none(
    wide: Path, tmp_path: Path, quant: str
) -> None:
    path = uneven(read_gguf_header(wide), tmp_path / "imatrix.gguf")
    digest = sha256_file(wide)
    made, plain = quantized(wide, digest, quant, imatrix=path), quantized(wide, digest, quant)
    for name in read_gguf_header(wide).tensors:
        assert stored(made, name) == stored(plain, name)


def test_experts_are_rounded_each_by_what_came_to_it(tmp_path: Path) -> None:
    source = tiny_moe(tmp_path / "moe.gguf")
    path = GOLDEN / "imatrix" / "moe.gguf"
    made = quantized(source, sha256_file(source), "Q4_0", imatrix=path)
    assert read_gguf_header(made).tensors["blk.0.ffn_up_exps.weight"].type_name == "Q4_0"
    assert_blocks_are_ggmls(source, made, read_imatrix(path))


def test_an_older_matrix_is_as_good(pair: TinyPair) -> None:
    path = GOLDEN / "imatrix" / "dense.dat"
    made = quantized(pair.base, sha256_file(pair.base), "Q5_0", imatrix=path)
    assert_blocks_are_ggmls(pair.base, made, read_imatrix(path))


def test_with_a_matrix_llama_cpp_gives_the_first_ffn_down_of_a_q4_0_more_bits(
    tmp_path: Path,
) -> None:
    source = wide_model(tmp_path / "wide.gguf", layers=8)
    path = uneven(read_gguf_header(source), tmp_path / "imatrix.gguf")
    digest = sha256_file(source)
    made = read_gguf_header(quantized(source, digest, "Q4_0", imatrix=path))
    plain = read_gguf_header(quantized(source, digest, "Q4_0"))
    differ = {
        name: (plain.tensors[name].type_name, tensor.type_name)
        for name, tensor in made.tensors.items()
        if tensor.type_name != plain.tensors[name].type_name
    }
    assert differ == {"blk.0.ffn_down.weight": ("Q4_0", "Q4_1")}


def test_the_metadata_says_with_which_matrix_and_nothing_of_this_machine(pair: TinyPair) -> None:
    path = GOLDEN / "imatrix" / "dense.gguf"
    made = quantized(pair.base, sha256_file(pair.base), "Q4_0", imatrix=path)
    notes = {
        key: value
        for key, value in read_gguf_header(made).metadata.items()
        if key.startswith("quantize.")
    }
    assert notes == {
        "quantize.imatrix.file": f"sha256:{sha256_file(path)}",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": 4,
    }
    assert str(path.parent).encode() not in made.read_bytes()


def test_each_matrix_makes_a_file_of_its_own_once(
    pair: TinyPair, cache: Path, tmp_path: Path
) -> None:
    digest = sha256_file(pair.base)
    golden = GOLDEN / "imatrix" / "dense.gguf"
    first = quantized(pair.base, digest, "Q4_0", imatrix=golden)
    assert first.name.endswith("-Q4_0-imat.gguf")
    state = first.stat()
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(golden.read_bytes())
    assert quantized(pair.base, digest, "Q4_0", imatrix=copy) == first
    assert first.stat().st_mtime_ns == state.st_mtime_ns
    matrix = read_imatrix(golden)
    other = tmp_path / "other.gguf"
    other.write_bytes(imatrix_bytes(matrix, "another name"))
    made = {
        first,
        quantized(pair.base, digest, "Q4_0"),
        quantized(pair.base, digest, "Q4_0", imatrix=other),
        quantized(pair.base, digest, "Q4_0", imatrix=GOLDEN / "imatrix" / "dense.dat"),
    }
    assert len(made) == len(list((cache / "quantized").iterdir())) == 4


def test_the_same_matrix_gives_the_same_bytes(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = set()
    for name in ("one", "two"):
        monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / name))
        path = tmp_path / f"{name}.gguf"
        path.write_bytes((GOLDEN / "imatrix" / "dense.gguf").read_bytes())
        file = quantized(pair.base, sha256_file(pair.base), "IQ4_NL", imatrix=path)
        made.add(sha256_bytes(file.read_bytes()))
    assert len(made) == 1


def test_a_matrix_of_another_model_is_refused_before_anything_is_made(
    pair: TinyPair, cache: Path
) -> None:
    with pytest.raises(FormatError, match=r"moe\.gguf: has the importance of 'blk\.0\.\w+"):
        quantized(
            pair.base,
            sha256_file(pair.base),
            "Q4_0",
            imatrix=GOLDEN / "imatrix" / "moe.gguf",
        )
    assert list((cache / "quantized").glob("*")) == []


def test_a_type_that_needs_importance_of_all_says_which_is_missing(
    wide: Path, tmp_path: Path, cache: Path
) -> None:
    full = read_imatrix(uneven(read_gguf_header(wide), tmp_path / "full.gguf"))
    entries = {name: each for name, each in full.entries.items() if "attn_k" not in name}
    part = tmp_path / "part.gguf"
    part.write_bytes(imatrix_bytes(ImportanceMatrix(entries, 1, 7), "made up"))
    with pytest.raises(EngineError, match=r"Missing importance matrix for tensor blk\.0\.attn_k"):
        quantized(wide, sha256_file(wide), "IQ2_XXS", imatrix=part)
    assert list((cache / "quantized").iterdir()) == []
