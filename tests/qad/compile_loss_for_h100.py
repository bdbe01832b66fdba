"""Compile the loss's Triton kernel for compute capability 9.0, no GPU needed; prints figures."""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kldcloud.qad import loss_triton

H100 = GPUTarget("cuda", 90, 32)
TYPES = {
    "teacher": "*fp32",
    "student": "*fp32",
    "teacher_stride": "i32",
    "student_stride": "i32",
    "columns": "i32",
    "softcap": "fp32",
    "kld": "*fp64",
}


def compiled(*, aligned: bool) -> dict[str, object]:
    """Figures of the kernel, rows of whose logits start at multiples of 64 bytes or do not."""
    kernel = loss_triton._loss_kernel
    names = kernel.arg_names
    constants = {"WIDTH": loss_triton.WIDTH, "CAPPED": True}
    source = ASTSource(
        fn=kernel,
        signature={name: TYPES.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (at,): [["tt.divisibility", 16]]
            for at, name in enumerate(names)
            if TYPES.get(name, "").startswith("*")
            or (aligned and (name == "columns" or "stride" in name))
        },
    )
    done = triton.compile(source, target=H100, options=loss_triton.OPTIONS)
    ptx = done.asm["ptx"]
    return {
        "cubin": len(done.asm["cubin"]),
        "shared": done.metadata.shared,
        "vector_loads": ptx.count("ld.global.v4"),
    }


def main() -> None:
    found = {name: compiled(aligned=name == "aligned") for name in ("aligned", "odd")}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
