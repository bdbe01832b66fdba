"""Mapping a GGUF: what is where, and one line naming what a file lacks or has too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from kldcloud.errors import FormatError
from kldcloud.qad.architectures import EMBEDDING, HEAD, interleaved_rows, map_model
from tests.qad.tiny_architectures import ARCHITECTURES, TinyShape, tiny_model, tiny_tensors

SMALL = {
    name: TinyShape(name, width=64, layers=2, head_width=16, feed_forward=64)
    for name in ARCHITECTURES
}


def write(tmp_path: Path, shape: TinyShape, **metadata: Any) -> Path:
    dotted = {key.replace("__", "."): value for key, value in metadata.items()}
    shape = replace(shape, metadata={**shape.metadata, **dotted})
    return tiny_model(tmp_path / "model.gguf", shape)


@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("tied", [True, False])
def test_each_tensor_is_one_parameter(shape: TinyShape, tied: bool, tmp_path: Path) -> None:
    shape = replace(shape, tied=tied)
    found = map_model(write(tmp_path, shape))
    tensors = tiny_tensors(shape)
    assert sorted(item.tensor.name for item in found.parameters.values()) == sorted(tensors)
    for name, item in found.parameters.items():
        assert item.name == name
        assert item.shape == tensors[item.tensor.name].shape
    assert found.head == (EMBEDDING if tied else HEAD)


def test_gguf_pys_table_gives_the_same_names(tmp_path: Path) -> None:
    for name, shape in SMALL.items():
        kind = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[name]
        table = gguf.get_tensor_name_map(kind, shape.layers)
        for item in map_model(write(tmp_path, shape)).parameters.values():
            stem, _, suffix = item.name.rpartition(".")
            assert f"{table.get_name(stem)}.{suffix}" == item.tensor.name


def test_only_llamas_queries_and_keys_are_reordered(tmp_path: Path) -> None:
    for name, shape in SMALL.items():
        reordered = {
            item.tensor.name.split(".")[2]
            for item in map_model(write(tmp_path, shape)).parameters.values()
            if item.file_rows is not None
        }
        assert reordered == ({"attn_q", "attn_k"} if name == "llama" else set())


def test_only_gemmas_norms_are_shifted(tmp_path: Path) -> None:
    for name, shape in SMALL.items():
        for item in map_model(write(tmp_path, shape)).parameters.values():
            norm = item.tensor.name.endswith("norm.weight")
            assert item.added == (1.0 if name == "gemma3" and norm else 0.0)


@pytest.mark.parametrize(("heads", "width"), [(1, 2), (3, 64), (9, 16)])
def test_the_order_of_rows_undoes_the_converters_interleaving(heads: int, width: int) -> None:
    model = np.random.default_rng(0).standard_normal((heads * width, 5))
    # convert_hf_to_gguf's LlamaModel.permute, as its formula reads.
    file = model.reshape(heads, 2, width // 2, 5).swapaxes(1, 2).reshape(model.shape)
    rows = interleaved_rows(heads, width)
    assert np.array_equal(file[rows], model)
    back = np.empty_like(file)
    back[rows] = model
    assert np.array_equal(back, file)


def test_another_architecture_is_refused_with_those_that_are_not(tmp_path: Path) -> None:
    shape = replace(SMALL["llama"], architecture="falcon")
    with pytest.raises(FormatError, match=r"'falcon'.*llama, qwen2, qwen3, gemma3"):
        map_model(tiny_model(tmp_path / "model.gguf", shape))


@pytest.mark.parametrize(
    ("architecture", "lost"),
    [
        ("llama", "token_embd.weight"),
        ("llama", "output_norm.weight"),
        ("qwen2", "blk.1.attn_q.bias"),
        ("qwen3", "blk.0.attn_k_norm.weight"),
        ("gemma3", "blk.1.post_ffw_norm.weight"),
    ],
)
def test_a_missing_tensor_is_named(architecture: str, lost: str, tmp_path: Path) -> None:
    shape = SMALL[architecture]
    tensors = tiny_tensors(shape)
    del tensors[lost]
    with pytest.raises(FormatError, match=lost):
        map_model(tiny_model(tmp_path / "model.gguf", shape, tensors=tensors))


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [
        ("llama", "blk.0.attn_q.bias"),
        ("llama", "blk.2.attn_norm.weight"),
        ("llama", "blk.0.ffn_gate_inp.weight"),
        ("qwen3", "rope_freqs.weight"),
        ("qwen2", "output.bias"),
    ],
)
def test_a_tensor_without_a_place_is_named(architecture: str, extra: str, tmp_path: Path) -> None:
    shape = SMALL[architecture]
    tensors = tiny_tensors(shape) | {extra: np.ones(64, np.float32)}
    with pytest.raises(FormatError, match=extra):
        map_model(tiny_model(tmp_path / "model.gguf", shape, tensors=tensors))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_norm.weight", (65,)),
        ("blk.1.ffn_down.weight", (64, 65)),
        ("blk.1.attn_k.weight", (64, 64)),
        ("output.weight", (64, 320)),
        ("token_embd.weight", (64,)),
        ("token_embd.weight", (319, 64)),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = tiny_tensors(SMALL["llama"]) | {name: np.ones(shape, np.float32)}
    with pytest.raises(FormatError, match=name):
        map_model(tiny_model(tmp_path / "model.gguf", SMALL["llama"], tensors=tensors))


def test_a_type_that_is_not_dequantised_is_named_with_its_tensor(tmp_path: Path) -> None:
    tensors: dict[str, Any] = dict(tiny_tensors(SMALL["llama"]))
    tensors["blk.0.attn_v.weight"] = tensors["blk.0.attn_v.weight"].astype(np.float64)
    with pytest.raises(FormatError, match=r"blk\.0\.attn_v\.weight' is F64"):
        map_model(tiny_model(tmp_path / "model.gguf", SMALL["llama"], tensors=tensors))


HUGE = (1 << 32) - 1


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("block_count", [None, 0, 1, 3, HUGE, 2.0, "2", True, [2, 2]]),
        ("embedding_length", [None, 32, HUGE]),
        ("feed_forward_length", [None, 0, 65, HUGE, [64, 64]]),
        ("attention__head_count", [None, 0, 3, 8, HUGE, [4, 4]]),
        ("attention__head_count_kv", [0, 3, 8, HUGE]),
        ("attention__key_length", [0, 15, 32, HUGE]),
        ("attention__value_length", [32]),
        ("rope__dimension_count", [8]),
        ("context_length", [None, 0, HUGE]),
        (
            "attention__layer_norm_rms_epsilon",
            [None, -1.0, 2.0, float("nan"), float("inf"), 1],
        ),
        ("rope__freq_base", [0.0, -1.0, float("inf")]),
        ("rope__scaling__type", ["yarn", "longrope"]),
        ("rope__scaling__factor", [-1.0, float("nan"), "4"]),
        ("rope__scaling__attn_factor", [0.5]),
    ],
)
def test_a_number_that_cannot_be_is_refused_in_one_line(
    key: str, values: list[Any], tmp_path: Path
) -> None:
    for value in values:
        path = write(tmp_path, SMALL["llama"], **{key: value})
        with pytest.raises(FormatError) as caught:
            map_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__sliding_window", 2.0),
        ("attention__sliding_window", HUGE),
        ("attention__sliding_window_pattern", [True]),
        ("attention__sliding_window_pattern", [1, 0]),
        ("attention__sliding_window_pattern", "local"),
        ("rope__freq_base_swa", -1.0),
        ("final_logit_softcapping", -30.0),
    ],
)
def test_gemmas_own_numbers_are_checked_too(key: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path, SMALL["gemma3"], **({"attention__sliding_window": 8} | {key: value}))
    with pytest.raises(FormatError, match=key.replace("__", r"\.")):
        map_model(path)


@pytest.mark.parametrize(
    "divisors", [(1.0,) * 7, (1.0,) * 7 + (0.0,), (1.0,) * 7 + (float("nan"),)], ids=str
)
def test_rotary_divisors_are_checked(divisors: tuple[float, ...], tmp_path: Path) -> None:
    path = write(tmp_path, replace(SMALL["llama"], rope_divisors=divisors))
    with pytest.raises(FormatError, match=r"rope_freqs\.weight"):
        map_model(path)
