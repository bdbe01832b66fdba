"""Ways to quantise a model in safetensors while it is loaded, by the name that a job has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe makes of the weights of linear layers.

    Attributes:
        library: the package that does it.
        bits: of one weight.
        group: weights that share a scale; 0 for a whole row of them.
        scale_bits: of one scale.
        whole_groups: whether a row has to be a whole number of groups.
        block: rows that the library takes together on CPUs that multiply in bfloat16; 0 for one.
    """

    library: str
    bits: int
    group: int = 0
    scale_bits: int = 32
    whole_groups: bool = False
    block: int = 0

    def weight_bytes(self, rows: int, width: int) -> float:
        """Bytes of a matrix of `rows` times `width` weights, scales included."""
        groups = rows * (-(-width // self.group) if self.group else 1)
        return (rows * width * self.bits + groups * self.scale_bits) / 8


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "torchao-int8": Recipe("torchao", 8),
        "torchao-int4": Recipe("torchao", 4, group=32, whole_groups=True),
        "torchao-fp8": Recipe("torchao", 8),
        "bnb-int8": Recipe("bitsandbytes", 8),
        "bnb-nf4": Recipe("bitsandbytes", 4, group=64, block=32),
        "bnb-fp4": Recipe("bitsandbytes", 4, group=64, block=32),
    }
)
"""Group sizes are those of the libraries' own defaults, but torchao-int4's, which is ours: 32, as
in llama.cpp's Q4_0."""
