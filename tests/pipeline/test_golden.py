"""llama-perplexity's own statistics, from sweeps of the same models over the same text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kldcloud.models.llama_library import build_facts
from kldcloud.pipeline.exchange import export_base_file, import_base_file
from kldcloud.pipeline.runs import FoundRun
from kldcloud.report.llama_text import render_llama
from kldcloud.store import open_store
from tests.golden.cases import CASES, GoldenCase
from tests.peer import find_peer, run_peer_base, run_peer_kld, statistics_block
from tests.pipeline.sweeps import Notes, corpus, facts, sweep
from tests.tiny_models import TinyPair, tiny_pair

PEER = find_peer()
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
needs_peer = pytest.mark.skipif(PEER is None, reason="llama-perplexity is not built: make peer")

pytestmark = pytest.mark.usefixtures("one_ray")


@dataclass(frozen=True, slots=True)
class Swept:
    """A run that measured a case's candidate."""

    block: str
    found: FoundRun
    corpus: str


@dataclass(frozen=True, slots=True)
class Sweeps:
    """Runs and base files, each made when it is first asked for."""

    folder: Path
    _pairs: dict[str, TinyPair]
    _runs: dict[tuple[str, str], Swept]

    def pair(self, case: GoldenCase) -> TinyPair:
        name = f"v{case.vocabulary}-{case.bos}"
        if name not in self._pairs:
            self._pairs[name] = tiny_pair(
                self.folder / name, vocabulary=case.vocabulary, bos=case.bos
            )
        return self._pairs[name]

    def of_models(self, case: GoldenCase, encoding: str) -> Swept:
        """The case's numbers from a sweep of both models; one sweep does both contexts."""
        if (case.name, encoding) not in self._runs:
            pair = self.pair(case)
            cases = [c for c in CASES if (c.vocabulary, c.bos) == (case.vocabulary, case.bos)]
            corpora = [corpus(c.n_ctx, c.chunks, c.name) for c in cases]
            job = facts(pair.base, [pair.candidate], corpora, encoding=encoding)
            outcome = sweep(job, self.folder / "store")
            assert outcome.summary.encoding == encoding
            for each in cases:
                block = render_llama(outcome.summary, None, each.name)
                found = FoundRun(outcome.run, open_store(str(self.folder / "store")))
                self._runs[each.name, encoding] = Swept(block, found, each.name)
        return self._runs[case.name, encoding]

    def exported(self, case: GoldenCase, encoding: str) -> Path:
        """The base distribution of that sweep as a llama.cpp base file."""
        path = self.folder / f"{case.name}-{encoding}.kld"
        if not path.exists():
            swept = self.of_models(case, encoding)
            export_base_file(
                swept.found, path, corpus=swept.corpus, overwrite=False, progress=Notes()
            )
        return path

    def of_base_file(self, case: GoldenCase, base_file: Path) -> str:
        """The block of a sweep whose base is a llama.cpp base file."""
        job = facts({"logits": str(base_file)}, [self.pair(case).candidate], [])
        return render_llama(sweep(job, self.folder / "store").summary)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    return Sweeps(tmp_path_factory.mktemp("golden"), {}, {})


@pytest.fixture
def same_build() -> Callable[[GoldenCase], bool]:
    """Whether this engine rounds as the one that made a case's golden did."""

    def compare(case: GoldenCase) -> bool:
        golden = re.findall(r"(\w+) = 1", str(case.made_from["cpu"]))
        return build_facts()["instructions"].split() == golden

    return compare


def lines_of(block: str) -> list[tuple[str, list[float]]]:
    """A block's lines as labels and numbers."""
    lines = []
    for line in block.splitlines():
        label, _, values = line.rpartition(":")
        lines.append((label, [float(each) for each in re.findall(r"-?\d+\.\d+", values)]))
    return lines


def agree(found: str, golden: str) -> bool:
    """The same lines, and numbers that differ by no more than codes that were rounded elsewhere.

    A code is 2.4e-4 nats wide. Logits that differ in their last bit round some codes the other
    way, which moves a quantile of KLD by up to that times a probability, a mean far less.
    """
    ours, theirs = lines_of(found), lines_of(golden)
    return [label for label, _ in ours] == [label for label, _ in theirs] and all(
        a == pytest.approx(b, rel=5e-6, abs=5e-5)
        for (label, a), (_, b) in zip(ours, theirs, strict=True)
        if "PPL(Q)-PPL(base)" not in label  # a difference of two, a thousand times as large
    )


@each_case
def test_a_sweep_reports_the_block_that_llama_perplexity_prints(
    case: GoldenCase, sweeps: Sweeps, same_build: Callable[[GoldenCase], bool]
) -> None:
    block = sweeps.of_models(case, "logits").block
    assert block == case.block if same_build(case) else agree(block, case.block)


@each_case
def test_hidden_states_report_it_up_to_the_rounding_of_codes(
    case: GoldenCase, sweeps: Sweeps
) -> None:
    assert agree(sweeps.of_models(case, "hidden").block, case.block)


@each_case
def test_an_exported_base_file_has_the_bytes_that_the_tool_writes(
    case: GoldenCase, sweeps: Sweeps, same_build: Callable[[GoldenCase], bool]
) -> None:
    exported = sweeps.exported(case, "logits").read_bytes()
    assert len(exported) == case.made_from["base_kld_bytes"]
    if same_build(case):
        assert hashlib.sha256(exported).hexdigest() == case.made_from["base_kld_sha256"]


@each_case
@pytest.mark.parametrize("encoding", ["logits", "hidden"])
def test_an_exported_base_file_as_the_base_reports_the_same_block(
    case: GoldenCase, encoding: str, sweeps: Sweeps
) -> None:
    exported = sweeps.exported(case, encoding)
    assert sweeps.of_base_file(case, exported) == sweeps.of_models(case, encoding).block


@needs_peer
@each_case
@pytest.mark.parametrize("encoding", ["logits", "hidden"])
def test_the_tool_prints_our_block_from_a_base_file_that_we_export(
    case: GoldenCase, encoding: str, sweeps: Sweeps
) -> None:
    assert PEER is not None
    exported = sweeps.exported(case, encoding)
    printed = run_peer_kld(PEER, sweeps.pair(case).candidate, exported, n_ctx=case.n_ctx)
    assert statistics_block(printed) == sweeps.of_models(case, encoding).block


@needs_peer
@each_case
def test_a_base_file_that_the_tool_writes_gives_its_block(
    case: GoldenCase, sweeps: Sweeps, tmp_path: Path
) -> None:
    assert PEER is not None
    pair = sweeps.pair(case)
    base_file = tmp_path / "theirs.kld"
    run_peer_base(PEER, pair.base, base_file, n_ctx=case.n_ctx, chunks=case.chunks)
    printed = run_peer_kld(PEER, pair.candidate, base_file, n_ctx=case.n_ctx)
    stage = import_base_file(str(base_file), open_store(str(tmp_path / "store")), Notes())
    assert (stage.chunks, stage.context) == (case.chunks, case.n_ctx)
    assert sweeps.of_base_file(case, base_file) == statistics_block(printed)
