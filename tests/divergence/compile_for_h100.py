"""Compile the Triton kernels for compute capability 9.0, no GPU needed; prints what came of it."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kldcloud.divergence.linear import merge_triton, tile_triton

H100 = GPUTarget("cuda", 90, 32)
DOUBLES, FLOATS, INTEGERS = "*fp64", "*fp32", "*i32"

SINGLE_POINTERS = {
    "_merge_kernel": {"sums", "singles"},
    "_tile_kernel": {"b", "c", "picked", "best", "sums"},
    "_llama_kernel": {"b", "c", "scale", "inverse", "smallest", "low", "log_mass", "high"},
}


def kind(kernel: str, name: str) -> str:
    """A parameter's type, by what it is called."""
    if name in SINGLE_POINTERS[kernel]:
        return FLOATS
    if name in {"kld", "doubles"}:
        return DOUBLES
    if name in {"tokens", "tops", "top", "integers"}:
        return INTEGERS
    return "i32"


def compiled(kernel: Any, constants: dict[str, object], **options: object) -> dict[str, object]:
    """Figures of one kernel, its pointers aligned as PyTorch's are."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else kind(kernel.__name__, name) for name in names
    }
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if signature[name].startswith("*") or "stride" in name or name == "columns"
    }
    given = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=given, attrs=aligned)
    done = triton.compile(source, target=H100, options=options)
    ptx = done.asm["ptx"]
    return {
        "cubin": len(done.asm["cubin"]),
        "shared": done.metadata.shared,
        "fused32": len(re.findall(r"fma\.rn(?:\.ftz)?\.f32", ptx)),
    }


def main() -> None:
    tile = {"WIDTH": tile_triton.WIDTH, "WHOLE": False}
    merge = {"WIDTH": 256}
    found = {
        "_merge_kernel": compiled(merge_triton._merge_kernel, merge, **merge_triton.OPTIONS),
        "_tile_kernel": compiled(tile_triton._tile_kernel, tile, **tile_triton.OPTIONS),
        "_llama_kernel": compiled(
            tile_triton._llama_kernel, tile, **tile_triton.OPTIONS | tile_triton.UNFUSED
        ),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
