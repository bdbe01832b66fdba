"""The table of quantisation types is llama.cpp's, and its refusals say what to type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kldcloud.errors import SpecError
from kldcloud.spec.quants import (
    CANNOT_BE_MADE,
    FLOAT_FTYPES,
    FTYPES,
    NEEDS_IMPORTANCE_MATRIX,
    TAKES_NO_IMPORTANCE_MATRIX,
    check_importance,
    quant_type,
)
from tests.wide_models import wide_model


def test_the_table_is_that_of_the_installed_llama_cpp() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    mostly = "LLAMA_FTYPE_MOSTLY_"
    theirs = {
        name.removeprefix(mostly): number
        for name, number in vars(llama_cpp).items()
        if name.startswith(mostly)
    }
    assert theirs | {"F32": llama_cpp.LLAMA_FTYPE_ALL_F32} == dict(FTYPES)


def test_exactly_the_types_that_llama_cpp_can_make_from_a_model_alone_are_accepted(
    tmp_path: Path,
) -> None:
    pytest.importorskip("llama_cpp")
    model = tmp_path / "model.gguf"
    wide_model(model, layers=8)
    # In a process of its own: llama.cpp prints whatever it likes, and aborts on some failures.
    code = (
        "import ctypes, json, llama_cpp, sys\n"
        "made = []\n"
        "for name, number in json.loads(sys.argv[3]).items():\n"
        "    options = llama_cpp.llama_model_quantize_default_params()\n"
        "    options.ftype, options.nthread = number, 1\n"
        "    paths = (sys.argv[1].encode(), sys.argv[2].encode())\n"
        "    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)) == 0:\n"
        "        made.append(name)\n"
        "print('MADE', *made)\n"
    )
    arguments = [str(model), str(tmp_path / "out.gguf"), json.dumps(dict(FTYPES))]
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    made = next(line for line in ran.stdout.splitlines() if line.startswith("MADE")).split()[1:]
    assert set(made) == FTYPES.keys() - NEEDS_IMPORTANCE_MATRIX - CANNOT_BE_MADE
    for name in made:
        assert quant_type(name) == name
        check_importance(name, given=False)


def test_every_type_that_is_refused_or_a_float_is_in_the_table() -> None:
    assert set(FTYPES) > NEEDS_IMPORTANCE_MATRIX | TAKES_NO_IMPORTANCE_MATRIX | CANNOT_BE_MADE
    assert not NEEDS_IMPORTANCE_MATRIX & TAKES_NO_IMPORTANCE_MATRIX
    assert set(FTYPES) > set(FLOAT_FTYPES)


def test_letter_case_does_not_matter() -> None:
    assert quant_type("q4_k_m") == "Q4_K_M"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Q4KM", "Q4_K_M"),
        ("q4-k-m", "Q4_K_M"),
        ("Q4_K", "Q4_K_M"),
        ("Q8", "Q8_0"),
        ("IQ4NL", "IQ4_NL"),
        ("FP16", "F16"),
    ],
)
def test_a_near_miss_gets_a_suggestion(typed: str, meant: str) -> None:
    with pytest.raises(SpecError) as caught:
        quant_type(typed)
    assert str(caught.value) == (f"unknown quantisation type '{typed}'; did you mean '{meant}'?")


def test_a_type_that_is_like_none_gets_the_list() -> None:
    with pytest.raises(
        SpecError, match=r"^unknown quantisation type 'gzip'; known types: F32, F16"
    ):
        quant_type("gzip")


def test_a_type_that_needs_an_importance_matrix_is_refused_before_anything_runs() -> None:
    with pytest.raises(SpecError) as caught:
        check_importance("IQ2_XXS", given=False)
    assert str(caught.value) == (
        "IQ2_XXS needs an importance matrix; "
        "add imatrix: {text: ...}, or imatrix: and the path of one"
    )
    check_importance("IQ2_XXS", given=True)


def test_a_type_that_heeds_no_importance_is_refused_with_a_matrix() -> None:
    with pytest.raises(SpecError, match=r"^Q8_0 takes no importance matrix; leave 'imatrix' out$"):
        check_importance("Q8_0", given=True)
    check_importance("Q8_0", given=False)


def test_types_that_may_have_an_importance_matrix_pass_with_and_without_one() -> None:
    for name in FTYPES.keys() - NEEDS_IMPORTANCE_MATRIX - TAKES_NO_IMPORTANCE_MATRIX:
        check_importance(name, given=True)
        check_importance(name, given=False)


def test_a_type_that_llama_cpp_only_reads_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        quant_type("nvfp4")
    assert str(caught.value) == (
        "llama.cpp reads NVFP4 files but does not make them; "
        "give a file that was made elsewhere as 'model'"
    )
