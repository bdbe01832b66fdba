"""The order of chunks: all of them once an epoch, and the same for the same seed alone."""

from __future__ import annotations

import pytest

from kldcloud.errors import UserError
from kldcloud.qad.batches import Batches


def test_an_epoch_has_every_chunk_once() -> None:
    batches = Batches(chunks=12, global_batch=4, epochs=3, seed=1)
    assert (batches.an_epoch, batches.steps) == (3, 9)
    for epoch in range(3):
        seen = [chunk for step in range(3) for chunk in batches.step(3 * epoch + step)]
        assert sorted(seen) == list(range(12))


def test_what_does_not_fill_a_step_is_left_out() -> None:
    batches = Batches(chunks=11, global_batch=4, epochs=1, seed=1)
    assert batches.steps == 2
    seen = [chunk for step in range(2) for chunk in batches.step(step)]
    assert len(set(seen)) == 8


def test_seed_and_epoch_decide_and_nothing_else() -> None:
    one, same, other = (Batches(40, 4, 2, seed) for seed in (7, 7, 8))
    steps = range(one.steps)
    assert [one.step(at) for at in steps] == [same.step(at) for at in reversed(steps)][::-1]
    assert [one.step(at) for at in steps] != [other.step(at) for at in steps]
    assert [one.step(at) for at in range(10)] != [one.step(10 + at) for at in range(10)]
    # What a run of today resumes tomorrow.
    assert Batches(10, 3, 1, seed=1).step(0) == [8, 4, 7]


def test_a_text_of_less_than_one_step_is_refused() -> None:
    with pytest.raises(UserError, match="3 chunks, fewer than one step of 4"):
        Batches(3, 4, 1, 1)
