"""The second reading of a tensor's bytes agrees with gguf-py's, whatever the bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from kldcloud.errors import UserError
from kldcloud.qad.stored_values import stored_values

GRIDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
TYPES = ("F32", "F16", "BF16", *GRIDS, "NVFP4")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", TYPES)
def test_random_bytes_mean_what_gguf_py_says(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng(TYPES.index(name))
    blocks = rng.integers(0, 256, (500, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    if name == "NVFP4":  # a scale there has no sign, and both read all others
        blocks[:, :4] &= 127
        blocks[:2, :4] = [[0, 1, 7, 8], [126, 127, 9, 15]]
    values = stored_values(name, blocks.reshape(-1))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, gguf.dequantize(blocks, kind).reshape(-1))


def test_other_types_are_refused() -> None:
    with pytest.raises(UserError, match="type IQ4_NL cannot be checked; QAD exports F32, F16"):
        stored_values("IQ4_NL", np.zeros(18, np.uint8))
