"""A student's weights on the frozen grid of a quantised GGUF tensor.

The scales and minima of the tensor stay as they are; training moves a real-valued weight, the
forward pass sees the nearest value of the grid, and in the end the integer codes go back into the
same blocks. Two facts of float32 make that exact on every device:

- ``step * code`` has no rounding error: a step has at most 18 significant bits (float16 times an
  int8) and a code at most 8, never more than 24 together. So a weight ``step * code + base`` is
  rounded once, whether or not the hardware fuses the multiplication with the addition.
- Choosing a code takes one subtraction, one multiplication and one rounding, each of which IEEE
  754 defines; no fused operation could replace them.

A weight that lies on the grid keeps its value. While the base is below 2^22 steps, rounding moves a
code by less than half; beyond, the distance from the base is itself exact, and the code found has
the same float32 weight as the one that was lost (a test goes through all steps there are).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from kldcloud.errors import FormatError, UserError
from kldcloud.qad.formats.blocks import BLOCK_TYPES, F4, I8, U8, BlockType, Scales
from kldcloud.qad.formats.straight_through import refuse_diverged, straight_through

_CODES_AT_ONCE = 1 << 22
"""How many weights are unpacked together: tens of megabytes, whatever the tensor's size."""


@dataclass(frozen=True, slots=True)
class _FrozenScales:
    """Per group, float32 ``[groups, 1]`` in the model's row order, all on one device."""

    step: torch.Tensor
    inverse: torch.Tensor
    base: torch.Tensor | None

    def to(self, device: torch.device | str) -> Self:
        base = None if self.base is None else self.base.to(device)
        return replace(self, step=self.step.to(device), inverse=self.inverse.to(device), base=base)

    def rows(self, rows: torch.Tensor) -> Self:
        """The same scales with the tensor's rows in another order."""

        def taken(scale: torch.Tensor) -> torch.Tensor:
            return scale.reshape(len(rows), -1)[rows.to(scale.device)].reshape(-1, 1)

        base = None if self.base is None else taken(self.base)
        return replace(self, step=taken(self.step), inverse=taken(self.inverse), base=base)

    def nearest(self, w: torch.Tensor, kind: BlockType) -> torch.Tensor:
        """Codes nearest to `w`, as float32 ``[groups, group]``: a new tensor."""
        grouped = w.reshape(-1, kind.group)
        if self.base is None:
            codes = torch.mul(grouped, self.inverse)
        else:
            codes = torch.sub(grouped, self.base).mul_(self.inverse)
        return codes.round_().clamp_(kind.lowest, kind.highest)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Weights of float32 codes ``[groups, group]``, in their place."""
        if self.base is None:
            return codes.mul_(self.step)
        return torch.addcmul(self.base, codes, self.step, out=codes)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The grid of one tensor: its scales, and the init's bytes to put new codes into.

    Attributes:
        kind: where its type keeps what.
        shape: rows and columns.
        scales: of its groups, in the model's row order.
        blocks: the init's bytes in the file's row order, uint8 ``[blocks, kind.nbytes]``; a memory
            map stays one.
        order: for every row of the model, the file's row; None where they are the same.
    """

    kind: BlockType
    shape: tuple[int, int]
    scales: _FrozenScales
    blocks: U8
    order: npt.NDArray[np.int64] | None = None

    @classmethod
    def from_bytes(cls, type_name: str, data: U8, shape: tuple[int, int]) -> Self:
        """Freeze the grid of a quantised tensor.

        Args:
            type_name: as `kldcloud.models.gguf_header` names it, such as ``"Q4_K"``.
            data: uint8, all bytes of the tensor (kept, not copied).
            shape: rows and columns; ggml writes columns first.

        Raises:
            UserError: no grid of this type can be trained.
            FormatError: the bytes are not those of such a tensor, or hold a scale that is not
                finite.
        """
        kind = BLOCK_TYPES.get(type_name)
        if kind is None:
            raise UserError(
                f"tensors of type {type_name} cannot be trained on their grid",
                hint=f"start from a file of {', '.join(BLOCK_TYPES)}",
            )
        blocks = _checked_blocks(kind, data, shape)
        with np.errstate(invalid="ignore"):  # an infinite scale times 0 is refused right here
            scales = kind.scales(blocks)
        _refuse_infinite(kind, scales)
        return cls(kind, shape, _frozen(scales), blocks)

    @property
    def type_name(self) -> str:
        """The tensor's type, such as ``"Q4_K"``."""
        return self.kind.name

    @property
    def device(self) -> torch.device:
        """Where `fake_quantize` expects its weights."""
        return self.scales.step.device

    def to(self, device: torch.device | str) -> Self:
        """The same grid with its scales on `device`; the init's bytes stay where they are."""
        return replace(self, scales=self.scales.to(device))

    def permuted(self, rows: npt.ArrayLike) -> Self:
        """The same grid for a model whose row i is this grid's row ``rows[i]``.

        `dequantize`, `fake_quantize` and `codes` then speak of the model's rows, and `pack` still
        returns the file's bytes.

        Raises:
            UserError: `rows` is no permutation of the rows.
        """
        order = np.asarray(rows)
        if order.shape != self.shape[:1] or not np.array_equal(
            np.sort(order), np.arange(self.shape[0])
        ):
            raise UserError(f"these rows are no order of the {self.shape[0]:,} rows of a tensor")
        order = order.astype(np.int64)
        scales = self.scales.rows(torch.from_numpy(order))
        return replace(
            self, scales=scales, order=order if self.order is None else self.order[order]
        )

    def dequantize(self) -> torch.Tensor:
        """The init's weights, float32 ``[rows, columns]``, bit for bit as ggml dequantises them."""
        codes = torch.empty(self.shape, dtype=torch.int8)
        for part in self._row_parts():
            codes[part] = torch.from_numpy(self.kind.codes(self._blocks_of(part))).view(
                -1, self.shape[1]
            )
        if self.order is not None:
            codes = codes[torch.from_numpy(self.order)]
        grouped = codes.to(self.device, torch.float32).view(-1, self.kind.group)
        return self.scales.values(grouped).view(self.shape)

    def fake_quantize(self, w: torch.Tensor) -> torch.Tensor:
        """The values of the grid nearest to `w`, with a straight-through gradient.

        Args:
            w: float32, bfloat16 or float16 ``[rows, columns]`` on the grid's device.

        Returns:
            float32 ``[rows, columns]``, equal to what the bytes of ``pack(w)`` dequantise to. (A
            zero may have the other sign where several codes mean zero.) The arithmetic is float32
            whatever the type of `w`; "nearest" holds up to its rounding.
        """
        self._check(w)
        return straight_through(w, self._nearest_values)

    def codes(self, w: torch.Tensor) -> torch.Tensor:
        """The codes of the values that `fake_quantize` gives, int8 ``[rows, columns]``.

        Where the step is zero, all codes have one value and this is 0.

        Raises:
            EngineError: a weight is not finite.
        """
        self._check(w)
        refuse_diverged(w)
        with torch.no_grad():
            return self.scales.nearest(w, self.kind).to(torch.int8).view(self.shape)

    def pack(self, w: torch.Tensor) -> npt.NDArray[np.uint8]:
        """The tensor's bytes with the init's scales and the codes of `w`.

        Several codes can have the same value: all of a group whose step is zero, and neighbours
        whose distance float32 loses beside a large base. Of those the init's code stays, so that
        packing the dequantised init gives back its very bytes.

        Args:
            w: ``[rows, columns]``, as for `fake_quantize`.

        Returns:
            uint8 ``[bytes of the tensor]``, in the file's row order.

        Raises:
            EngineError: a weight is not finite.
        """
        codes = self.codes(w).cpu().numpy()
        if self.order is not None:
            in_file_order = np.empty_like(codes)
            in_file_order[self.order] = codes
            codes = in_file_order
        packed = self.blocks.copy()
        for part in self._row_parts():
            blocks = packed[self._block_range(part)]
            old = self.kind.codes(blocks)
            new = codes[part].reshape(old.shape)
            scales = self.kind.scales(blocks)
            same = _values(scales, old) == _values(scales, new)
            self.kind.write_codes(blocks, np.where(same, old, new))
        return packed.reshape(-1)

    def _nearest_values(self, w: torch.Tensor) -> torch.Tensor:
        return self.scales.values(self.scales.nearest(w, self.kind)).view(self.shape)

    def _check(self, w: torch.Tensor) -> None:
        if tuple(w.shape) != self.shape:
            raise UserError(f"weights of shape {tuple(w.shape)} do not fit a grid of {self.shape}")
        if w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"weights of {w.dtype} cannot be trained on a grid; use float32")

    def _row_parts(self) -> Iterator[slice]:
        rows, columns = self.shape
        count = max(1, _CODES_AT_ONCE // columns)
        for start in range(0, rows, count):
            yield slice(start, min(start + count, rows))

    def _block_range(self, rows: slice) -> slice:
        blocks = self.shape[1] // self.kind.elements
        return slice(rows.start * blocks, rows.stop * blocks)

    def _blocks_of(self, rows: slice) -> U8:
        return self.blocks[self._block_range(rows)]


def _checked_blocks(kind: BlockType, data: U8, shape: tuple[int, int]) -> U8:
    """`data` as ``[blocks, kind.nbytes]``, once its length has been found to fit."""
    rows, columns = shape
    if rows < 1 or columns < 1 or columns % kind.elements:
        raise FormatError(
            f"a {kind.name} tensor cannot have the shape {shape}: its rows are whole blocks of "
            f"{kind.elements}"
        )
    needed = rows * (columns // kind.elements) * kind.nbytes
    if data.dtype != np.uint8 or data.size != needed:
        raise FormatError(
            f"a {kind.name} tensor of shape {shape} has {needed:,} bytes, not {data.nbytes:,}",
            hint="download the file again",
        )
    return np.asarray(data).reshape(-1, kind.nbytes)  # no longer a memmap, but still mapped


def _frozen(scales: Scales) -> _FrozenScales:
    step = scales.step.reshape(-1, 1)
    # A zero step turns every weight into code 0; no step is so small that its inverse overflows.
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step != 0)
    base = None if scales.base is None else torch.from_numpy(scales.base.reshape(-1, 1))
    return _FrozenScales(torch.from_numpy(step), torch.from_numpy(inverse), base)


def _refuse_infinite(kind: BlockType, scales: Scales) -> None:
    parts = (scales.step,) if scales.base is None else (scales.step, scales.base)
    if not all(np.isfinite(part).all() for part in parts):
        raise FormatError(
            f"a block of a {kind.name} tensor has a scale that is not finite",
            hint="download the file again, or quantise the model again",
        )


def _values(scales: Scales, codes: I8) -> F4:
    """Weights of codes ``[blocks, elements]``, float32 of the same shape, with numpy."""
    grouped = codes.reshape(*scales.step.shape, -1).astype(np.float32)
    grouped *= scales.step[:, :, None]
    if scales.base is not None:
        grouped += scales.base[:, :, None]
    return grouped.reshape(codes.shape)
