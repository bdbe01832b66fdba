"""Checkpoints in FP8 blocks, GPTQ and AWQ with their weights written out: the numbers they hold."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Llama4Config,
    Llama4ForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import token_statistics
from kldcloud.errors import FormatError, UserError
from kldcloud.models import transformers_methods
from kldcloud.models.dequantized_folder import dequantized_tensors
from kldcloud.models.dequantized_weights import awq_weight, fp8_weight, gptq_weight
from kldcloud.models.engines import load_engine
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_methods import check_method
from kldcloud.models.transformers_options import TransformersOptions
from tests.model_folders import folder_of
from tests.qad.small_training import tiny_teacher
from tests.quantised_folders import (
    Change,
    Maker,
    awq,
    both,
    changed,
    configured,
    fp8_blocks,
    gptq,
    rewritten,
)
from tests.tiny_folders import save_experts, save_gpt_oss, save_words

GOLDEN = Path(__file__).parents[1] / "golden/gptqmodel/layers.safetensors"
CONTEXT = 64
TOKENS = np.random.default_rng(0).integers(3, 320, CONTEXT).astype(np.int32)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
SMALL_FP8 = FP8 | {"weight_block_size": [32, 32]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
V2 = {"checkpoint_format": "gptq_v2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which some matrices are no whole number of blocks."""
    place = tmp_path_factory.mktemp("gguf")
    return folder_of(tiny_teacher(place, feed_forward=320), place / "hf")


def logits(
    path: Path, *, dequantize: bool, attention: str = "sdpa"
) -> np.ndarray[Any, np.dtype[np.float32]]:
    method = read_model_folder(path).quantization or ""
    options = TransformersOptions(
        "float32", attention=attention, quantization=method, dequantize=dequantize
    )
    engine = load_engine(path, CONTEXT, options)
    found = engine.evaluate(TOKENS).logits.copy()
    engine.close()
    return found


@pytest.mark.parametrize(
    ("maker", "settings"),
    [
        pytest.param(fp8_blocks, FP8, id="fp8"),
        pytest.param(
            partial(fp8_blocks, block=1024), FP8 | {"weight_block_size": None}, id="fp8-tensor"
        ),
        pytest.param(gptq, GPTQ, id="gptq"),
        pytest.param(partial(gptq, shuffled=True), GPTQ | {"desc_act": True}, id="gptq-act"),
        pytest.param(partial(gptq, bits=8, offset=0), GPTQ | {"bits": 8} | V2, id="gptq8-v2"),
        pytest.param(awq, AWQ, id="awq"),
    ],
)
def test_a_checkpoint_runs_with_the_values_that_it_holds(
    folder: Path, tmp_path: Path, maker: Maker, settings: dict[str, Any]
) -> None:
    quantised, exact = both(folder, tmp_path, maker, settings)
    meant = logits(exact, dequantize=False)
    following = ChunkShape(CONTEXT).next_tokens(TOKENS)
    found = token_statistics(LogitRows(meant), logits(quantised, dequantize=True), following)
    assert found.kld.max() < 1e-9
    lost = token_statistics(LogitRows(logits(folder, dequantize=False)), meant, following)
    assert lost.kld.mean() > 1e-6


def test_layers_are_read_as_gptqmodel_reads_them() -> None:
    stored = load_file(GOLDEN)
    for name, bits in (("gptq4", 4), ("gptq4-act", 4), ("gptq8", 8)):
        for form, offset in (("gptq", 1), ("gptq_v2", 0)):
            parts = {part: stored[f"{name}.{form}.{part}"] for part in ("qweight", "qzeros")}
            scales, groups = stored[f"{name}.{form}.scales"], stored[f"{name}.{form}.g_idx"].long()
            found = gptq_weight(
                **parts, scales=scales, groups=groups, bits=bits, zero_offset=offset
            )
            assert torch.equal(found.half(), stored[f"{name}.weight"])
    found = awq_weight(*(stored[f"awq.{part}"] for part in ("qweight", "qzeros", "scales")))
    assert torch.equal(found.half(), stored["awq.weight"])


def test_blocks_are_counted_from_the_edge_where_the_last_is_cut() -> None:
    """192 rows in blocks of 128 are 128 and 64, though two scales could share them evenly."""
    codes = torch.ones(3, 192, 130).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(3, 2, 2)
    found = fp8_weight(codes, scales, (128, 128))
    assert found[2, 127, 127] == 1
    assert found[2, 127, 128] == 2
    assert found[2, 128, 127] == 3
    assert found[2, 191, 129] == 4


