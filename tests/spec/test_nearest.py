"""The nearest known word is the one that a person meant."""

from __future__ import annotations

import pytest

from kldcloud.spec.nearest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("quantise", "quantize"),
        ("Quantize", "quantize"),
        ("n-gpu-layers", "n_gpu_layers"),
        ("ngpulayers", "n_gpu_layers"),
        ("candidate", "candidates"),
    ],
)
def test_a_slip_finds_the_word_that_was_meant(word: str, meant: str) -> None:
    assert nearest(word, ["quantize", "n_gpu_layers", "candidates"]) == meant


def test_nothing_is_near_an_unrelated_or_endless_word() -> None:
    assert nearest("zebra", ["quantize", "model"]) is None
    assert nearest("quantize" * 100, ["quantize"]) is None


def test_where_nothing_is_near_all_known_words_are_listed() -> None:
    assert did_you_mean("zebra", ["quantize", "model"], kind="known keys") == (
        "known keys: quantize, model"
    )
