"""Tokens a second of measuring a candidate on a GPU, beside the bare forward pass of the model.

    python benchmarks/gpu_sweep.py [--model 8b] [--vocabulary 128256] [--context 4096] [--cpu]

The model is of a Llama's shape with random weights in bfloat16, so nothing is downloaded; the
candidate is the base with noise. The limit is transformers' own forward pass with logits of the
scored half of each chunk, on the same GPU in the same run, no chunk waiting for another;
contestants take turns, all chunks at a time. Ours is what a worker does: the candidate's states,
the base's from a stage's frames, every statistic of both, and the worst positions. `--cpu` runs a
small size without a GPU, to see that it runs. The folder of temporary files holds the model once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import machine
from transformers import LlamaConfig, LlamaForCausalLM

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.models.transformers_engine import TransformersEngine
from kldcloud.models.transformers_library import quieten
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.pipeline.compared_states import BaseSide
from kldcloud.staging.encodings import HiddenEncoding, StageShape
from kldcloud.staging.folder_head import read_base_head

GOAL = 0.90
NOISE = 0.02
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}


@dataclass(frozen=True, slots=True)
class Size:
    """Of the model, and of what it is run on."""

    width: int
    layers: int
    inner: int
    heads: int
    vocabulary: int = 128_256
    context: int = 4096
    chunks: int = 12


SIZES = {"1b": Size(2048, 16, 8192, 32), "8b": Size(4096, 32, 14_336, 32)}
SMALL = Size(64, 2, 128, 4, vocabulary=2000, context=64, chunks=3)


def write_model(folder: Path, size: Size, device: str) -> None:
    """A base of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 4,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def add_noise(model: Any) -> None:  # noqa: ANN401 - a transformers model
    """Make a candidate of the base, where it is."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * NOISE * parameter.std())


def seconds(work: Callable[[], object], device: str) -> float:
    """Of one piece of work, the GPU's included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(size: Size, device: str, rounds: int) -> dict[str, float]:
    """Tokens a second of each contestant."""
    shape = ChunkShape(size.context)
    options = TransformersOptions("bfloat16", device=device)
    tokens = np.random.default_rng(0).integers(0, size.vocabulary, (size.chunks, size.context))
    chunks = tokens.astype(np.int32)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_model(folder, size, device)
        head = read_base_head(folder, options)
        engine = TransformersEngine(folder, size.context, options)
    encoding = HiddenEncoding(StageShape(shape.rows, size.vocabulary), head)
    frames = [encoding.encode_states(engine.states(chunk)) for chunk in chunks]
    model, own_head = engine._model, engine._head  # noqa: SLF001 - no second copy of 16 GB
    add_noise(model)
    base = BaseSide(encoding, torch.device(device))

    def bare() -> None:
        with torch.inference_mode():
            for chunk in chunks:
                ids = torch.from_numpy(chunk[None].astype(np.int64)).to(device)
                states = model.model(input_ids=ids, use_cache=False).last_hidden_state
                own_head(states[:, -shape.rows :])

    def ours(*, llama: bool) -> None:
        before = None
        for chunk, frame in zip(chunks, frames, strict=True):
            side, following = engine.side(chunk), shape.next_tokens(chunk)
            soon = base.begin(frame, side, following, llama_compat=llama)
            if before is not None:
                before.result()
            before = soon
        before.result()

    contestants: dict[str, Callable[[], object]] = {
        "forward": bare,
        "kldcloud": lambda: ours(llama=False),
        "kldcloud + llama.cpp's": lambda: ours(llama=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for at in range(rounds + 1):
        for name, work in contestants.items():
            once = seconds(work, device)
            if at:  # the first compiles
                taken[name].append(once)
    count = size.chunks * size.context
    return {name: count / statistics.median(each) for name, each in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="8b")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="a small size, on a CPU")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    arguments = parser.parse_args()
    quieten()
    if arguments.cpu:
        # States and heads are compared in torch, as on a GPU.
        TransformersEngine.on_gpu = property(lambda _: True)  # type: ignore[assignment]
    elif not torch.cuda.is_available():
        print("no GPU that PyTorch can use; --cpu runs a small size without one", file=sys.stderr)
        return 2
    names = ("vocabulary", "context", "chunks")
    asked = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    size = replace(SMALL if arguments.cpu else SIZES[arguments.model], **asked)
    device = "cpu" if arguments.cpu else "cuda"
    found = measure(size, device, arguments.rounds)
    if arguments.json:
        facts = {"machine": machine(device), "size": asdict(size), "tokens_per_second": found}
        print(json.dumps(facts, indent=1))
        return 0
    print(f"{machine(device)}, PyTorch {torch.__version__}; {size}")
    for name, rate in found.items():
        print(
            f"  {name:24}{rate:12,.0f} tokens/s{rate / found['forward']:8.0%} of the forward pass"
        )
    if not arguments.cpu:
        share = found["kldcloud"] / found["forward"]
        print(f"  goal {GOAL:.0%} {'met' if share >= GOAL else 'MISSED'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
