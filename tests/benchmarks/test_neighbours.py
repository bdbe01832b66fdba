"""Errors by blocks of chunks: what is put into made-up chunks comes out again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "neighbours.py"
CHUNKS, POSITIONS = 4000, 3


def _run(folder: Path, values: np.ndarray) -> dict[str, list[float]]:
    """The printed figures of a candidate whose chunks have these KLDs, in a file out of order."""
    chunk = np.repeat(np.arange(CHUNKS), POSITIONS)
    spread = np.tile(np.arange(POSITIONS) - 1.0, CHUNKS)
    kld = np.repeat(values, POSITIONS) + spread
    columns = {
        "candidate": ["Q"] * len(chunk),
        "corpus": ["text"] * len(chunk),
        "chunk": pa.array(chunk, pa.int32()),
        "kld": kld,
        "nll": 3 * kld,
        "nll_base": np.tile([1.0, 2.0, 3.0], CHUNKS) + np.sin(chunk),
    }
    table = pa.table(columns).take(np.random.default_rng(1).permutation(len(chunk)))
    parquet.write_table(table, folder / "tokens.parquet")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], check=True, stdout=subprocess.PIPE, text=True
    )
    head, *lines = done.stdout.splitlines()
    assert head.startswith(f"Q on text, {CHUNKS} chunks ")
    return {
        re.split(r"  +", line.strip())[0]: [float(each) for each in line.split()[-3:]]
        for line in lines
    }


def test_independent_chunks_have_the_errors_that_are_printed(tmp_path: Path) -> None:
    found = _run(tmp_path, np.random.default_rng(0).normal(size=CHUNKS))
    assert found["mean KLD"] == pytest.approx([1, 1, 1], abs=0.1)
    assert found["ln PPL"] == found["mean KLD"]


def test_chunks_that_come_in_equal_pairs_say_half_as_much(tmp_path: Path) -> None:
    pairs = np.random.default_rng(0).normal(size=CHUNKS // 2).repeat(2)
    assert _run(tmp_path, pairs)["mean KLD"] == pytest.approx([2**0.5] * 3, abs=0.1)
