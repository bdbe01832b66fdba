"""The base measured against itself: what a second pass of the same model comes to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import SpecError
from kldcloud.report.summary_file import Summary
from kldcloud.spec.job import NOISE_FLOOR
from kldcloud.spec.load import load_job
from tests.peer import find_peer, run_peer_base
from tests.pipeline.sweeps import corpus, facts, sweep
from tests.tiny_models import TinyPair, tiny_pair

pytestmark = pytest.mark.usefixtures("one_ray")

CHUNKS = 4
PEER = find_peer()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


def job(pair: TinyPair, **options: Any) -> dict[str, Any]:
    return facts(pair.base, [pair.candidate], [corpus(128, CHUNKS)], **options)


def without_floor(summary: Summary) -> dict[str, Any]:
    shape = summary.to_json_dict()
    del shape["noise_floor"], shape["run"]
    return shape


@pytest.mark.parametrize("encoding", ["logits", "hidden"])
def test_the_floor_is_near_zero_and_changes_nothing_else(
    pair: TinyPair, tmp_path: Path, encoding: str
) -> None:
    plain = sweep(job(pair, encoding=encoding), tmp_path)
    floored = sweep(job(pair, encoding=encoding, noise_floor=True), tmp_path)
    assert plain.run != floored.run
    assert without_floor(plain.summary) == without_floor(floored.summary)
    assert plain.summary.noise_floor == ()
    (floor,) = floored.summary.noise_floor
    assert (floor.corpus, floor.error, floor.tokens) == ("text", None, CHUNKS * 63)
    assert floor.mean is not None
    assert floor.mean.value is not None
    assert 0 <= floor.mean.value < 1e-7
    assert floor.same_top is not None
    assert floor.same_top.value == 1.0
    # It has partials like a candidate, and no rows among the tokens of candidates.
    run = tmp_path / "runs" / floored.run
    assert len(list((run / "partials" / NOISE_FLOOR).rglob("*.parquet"))) >= 1
    tokens = (tmp_path / "runs" / plain.run / "tokens.parquet").read_bytes()
    assert (run / "tokens.parquet").read_bytes() == tokens
    kept = json.loads((run / "plan.json").read_text())
    assert Counter(kept["candidates"]) == Counter(["candidate", NOISE_FLOOR])


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "job.yaml"
    path.write_text(json.dumps(content))
    return path


def test_a_candidate_may_not_be_called_so(pair: TinyPair, tmp_path: Path) -> None:
    named = job(pair)
    named["candidates"][0]["name"] = "Noise-Floor"
    with pytest.raises(SpecError, match="the base against itself"):
        load_job(write(tmp_path, named))


def test_a_base_file_cannot_be_measured_again(pair: TinyPair, tmp_path: Path) -> None:
    content = job(pair, noise_floor=True)
    content["base"] = {"logits": "some.kld"}
    with pytest.raises(SpecError, match="no model to measure again"):
        load_job(write(tmp_path, content))


@pytest.mark.skipif(PEER is None, reason="needs llama-perplexity: make peer")
def test_what_another_build_comes_to_is_the_base_against_its_base_file(
    pair: TinyPair, tmp_path: Path
) -> None:
    assert PEER is not None
    base_file = tmp_path / "theirs.kld"
    run_peer_base(PEER, pair.base, base_file, n_ctx=128, chunks=CHUNKS)
    outcome = sweep(facts({"logits": str(base_file)}, [pair.base], []), tmp_path / "store")
    (measured,) = outcome.summary.results
    assert measured.result is not None
    # What is left is half a step of the file's codes.
    assert 0 <= (measured.result.kld.mean.value or 0) < 1e-6
    assert (measured.result.same_top.value or 0) > 0.99