def test_experts_that_lie_apart_come_together(tmp_path: Path) -> None:
    save_experts(tmp_path / "moe")
    quantised, exact = both(tmp_path / "moe", tmp_path, partial(fp8_blocks, block=32), SMALL_FP8)
    meant = logits(exact, dequantize=False)
    assert np.abs(logits(quantised, dequantize=True) - meant).max() < 1e-5 * np.abs(meant).max()


MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture
def in_mxfp4(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny gpt-oss with its experts as its makers store them, and as numbers."""
    save_gpt_oss(tmp_path / "oss")
    codes = np.random.default_rng(3)
    written: dict[str, torch.Tensor] = {}

    def quantised(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if weight.ndim != 3:
            return {name: weight.clone()}
        experts, inputs, outputs = weight.shape
        nibbles = codes.integers(0, 16, (experts, outputs, inputs // 32, 32))
        powers = codes.integers(121, 126, (experts, outputs, inputs // 32))
        sign, size = 1.0 - 2 * (nibbles >> 3), nibbles & 7
        # E2M1: below 1 in steps of a half, and then one bit behind the point.
        ones = np.where(size < 2, size / 2, (1 + (size & 1) / 2) * 2.0 ** ((size >> 1) - 1))
        meant = (sign * ones * 2.0 ** (powers[..., None] - 127)).reshape(experts, outputs, inputs)
        written[name] = torch.from_numpy(meant.swapaxes(1, 2).astype(np.float32))
        octets = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        return {
            f"{name}_blocks": torch.from_numpy(octets.astype(np.uint8)),
            f"{name}_scales": torch.from_numpy(powers.astype(np.uint8)),
        }

    stored = rewritten(tmp_path / "oss", tmp_path / "q", quantised, every=True)
    exact = rewritten(
        tmp_path / "oss",
        tmp_path / "exact",
        lambda name, each: {name: written.get(name, each).clone()},
        every=True,
    )
    return configured(stored, MXFP4), exact


def test_experts_in_mxfp4_are_what_they_hold(in_mxfp4: tuple[Path, Path]) -> None:
    quantised, exact = in_mxfp4
    meant = logits(exact, dequantize=False, attention="eager")
    assert np.array_equal(logits(quantised, dequantize=True, attention="eager"), meant)
    found = dequantized_tensors(read_model_folder(quantised), torch.bfloat16)[EXPERTS]
    assert torch.equal(found.float(), load_file(exact / "model.safetensors")[EXPERTS])


def test_mxfp4_without_its_kernels_is_refused(
    in_mxfp4: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_model_folder(in_mxfp4[0])
    with pytest.raises(UserError, match="multiplies in FP4, which needs a GPU") as caught:
        check_method(found, "cpu", dequantize=False)
    assert "engine.transformers.dequantize: true" in str(caught.value)
    check_method(found, "cpu", dequantize=True)
    monkeypatch.setattr(transformers_methods, "_multiplies_codes", lambda *_: True)
    monkeypatch.setattr(transformers_methods, "_is_there", lambda _: False)
    with pytest.raises(UserError, match=r"needs kernels==[0-9.]+, triton, which is not installed"):
        check_method(found, "cuda", dequantize=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{EXPERTS}_scales"), "has no tensor .*gate_up_proj_scales"),
        (lambda t: t.pop(f"{EXPERTS}_blocks"), "gate_up_proj_scales belongs to no blocks"),
        (lambda t: t[f"{EXPERTS}_scales"].fill_(255), "gate_up_proj_scales has a scale that is no"),
        (
            lambda t: t.update({f"{EXPERTS}_blocks": t[f"{EXPERTS}_blocks"][..., :8].contiguous()}),
            "is U8 4 x 128 x 2 x 8, not U8 any x any x any x 16",
        ),
    ],
)
def test_mxfp4_that_is_none_is_refused(
    in_mxfp4: tuple[Path, Path], change: Change, message: str
) -> None:
    found = read_model_folder(changed(in_mxfp4[0], change))
    with pytest.raises(FormatError, match=message):
        dequantized_tensors(found, torch.float32)


def save_seeing(folder: Path, family: str) -> None:
    """A tiny model that sees and speaks, of which transformers runs the part that speaks."""
    text = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    eyes = {"hidden_size": 32, "intermediate_size": 128, "patch_size": 14}
    torch.manual_seed(1)
    if family == "qwen3_5":
        eyes |= {"depth": 1, "num_heads": 2, "out_hidden_size": 64}
        text |= {"layer_types": ["full_attention"]}
        config: Any = Qwen3_5Config(text_config=text, vision_config=eyes)
        model: Any = Qwen3_5ForConditionalGeneration(config)
    else:
        eyes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
        eyes |= {f"projector_{end}put_dim": 32 for end in ("in", "out")}
        text |= {"num_local_experts": 2, "intermediate_size_mlp": 96, "pad_token_id": 0}
        eyes |= {"vision_output_dim": 32}
        model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=eyes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    save_words(folder)


@pytest.mark.parametrize("family", ["qwen3_5", "llama4"])
def test_what_speaks_of_a_model_that_sees_is_written_out_alone(tmp_path: Path, family: str) -> None:
    save_seeing(tmp_path / "vl", family)
    quantised, exact = both(tmp_path / "vl", tmp_path, partial(fp8_blocks, block=32), SMALL_FP8)
    meant = logits(exact, dequantize=False)
    assert np.array_equal(logits(quantised, dequantize=True), meant)
    lost = np.abs(logits(tmp_path / "vl", dequantize=False) - meant).max()
    assert lost > 1e-3 * np.abs(meant).max()


LAYER = "model.layers.0.self_attn.q_proj"


def to_all_ones(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.full_like(tensors[name], -1)


@pytest.mark.parametrize(
    ("maker", "settings", "change", "message"),
    [
        (gptq, GPTQ, lambda t: t.pop(f"{LAYER}.scales"), "has no tensor .*q_proj.scales"),
        (gptq, GPTQ, lambda t: t.update({f"{LAYER}.weight": torch.ones(1)}), "has both"),
        (gptq, GPTQ, lambda t: t[f"{LAYER}.g_idx"].fill_(4), "names a group that is not there"),
        (gptq, GPTQ, lambda t: t[f"{LAYER}.g_idx"].fill_(-1), "names a group that is not there"),
        (
            gptq,
            GPTQ,
            lambda t: t.update({f"{LAYER}.qzeros": t[f"{LAYER}.qzeros"][:, :24].contiguous()}),
            "not packed in 4 or 8 bits",
        ),
        (gptq, GPTQ, lambda t: to_all_ones(t, f"{LAYER}.qzeros"), "zero point that overflowed"),
        (gptq, GPTQ | {"checkpoint_format": "marlin"}, lambda _: None, "format 'marlin'"),
        (
            awq,
            AWQ,
            lambda t: t.update({f"{LAYER}.qzeros": torch.zeros(4, 31, dtype=torch.int32)}),
            r"q_proj.qzeros is I32 4 x 31, not I32 4 x 32",
        ),
        (awq, AWQ | {"version": "gemv"}, lambda _: None, "version 'gemv'"),
        (fp8_blocks, FP8, lambda t: t.pop(f"{LAYER}.weight_scale_inv"), "weight_scale_inv"),
        (
            fp8_blocks,
            FP8,
            lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"].float()}),
            "belongs to no weight in F8_E4M3",
        ),
        (
            fp8_blocks,
            FP8 | {"weight_block_size": [64, 128]},
            lambda _: None,
            "weight_scale_inv is F32 2 x 3, not BF16 or F16 or F32 4 x 3",
        ),
        (fp8_blocks, FP8 | {"weight_block_size": [0, 128]}, lambda _: None, "no pair of counts"),
        (fp8_blocks, FP8 | {"weight_block_size": None}, lambda _: None, "has not one scale"),
    ],
)
def test_what_is_not_the_method_is_refused(
    folder: Path,
    tmp_path: Path,
    maker: Maker,
    settings: dict[str, Any],
    change: Change,
    message: str,
) -> None:
    quantised = rewritten(folder, tmp_path / "q", lambda *each: maker(*each)[0])
    found = read_model_folder(configured(changed(quantised, change), settings))
    with pytest.raises(FormatError, match=message) as caught:
        dequantized_tensors(found, torch.float32)
    assert "engine.transformers.dequantize" in str(caught.value)


@pytest.mark.parametrize(
    ("maker", "settings", "message"),
    [
        (gptq, GPTQ | {"bits": 8}, r"down_proj\.qweight is packed in 4 bits, .* says 8"),
        (gptq, GPTQ | {"group_size": 128}, r"down_proj\.scales has 5 groups for 320 .*size 128"),
        (gptq, GPTQ | {"group_size": -1}, r"down_proj\.scales has 5 groups .* group_size -1"),
        (awq, AWQ | {"bits": 3}, r"down_proj\.qweight is packed in 4 bits, .* says 3"),
        (awq, AWQ | {"group_size": 32}, r"down_proj\.scales has 5 groups for 320 .* group_size 32"),
        (awq, {"quant_method": "awq", "q_group_size": 128}, r"down_proj\.scales .* group_size 128"),
    ],
)
def test_settings_that_are_not_of_the_tensors_are_refused_by_a_tensors_name(
    folder: Path, tmp_path: Path, maker: Maker, settings: dict[str, Any], message: str
) -> None:
    quantised = rewritten(folder, tmp_path / "q", lambda *each: maker(*each)[0])
    found = read_model_folder(configured(quantised, settings))
    with pytest.raises(FormatError, match=message) as caught:
        dequantized_tensors(found, torch.float32)
    assert "take the config.json that belongs to these weights" in str(caught.value)


@pytest.mark.parametrize(
    "more", [{"dynamic": {"+:.*q_proj": {"bits": 8}}}, {"extra_config": {"x": 1}}]
)
def test_layers_may_differ_where_the_settings_say_so(
    folder: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    quantised = rewritten(folder, tmp_path / "q", lambda *each: gptq(*each)[0])
    found = read_model_folder(configured(quantised, GPTQ | {"bits": 8} | more))
    assert f"{LAYER}.weight" in dequantized_tensors(found, torch.float32)


def test_one_group_may_be_all_inputs(folder: Path, tmp_path: Path) -> None:
    whole = rewritten(
        folder, tmp_path / "q", lambda name, each: gptq(name, each, group=each.shape[1])[0]
    )
    found = read_model_folder(configured(whole, GPTQ | {"group_size": -1}))
    assert f"{LAYER}.weight" in dequantized_tensors(found, torch.float32)


def test_a_bias_that_the_model_has_not_must_be_zero(folder: Path, tmp_path: Path) -> None:
    quantised = rewritten(folder, tmp_path / "q", lambda *each: gptq(*each)[0])
    configured(quantised, GPTQ)
    changed(quantised, lambda tensors: tensors.update({f"{LAYER}.bias": torch.zeros(256)}))
    logits(quantised, dequantize=True)
    changed(quantised, lambda tensors: tensors[f"{LAYER}.bias"].fill_(1))
    with pytest.raises(FormatError, match=r"q_proj\.bias is not zero"):
        logits(quantised, dequantize=True)


def test_nothing_is_dequantised_without_being_asked(folder: Path, tmp_path: Path) -> None:
    """On a CPU transformers would take FP8's weights alone, and say so only in its log."""
    quantised = rewritten(folder, tmp_path / "q", lambda *each: fp8_blocks(*each)[0])
    configured(quantised, FP8)
    with pytest.raises(UserError, match="multiplies in FP8, which needs a GPU") as caught:
        logits(quantised, dequantize=False)
    assert "engine.transformers.dequantize: true" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "package"), [(GPTQ, "gptqmodel, optimum"), (AWQ, "gptqmodel")]
)
def test_packages_that_are_missing_are_named_with_where_to_put_them(
    folder: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformers_methods, "_is_there", lambda _: False)
    found = read_model_folder(configured(rewritten(folder, tmp_path / "q", plain), settings))
    with pytest.raises(UserError, match=f"needs {package}, which is not installed") as caught:
        check_method(found, "cpu", dequantize=False)
    assert f"add packages: [{package}] to the cluster file" in str(caught.value)
    assert "engine.transformers.dequantize: true" in str(caught.value)
    check_method(found, "cpu", dequantize=True)


def test_on_a_gpu_fp8_needs_kernels_of_a_version_that_transformers_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_methods, "_multiplies_codes", lambda *_: True)
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: False)
    found = read_model_folder(configured(rewritten(folder, tmp_path / "q", plain), FP8))
    with pytest.raises(UserError, match=r"needs kernels==[0-9.]+, which is not installed"):
        check_method(found, "cuda", dequantize=False)
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: True)
    check_method(found, "cuda", dequantize=False)


def test_a_method_that_transformers_does_not_know_is_refused(folder: Path, tmp_path: Path) -> None:
    path = configured(rewritten(folder, tmp_path / "q", plain), {"quant_method": "modelopt"})
    with pytest.raises(UserError, match="has nothing for quant_method 'modelopt'"):
        logits(path, dequantize=False)


def test_weights_that_were_written_out_are_named() -> None:
    facts = TransformersOptions("float32", quantization="gptq", dequantize=True).fingerprint()
    assert (facts["quantization"], facts["dequantized"]) == ("gptq", "weights")


def plain(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: weight.clone()}
