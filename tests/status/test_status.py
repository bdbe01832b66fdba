"""A status reads the store alone, a folder or a bucket: what is done is what is committed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from kldcloud.corpus.chunks import Shard, cut_shards
from kldcloud.divergence.summary import Reduction
from kldcloud.report.status_json import status_facts
from kldcloud.report.summary_file import parse_summary
from kldcloud.status.reader import StatusReader
from kldcloud.status.run_list import list_runs
from kldcloud.status.subject import StatusSubject
from kldcloud.store import open_store
from tests.pipeline.sweeps import corpus, facts, sweep
from tests.status.kept_runs import (
    CANDIDATES,
    CHUNKS,
    LAUNCH,
    NOW,
    RUN,
    SHARD,
    STAGE,
    CountingStore,
    KeptRun,
    attempt,
    shards,
)
from tests.tiny_models import tiny_pair


@pytest.fixture
def kept(tmp_path: Path) -> KeptRun:
    return KeptRun(open_store(str(tmp_path / "store")))


def test_while_the_base_is_staged_its_committed_shards_are_counted(kept: KeptRun) -> None:
    kept.note_plan()
    kept.stage(shards()[:2])
    kept.driver(attempt(600), state="staging", label="staging base")
    status = kept.status()
    assert (status.state, status.stage) == ("running", "staging")
    (base,) = status.stages
    assert (base.shards_done, base.shards, base.complete) == (2, 3, False)
    assert (status.done, status.total) == (8, 3 * CHUNKS)
    assert "base on text as logits: 2 of 3 shards" in kept.shown()


def test_a_running_mean_is_that_of_the_committed_chunks_whatever_order_they_came_in(
    kept: KeptRun,
) -> None:
    kept.measuring()
    kept.driver(attempt(600))
    reduction = Reduction()
    for shard in shards()[1::-1]:
        kept.commit("Q8_0", shard)
    for shard in shards()[:2]:
        reduction.add(kept.partial("Q8_0", shard))
    first, second = kept.status().results
    expected, top = reduction.result().kld_mean, reduction.result().same_top
    assert (first.candidate, first.chunks_done, first.chunks) == ("Q8_0", 8, CHUNKS)
    assert (first.kld, first.error) == (expected.value, expected.error)
    assert (first.same_top, first.same_top_error) == (top.value, top.error)
    assert (second.candidate, second.chunks_done, second.kld) == ("Q4_K_M", 0, None)
    shown = kept.shown()
    assert f"{expected.value:.6f} ± {expected.error:.6f}  {100 * top.value:.1f} ± " in shown


def test_a_run_that_may_stop_is_cut_at_its_checkpoints(kept: KeptRun) -> None:
    steps = (6, CHUNKS)
    cut = list(cut_shards(CHUNKS, SHARD, steps))
    assert [(shard.first, shard.count) for shard in cut] == [(0, 4), (4, 2), (6, 4)]
    kept.note_plan(checkpoints=[["text", *steps]])
    kept.stage(cut)
    kept.cut()
    for shard in cut[1:]:
        kept.commit("Q8_0", shard)
    kept.commit("Q8_0", Shard(8, 2))  # how it would be cut without them
    status = kept.status()
    assert (status.stages[0].shards_done, status.stages[0].shards) == (3, 3)
    assert status.results[0].chunks_done == 6
    reduction = [kept.partial("Q8_0", shard) for shard in cut[1:]]
    means = [each.mean[0] for partial in reduction for each in partial.moments]
    assert status.results[0].kld == pytest.approx(sum(means) / len(means), rel=1e-12)


def test_a_single_chunk_has_a_mean_and_no_error(kept: KeptRun) -> None:
    kept.note_plan(corpora=[["text", 1, 64]])
    kept.cut()
    kept.commit("Q8_0", Shard(0, 1))
    result = kept.status().results[0]
    assert result.kld == kept.partial("Q8_0", Shard(0, 1)).moments[0].mean[0]
    assert result.error is None


def test_an_older_plan_without_names_and_counts_is_filled_in_from_what_is_there(
    kept: KeptRun,
) -> None:
    kept.measuring()
    kept.store.write(
        f"runs/{RUN}/plan.json", json.dumps({"run": RUN, "stages": [["text", STAGE]]}).encode()
    )
    kept.commit("Q4_K_M", shards()[2])
    status = kept.status()
    (result,) = status.results
    assert (result.corpus, result.candidate) == ("text", "Q4_K_M")
    assert (result.chunks_done, result.chunks) == (2, CHUNKS)


def test_a_look_reads_the_new_partials_only_and_of_each_only_its_footer(kept: KeptRun) -> None:
    kept.measuring()
    counting = CountingStore(kept.store)
    reader = StatusReader(StatusSubject(counting, RUN))
    whole = 0
    for shard in shards():
        whole += len(kept.commit("Q8_0", shard).to_bytes())
        counting.ranges.clear()
        reader.read(NOW)
        assert [key for key, _ in counting.ranges] == [kept.key("Q8_0", shard)]
    assert not [key for key in counting.reads if key.endswith(".parquet")]
    counting.ranges.clear()
    assert reader.read(NOW).results[0].chunks_done == CHUNKS
    assert counting.ranges == []


def test_a_footer_longer_than_the_first_read_is_fetched_whole(kept: KeptRun) -> None:
    chunks = 60
    kept.note_plan(corpora=[["text", chunks, 64]])
    kept.store.write(f"runs/{RUN}/shards-text.json", json.dumps({"shard_chunks": chunks}).encode())
    whole = kept.commit("Q8_0", Shard(0, chunks))
    reduction = Reduction()
    reduction.add(whole)
    data = kept.store.read(kept.key("Q8_0", Shard(0, chunks)))
    assert int.from_bytes(data[-8:-4], "little") > 16 << 10
    assert kept.status().results[0].kld == reduction.result().kld_mean.value


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> KeptRun:
    """A real sweep that has ended."""
    del one_ray
    folder = tmp_path_factory.mktemp("swept")
    pair = tiny_pair(folder / "models", vocabulary=320, bos=True)
    job = facts(pair.base, [pair.candidate, {"quantize": "Q8_0"}], [corpus(64, 7)], shard_chunks=2)
    outcome = sweep(job, folder / "store")
    return KeptRun(open_store(str(folder / "store")), outcome.run)


def test_a_finished_run_shows_the_means_of_its_summary_and_so_do_its_commits(
    swept: KeptRun,
) -> None:
    data = swept.store.read(f"runs/{swept.run}/summary.json")
    summary = parse_summary(data)
    means = [each.result.kld.mean for each in summary.results if each.result]
    expected = [(mean.value, mean.error) for mean in means]
    assert len(expected) == 2
    status = swept.status()
    assert (status.state, status.stage, status.settled) == ("finished", "finished", True)
    assert (status.done, status.total) == (21, 21)
    assert [(each.kld, each.error) for each in status.results] == expected
    # Without its summary the run is what it was before the reduction.
    swept.store.delete(f"runs/{swept.run}/summary.json")
    try:
        status = swept.status()
    finally:
        swept.store.write(f"runs/{swept.run}/summary.json", data)
    assert [(each.kld, each.error) for each in status.results] == expected
    assert [(each.shards_done, each.shards) for each in status.stages] == [(4, 4)]
    assert status.stage == "reducing"
    assert status.state != "finished"


def test_json_has_every_field_and_times_in_utc(kept: KeptRun) -> None:
    kept.measuring()
    this = attempt(3600)
    kept.launch()
    kept.attempt(this, run=RUN, state="running")
    kept.driver(this, launch=LAUNCH, done=10, total=20, started=NOW - 104, done_at_start=0)
    kept.worker(this, 0)
    found = status_facts(kept.status())
    assert found["state"] == "running"
    assert found["started"] == "2026-09-21T13:13:20Z"
    assert found["updated"] == "2026-09-21T14:13:16Z"
    assert found["results"][1] == {
        "corpus": "text",
        "candidate": CANDIDATES[1],
        "chunks_done": 0,
        "chunks": CHUNKS,
        "kld": {"mean": None, "error": None},
        "same_top": {"mean": None, "error": None},
    }
    assert found["workers"] == {"count": 2, "alive": 1, "stuck": [], "silent": []}
    assert found["hourly"] == 7.2
    assert math.isclose(found["cost"], 7.2 * 3595 / 3600, abs_tol=1e-4)


def test_a_status_in_a_bucket_is_the_same(
    kept: KeptRun, s3_store_uri: Callable[[str], str]
) -> None:
    bucket = KeptRun(open_store(s3_store_uri("status")))
    for each in (kept, bucket):
        each.measuring()
        for shard in shards():
            each.commit("Q4_K_M", shard)
        each.launch()
        each.attempt(attempt(600), run=RUN, state="running")
        each.driver(attempt(600), launch=LAUNCH, done=10, total=20)
        each.worker(attempt(600), 0)
    here, there = status_facts(kept.status()), status_facts(bucket.status())
    assert there.pop("store") == bucket.store.uri
    del here["store"]
    assert there == here
    assert here["results"][1]["chunks_done"] == CHUNKS
    assert [each.id for each in list_runs(bucket.store, NOW)] == [RUN]
