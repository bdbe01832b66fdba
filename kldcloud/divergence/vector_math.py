"""LLVM building blocks that keep the row loops vectorised.

numba's own float maximum is a compare-and-branch, its `fastmath` is all or nothing for a
function, and its wheels carry no vector exponential. Losing vectorisation is silent and costs
an order of magnitude, so the loops say exactly what they allow: sums marked with `reassoc` may be
reordered over lanes, everything else is IEEE as written. `benchmarks/kernel.py` watches the ratio.
"""

# The intrinsics' signature is numba's: a typing context first, then the argument types.

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

F32 = ir.FloatType()
F64 = ir.DoubleType()
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)

_LANES = ("reassoc",)
_LANES_FUSED = ("reassoc", "contract")


def configure_compiler() -> None:
    """Wide vectors, and a cache that sees every kernel file; before the first `njit`.

    LLVM's default for AVX-512 CPUs is 256 bits (an old clock-speed caution); measured on a server
    core, 512 bits are about 1.2 times faster. numba's own cache looks only at the file of the
    outermost function, so an edit to what that inlines would go on running the old code: the cache
    folder therefore carries a digest of them all.
    """
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and not config.CPU_NAME and not config.CPU_FEATURES:
        config.CPU_NAME = llvm.get_host_cpu_name()
        config.CPU_FEATURES = features.flatten() + ",-prefer-256-bit"
    if not config.CACHE_DIR:
        digest = hashlib.sha256()
        for source in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
        root = Path(os.environ.get("KLDCLOUD_CACHE") or Path.home() / ".cache" / "kldcloud")
        config.CACHE_DIR = str(root / "kernels" / digest.hexdigest()[:16])


configure_compiler()  # here, since every module that compiles anything imports this one first


def wide_vectors() -> bool:
    """Whether this machine's compiler may use AVX-512."""
    import llvmlite.binding as llvm

    if config.CPU_FEATURES is not None:
        return "+avx512f" in config.CPU_FEATURES.split(",")
    return bool(llvm.get_host_cpu_features().get("avx512f"))


def _add_reassociable(number):
    @intrinsic
    def add(typing, a, b):
        def generate(context, builder, signature, arguments):
            return builder.fadd(arguments[0], arguments[1], flags=_LANES)

        return number(number, number), generate

    return add


def _multiply_add(number):
    @intrinsic
    def multiply_add(typing, total, a, b):
        def generate(context, builder, signature, arguments):
            product = builder.fmul(arguments[1], arguments[2], flags=("contract",))
            return builder.fadd(arguments[0], product, flags=_LANES_FUSED)

        return number(number, number, number), generate

    return multiply_add


def _fused(number, llvm_type):
    @intrinsic
    def fused(typing, a, b, c):
        def generate(context, builder, signature, arguments):
            function = builder.module.declare_intrinsic(
                "llvm.fma", [llvm_type], ir.FunctionType(llvm_type, [llvm_type] * 3)
            )
            return builder.call(function, arguments)

        return number(number, number, number), generate

    return fused


def _scale_by_magic(number, llvm_type, integer, mantissa_bits):
    @intrinsic
    def scale(typing, value, magic):
        def generate(context, builder, signature, arguments):
            bits = builder.bitcast(arguments[0], integer)
            power = builder.bitcast(arguments[1], integer)
            shifted = builder.shl(power, ir.Constant(integer, mantissa_bits))
            return builder.bitcast(builder.add(bits, shifted), llvm_type)

        return number(number, number), generate

    return scale


add_lanes32 = _add_reassociable(types.float32)
"""a + b, free to be summed in any order over vector lanes."""
add_lanes64 = _add_reassociable(types.float64)

multiply_add32 = _multiply_add(types.float32)
"""total + a * b, fused and free to be summed in any order."""

fused32 = _fused(types.float32, F32)
"""a * b + c with one rounding."""
fused64 = _fused(types.float64, F64)

scale32 = _scale_by_magic(types.float32, F32, I32, 23)
"""value * 2**k, where `magic` is k + MAGIC32: k sits in its low mantissa bits."""
scale64 = _scale_by_magic(types.float64, F64, I64, 52)


@intrinsic
def max32(typing, a, b):
    """The larger of two floats; a NaN loses."""

    def generate(context, builder, signature, arguments):
        function = builder.module.declare_intrinsic(
            "llvm.maxnum", [F32], ir.FunctionType(F32, [F32, F32])
        )
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate


@intrinsic
def min32(typing, a, b):
    """The smaller of two floats; a NaN loses."""

    def generate(context, builder, signature, arguments):
        function = builder.module.declare_intrinsic(
            "llvm.minnum", [F32], ir.FunctionType(F32, [F32, F32])
        )
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate


@intrinsic
def at_least32(typing, value, bound):
    """The value or, if larger, the bound; a NaN stays."""

    def generate(context, builder, signature, arguments):
        value, bound = arguments
        return builder.select(builder.fcmp_ordered("<", value, bound), bound, value)

    return types.float32(types.float32, types.float32), generate


@intrinsic
def prefetch(typing, array, index):
    """Ask memory for an array's entry; an index beyond the end does no harm."""

    def generate(context, builder, signature, arguments):
        byte = ir.PointerType(ir.IntType(8))
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [], ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        )
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        # For reading, into the nearest cache, as data.
        builder.call(function, [address, *(ir.Constant(I32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def code_to_float(typing, code):
    """A uint16 code as float32; the detour through int32 is what vectorises."""

    def generate(context, builder, signature, arguments):
        return builder.sitofp(builder.zext(arguments[0], I32), F32)

    return types.float32(types.uint16), generate


@intrinsic
def keep32(typing, condition, value):
    """value where the condition holds, else -0, without a branch.

    To add -0.0 changes nothing, whatever the sum: LLVM makes the pair one masked addition.
    """

    def generate(context, builder, signature, arguments):
        return builder.select(arguments[0], arguments[1], ir.Constant(F32, -0.0))

    return types.float32(types.boolean, types.float32), generate
