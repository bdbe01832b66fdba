"""`encoding: auto`: the cheaper one to read, and a reason that a person can follow."""

from __future__ import annotations

from kldcloud.models.gguf_header import ArrayInfo, GgufHeader, TensorInfo
from kldcloud.staging.choose import BaseShape, choose_encoding, encoding_costs


def header(vocabulary: int, width: int, head_type: str = "F16") -> GgufHeader:
    tensor = TensorInfo("output.weight", (width, vocabulary), head_type, 0, 1)
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": ArrayInfo("string", vocabulary, None),
    }
    return GgufHeader(3, metadata, {"output.weight": tensor}, 1 << 30)


SMALL = header(320, 64)
LARGE = header(248_320, 2048)


def test_what_the_job_says_is_taken() -> None:
    for wanted in ("hidden", "logits"):
        for model in (SMALL, LARGE):
            choice = choose_encoding(wanted, BaseShape.of(model), remote=False)
            assert (choice.encoding, choice.reason) == (wanted, "as the job says")


def test_hidden_states_that_cannot_stand_for_logits_are_not_taken_even_if_asked_for() -> None:
    for wanted in ("hidden", "auto"):
        choice = choose_encoding(wanted, BaseShape.of(header(320, 64, "Q6_K")), remote=False)
        assert choice.encoding == "logits"
        assert "its head is Q6_K" in choice.reason


def test_a_large_head_is_not_multiplied_with_on_a_cpu() -> None:
    choice = choose_encoding("auto", BaseShape.of(LARGE), remote=False)
    assert choice.encoding == "logits"
    assert "hidden" in choice.reason
    assert "logits" in choice.reason


def test_a_small_head_is() -> None:
    assert choose_encoding("auto", BaseShape.of(SMALL), remote=False).encoding == "hidden"


def test_a_network_makes_large_rows_dearer_and_states_hardly() -> None:
    near, far = (encoding_costs(BaseShape.of(LARGE), remote=remote) for remote in (False, True))
    assert far["logits"].seconds > near["logits"].seconds
    assert far["hidden"].seconds - near["hidden"].seconds < 1e-3 * near["hidden"].seconds
    assert near["hidden"].staged == 2 * 2048
    assert near["hidden"].staged < near["logits"].staged < 2 * 248_320
