"""The order of chunks: a permutation that anybody can work out again, and that nobody chose."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from scipy import stats

from kldcloud.corpus.order import ORDER_RULE, chunk_order

DIGEST = "5f" * 32


@pytest.mark.parametrize("chunks", [1, 2, 7, 580])
def test_every_chunk_comes_once(chunks: int) -> None:
    assert sorted(chunk_order(DIGEST, chunks).tolist()) == list(range(chunks))


def test_coreutils_come_to_the_same_order() -> None:
    chunks = 23
    script = (
        f"for i in $(seq 0 {chunks - 1}); do "
        f"printf '%s\\n%s\\n%s\\n%s' {ORDER_RULE} {DIGEST} {chunks} $i "
        "| sha256sum | sed \"s/ .*/ $i/\"; done | LC_ALL=C sort | cut -d' ' -f2"
    )
    theirs = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert chunk_order(DIGEST, chunks).tolist() == [int(each) for each in theirs]


def test_text_and_length_decide_and_nothing_else() -> None:
    order = chunk_order(DIGEST, 50).tolist()
    assert order == chunk_order(DIGEST, 50).tolist()
    assert order != chunk_order("60" * 32, 50).tolist()
    assert order != [at for at in chunk_order(DIGEST, 51).tolist() if at < 50]


def test_first_chunks_are_spread_evenly_over_texts_and_places() -> None:
    chunks, texts = 16, 2000
    firsts = [chunk_order(f"{text:064x}", chunks)[:4] for text in range(texts)]
    counts = np.bincount(np.concatenate(firsts), minlength=chunks)
    assert stats.chisquare(counts).pvalue > 0.001
    steps = np.array([first[1] > first[0] for first in firsts])
    assert stats.binomtest(int(steps.sum()), texts).pvalue > 0.001
