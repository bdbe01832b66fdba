"""llama.cpp's quantisation types by name, with the number that its quantiser takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kldcloud.errors import SpecError
from kldcloud.spec.nearest import did_you_mean
from kldcloud.spec.recipes import RECIPES

FTYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "F32": 0,
        "F16": 1,
        "BF16": 32,
        "Q8_0": 7,
        "Q6_K": 18,
        "Q5_K_M": 17,
        "Q5_K_S": 16,
        "Q5_1": 9,
        "Q5_0": 8,
        "Q4_K_M": 15,
        "Q4_K_S": 14,
        "Q4_1": 3,
        "Q4_0": 2,
        "IQ4_NL": 25,
        "IQ4_XS": 30,
        "Q3_K_L": 13,
        "Q3_K_M": 12,
        "Q3_K_S": 11,
        "IQ3_M": 27,
        "IQ3_S": 26,
        "IQ3_XS": 22,
        "IQ3_XXS": 23,
        "Q2_K": 10,
        "Q2_K_S": 21,
        "IQ2_M": 29,
        "IQ2_S": 28,
        "IQ2_XS": 20,
        "IQ2_XXS": 19,
        "IQ1_M": 31,
        "IQ1_S": 24,
        "TQ2_0": 37,
        "TQ1_0": 36,
        "MXFP4_MOE": 38,
        "NVFP4": 39,
        "Q2_0": 41,
        "Q1_0": 40,
    }
)
"""Name -> `enum llama_ftype` of llama.cpp's `include/llama.h`, most bits first within a family."""

FLOAT_FTYPES: Final = ("F32", "F16", "BF16")
"""The types that a base model may be converted to: none of them loses more than a rounding."""

# What the quantiser of llama-cpp-python 0.3.36 refuses where a model's rows are multiples of 256.
# Where it falls back because rows are not, some of these pass, but the file is not what it claims.
NEEDS_IMPORTANCE_MATRIX: Final = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
)
TAKES_NO_IMPORTANCE_MATRIX: Final = frozenset(
    {"F32", "F16", "BF16", "Q8_0", "MXFP4_MOE", "TQ2_0", "TQ1_0", "Q2_0", "Q1_0"}
)
"""Types whose rounding heeds no importance: a file made with a matrix is one made without."""
CANNOT_BE_MADE: Final = frozenset({"NVFP4"})
"""Types of files that llama.cpp reads but has no quantiser for."""

_SHORT_NAMES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def quant_type(text: str) -> str:
    """Return the quantisation type that `text` names, in llama.cpp's own spelling.

    Letter case does not matter, as it does not to `llama-quantize`.

    Raises:
        SpecError: the type is unknown, or llama.cpp cannot make it.
    """
    name = text.upper()
    if name in _SHORT_NAMES:
        raise SpecError(
            f"unknown quantisation type '{text}'", hint=f"did you mean '{_SHORT_NAMES[name]}'?"
        )
    if name not in FTYPES:
        shown = repr(text[:40])
        raise SpecError(
            f"unknown quantisation type {shown}",
            hint=did_you_mean(text, FTYPES, kind="known types"),
        )
    if name in CANNOT_BE_MADE:
        raise SpecError(
            f"llama.cpp reads {name} files but does not make them",
            hint="give a file that was made elsewhere as 'model'",
        )
    return name


def quant_type_or_recipe(text: str) -> str:
    """Return the type or the recipe that `text` names; see `quant_type` and `recipes`.

    Raises:
        SpecError: it is neither.
    """
    name = text.lower()
    if name in RECIPES:
        return name
    if name.startswith(tuple(f"{each.split('-')[0]}-" for each in RECIPES)):
        raise SpecError(
            f"unknown recipe {text[:40]!r}", hint=did_you_mean(name, RECIPES, kind="recipes")
        )
    return quant_type(text)


def check_importance(name: str, *, given: bool) -> None:
    """See that a type and an importance matrix go together.

    Args:
        name: of the type, from `quant_type`.
        given: whether there is a matrix.

    Raises:
        SpecError: the type needs one and has none, or has one and takes none.
    """
    if name in NEEDS_IMPORTANCE_MATRIX and not given:
        raise SpecError(
            f"{name} needs an importance matrix",
            hint="add imatrix: {text: ...}, or imatrix: and the path of one",
        )
    if (name in TAKES_NO_IMPORTANCE_MATRIX or name in RECIPES) and given:
        raise SpecError(f"{name} takes no importance matrix", hint="leave 'imatrix' out")
