"""What the numbers of published quantised weights mean: float32 matrices, as nn.Linear has them.

Each value is a code times a scale, and its product is rounded once. The layouts are those of

- FP8 in blocks: `weight_dequant` of DeepSeek-V3's inference code. A scale stands for a block of
  rows x columns, and the last blocks may be cut off by the edge.
- GPTQ: AutoGPTQ's QuantLinear. `qweight` packs codes along the inputs and `qzeros` along the
  outputs, low bits first; `g_idx` names an input's group. In its first format zero points are
  stored less one, in `gptq_v2` as they are.
- AWQ: AutoAWQ's GEMM. Both pack along the outputs, and the eight nibbles of a word hold columns
  0, 2, 4, 6, 1, 3, 5, 7.
- MXFP4: OCP's Microscaling Formats 1.0, in gpt-oss's layout. 32 values share a power of two (E8M0),
  each is a sign and three bits (E2M1), and of two in an octet the first is in the low bits.
"""

from __future__ import annotations

from typing import Final

import torch

_NIBBLE_OF_COLUMN: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in an AWQ word a column's code is: the inverse of the order above."""
_E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E8M0_BIAS: Final = 127
_E8M0_NAN: Final = 255


def fp8_weight(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Dequantise FP8.

    Args:
        codes: float8_e4m3fn [..., rows, columns].
        scales: [..., ceil(rows / block[0]), ceil(columns / block[1])].
        block: rows and columns that share a scale.
    """
    rows, columns = codes.shape[-2:]
    wide = scales.float().repeat_interleave(block[0], -2)[..., :rows, :]
    wide = wide.repeat_interleave(block[1], -1)[..., :columns]
    return codes.float().mul_(wide)


def gptq_weight(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    groups: torch.Tensor,
    *,
    bits: int,
    zero_offset: int,
) -> torch.Tensor:
    """Dequantise GPTQ.

    Args:
        qweight: int32 [inputs * bits / 32, outputs].
        qzeros: int32 [groups, outputs * bits / 32].
        scales: [groups, outputs].
        groups: int64 [inputs], the group of each.
        bits: 4 or 8.
        zero_offset: what is added to stored zero points: 1 in the first format, 0 in the second.

    Returns:
        float32 [outputs, inputs].

    Raises:
        ValueError: a zero point, with its offset, takes more than `bits`: what wrote it let it
            overflow, and readers differ in what they make of it.
    """
    codes = _unpacked(qweight.T, bits).float()
    zeros = _unpacked(qzeros, bits).float().add_(zero_offset)
    if bool((zeros >= 1 << bits).any()):
        raise ValueError("has a zero point that overflowed when it was stored")
    codes.sub_(zeros.T[:, groups])
    return codes.mul_(scales.float().T[:, groups])


def awq_weight(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Dequantise AWQ of 4 bits.

    Args:
        qweight: int32 [inputs, outputs / 8].
        qzeros: int32 [groups, outputs / 8].
        scales: [groups, outputs]; each group has as many inputs.

    Returns:
        float32 [outputs, inputs].
    """
    inputs, group = len(qweight), len(qweight) // len(scales)
    codes = _in_column_order(qweight).float().view(len(scales), group, -1)
    codes.sub_(_in_column_order(qzeros).float().unsqueeze(1))
    codes.mul_(scales.float().unsqueeze(1))
    return codes.view(inputs, -1).T.contiguous()


def mxfp4_weight(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Dequantise MXFP4; exact in float32 and, for all but the extreme scales, in bfloat16.

    Args:
        blocks: uint8 [..., groups, 16].
        scales: uint8 [..., groups].

    Returns:
        float32 [..., 32 * groups].

    Raises:
        ValueError: a scale is the code that stands for no number.
    """
    if bool((scales == _E8M0_NAN).any()):
        raise ValueError("has a scale that is no number")
    values = torch.tensor((*_E2M1, *(-each for each in _E2M1)))
    found = torch.stack((values[(blocks & 15).int()], values[(blocks >> 4).int()]), -1).flatten(-2)
    return torch.ldexp(found, scales.int().unsqueeze(-1) - _E8M0_BIAS).flatten(-2)


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, n] -> uint8 [rows, n * 32 / bits]: each word's codes, low bits first."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:  # noqa: PLR2004 - a byte is a code
        return octets
    return torch.stack((octets & 15, octets >> 4), -1).flatten(-2)


def _in_column_order(words: torch.Tensor) -> torch.Tensor:
    """AWQ's words as uint8 [rows, columns]."""
    nibbles = _unpacked(words, 4).view(len(words), -1, len(_NIBBLE_OF_COLUMN))
    return nibbles[..., list(_NIBBLE_OF_COLUMN)].flatten(-2)
