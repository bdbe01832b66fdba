"""A sweep's worst positions, against its token records and the engine asked again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from kldcloud.errors import FormatError
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.llama_tokenizer import tokenize
from kldcloud.models.tokenizer import token_texts
from kldcloud.pipeline.worst import AFTER, BEFORE, TOLD
from tests.pipeline.sweeps import TEXT, corpus, facts, sweep
from tests.tiny_models import TinyPair, tiny_pair

pytestmark = pytest.mark.usefixtures("one_ray")

CONTEXT, CHUNKS = 128, 7
FIRST = CONTEXT // 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


def job(pair: TinyPair, **options: Any) -> dict[str, Any]:
    return facts(pair.base, [pair.candidate], [corpus(CONTEXT, CHUNKS)], **options)


@pytest.fixture(scope="module", params=["logits", "hidden"])
def run(
    request: pytest.FixtureRequest, pair: TinyPair, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run."""
    store = tmp_path_factory.mktemp(request.param)
    outcome = sweep(job(pair, encoding=request.param), store)
    return store / "runs" / outcome.run


def positions(run: Path) -> list[dict[str, Any]]:
    (one,) = json.loads((run / "worst.json").read_text())["worst"]
    assert (one["candidate"], one["corpus"]) == ("candidate", "text")
    found: list[dict[str, Any]] = one["positions"]
    return found


def test_they_are_the_largest_of_the_token_records(run: Path) -> None:
    table = pq.read_table(run / "tokens.parquet").to_pandas()
    # A stable sort of rows in the text's order.
    worst = table.sort_values("kld", ascending=False, kind="stable").head(TOLD)
    found = positions(run)
    assert len(found) == TOLD
    for each, row in zip(found, worst.itertuples(), strict=True):
        assert (each["chunk"], each["position"]) == (row.chunk, row.position)
        assert (each["kld"], each["entropy_base"]) == (row.kld, row.entropy_base)
        assert each["probability"] == pytest.approx(np.exp(-row.nll), rel=1e-12)
        assert each["probability_base"] == pytest.approx(np.exp(-row.nll_base), rel=1e-12)


def test_the_text_around_is_the_corpus_with_the_divergence_of_each_token(
    run: Path, pair: TinyPair
) -> None:
    tokens = tokenize(pair.base, TEXT.read_text().removesuffix("\n")).tokens
    texts = token_texts(pair.base)
    table = pq.read_table(run / "tokens.parquet").to_pandas().set_index(["chunk", "position"])
    for each in positions(run)[:40]:
        chunk = tokens[each["chunk"] * CONTEXT :][:CONTEXT]
        at = each["position"] + 1
        assert each["token"] == texts.alone(chunk[at])
        assert len(each["before"]) == min(BEFORE, at)
        assert len(each["after"]) == min(AFTER, CONTEXT - 1 - at)
        around = range(at - len(each["before"]), at + len(each["after"]) + 1)
        told = [*each["before"], [None, each["kld"]], *each["after"]]
        for index, (text, kld) in zip(around, told, strict=True):
            if index <= FIRST:
                assert kld is None
            else:
                assert kld == pytest.approx(table.kld[each["chunk"], index - 1], rel=1e-3)
            if text is not None and chunk[index] < 128:
                assert text == texts.alone(chunk[index])


def test_top_tokens_are_those_of_the_engine(run: Path, pair: TinyPair) -> None:
    tokens = tokenize(pair.base, TEXT.read_text().removesuffix("\n")).tokens
    texts = token_texts(pair.base)
    checked = 0
    for model, side in ((pair.base, "top_base"), (pair.candidate, "top")):
        engine = LlamaEngine(model, CONTEXT, LlamaOptions())
        for chunk in range(CHUNKS):
            logits = engine.evaluate(tokens[chunk * CONTEXT :][:CONTEXT]).logits.astype(np.float64)
            for each in positions(run):
                if each["chunk"] != chunk or not each[side]:
                    continue
                row = logits[each["position"] - FIRST]
                best = np.argsort(-row, kind="stable")[:5]
                shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
                assert [text for text, _ in each[side]] == [texts.alone(token) for token in best]
                told = [share for _, share in each[side]]
                assert told == pytest.approx(shares[best].tolist(), rel=2e-3)
                checked += 1
        engine.close()
    assert checked > TOLD  # of 2 x 200, all but those beyond 32 of a chunk


def test_the_worst_of_all_have_their_top_tokens(run: Path) -> None:
    assert all(each["top"] and each["top_base"] for each in positions(run)[:32])


def test_how_it_is_cut_changes_no_byte(run: Path, pair: TinyPair, tmp_path: Path) -> None:
    (encoding,) = {"logits", "hidden"} & set(run.parts[-3].rstrip("0123456789").split("-"))
    outcome = sweep(job(pair, encoding=encoding, shard_chunks=3), tmp_path, workers=2)
    again = tmp_path / "runs" / outcome.run
    assert again.name == run.name
    assert (again / "worst.json").read_bytes() == (run / "worst.json").read_bytes()


def test_without_what_was_kept_the_positions_stay(run: Path, pair: TinyPair) -> None:
    before = positions(run)
    store = run.parents[1]
    kept = sorted((run / "worst").rglob("*.bin"))
    assert kept
    copies = {path: path.read_bytes() for path in kept}
    summary = (run / "summary.json").read_bytes()
    encoding = json.loads(summary)["encoding"]
    try:
        (run / "summary.json").unlink()
        for path in kept:
            path.unlink()
        sweep(job(pair, encoding=encoding), store)
        bare = positions(run)
        assert all(not each["top"] and not each["top_base"] for each in bare)
        gone: dict[str, list[Any]] = {"top": [], "top_base": []}
        assert [each | gone for each in before] == bare

        (run / "summary.json").unlink()
        for path, data in copies.items():
            path.write_bytes(data[:-1])
        with pytest.raises(FormatError, match=r"worst/candidate/text/.*\.bin.*must be"):
            sweep(job(pair, encoding=encoding), store)
    finally:
        for path, data in copies.items():
            path.write_bytes(data)
        sweep(job(pair, encoding=encoding), store)
    assert (run / "summary.json").read_bytes() == summary
    assert positions(run) == before
