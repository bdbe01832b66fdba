"""Looks at a run while it is measured: each commit read once, and a pace from what is new."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.divergence.summary import Reduction
from kldcloud.status.live import LiveReader
from kldcloud.store import open_store
from tests.status.kept_runs import CHUNKS, RUN, CountingStore, KeptRun, shards

CONTEXT = 64


@pytest.fixture
def kept(tmp_path: Path) -> KeptRun:
    kept = KeptRun(open_store(str(tmp_path / "store")))
    kept.measuring()
    return kept


def test_a_look_has_the_means_of_what_is_committed(kept: KeptRun) -> None:
    reader = LiveReader(kept.store, RUN)
    assert [(each.chunks_done, each.kld) for each in reader.look(1.0).results] == [(0, None)] * 2
    reduction = Reduction()
    for shard in shards()[:2]:
        reduction.add(kept.commit("Q8_0", shard))
    kld, top = reduction.result().kld_mean, reduction.result().same_top
    first, second = reader.look(2.0).results
    assert (first.candidate, first.chunks_done, first.chunks) == ("Q8_0", 8, CHUNKS)
    assert (first.kld, first.error) == (kld.value, kld.error)
    assert (first.same_top, first.same_top_error) == (top.value, top.error)
    assert (second.candidate, second.chunks_done) == ("Q4_K_M", 0)


def test_the_pace_is_of_what_was_committed_since_the_work_began(kept: KeptRun) -> None:
    kept.commit("Q8_0", shards()[0])  # by an earlier launch
    reader = LiveReader(kept.store, RUN)
    reader.begin(100.0)
    status = reader.look(101.0)
    assert (status.tokens_a_second, status.seconds_left) == (None, None)
    kept.commit("Q8_0", shards()[1])
    kept.commit("Q4_K_M", shards()[2])
    status = reader.look(103.0)
    assert status.tokens_a_second == 6 * CONTEXT / 3.0
    assert status.seconds_left == pytest.approx(10 * 3.0 / 6)
    for candidate in ("Q8_0", "Q4_K_M"):
        for shard in shards():
            kept.store.write(kept.key(candidate, shard), kept.partial(candidate, shard).to_bytes())
    status = reader.look(108.0)
    assert status.tokens_a_second == 16 * CONTEXT / 8.0
    assert status.seconds_left is None


def test_a_run_without_a_plan_has_no_pace(kept: KeptRun) -> None:
    kept.store.delete(f"runs/{RUN}/plan.json")
    reader = LiveReader(kept.store, RUN)
    assert reader.look(1.0).results == ()
    kept.commit("Q8_0", shards()[0])
    status = reader.look(2.0)
    assert [each.chunks_done for each in status.results] == [4]
    assert (status.tokens_a_second, status.seconds_left) == (None, None)


def test_of_each_partial_the_footer_is_read_once_and_nothing_of_the_old_ones(
    kept: KeptRun,
) -> None:
    counting = CountingStore(kept.store)
    reader = LiveReader(counting, RUN)
    for at, shard in enumerate(shards()):
        kept.commit("Q8_0", shard)
        counting.ranges.clear()
        counting.reads.clear()
        reader.look(float(at + 1))
        reader.look(at + 1.5)
        assert [key for key, _ in counting.ranges] == [kept.key("Q8_0", shard)]
        assert not [key for key in counting.reads if key.endswith(".parquet")]


def test_the_next_piece_of_the_work_has_a_pace_of_its_own_and_reads_nothing_again(
    kept: KeptRun,
) -> None:
    kept.note_plan(checkpoints=[["text", 4, CHUNKS]])
    counting = CountingStore(kept.store)
    reader = LiveReader(counting, RUN)
    reader.begin(0.0)
    reader.look(0.0)
    kept.commit("Q8_0", shards()[0])
    status = reader.look(2.0)
    assert (status.tokens_a_second, status.may_stop) == (2 * CONTEXT, True)
    reader.begin(1000.0)
    counting.ranges.clear()
    assert reader.look(1001.0).tokens_a_second is None
    kept.commit("Q8_0", shards()[1])
    assert reader.look(1008.0).tokens_a_second == 4 * CONTEXT / 8.0
    assert [key for key, _ in counting.ranges] == [kept.key("Q8_0", shards()[1])]
