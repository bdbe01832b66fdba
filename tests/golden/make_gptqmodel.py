"""Write golden/gptqmodel/layers.safetensors: layers packed, and read back, by gptqmodel.

    python tests/golden/make_gptqmodel.py

What is there was made by gptqmodel 7.7.0 with torch 2.13.0 on a CPU, where it computes weights in
float16. Its declared dependencies want a newer torch than this project's tests: use another venv.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

INPUTS, OUTPUTS, GROUP = 64, 32, 32


def layer(
    bits: int, seed: int, *, shuffled: bool = False
) -> tuple[torch.nn.Linear, dict[str, torch.Tensor]]:
    """A layer that is exactly on a grid, and the grid."""
    rng = torch.Generator().manual_seed(seed)
    groups = torch.arange(INPUTS) // GROUP
    if shuffled:
        groups = groups[torch.randperm(INPUTS, generator=rng)]
    codes = torch.randint(0, 2**bits, (INPUTS, OUTPUTS), generator=rng)
    zeros = torch.randint(1, 2**bits, (INPUTS // GROUP, OUTPUTS), generator=rng)
    scales = (torch.rand(INPUTS // GROUP, OUTPUTS, generator=rng) * 0.02 + 0.001).half()
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = ((codes - zeros[groups]) * scales[groups].float()).T.contiguous()
    return linear, {"scales": scales.T.contiguous(), "zeros": zeros.T.contiguous(), "g_idx": groups}


def shape(bits: int, *, desc_act: bool = False) -> dict[str, Any]:
    return {
        "bits": bits,
        "group_size": GROUP,
        "sym": False,
        "desc_act": desc_act,
        "in_features": INPUTS,
        "out_features": OUTPUTS,
        "bias": False,
        "register_buffers": True,
    }


def main() -> None:
    tensors = {}
    for name, bits, shuffled in (("gptq4", 4, False), ("gptq4-act", 4, True), ("gptq8", 8, True)):
        linear, grid = layer(bits, seed=bits + shuffled, shuffled=shuffled)
        packed = TorchLinear(**shape(bits, desc_act=shuffled))
        packed.pack_original(linear, grid["scales"].float(), grid["zeros"], grid["g_idx"].int())
        packed.post_init()
        tensors[f"{name}.weight"] = packed.dequantize_weight().T.contiguous()
        for form in ("gptq_v2", "gptq"):
            if form == "gptq":
                settings = SimpleNamespace(bits=bits, pack_dtype=torch.int32)
                convert_gptq_v2_to_v1_format_module(packed, settings)
            for part in ("qweight", "qzeros", "scales", "g_idx"):
                tensors[f"{name}.{form}.{part}"] = getattr(packed, part).clone().contiguous()
    linear, grid = layer(4, seed=99)
    packed = AwqTorchLinear(**shape(4))
    packed.pack(linear, grid["scales"], grid["zeros"])
    for part in ("qweight", "qzeros", "scales"):
        tensors[f"awq.{part}"] = getattr(packed, part).clone().contiguous()
    weight = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, GROUP)
    tensors["awq.weight"] = weight.T.contiguous()
    save_file(tensors, Path(__file__).parent / "gptqmodel" / "layers.safetensors")


if __name__ == "__main__":
    main()
