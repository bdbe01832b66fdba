"""How a plan times the base: against engines whose speed is known, on a clock of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kldcloud.estimate import speed
from kldcloud.estimate.numbers import Rate
from tests.pipeline.sweeps import Notes


@dataclass(slots=True)
class Machine:
    """Engines of one speed.

    Attributes:
        token: seconds a token, attention aside.
        attention: seconds more a token, for each token of its chunk.
        cold: seconds more of the first evaluation.
        set_up: seconds more of an engine's first; its engines are on a GPU if there are any.
        now: what the clock says.
        evaluated: lengths, in order.
    """

    token: float
    attention: float = 0.0
    cold: float = 0.0
    set_up: float = 0.0
    now: float = 0.0
    evaluated: list[int] = field(default_factory=list)

    def load(self, path: Path, context: int, options: object, *, threads: int) -> Any:
        del path, options, threads

        set_up = [self.set_up]

        def evaluate(tokens: np.ndarray[Any, Any]) -> None:
            assert len(tokens) == context
            self.now += self.seconds(context) + (0 if self.evaluated else self.cold)
            self.now += set_up.pop() if set_up else 0
            self.evaluated.append(context)

        return SimpleNamespace(evaluate=evaluate, close=lambda: None, on_gpu=self.set_up > 0)

    def seconds(self, context: int) -> float:
        return context * (self.token + self.attention * context)


Timed = Callable[[Machine, dict[int, int]], Rate]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    def run(machine: Machine, texts: dict[int, int]) -> Rate:
        monkeypatch.setattr(speed, "load_engine", machine.load)
        monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: machine.now))
        model: Any = SimpleNamespace(path=Path("base.gguf"))
        runs: Any = SimpleNamespace(of=lambda _: None)
        chunk = np.zeros(max(texts), np.int32)
        return speed.calibrated(model, chunk, texts, runs, 1, Notes())

    return run


def test_a_fast_machine_evaluates_the_whole_chunk(timed: Timed) -> None:
    machine = Machine(token=1e-4, attention=1e-9)
    rate = timed(machine, {16384: 10 * 16384})
    assert machine.evaluated == [128, 512, 1024, 2048, 4096, 8192, 16384]
    assert rate.tokens == pytest.approx(16384 / machine.seconds(16384))
    assert rate.source == "measured on one chunk of the base"


def test_what_a_gpu_sets_up_for_its_first_chunk_is_left_out(timed: Timed) -> None:
    machine = Machine(token=1e-4, set_up=0.2)
    assert timed(machine, {1024: 1024}).tokens == pytest.approx(1e4)


def test_a_long_chunk_is_extrapolated_with_its_attention_in_bounded_time(timed: Timed) -> None:
    machine = Machine(token=5e-3, attention=2e-6)
    assert machine.seconds(16384) > 10 * speed.LIMIT
    rate = timed(machine, {16384: 10 * 16384})
    assert machine.now < speed.LIMIT
    assert machine.evaluated == [128, 512, 1024, 2048]
    assert rate.tokens == pytest.approx(16384 / machine.seconds(16384))
    assert rate.source == (
        "extrapolated to 16,384 tokens from pieces of 512 to 2,048 of a chunk of the base"
    )


def test_a_slow_machine_says_what_little_it_was_measured_on(timed: Timed) -> None:
    some = timed(Machine(token=0.06, attention=1e-6), {4096: 4096})
    assert some.tokens == pytest.approx(1 / (0.06 + 1e-6 * 512))
    assert some.source == (
        "measured on the first 512 tokens of a chunk of the base; one of 4,096 is slower by its "
        "attention"
    )
    machine = Machine(token=0.5, cold=64.0)
    least = timed(machine, {512: 512})
    assert machine.evaluated == [128]
    assert least.tokens == pytest.approx(1.0)
    assert least.source == (
        "measured on 128 tokens of a chunk of the base, with the reading of its weights"
    )


def test_reading_the_weights_is_no_part_of_the_speed(timed: Timed) -> None:
    machine = Machine(token=1e-3, cold=10.0)
    assert timed(machine, {64: 640}).tokens == pytest.approx(1000.0)
    assert machine.evaluated == [64, 64]


def test_texts_with_chunks_of_other_lengths_have_each_its_own_share(timed: Timed) -> None:
    machine = Machine(token=1e-4, attention=1e-7)
    texts = {512: 100 * 512, 3000: 20 * 3000}
    rate = timed(machine, texts)
    seconds = 100 * machine.seconds(512) + 20 * machine.seconds(3000)
    assert rate.tokens == pytest.approx(sum(texts.values()) / seconds)


def test_a_longer_piece_that_seems_faster_makes_nothing_faster_than_measured(
    timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(token=5e-3, attention=-1e-7)
    monkeypatch.setattr(speed, "LIMIT", 30.0)
    rate = timed(machine, {16384: 16384})
    longest = max(machine.evaluated)
    assert longest < 16384
    assert rate.tokens == pytest.approx(longest / machine.seconds(longest))
