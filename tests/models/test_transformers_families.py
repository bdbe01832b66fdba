"""Families of models on transformers: each gives what it gives by itself, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as library
from transformers import PreTrainedModel

from kldcloud.errors import UserError
from kldcloud.models.engines import load_engine
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_load import outlined
from kldcloud.models.transformers_options import TransformersOptions, resolved_attention
from kldcloud.staging.folder_head import read_base_head
from kldcloud.staging.head import NOTHING_AFTER
from tests.model_folders import write_tokenizer
from tests.qad.small_training import tiny_teacher
from tests.tiny_folders import SMALL

V = 320
CONTEXT = 48
Made = tuple[type[PreTrainedModel], Any]
HEADED = SMALL | {"head_dim": 16}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("gguf"))


def saved(folder: Path, made: Made, gguf: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    kind, config = made
    torch.manual_seed(3)
    model = kind(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.to(dtype).save_pretrained(folder)
    write_tokenizer(gguf, folder)
    return folder


def mamba() -> Made:
    config = library.MambaConfig(
        vocab_size=V, hidden_size=64, num_hidden_layers=2, state_size=8, tie_word_embeddings=False
    )
    return library.MambaForCausalLM, config


def gpt_oss() -> Made:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
    return library.GptOssForCausalLM, library.GptOssConfig(**HEADED, **experts)


def qwen3_next() -> Made:
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    heads |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    sizes = (
        HEADED | EXPERTS | heads | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 8}
    )
    return library.Qwen3NextForCausalLM, library.Qwen3NextConfig(**sizes)


def falcon_h1() -> Made:
    sizes = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
    sizes |= {"mamba_n_groups": 1, "mamba_chunk_size": 16}
    config = library.FalconH1Config(**HEADED, **sizes, lm_head_multiplier=0.5)
    return library.FalconH1ForCausalLM, config


def recurrent_gemma() -> Made:
    sizes = HEADED | {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 32}
    config = library.RecurrentGemmaConfig(**sizes, logits_soft_cap=3.0)
    return library.RecurrentGemmaForCausalLM, config


def hyperclovax() -> Made:
    return library.HyperCLOVAXForCausalLM, library.HyperCLOVAXConfig(**HEADED, logits_scaling=0.25)


def minicpm3() -> Made:
    sizes = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "v_head_dim": 16}
    sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "dim_model_base": 16}
    return library.MiniCPM3ForCausalLM, library.MiniCPM3Config(**SMALL | sizes)


def gemma3() -> Made:
    config = library.Gemma3Config(
        text_config=library.Gemma3TextConfig(**HEADED, sliding_window=16),
        vision_config=library.SiglipVisionConfig(**EYES),
        mm_tokens_per_image=4,
        image_token_index=300,
    )
    return library.Gemma3ForConditionalGeneration, config


def mistral3() -> Made:
    config = library.Mistral3Config(
        text_config=library.MistralConfig(**HEADED),
        vision_config=library.PixtralVisionConfig(**EYES, head_dim=16),
        image_token_index=300,
    )
    return library.Mistral3ForConditionalGeneration, config


def qwen2_5_vl() -> Made:
    turned = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    eyes = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    config = library.Qwen2_5_VLConfig(
        text_config=HEADED | {"rope_parameters": turned},
        vision_config=eyes | {"out_hidden_size": 64, "fullatt_block_indexes": [0]},
        image_token_id=300,
        video_token_id=301,
        vision_start_token_id=302,
        vision_end_token_id=303,
    )
    return library.Qwen2_5_VLForConditionalGeneration, config


FAMILIES: list[tuple[Callable[[], Made], str, bool]] = [
    (mamba, "eager", False),
    (gpt_oss, "eager", False),
    (qwen3_next, "sdpa", False),
    (falcon_h1, "sdpa", True),
    (recurrent_gemma, "sdpa", True),
    (hyperclovax, "sdpa", True),
    (minicpm3, "sdpa", False),
    (gemma3, "sdpa", False),
    (mistral3, "sdpa", False),
    (qwen2_5_vl, "sdpa", False),
]
"""With the attention that each is run by, and whether something comes after its head."""


@pytest.mark.parametrize(("family", "attention", "after"), FAMILIES)
def test_a_family_gives_its_own_logits(
    tmp_path: Path, gguf: Path, family: Callable[[], Made], attention: str, after: bool
) -> None:
    made = family()
    path = saved(tmp_path / "hf", made, gguf)
    folder = read_model_folder(path)
    options = TransformersOptions("float32", attention=resolved_attention("sdpa", folder.config))
    assert options.attention == attention
    chunk = np.random.default_rng(0).integers(3, 299, CONTEXT).astype(np.int32)
    engine = load_engine(path, CONTEXT, options)
    found = engine.evaluate(chunk, hidden=True)
    logits, states = found.logits.copy(), found.hidden
    engine.close()
    exact = in_float64(path, made[0], chunk)
    assert np.abs(logits - exact).max() < 3e-5 * np.abs(exact).max()
    # A stage of hidden states makes the same logits of them, from the files alone.
    head = read_base_head(path, options)
    assert (head.after != NOTHING_AFTER) is after
    rebuilt = np.empty_like(logits)
    assert states is not None
    head.logits(states, out=rebuilt)
    assert rebuilt.tobytes() == logits.tobytes()


def in_float64(
    path: Path, kind: type[PreTrainedModel], chunk: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Logits of a chunk's scored positions by the class alone, everything in float64."""
    model = kind.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    with torch.inference_mode():
        ids = torch.from_numpy(chunk.astype(np.int64))[None]
        logits = model.double().eval()(input_ids=ids, use_cache=False).logits[0]
    found: npt.NDArray[np.float64] = logits[CONTEXT // 2 : CONTEXT - 1].double().numpy()
    return found


def test_states_go_to_the_head_in_its_own_type(tmp_path: Path, gguf: Path) -> None:
    """Mamba's residual stream is float32; what is multiplied is what its own head would get."""
    path = saved(tmp_path / "hf", mamba(), gguf, dtype=torch.bfloat16)
    engine = load_engine(path, CONTEXT, TransformersOptions("bfloat16", attention="eager"))
    states = engine.states(np.arange(3, 3 + CONTEXT, dtype=np.int32))
    engine.close()
    assert states is not None
    rounded = torch.from_numpy(states).bfloat16().float().numpy()
    assert rounded.tobytes() == states.tobytes()


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [
        ("gpt_oss", "eager"),
        ("mamba2", "eager"),
        ("mistral3", "sdpa"),
        ("llama", "sdpa"),
        ("t5", "sdpa"),  # which is refused, as what is not heard of
        ("unheard-of", "sdpa"),
        (None, "sdpa"),
    ],
)
def test_attention_is_eager_where_transformers_has_no_other(
    model_type: str | None, attention: str
) -> None:
    assert resolved_attention("sdpa", {"model_type": model_type}) == attention


