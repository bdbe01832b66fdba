"""What model families do to logits after their head, against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kldcloud.divergence.linear.side import LinearSide, exact_products

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("family", "settings", "change"),
    [
        ("Llama", {}, {}),
        ("Cohere", {"logit_scale": 0.3}, {"scale": 0.3}),
        ("Granite", {"logits_scaling": 7.0}, {"scale": 1 / 7}),
        ("Gemma2", {"final_logit_softcapping": 0.7}, {"softcap": 0.7}),
    ],
)
def test_its_logits_are_the_models(
    family: str, settings: dict[str, Any], change: dict[str, float]
) -> None:
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    tokens = torch.arange(20)[None] * 4
    with torch.no_grad(), exact_products():
        # Initial weights make tiny logits, which a cap would not touch.
        model.lm_head.weight.mul_(20)
        states = model.model(tokens).last_hidden_state[0]
        wanted = model(tokens).logits[0]
        found = LinearSide(states, model.lm_head.weight, **change).logits(0, 97)
        plain = LinearSide(states, model.lm_head.weight).logits(0, 97)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert bool(change) == ((plain - wanted).abs().max() > 0.1)
