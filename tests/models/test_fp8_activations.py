"""What enters FP8 layers, rounded as FP8 kernels do: against products of codes, block by block."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import token_statistics
from kldcloud.errors import FormatError
from kldcloud.models.engines import load_engine
from kldcloud.models.fp8_activations import rounded_by_groups
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_load import load_transformers
from kldcloud.models.transformers_options import TransformersOptions
from tests.model_folders import folder_of
from tests.qad.small_training import tiny_teacher
from tests.quantised_folders import Change, changed, configured, fp8_blocks, rewritten
from tests.tiny_folders import save_experts

CONTEXT = 64
TOKENS = np.random.default_rng(0).integers(3, 320, CONTEXT).astype(np.int32)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
ONE_SCALE = FP8 | {"weight_block_size": None}
STATIC = ONE_SCALE | {"activation_scheme": "static"}
UE8M0 = FP8 | {"scale_fmt": "ue8m0"}
WEIGHTS = TransformersOptions("float32", quantization="fp8", dequantize=True)
ROUNDED = replace(WEIGHTS, round_activations=True)
Codes = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which some matrices are no whole number of blocks."""
    place = tmp_path_factory.mktemp("gguf")
    return folder_of(tiny_teacher(place, feed_forward=320), place / "hf")


def fp8_folder(folder: Path, target: Path, settings: dict[str, Any]) -> Path:
    """The model in FP8; a static scale where the settings ask for one."""
    block = 128 if settings["weight_block_size"] else 1 << 16

    def stored(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        made = dict(fp8_blocks(name, weight, block)[0])
        if settings["activation_scheme"] == "static":
            # Less than what enters some layers, which is then cut off.
            made[name.replace(".weight", ".activation_scale")] = torch.tensor(2.0 / 448)
        return made

    return configured(rewritten(folder, target, stored), settings)


def encoded(states: torch.Tensor, scale: torch.Tensor) -> Codes:
    """Codes of E4M3 as the nearest of all its values, in float64, and their scale."""
    values = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    wanted = (states.double() / scale.double()).clamp(-448, 448)
    between = (values[1:] + values[:-1]) / 2
    # A tie goes to the even code: its upper neighbour if that is even.
    at = torch.bucketize(wanted.abs(), between)
    tie = (at < len(between)) & (wanted.abs() == between[at.clamp(max=len(between) - 1)])
    at = torch.where(tie & (at % 2 == 1), at + 1, at)
    return values[at] * wanted.sign(), scale.double()


def activation_codes(states: torch.Tensor, settings: dict[str, Any]) -> list[tuple[slice, Codes]]:
    """The columns that share scales, with their codes."""
    width = states.shape[-1]
    group = 128 if settings["weight_block_size"] else width
    found = []
    for start in range(0, width, group):
        columns = slice(start, min(start + group, width))
        part = states[..., columns]
        scale = part.abs().amax(-1, keepdim=True) / 448
        if settings.get("scale_fmt") == "ue8m0":
            mantissa, exponent = torch.frexp(scale)
            scale = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())
        if settings["activation_scheme"] == "static":
            scale = torch.tensor(2.0 / 448)
        found.append((columns, encoded(part, scale)))
    return found


