"""llama.cpp is timed in a process of its own, for some models end the one that evaluates them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import TinyPair, add_tokenizer, tiny_pair

from kldcloud.errors import EngineError
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.llama_timing import evaluation_seconds

TOKENS = np.full(64, 260, np.int32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


def few_positions(path: Path) -> Path:
    """A starcoder model whose table of positions ends within a chunk: llama.cpp aborts there."""
    width = 32
    writer = gguf.GGUFWriter(path, "starcoder")
    writer.add_context_length(16)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    add_tokenizer(writer, 320, bos=True)
    matrices = {
        "token_embd": (320, width),
        "position_embd": (16, width),
        "blk.0.attn_qkv": (3 * width, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_up": (width, width),
        "blk.0.ffn_down": (width, width),
    }
    for name, shape in matrices.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        if name.startswith("blk"):
            writer.add_tensor(f"{name}.bias", np.zeros(shape[0], np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_seconds_of_a_chunk(pair: TinyPair) -> None:
    assert 0 < evaluation_seconds(pair.base, TOKENS, LlamaOptions()) < 60


def test_what_llama_refuses_is_said(pair: TinyPair, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(pair.base.read_bytes()[:-4096])
    with pytest.raises(EngineError, match=r"cut\.gguf: llama\.cpp could not load it: "):
        evaluation_seconds(cut, TOKENS, LlamaOptions())


def test_an_abort_of_llama_ends_in_its_own_words(tmp_path: Path) -> None:
    """And not in the end of this process, with a debugger's hundred lines."""
    path = few_positions(tmp_path / "few.gguf")
    with pytest.raises(
        EngineError, match=r"few\.gguf: llama\.cpp could not evaluate it: .* signal 6: .*ASSERT"
    ) as caught:
        evaluation_seconds(path, TOKENS, LlamaOptions())
    assert "\n" not in str(caught.value)
