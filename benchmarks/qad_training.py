"""Speed and memory of distillation on a GPU, beside that of a model that is not quantised.

    python benchmarks/qad_training.py [--layers 16] [--width 2048] [--vocabulary 128256]
        [--context 512] [--micro-batch 8] [--global-batch 16] [--tokens 65536] [--json] [--cpu]
    python benchmarks/qad_training.py --teacher teacher.gguf --init quantised.gguf

Contestants are our trainer, one process without Ray, in float32, in bfloat16, and in bfloat16 with
activations computed again. The peer in the same run is what people write in PyTorch to distil the
same model as it is, no weight rounded: the same steps of the same chunks, autocast to bfloat16, all
logits, `log_softmax` of both and `kl_div`, AdamW. So the ratio is the price of quantisation, less
what our loss saves. The model has Llama's shape and random weights, or is yours.

Speed is the median over steps, after two that do not count; memory is the allocator's peak with
everything in it, models and averages too. Model FLOPs are those of products with weights: 2 a
weight and token for the teacher and 6 for the student, but 4 for its frozen head; the share is of
what a large bfloat16 product reaches in the same run. What is computed again does not count.
`--cpu` runs the same at a small size on a CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import machine
from llama_pair import LlamaPair, LlamaShape, cached_pair
from torch.nn.functional import kl_div, log_softmax

from kldcloud.pipeline.tasks import ModelRef
from kldcloud.qad.architectures import EMBEDDING, map_model
from kldcloud.qad.torch_model import load_model
from kldcloud.qad.trained_state import BETAS
from kldcloud.qad.training import Training
from kldcloud.qad.training_order import TrainingOrder
from kldcloud.qad.training_tokens import keep_tokens, open_tokens, write_tokens
from kldcloud.qad.training_tokens import reference as kept_as
from kldcloud.spec.qad_job import TrainSpec
from kldcloud.store import Store, open_store
from kldcloud.store.digest import sha256_file

PEER = "PyTorch, not quantised"
OURS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, recompute": {"precision": "bfloat16", "recompute": True},
}
UNTIMED = 2
"""Steps that compile kernels and find the products' best algorithms."""
NEVER = 1 << 30
SMALL = {
    "layers": 2, "width": 256, "vocabulary": 2000, "context": 64, "micro_batch": 2,
    "global_batch": 4, "tokens": 768,
}  # fmt: skip

Step = Callable[[], float]
"""Trains one step; its mean loss in nats."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a contestant came to; None where it ran out of memory.

    Attributes:
        tokens_per_s: trained on.
        peak_mib: the allocator's; 0 where nobody counts.
        first_kld: mean loss of the first step, which should be one for all, but for rounding.
    """

    tokens_per_s: float | None
    peak_mib: float | None
    first_kld: float | None


def make_order(
    pair: LlamaPair, steps: int, arguments: argparse.Namespace, store: Store
) -> TrainingOrder:
    """Random tokens for one step more than is done, so that no look or checkpoint comes between."""
    random = np.random.default_rng(0)
    vocabulary = map_model(pair.teacher).hyperparameters.vocabulary
    count = (steps + 1) * arguments.global_batch
    tokens = random.integers(0, vocabulary, (count, arguments.context)).astype(np.int32)
    file = write_tokens([tokens.ravel()], arguments.context, "all", bos=None)
    kept = kept_as("qad/benchmark", file)
    keep_tokens(store, kept, file.path)
    return TrainingOrder(
        run="benchmark",
        prefix="qad/benchmark",
        teacher=reference(pair.teacher),
        init=reference(pair.init),
        tokens=kept,
        heldout=random.integers(0, vocabulary, (1, arguments.context)).astype(np.int32),
        train=TrainSpec(
            global_batch=arguments.global_batch, micro_batch=arguments.micro_batch, lr=1e-5
        ),
        eval_every=NEVER,
        checkpoint_every=NEVER,
        keep=1,
        threads=torch.get_num_threads(),
    )


def reference(path: Path) -> ModelRef:
    return ModelRef(path, sha256_file(path), path.stat().st_size)


@contextmanager
def ours(
    order: TrainingOrder, options: Mapping[str, Any], store: Store, device: str
) -> Iterator[Step]:
    """Our trainer."""
    train = TrainSpec.model_validate({**order.train.model_dump(), **options})
    training = Training(replace(order, train=train), store, device=device)
    yield lambda: training.step().kld


