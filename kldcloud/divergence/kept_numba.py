"""Entries of a row whose code is above 0, packed side by side (numba).

Of a real row 5 to 25 % have one. Everything but the candidate's mass on the others needs only these
few, so they are put together once, and the long loops run over them alone. AVX-512 packs sixteen at
a time; elsewhere one at a time, without a branch.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kldcloud.divergence.lanes import LANES, above_zero, append, as_floats, count, load
from kldcloud.divergence.vector_math import code_to_float, prefetch, wide_vectors

AHEAD = 1024
"""Entries ahead that are asked of memory."""
SLACK = LANES
"""Entries that the output arrays have beyond what they will hold."""


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
        codes = load(c, at)
        told_apart = above_zero(codes)
        append(packed_x, kept, told_apart, load(x, at))
        append(packed_c, kept, told_apart, as_floats(codes))
        kept += count(told_apart)
    return pack_plain(x[whole:], c[whole:], packed_x, packed_c, kept)


pack = pack_wide if wide_vectors() else pack_plain
"""Append x and float32(c) where c > 0.

Args: x, c (float32 and uint16 [n]), packed_x, packed_c (float32, `SLACK` longer than needed), kept
(how many they hold). Returns how many they hold then.
"""
