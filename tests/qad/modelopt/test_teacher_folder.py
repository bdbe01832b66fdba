"""The teacher as Model Optimizer's scripts load it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kldcloud.qad.modelopt.teacher_folder import is_complete, write_teacher
from kldcloud.qad.torch_model import load_model
from tests.qad.small_training import tiny_teacher
from tests.qad.tiny_architectures import VOCABULARY

TOKENS = torch.arange(24)[None]


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("qwen3", True)])
def test_transformers_loads_the_very_model(tmp_path: Path, architecture: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    teacher = tiny_teacher(tmp_path, architecture, tied=tied)
    folder = tmp_path / "folder"
    assert not is_complete(folder)
    write_teacher(teacher, folder)
    assert is_complete(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # Its exporter reads this, and fails where it is missing.
    assert theirs.config.architectures == [type(theirs).__name__]
    with torch.no_grad():
        assert torch.equal(theirs(TOKENS).logits, load_model(teacher)(TOKENS).logits)


def test_its_tokenizer_has_the_special_tokens_of_the_model_and_keeps_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_teacher(tiny_teacher(tmp_path, layers=1), tmp_path / "folder")
    first = AutoTokenizer.from_pretrained(tmp_path / "folder", model_max_length=32)
    first.save_pretrained(tmp_path / "again")
    # The name of the cache that our chunks are in is made of these.
    facts = [
        (type(each), each.vocab_size, each.eos_token_id, each.bos_token_id, each.pad_token_id)
        for each in (first, AutoTokenizer.from_pretrained(tmp_path / "again"))
    ]
    assert facts[0] == facts[1] == (type(first), VOCABULARY, 2, 1, 2)
    assert first.decode([5, 17, 300]) == "5 17 300"
