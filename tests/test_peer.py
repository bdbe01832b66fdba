"""The real tool: that it still says what the golden transcripts say, however it is run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.golden.cases import CASES, GoldenCase
from tests.peer import (
    find_peer,
    instruction_sets,
    run_peer_base,
    run_peer_kld,
    statistics_block,
)
from tests.tiny_models import tiny_pair

PEER = find_peer()
needs_peer = pytest.mark.skipif(PEER is None, reason="llama-perplexity is not built: make peer")


@needs_peer
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_tool_prints_the_golden_block_again(case: GoldenCase, tmp_path: Path) -> None:
    assert PEER is not None
    pair = tiny_pair(tmp_path, vocabulary=case.vocabulary, bos=case.bos)
    base_file = tmp_path / "base.kld"
    run_peer_base(PEER, pair.base, base_file, n_ctx=case.n_ctx, chunks=case.chunks)
    printed = run_peer_kld(PEER, pair.candidate, base_file, n_ctx=case.n_ctx)
    made_from = case.made_from
    if instruction_sets(printed) != made_from["cpu"]:
        pytest.skip("the golden was made with other instruction sets")
    assert hashlib.sha256(base_file.read_bytes()).hexdigest() == made_from["base_kld_sha256"]
    assert statistics_block(printed) == case.block


@needs_peer
def test_threads_and_batches_within_a_micro_batch_change_no_digit(tmp_path: Path) -> None:
    assert PEER is not None
    pair = tiny_pair(tmp_path, vocabulary=321, bos=True)
    seen = set()
    for threads, batch in ((1, None), (2, None), (1, 128), (2, 64)):
        base_file = tmp_path / f"{threads}-{batch}.kld"
        run_peer_base(PEER, pair.base, base_file, n_ctx=128, chunks=4, threads=threads, batch=batch)
        printed = run_peer_kld(
            PEER, pair.candidate, base_file, n_ctx=128, threads=threads, batch=batch
        )
        seen.add((base_file.read_bytes(), statistics_block(printed)))
    assert len(seen) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_golden_block_has_its_34_lines(case: GoldenCase) -> None:
    lines = [line for line in case.block.splitlines() if line and not line.startswith("=")]
    assert len(lines) == 6 + 12 + 16
    assert lines[0].startswith("Mean PPL(Q)")
    assert lines[-1].startswith("Same top p")