@contextmanager
def peer(order: TrainingOrder, store: Store, device: str) -> Iterator[Step]:
    """The same in plain PyTorch: weights begin at the init's values, and are not rounded."""
    teacher = load_model(order.teacher.path, dtype=torch.bfloat16, device=device)
    student = load_model(order.init.path, device=device)
    teacher.requires_grad_(requires_grad=False)
    student.get_parameter(EMBEDDING).requires_grad_(requires_grad=False)
    student.lm_head.weight.requires_grad_(requires_grad=False)
    trained = [each for each in student.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=order.train.lr, betas=BETAS, weight_decay=0.0)
    micro, done = order.train.micro_batch, 0
    kept = open_tokens(order.tokens, store)

    def step() -> float:
        nonlocal done
        chosen = order.batches.step(done)
        done += 1
        optimizer.zero_grad(set_to_none=False)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for at in range(0, len(chosen), micro):
            chunks = kept[chosen[at : at + micro]].astype(np.int64)
            tokens = torch.from_numpy(chunks).to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                with torch.no_grad():
                    wanted = teacher(input_ids=tokens, use_cache=False).logits
                found = student(input_ids=tokens, use_cache=False).logits
            p, q = (log_softmax(each.float(), -1) for each in (wanted, found))
            loss = kl_div(q, p, log_target=True, reduction="sum")
            (loss / (len(chosen) * order.tokens.context)).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, order.train.clip)
        optimizer.step()
        return float(total) / (len(chosen) * order.tokens.context)

    yield step


def measure(order: TrainingOrder, store: Store, name: str, steps: int, device: str) -> Measured:
    """One contestant, alone on the device."""
    on_gpu = device == "cuda"
    gc.collect()  # of the one before
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if name == PEER:
        contestant = peer(order, store, device)
    else:
        contestant = ours(order, OURS[name], store, device)
    losses, seconds = [], []
    try:
        with contestant as step:
            for _ in range(UNTIMED + steps):
                start = time.perf_counter()
                losses.append(step())
                if on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return Measured(None, None, losses[0] if losses else None)
    speed = order.tokens_a_step / statistics.median(seconds[UNTIMED:])
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    return Measured(speed, peak, losses[0])


def model_flops(pair: LlamaPair) -> int:
    """Of a token: products with weights alone."""
    model = map_model(pair.teacher)
    matrices = {
        name: each.shape[0] * each.shape[1]
        for name, each in model.parameters.items()
        if len(each.shape) > 1
    }
    head = matrices[model.head]
    layers = sum(size for name, size in matrices.items() if name not in {EMBEDDING, model.head})
    return (2 + 6) * layers + (2 + 4) * head


def product_flops(device: str) -> float:
    """FLOP/s of a large bfloat16 product: the best of some."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def show(figures: dict[str, Any]) -> None:
    """The figures for people."""
    print(f"{figures['machine']}, PyTorch {figures['torch']}")
    print(
        "{model}: {gflops:.2f} GFLOP a token; {step} tokens a step, {at_once} at once; a bfloat16"
        " product reaches {tflops:,.2f} TFLOP/s".format(**figures)
    )
    for name, line in figures["contestants"].items():
        if line["tokens_per_s"] is None:
            print(f"  {name:24}out of memory")
            continue
        memory = f"{line['peak_mib']:10,.0f} MiB" if line["peak_mib"] else f"{'-':>14}"
        print(
            f"  {name:24}{line['tokens_per_s']:10,.0f} tokens/s{memory}"
            f"{line['of_product']:7.1%} of the product{line['of_peer']:7.2f} x the peer"
            f"   first KLD {line['first_kld']:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--teacher", type=Path, help="a GGUF, instead of random weights")
    parser.add_argument("--init", type=Path, help="its quantised GGUF")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=65_536, help="timed, of each contestant")
    parser.add_argument("--only", nargs="+", choices=[PEER, *OURS], default=[PEER, *OURS])
    parser.add_argument("--cpu", action="store_true", help="a small size, on a CPU")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout")
    arguments = parser.parse_args()
    if (arguments.teacher is None) != (arguments.init is None):
        parser.error("--teacher and --init belong together")
    if arguments.cpu:
        vars(arguments).update(SMALL)
    elif not torch.cuda.is_available():
        print("no GPU that PyTorch can use; --cpu runs a small size without one", file=sys.stderr)
        sys.exit(2)
    device = "cpu" if arguments.cpu else "cuda"
    if arguments.teacher is None:
        pair = cached_pair(LlamaShape(arguments.layers, arguments.width, arguments.vocabulary))
    else:
        pair = LlamaPair(arguments.teacher, arguments.init)
    steps = max(2, arguments.tokens // (arguments.global_batch * arguments.context))
    flops, product = model_flops(pair), product_flops(device)
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        order = make_order(pair, UNTIMED + steps, arguments, store)
        for name in arguments.only:
            found[name] = measure(order, store, name, steps, device)
            print(f"{name}: done", file=sys.stderr, flush=True)
    of_peer = found[PEER].tokens_per_s if PEER in found else None
    figures = {
        "machine": machine(device),
        "torch": torch.__version__,
        "model": pair.teacher.name,
        "gflops": flops / 1e9,
        "tflops": product / 1e12,
        "step": order.tokens_a_step,
        "at_once": arguments.micro_batch * arguments.context,
        "contestants": {
            name: {
                **asdict(each),
                "of_product": (each.tokens_per_s or 0.0) * flops / product,
                "of_peer": (each.tokens_per_s or 0.0) / of_peer if of_peer else float("nan"),
            }
            for name, each in found.items()
        },
    }
    if arguments.json:
        json.dump(figures, sys.stdout, indent=1)
        print()
    else:
        show(figures)


if __name__ == "__main__":
    main()
