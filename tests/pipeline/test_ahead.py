"""What is got ready ahead of a chunk's statistics, where a GPU evaluates."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.corpus.chunks import Tokens
from kldcloud.divergence.base_rows import CodeRows
from kldcloud.errors import FormatError
from kldcloud.models.engine import ChunkOutput
from kldcloud.models.llama_engine import LlamaEngine
from kldcloud.pipeline import ahead
from kldcloud.pipeline.ahead import base_rows, evaluated
from kldcloud.pipeline.machines import Seat, WorkerSettings
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.session import Session
from kldcloud.pipeline.tasks import MeasureTask, Task
from kldcloud.pipeline.worker import SweepWorker
from kldcloud.staging.stage_reader import StageReader
from kldcloud.store import open_store
from kldcloud.store.base import Store
from tests.pipeline.sweeps import corpus, facts, sweep
from tests.tiny_models import TinyPair, tiny_pair


class Counting:
    """An engine whose logits are the number of the chunk, in its buffers, and that tells when."""

    def __init__(self, *, on_gpu: bool, kept: int = 1) -> None:
        self.on_gpu, self.kept = on_gpu, kept
        self.started: list[int] = []
        self.second = threading.Event()
        self._buffers = [np.zeros((1, 2), np.float32) for _ in range(kept)]

    def evaluate(self, tokens: Tokens) -> ChunkOutput:
        self.started.append(int(tokens[0]))
        if len(self.started) > 1:
            self.second.set()
        buffer = self._buffers[len(self.started) % self.kept]
        buffer[:] = tokens[0]
        return ChunkOutput(buffer, None)

    def owns(self, logits: npt.NDArray[np.float32]) -> bool:
        return any(logits is each for each in self._buffers)


@pytest.mark.parametrize(("on_gpu", "kept"), [(True, 1), (True, 2), (False, 1)])
def test_logits_come_in_order_and_a_gpu_is_a_chunk_ahead(on_gpu: bool, kept: int) -> None:
    engine = Counting(on_gpu=on_gpu, kept=kept)
    chunks = [np.array([at], np.int32) for at in range(5)]
    found = []
    for logits in evaluated(engine, chunks):  # type: ignore[arg-type]
        if not found:
            assert engine.second.wait(10 if on_gpu else 0.01) is on_gpu
        # Copied only where the chunk ahead would overwrite them.
        assert engine.owns(logits) is (kept == 2 or not on_gpu)
        found.append(float(logits[0, 0]))
    assert found == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert engine.started == [0, 1, 2, 3, 4]
    assert list(evaluated(engine, [])) == []  # type: ignore[arg-type]


def test_what_an_engine_raises_ahead_is_raised() -> None:
    engine = Counting(on_gpu=True)

    def broken(tokens: Tokens) -> ChunkOutput:
        raise FormatError(f"chunk {tokens[0]}")

    engine.evaluate = broken  # type: ignore[method-assign]
    with pytest.raises(FormatError, match="chunk 0"):
        list(evaluated(engine, [np.array([0], np.int32)]))  # type: ignore[arg-type]


V = 321


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=V, bos=True)


@dataclass(frozen=True, slots=True)
class Swept:
    """A small run on a CPU, and what its workers were told to do."""

    store: Store
    tasks: list[Task]

    @property
    def measured(self) -> list[MeasureTask]:
        return [each for each in self.tasks if isinstance(each, MeasureTask)]


def swept(
    pair: TinyPair, place: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, context: int = 128
) -> Swept:
    told: list[Task] = []
    run = Session._run

    def noting(
        session: Session, plan: SweepPlan, label: str, state: str, tasks: Sequence[Task], *rest: Any
    ) -> Any:
        told.extend(tasks)
        return run(session, plan, label, state, tasks, *rest)

    monkeypatch.setattr(Session, "_run", noting)
    job = facts(pair.base, [pair.candidate], [corpus(context)], encoding=encoding)
    sweep(job, place)
    return Swept(open_store(str(place)), told)


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("encoding", ["logits", "hidden"])
def test_a_worker_that_works_ahead_commits_the_same_bytes(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    run = swept(pair, tmp_path, monkeypatch, encoding)
    assert len(run.measured) < len(run.tasks)
    keys = [each.key for each in run.tasks] + [each.worst_key for each in run.measured]
    before = {key: run.store.read(key) for key in keys}
    for key in keys:
        run.store.delete(key)
    monkeypatch.setattr(LlamaEngine, "on_gpu", property(lambda _: True))
    settings = WorkerSettings(run.store.uri, run.measured[0].run, "again", remote=False)
    worker = SweepWorker(settings, Seat("", 2, None), 0)
    for task in run.tasks:
        assert worker.run(task).error is None
    assert {key: run.store.read(key) for key in keys} == before


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(("most", "width"), [(1, 1), (2, 2), (1 << 30, 3)])
def test_base_rows_of_so_many_chunks_wait_as_have_room(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, width: int
) -> None:
    run = swept(pair, tmp_path, monkeypatch, "logits", context=32)
    reader = StageReader(run.store, run.measured[0].stage)
    monkeypatch.setattr(ahead, "_AHEAD_BYTES", most * reader.encoding.bytes_at_once)
    made: list[int] = []
    frame = reader.own_frame

    def noting(chunk: int) -> memoryview:
        made.append(chunk)
        return frame(chunk)

    monkeypatch.setattr(reader, "own_frame", noting)
    kept = []
    for at, (piece,) in enumerate(base_rows(reader, range(8), ahead=True)):
        assert len(made) <= at + 1 + width
        assert isinstance(piece, CodeRows)
        kept.append(piece)
    assert sorted(made) == list(range(8))
    for chunk, piece in enumerate(kept):
        # In memory of their own: none was overwritten by the next.
        words = [each.words.copy() for each in reader.encoding.pieces(reader.frame(chunk))]
        assert (np.concatenate(words) == piece.words).all()


@pytest.mark.usefixtures("one_ray")
def test_a_frame_that_is_damaged_is_refused_ahead_too(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = swept(pair, tmp_path, monkeypatch, "logits", context=32)
    reader = StageReader(run.store, run.measured[0].stage)
    monkeypatch.setattr(
        reader, "own_frame", lambda chunk: bytes(reader.frame(chunk))[: 100 * chunk]
    )
    with pytest.raises(FormatError, match="too short"):
        list(base_rows(reader, range(8), ahead=True))
