"""Entries of a row whose code is above 0, packed side by side (numba).

Of a real row 5 to 25 % have one. Everything but the candidate's mass on the others needs only these
few, so they are put together once, and the long loops run over them alone. AVX-512 packs sixteen at
a time; elsewhere one at a time, without a branch.
"""

# The intrinsic's signature is numba's: a typing context first, then the argument types.
# ruff: noqa: ARG001

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kldcloud.divergence.vector_math import (
    F32,
    I16,
    I32,
    I64,
    code_to_float,
    prefetch,
    wide_vectors,
)

LANES = 16
AHEAD = 2048
"""Entries ahead that are asked of memory: what follows on a block takes longer than reading it."""
SLACK = LANES
"""Entries that the output arrays have beyond what they will hold."""


@intrinsic
def _pack_sixteen(typing, x, c, at, packed_x, packed_c, kept):
    """Append those of entries at..at+15 whose code is above 0; returns how many are kept now."""

    def generate(context, builder, signature, arguments):
        x, c, at, packed_x, packed_c, kept = arguments
        kinds = signature.args

        def place(kind, array, index, of):
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), ir.PointerType(of))

        floats, codes = ir.VectorType(F32, LANES), ir.VectorType(I16, LANES)
        mask_type = ir.VectorType(ir.IntType(1), LANES)
        compress = builder.module.declare_intrinsic(
            "llvm.x86.avx512.mask.compress.v16f32",
            [],
            ir.FunctionType(floats, [floats, floats, mask_type]),
        )
        values = builder.load(place(kinds[0], x, at, floats), align=4, typ=floats)
        words = builder.load(place(kinds[1], c, at, codes), align=2, typ=codes)
        mask = builder.icmp_unsigned("!=", words, ir.Constant(codes, None))
        wide = builder.zext(words, ir.VectorType(I32, LANES))
        for kind, array, lanes in (
            (kinds[3], packed_x, values),
            (kinds[4], packed_c, builder.sitofp(wide, floats)),
        ):
            packed = builder.call(compress, [lanes, ir.Constant(floats, None), mask])
            builder.store(packed, place(kind, array, kept, floats), align=4)
        return builder.add(kept, builder.zext(builder.ctpop(builder.bitcast(mask, I16)), I64))

    return types.int64(x, c, types.int64, packed_x, packed_c, types.int64), generate


@njit(nogil=True, error_model="numpy", cache=True)
def pack_plain(x, c, packed_x, packed_c, kept):
    """As `pack`, one entry at a time."""
    for i in range(x.shape[0]):
        # An unsigned index spares the test for a negative one.
        packed_x[np.uint64(kept)] = x[i]
        packed_c[np.uint64(kept)] = code_to_float(c[i])
        kept += np.int64(c[i] != 0)
    return kept


@njit(nogil=True, error_model="numpy", cache=True)
def pack_wide(x, c, packed_x, packed_c, kept):
    """As `pack`, with AVX-512."""
    whole = x.shape[0] // LANES * LANES
    for at in range(0, whole, LANES):
        prefetch(x, at + AHEAD)
        prefetch(c, at + AHEAD)
        kept = _pack_sixteen(x, c, at, packed_x, packed_c, kept)
    return pack_plain(x[whole:], c[whole:], packed_x, packed_c, kept)


pack = pack_wide if wide_vectors() else pack_plain
"""Append x and float32(c) where c > 0.

Args: x, c (float32 and uint16 [n]), packed_x, packed_c (float32, `SLACK` longer than needed), kept
(how many they hold). Returns how many they hold then.
"""