def classifier(*, tied: bool) -> Made:
    config = library.Qwen2Config(**HEADED, num_labels=3, tie_word_embeddings=tied)
    return library.Qwen2ForSequenceClassification, config


def without_a_head() -> Made:
    return library.Qwen3Model, library.Qwen3Config(**HEADED, tie_word_embeddings=True)


def t5() -> Made:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    return library.T5ForConditionalGeneration, library.T5Config(vocab_size=V, **sizes)


def bart() -> Made:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = library.BartConfig(vocab_size=V, d_model=64, **sizes, **heads)
    return library.BartForConditionalGeneration, config


def bert() -> Made:
    return library.BertForMaskedLM, library.BertConfig(**SMALL)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (classifier(tied=True), "Qwen2ForSequenceClassification is no language model"),
        (classifier(tied=False), "Qwen2ForSequenceClassification is no language model"),
        (without_a_head(), "Qwen3Model is no language model"),
        (bert(), "BertForMaskedLM is no language model"),
        (t5(), "T5ForConditionalGeneration is no language model"),
        (bart(), "BartForConditionalGeneration encodes a text before it decodes one"),
    ],
)
def test_what_predicts_no_next_token_is_refused(
    tmp_path: Path, gguf: Path, made: Made, why: str
) -> None:
    path = saved(tmp_path / "hf", made, gguf)
    with pytest.raises(UserError, match=why) as caught:
        outlined(read_model_folder(path))
    assert "only models that predict the next token" in str(caught.value)


def test_a_name_that_transformers_does_not_have_is_no_obstacle(tmp_path: Path, gguf: Path) -> None:
    """As of folders that were written before their family had a class."""
    made = library.LlamaForCausalLM, library.LlamaConfig(**HEADED)
    path = saved(tmp_path / "hf", made, gguf)
    said = json.loads((path / "config.json").read_text()) | {"architectures": ["LLaMAForCausalLM"]}
    (path / "config.json").write_text(json.dumps(said))
    outlined(read_model_folder(path))
