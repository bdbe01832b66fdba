"""A run that may stop does so where its data decide, and nowhere else for any way of running it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kldcloud.divergence.checkpoints import checkpoints
from kldcloud.errors import SpecError, UserError
from kldcloud.pipeline.exchange import export_base_file
from kldcloud.pipeline.runs import find_run
from kldcloud.report.summary_file import Summary
from kldcloud.spec.load import load_job
from tests.pipeline.odd_models import with_nan
from tests.pipeline.sweeps import Notes, corpus, facts, result_bytes, sweep
from tests.tiny_models import TinyPair, tiny_pair

pytestmark = pytest.mark.usefixtures("one_ray")

CHUNKS = 24
LEAST = 8
RANKED = {"when": "ranked", "least": LEAST}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is far further from the base than the pair's candidate."""
    stranger = tiny_pair(tmp_path_factory.mktemp("other"), vocabulary=320, bos=True, seed=1)
    return stranger.candidate.rename(stranger.candidate.with_name("other.gguf"))


def job(pair: TinyPair, *candidates: Any, **options: Any) -> dict[str, Any]:
    text = corpus(64, CHUNKS)
    return facts(pair.base, list(candidates), [text], **{"stop": RANKED, **options})


def only_stop(summary: Summary) -> Any:
    (stop,) = summary.stops
    return stop


def chunks_of(folder: Path, pattern: str) -> int:
    """Chunks in objects whose names end in <first>-<count>."""
    return sum(int(path.stem.rpartition("-")[2]) for path in folder.rglob(pattern))


def test_a_clear_order_stops_at_the_first_checkpoint_and_stages_no_more(
    pair: TinyPair, other: Path, tmp_path: Path
) -> None:
    notes = Notes()
    done = sweep(job(pair, other, pair.candidate), tmp_path, progress=notes)
    stop = only_stop(done.summary)
    assert (stop.settled, stop.checkpoint, stop.chunks, stop.of) == (True, 1, LEAST, CHUNKS)
    assert stop.saved == pytest.approx(1 - LEAST / CHUNKS)
    assert stop.order == ("candidate", "other")
    assert done.summary.corpora[0].chunks == LEAST
    assert all(each.result and each.result.chunks == LEAST for each in done.summary.results)
    assert chunks_of(tmp_path / "stages", "*.shard") == LEAST
    assert chunks_of(tmp_path / "runs", "*-*.parquet") == 2 * LEAST
    assert any("is settled after 8 of 24 chunks; 67% saved" in note for note in notes.notes)
    with pytest.raises(UserError, match="stopped before the end of its text"):
        export_base_file(
            find_run(done.run, str(tmp_path)),
            tmp_path / "x.kld",
            corpus=None,
            overwrite=False,
            progress=notes,
        )
    # Its comparison is the decision's: sequential p-values, never below 1e-12.
    (comparison,) = done.summary.comparisons
    assert comparison.pairs[0].p is not None
    assert comparison.pairs[0].p >= 1e-12
    assert comparison.pairs[0].distinguishable


def test_equal_candidates_are_never_told_apart_and_all_is_measured(
    pair: TinyPair, tmp_path: Path
) -> None:
    twin = tmp_path / "twin.gguf"
    shutil.copy(pair.candidate, twin)
    done = sweep(job(pair, pair.candidate, twin), tmp_path / "store")
    stop = only_stop(done.summary)
    assert (stop.settled, stop.chunks, stop.saved) == (False, CHUNKS, 0.0)
    assert stop.undecided == (("candidate", "twin"),)
    assert {(rank.low, rank.high) for rank in done.summary.comparisons[0].ranks} == {(1, 2)}


@pytest.mark.parametrize("shard_chunks", [1, 5])
def test_neither_workers_nor_shards_nor_a_second_launch_change_a_byte(
    pair: TinyPair, other: Path, tmp_path: Path, shard_chunks: int
) -> None:
    content = job(pair, other, pair.candidate, stop={**RANKED, "confidence": 0.9999})
    first = sweep(content, tmp_path / "one")
    again = sweep(content | {"shard_chunks": shard_chunks}, tmp_path / "two", workers=2)
    assert first.run == again.run
    assert result_bytes(tmp_path / "one", first.run) == result_bytes(tmp_path / "two", again.run)

    # A launch that finds everything but the end comes to the same end.
    run = tmp_path / "two" / "runs" / first.run
    for name in ("summary.json", "tokens.parquet"):
        (run / name).unlink()
    sweep(content, tmp_path / "two")
    assert result_bytes(tmp_path / "one", first.run) == result_bytes(tmp_path / "two", again.run)


def test_means_to_a_stated_width_need_what_they_need(pair: TinyPair, tmp_path: Path) -> None:
    widths = {}
    for width in ("90%", "4%"):
        stop = {"when": "precise", "half_width": width, "least": LEAST}
        done = sweep(job(pair, pair.candidate, stop=stop), tmp_path)
        widths[width] = only_stop(done.summary)
    assert widths["90%"].chunks == LEAST
    assert widths["4%"].chunks > LEAST
    for stop in widths.values():
        (mean,) = stop.means
        if stop.settled:
            low, high = mean.interval
            assert max(mean.value - low, high - mean.value) <= stop.half_width * mean.value
    assert widths["4%"].chunks in checkpoints(LEAST, CHUNKS)


def test_the_same_chunks_are_measured_as_without_a_stop_in_another_order(
    pair: TinyPair, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    twin = tmp_path / "twin.gguf"
    shutil.copy(pair.candidate, twin)
    content = job(pair, pair.candidate, twin, encoding="logits")
    stopped = sweep(content, tmp_path / "store")
    plain = sweep({**content, "stop": None}, tmp_path / "store")
    sums = []
    for run in (stopped.run, plain.run):
        table = pq.read_table(tmp_path / "store" / "runs" / run / "tokens.parquet").to_pandas()
        table = table[table["candidate"] == "twin"]
        sums.append(table.groupby("chunk")["kld"].sum().to_numpy())
    assert not np.allclose(*sums)
    assert np.sort(sums[0]) == pytest.approx(np.sort(sums[1]), rel=1e-12)
    assert plain.summary.stops == ()


def test_a_candidate_that_fails_is_left_out_of_the_decision(
    pair: TinyPair, other: Path, tmp_path: Path
) -> None:
    broken = with_nan(pair.candidate, tmp_path / "broken.gguf")
    done = sweep(job(pair, broken, other, pair.candidate), tmp_path / "store")
    assert list(done.failures) == ["broken on text"]
    stop = only_stop(done.summary)
    assert (stop.settled, stop.chunks) == (True, LEAST)
    assert stop.order == ("candidate", "other")


def test_a_base_file_has_an_order_of_its_own(pair: TinyPair, tmp_path: Path) -> None:
    content = {**job(pair, pair.candidate, pair.candidate), "base": {"logits": "some.kld"}}
    content["candidates"][1]["name"] = "second"
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(SpecError, match="its own order of chunks"):
        load_job(path)