def product(
    codes: torch.Tensor, scales: torch.Tensor, settings: dict[str, Any], states: torch.Tensor
) -> torch.Tensor:
    """Sums of codes times codes in float64, times the scales of their blocks."""
    block = 128 if settings["weight_block_size"] else 1 << 16
    out = torch.zeros(*states.shape[:-1], len(codes), dtype=torch.float64)
    for columns, (entering, scale) in activation_codes(states, settings):
        for row in range(len(scales)):
            rows = slice(row * block, (row + 1) * block)
            sums = entering @ codes[rows, columns].double().T
            out[..., rows] += sums * scale * scales[row, columns.start // block].double()
    return out.float()


def logits(path: Path, options: TransformersOptions = ROUNDED) -> np.ndarray[Any, Any]:
    engine = load_engine(path, CONTEXT, options)
    found = engine.evaluate(TOKENS).logits.copy()
    engine.close()
    return found


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(FP8, id="blocks"),
        pytest.param(UE8M0, id="ue8m0"),
        pytest.param(ONE_SCALE, id="token"),
        pytest.param(STATIC, id="static"),
    ],
)
def test_layers_compute_what_products_of_codes_are(
    folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Each from what enters it: a sum in another order moves a code here and there further on."""
    quantised = fp8_folder(folder, tmp_path / "fp8", settings)
    model = load_transformers(read_model_folder(quantised), ROUNDED)
    stored = load_file(quantised / "model.safetensors")
    compared = []

    def compare(name: str, entered: torch.Tensor, found: torch.Tensor) -> None:
        codes, scales = stored[f"{name}.weight"], stored[f"{name}.weight_scale_inv"]
        meant = product(codes.float(), scales, settings, entered)
        torch.testing.assert_close(found, meant, rtol=0, atol=1e-5 * float(meant.abs().max()))
        compared.append(name)

    for name, layer in model.named_modules():
        if f"{name}.weight_scale_inv" in stored:
            entered: list[torch.Tensor] = []
            layer.register_forward_pre_hook(
                lambda _, given, kept=entered: kept.append(given[0].clone()), prepend=True
            )
            layer.register_forward_hook(
                lambda _, __, found, name=name, kept=entered: compare(name, kept.pop(), found)
            )
    with torch.inference_mode():
        model(torch.from_numpy(TOKENS.astype(np.int64))[None])
    assert len(compared) == 14


def test_it_is_in_the_figures(folder: Path, tmp_path: Path) -> None:
    quantised = fp8_folder(folder, tmp_path / "fp8", FP8)
    following = ChunkShape(CONTEXT).next_tokens(TOKENS)
    base = LogitRows(logits(quantised, WEIGHTS))
    assert token_statistics(base, logits(quantised), following).kld.mean() > 1e-5


def test_rounding_by_hand() -> None:
    states = torch.tensor([[448.0, 1.03, -0.001, 0.0, 7.0, 0.0]])
    assert rounded_by_groups(states, 4).tolist() == [[448.0, 1.0, -0.001953125, 0.0, 7.0, 0.0]]
    assert rounded_by_groups(torch.zeros(2, 3), None).tolist() == [[0.0] * 3] * 2
    # 450 / 448 is more than 1: the next power of two is 2, and 450 / 2 = 225 lies between codes.
    assert rounded_by_groups(torch.tensor([450.0]), None, powers_of_two=True).item() == 448
    assert rounded_by_groups(states.bfloat16(), 4).dtype == torch.bfloat16


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (FP8 | {"activation_scheme": "learned"}, lambda _: None, "activation_scheme 'learned'"),
        (FP8 | {"scale_fmt": "e5m2"}, lambda _: None, "scale_fmt 'e5m2'"),
        (STATIC, lambda t: t.pop(f"{LAYER}.activation_scale"), "there is no .*activation_scale"),
        (STATIC, lambda t: t[f"{LAYER}.activation_scale"].zero_(), r"q_proj is 0\.0"),
        (STATIC, lambda t: t[f"{LAYER}.activation_scale"].fill_(torch.inf), "q_proj is inf"),
    ],
)
def test_what_does_not_say_how_is_refused(
    folder: Path, tmp_path: Path, settings: dict[str, Any], change: Change, message: str
) -> None:
    quantised = changed(fp8_folder(folder, tmp_path / "fp8", settings), change)
    with pytest.raises(FormatError, match=message) as caught:
        logits(quantised)
    assert "round_activations" in str(caught.value)


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    save_experts(tmp_path / "moe")
    quantised = fp8_folder(tmp_path / "moe", tmp_path / "fp8", FP8)
    assert "expert" in json.dumps(list(load_file(quantised / "model.safetensors")))
    with pytest.raises(FormatError, match=r"experts\..*is no linear layer's"):
        logits(quantised)
