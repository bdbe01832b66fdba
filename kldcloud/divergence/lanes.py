"""Sixteen numbers at a time, named: AVX-512 registers as values of numba code.

LLVM vectorises a plain loop, but not one that packs entries, nor two loops into one. Here numba
gets a type for a register of sixteen float32 and functions on it, so such a loop is still written
as a loop over formulas. Where a function takes registers it takes a float32 too: the same in all
lanes.
"""

# The intrinsics' signature is numba's: a typing context first, then the argument types.

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from kldcloud.divergence.vector_math import F32, I16, I32, I64

LANES = 16

_FLOATS = ir.VectorType(F32, LANES)
_WORDS = ir.VectorType(I16, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


class Register(types.Type):
    """A 512-bit register of sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


class CodeRegister(types.Type):
    """Sixteen uint16 codes."""

    def __init__(self) -> None:
        super().__init__(name="uint16x16")


@register_model(Register)
class _RegisterModel(models.PrimitiveModel):
    def __init__(self, manager: object, kind: object) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(CodeRegister)
class _CodeRegisterModel(models.PrimitiveModel):
    def __init__(self, manager: object, kind: object) -> None:
        super().__init__(manager, kind, _WORDS)


FLOATS = Register()
CODES = CodeRegister()
MASK = types.uint16


def _spread(builder, kind, value):
    """A register as it is, a float32 in all lanes."""
    if isinstance(kind, Register):
        return value
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), None)
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), zeros)


def _place(context, builder, kind, array, index, of):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(of))


def _on_registers(arity, generate):
    """An intrinsic from registers (or float32) to a register."""

    def typed(kinds):
        def lowered(context, builder, signature, arguments):
            spread = [
                _spread(builder, k, a) for k, a in zip(signature.args, arguments, strict=True)
            ]
            return generate(builder, *spread)

        return FLOATS(*kinds), lowered

    signatures = {
        1: lambda typing, a: typed((a,)),
        2: lambda typing, a, b: typed((a, b)),
        3: lambda typing, a, b, c: typed((a, b, c)),
    }
    return intrinsic(signatures[arity])


def _call(builder, name, result, arguments, flags=()):
    kinds = [a.type for a in arguments]
    function = builder.module.declare_intrinsic(name, [], ir.FunctionType(result, kinds))
    return builder.call(function, arguments, fastmath=flags)


def _scaled(builder, value, power):
    every, nearest = ir.Constant(I16, -1), ir.Constant(I32, 4)
    arguments = [value, power, value, every, nearest]
    return _call(builder, "llvm.x86.avx512.mask.scalef.ps.512", _FLOATS, arguments)


in_all_lanes = _on_registers(1, lambda _, a: a)
"""A float32 in all lanes."""
plus = _on_registers(2, lambda builder, a, b: builder.fadd(a, b))
minus = _on_registers(2, lambda builder, a, b: builder.fsub(a, b))
times = _on_registers(2, lambda builder, a, b: builder.fmul(a, b))
fused = _on_registers(3, lambda builder, *abc: _call(builder, "llvm.fma.v16f32", _FLOATS, abc))
"""a * b + c with one rounding."""
scaled = _on_registers(2, _scaled)
"""a * 2**b for whole b, however small or large."""
larger = _on_registers(
    2, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)
)
"""The larger one; b where either is NaN."""
smaller = _on_registers(
    2, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b)
)
"""The smaller one; b where either is NaN."""


@intrinsic
def plus_where(typing, total, mask, value):
    """Total + value in the lanes of a mask, total in others."""

    def generate(context, builder, signature, arguments):
        total, mask, value = arguments
        # To add -0.0 changes nothing: LLVM makes the pair one masked addition.
        nothing = ir.Constant(_FLOATS, [-0.0] * LANES)
        return builder.fadd(total, builder.select(builder.bitcast(mask, _BITS), value, nothing))

    return FLOATS(FLOATS, MASK, FLOATS), generate


@intrinsic
def fused_where(typing, mask, a, b, total):
    """a * b + total with one rounding in the lanes of a mask, total in others."""

    def generate(context, builder, signature, arguments):
        mask, a, b, total = arguments
        sums = _call(builder, "llvm.fma.v16f32", _FLOATS, [a, b, total])
        return builder.select(builder.bitcast(mask, _BITS), sums, total)

    return FLOATS(MASK, FLOATS, FLOATS, FLOATS), generate


@intrinsic
def load(typing, array, index):
    """Entries index..index+15 of a float32 or uint16 array."""
    kind = FLOATS if array.dtype == types.float32 else CODES

    def generate(context, builder, signature, arguments):
        of = _FLOATS if kind is FLOATS else _WORDS
        place = _place(context, builder, signature.args[0], *arguments, of)
        return builder.load(place, align=4 if kind is FLOATS else 2, typ=of)

    return kind(array, types.int64), generate


@intrinsic
def above_zero(typing, codes):
    """Lanes whose code is above 0."""

    def generate(context, builder, signature, arguments):
        bits = builder.icmp_unsigned("!=", arguments[0], ir.Constant(_WORDS, None))
        return builder.bitcast(bits, I16)

    return MASK(CODES), generate


@intrinsic
def above(typing, value, bound):
    """Lanes whose value is above a bound."""

    def generate(context, builder, signature, arguments):
        bound = _spread(builder, signature.args[1], arguments[1])
        return builder.bitcast(builder.fcmp_ordered(">", arguments[0], bound), I16)

    return MASK(FLOATS, types.float32), generate


@intrinsic
def both(typing, mask, other):
    """Lanes that are in two masks."""

    def generate(context, builder, signature, arguments):
        return builder.and_(*arguments)

    return MASK(MASK, MASK), generate


@intrinsic
def first_lanes(typing, n):
    """The first n lanes, n from 0 to 16."""

    def generate(context, builder, signature, arguments):
        i32 = builder.trunc(arguments[0], I32)
        one = ir.Constant(I32, 1)
        return builder.trunc(builder.sub(builder.shl(one, i32), one), I16)

    return MASK(types.int64), generate


@intrinsic
def chosen(typing, mask, value, other):
    """value in the lanes of a mask, else other (a float32)."""

    def generate(context, builder, signature, arguments):
        mask, value, other = arguments
        other = _spread(builder, signature.args[2], other)
        return builder.select(builder.bitcast(mask, _BITS), value, other)

    return FLOATS(MASK, FLOATS, types.float32), generate


@intrinsic
def others(typing, mask):
    """The lanes that are not in a mask."""

    def generate(context, builder, signature, arguments):
        return builder.not_(arguments[0])

    return MASK(MASK), generate


@intrinsic
def count(typing, mask):
    """How many lanes are in a mask."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.ctpop(arguments[0]), I64)

    return types.int64(MASK), generate


@intrinsic
def as_floats(typing, codes):
    """Codes as float32."""

    def generate(context, builder, signature, arguments):
        return builder.sitofp(builder.zext(arguments[0], ir.VectorType(I32, LANES)), _FLOATS)

    return FLOATS(CODES), generate


@intrinsic
def append(typing, array, index, mask, value):
    """Write the lanes of a mask side by side from array[index] on, and rubbish behind them.

    In all, sixteen entries are written.
    """

    def generate(context, builder, signature, arguments):
        array, index, mask, value = arguments
        bits = builder.bitcast(mask, _BITS)
        packed = _call(
            builder,
            "llvm.x86.avx512.mask.compress.v16f32",
            _FLOATS,
            [value, ir.Constant(_FLOATS, None), bits],
        )
        place = _place(context, builder, signature.args[0], array, index, _FLOATS)
        builder.store(packed, place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, MASK, FLOATS), generate


@intrinsic
def total(typing, value):
    """Sum over the lanes."""

    def generate(context, builder, signature, arguments):
        given = [ir.Constant(F32, -0.0), *arguments]
        return _call(builder, "llvm.vector.reduce.fadd.v16f32", F32, given, ("reassoc",))

    return types.float32(FLOATS), generate


def _extreme(name):
    @intrinsic
    def extreme(typing, value):
        def generate(context, builder, signature, arguments):
            flags = ("nnan", "nsz")
            return _call(builder, f"llvm.vector.reduce.{name}.v16f32", F32, arguments, flags)

        return types.float32(FLOATS), generate

    return extreme


largest = _extreme("fmax")
"""The largest of the lanes."""
smallest = _extreme("fmin")
"""The smallest of the lanes."""
