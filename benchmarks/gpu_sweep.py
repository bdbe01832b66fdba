"""Tokens a second of measuring a candidate on a GPU, beside the bare forward pass of the model.

    python benchmarks/gpu_sweep.py [--vocabulary 248320] [--width 2048] [--layers 16] [--cpu]

The model is of Llama's shape with random weights in bfloat16, so nothing is downloaded; the
candidate is the same with noise. The limit is transformers' own forward pass with logits of the
scored half of each chunk, on the same GPU in the same run; contestants take turns chunk by chunk.
Ours is what a worker does for a chunk: the candidate's states, the base's from a stage's frame,
every statistic of both, and the worst positions. `--cpu` runs a small size without a GPU, to see
that it runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
SMALL = {"vocabulary": 2000, "width": 64, "layers": 2, "context": 64, "chunks": 3}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}


@dataclass(frozen=True, slots=True)
class Size:
    """Of the model and of what it is run on."""

    vocabulary: int
    width: int
    layers: int
    context: int
    chunks: int


def write_models(folder: Path, size: Size) -> tuple[Path, Path]:
    """A base and a candidate."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.width // 64),
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    paths = []
    for name in ("base", "candidate"):
        path = folder / name
        model.save_pretrained(path)
        (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (path / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
        paths.append(path)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * NOISE * parameter.std())
    return paths[0], paths[1]


def seconds(work: Callable[[], object], device: str) -> float:
    """Of one piece of work, the GPU's included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(size: Size, device: str) -> dict[str, float]:
    """Tokens a second of each contestant."""
    shape = ChunkShape(size.context)
    options = TransformersOptions("bfloat16", device=device)
    tokens = np.random.default_rng(0).integers(0, size.vocabulary, (size.chunks, size.context))
    chunks = tokens.astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        base, candidate = write_models(Path(folder), size)
        head = read_base_head(base, options)
        encoding = HiddenEncoding(StageShape(shape.rows, size.vocabulary), head)
        engine = TransformersEngine(base, size.context, options)
        frames = [encoding.encode_states(engine.states(chunk)) for chunk in chunks]
        engine.close()
        own = LlamaForCausalLM.from_pretrained(candidate, dtype=torch.bfloat16).to(device).eval()
        engine = TransformersEngine(candidate, size.context, options)
        side = BaseSide(encoding, torch.device(device))

        def bare(at: int) -> object:
            ids = torch.from_numpy(chunks[at : at + 1].astype(np.int64)).to(device)
            with torch.inference_mode():
                return own(input_ids=ids, use_cache=False, logits_to_keep=shape.rows)

        def ours(at: int, *, llama: bool) -> object:
            states = engine.side(chunks[at])
            following = shape.next_tokens(chunks[at])
            return side.compare(frames[at], states, following, llama_compat=llama)

        contestants: dict[str, Callable[[int], object]] = {
            "forward": bare,
            "kldcloud": lambda at: ours(at, llama=False),
            "kldcloud + llama.cpp's": lambda at: ours(at, llama=True),
        }
        for work in contestants.values():
            work(0)  # compiles
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for at in range(size.chunks):
            for name, work in contestants.items():
                taken[name].append(seconds(lambda work=work, at=at: work(at), device))
    return {name: size.context / statistics.median(each) for name, each in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=248_320)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--cpu", action="store_true", help="a small size, on a CPU")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    arguments = parser.parse_args()
    quieten()
    if arguments.cpu:
        vars(arguments).update(SMALL)
        # States and heads are compared in torch, as on a GPU.
        TransformersEngine.on_gpu = property(lambda _: True)  # type: ignore[assignment]
    elif not torch.cuda.is_available():
        print("no GPU that PyTorch can use; --cpu runs a small size without one", file=sys.stderr)
        return 2
    names = ("vocabulary", "width", "layers", "context", "chunks")
    size = Size(**{name: getattr(arguments, name) for name in names})
    device = "cpu" if arguments.cpu else "cuda"
    found = measure(size, device)
    if arguments.json:
        print(json.dumps({"machine": machine(device), "tokens_per_second": found}, indent=1))
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
