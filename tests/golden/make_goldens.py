"""Write the golden transcripts again, after `make peer`: python -m tests.golden.make_goldens.

Run where the tool is built for x86-64: there it rounds as tests/reference.py does. What may differ
between two instruction sets is the last digits of the logits, and with them of the blocks.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from tests.golden.cases import CASES, GOLDEN, TEXT, GoldenCase
from tests.peer import (
    PEER_VERSION,
    find_peer,
    instruction_sets,
    peer_version,
    run_peer_base,
    run_peer_kld,
    statistics_block,
)
from tests.tiny_models import tiny_pair


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make(case: GoldenCase, peer: Path, scratch: Path) -> None:
    """Run one case with one and with two threads, and write its folder if both agree."""
    pair = tiny_pair(scratch / case.name, vocabulary=case.vocabulary, bos=case.bos)
    base_file = scratch / case.name / "base.kld"
    seen = set()
    printed = ""
    for threads in (1, 2):
        run_peer_base(
            peer, pair.base, base_file, n_ctx=case.n_ctx, chunks=case.chunks, threads=threads
        )
        printed = run_peer_kld(peer, pair.candidate, base_file, n_ctx=case.n_ctx, threads=threads)
        seen.add((statistics_block(printed), sha256(base_file)))
    if len(seen) != 1:
        sys.exit(f"{case.name}: one and two threads disagree, so nothing is written")
    ((block, base_digest),) = seen
    made_from = {
        "llama_cpp_python": PEER_VERSION,
        "tool": peer_version(peer),
        "cpu": instruction_sets(printed),
        "text_sha256": sha256(TEXT),
        "base_model_sha256": sha256(pair.base),
        "candidate_model_sha256": sha256(pair.candidate),
        "base_kld_sha256": base_digest,
        "base_kld_bytes": base_file.stat().st_size,
    }
    folder = GOLDEN / case.name
    folder.mkdir(exist_ok=True)
    (folder / "block.txt").write_text(block, encoding="utf-8")
    (folder / "made_from.json").write_text(json.dumps(made_from, indent=2) + "\n")
    sys.stdout.write(f"{case.name}: written\n")


def main() -> None:
    """Write every case's folder."""
    peer = find_peer()
    if peer is None:
        sys.exit("llama-perplexity is not built; run: make peer")
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            make(case, peer, Path(scratch))


if __name__ == "__main__":
    main()
