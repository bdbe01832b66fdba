"""Comparing states on a GPU, tried on a CPU: the same positions, to what float32 sums leave."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kldcloud.corpus.chunks import ChunkShape, Tokens
from kldcloud.divergence.kernel import TokenStatistics
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.errors import FormatError
from kldcloud.models.engine import ChunkOutput
from kldcloud.models.transformers_engine import TransformersEngine
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.pipeline.compared import Compared, compare_logits, evaluated
from kldcloud.pipeline.compared_states import BaseSide
from kldcloud.pipeline.dispatch import Failure
from kldcloud.pipeline.machines import Seat, WorkerSettings
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.pulse import DriverPulse
from kldcloud.pipeline.session import Session
from kldcloud.pipeline.tasks import MeasureTask
from kldcloud.pipeline.worker import SweepWorker
from kldcloud.staging.encodings import HiddenEncoding, StageShape
from kldcloud.staging.folder_head import read_base_head
from kldcloud.store import open_store
from tests.model_folders import folder_of
from tests.pipeline.sweeps import corpus, facts, sweep
from tests.tiny_models import TinyPair, tiny_pair

pytestmark = pytest.mark.usefixtures("one_ray")

CONTEXT = 64
V = 321


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=V, bos=True)


@pytest.fixture(scope="module")
def folders(pair: TinyPair) -> tuple[Path, Path]:
    place = pair.base.parent
    return folder_of(pair.base, place / "base"), folder_of(pair.candidate, place / "noisy")


@pytest.fixture
def as_if_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """States and heads stay in torch, as on a GPU, though they are on the CPU."""
    monkeypatch.setattr(TransformersEngine, "on_gpu", property(lambda _: True))


def both_ways(
    folders: tuple[Path, Path], dtype: str, *, llama_compat: bool
) -> tuple[Compared, Compared]:
    """One chunk compared by logits and by states."""
    options = TransformersOptions(dtype)
    tokens = np.random.default_rng(1).integers(3, V, CONTEXT).astype(np.int32)
    shape = ChunkShape(CONTEXT)
    base, candidate = (TransformersEngine(path, CONTEXT, options) for path in folders)
    encoding = HiddenEncoding(StageShape(shape.rows, V), read_base_head(folders[0], options))
    following = shape.next_tokens(tokens)
    frame = encoding.encode(base.evaluate(tokens, hidden=True), following)
    logits = candidate.evaluate(tokens).logits
    side = candidate.side(tokens)
    assert side is not None
    return (
        compare_logits(encoding, frame, logits, following, threads=1, llama_compat=llama_compat),
        BaseSide(encoding, side.weight.device)
        .begin(frame, side, following, llama_compat=llama_compat)
        .result(),
    )


@pytest.mark.usefixtures("as_if_on_gpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("llama_compat", [True, False])
def test_states_come_to_what_logits_come_to(
    folders: tuple[Path, Path], dtype: str, llama_compat: bool
) -> None:
    by_logits, by_states = both_ways(folders, dtype, llama_compat=llama_compat)
    for field in fields(TokenStatistics):
        ours = getattr(by_states.statistics, field.name)
        theirs = getattr(by_logits.statistics, field.name)
        assert ours.dtype == theirs.dtype, field.name
        tight = 2e-4 if field.name.startswith("llama") else 1e-5
        np.testing.assert_allclose(ours, theirs, rtol=tight, atol=1e-7, err_msg=field.name)
    assert by_logits.statistics.kld.mean() > 1e-3
    assert by_states.worst.rows.tolist() == by_logits.worst.rows.tolist()
    for mine, other in (
        (by_states.worst.base, by_logits.worst.base),
        (by_states.worst.candidate, by_logits.worst.candidate),
    ):
        assert mine.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(mine.probabilities, other.probabilities, rtol=1e-5)


@pytest.mark.usefixtures("as_if_on_gpu")
def test_a_worker_commits_the_same_positions_by_states(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole task: a stage from a sweep on the CPU is measured again as on a GPU."""
    seen: list[MeasureTask] = []
    measure = Session.measure

    def noting(
        self: Session, plan: SweepPlan, tasks: Sequence[MeasureTask], pulse: DriverPulse
    ) -> Mapping[str, Failure]:
        seen.extend(tasks)
        return measure(self, plan, tasks, pulse)

    monkeypatch.setattr(Session, "measure", noting)
    job = facts(folders[0], [folders[1]], [corpus(context=CONTEXT)], encoding="hidden")
    sweep(job, tmp_path)
    store, task = open_store(str(tmp_path)), seen[-1]
    before = store.read(task.key)
    for key in (task.key, task.worst_key):
        store.delete(key)
    settings = WorkerSettings(store.uri, task.run, "again", remote=False)
    assert SweepWorker(settings, Seat("", 1, None), 0).run(task).error is None
    identity = PartialIdentity(
        task.run, task.candidate, task.corpus, task.shard.first, task.shard.count
    )
    one, other = (
        Partial.from_bytes(data, expected=identity).records
        for data in (before, store.read(task.key))
    )
    np.testing.assert_allclose(one.kld, other.kld, rtol=1e-5, atol=1e-9)
    assert (one.top == other.top).all()
    assert before != store.read(task.key)


@pytest.mark.usefixtures("as_if_on_gpu")
def test_a_frame_of_another_stage_is_refused(folders: tuple[Path, Path]) -> None:
    options = TransformersOptions("float32")
    encoding = HiddenEncoding(StageShape(31, V), read_base_head(folders[0], options))
    engine = TransformersEngine(folders[1], CONTEXT, options)
    tokens = np.full(CONTEXT, 5, np.int32)
    side = engine.side(tokens)
    assert side is not None
    base = BaseSide(encoding, side.weight.device)
    with pytest.raises(FormatError, match="a frame of hidden states has 4 bytes"):
        base.begin(b"1234", side, tokens[:31], llama_compat=False)


@pytest.mark.usefixtures("as_if_on_gpu")
def test_a_damaged_state_is_refused(folders: tuple[Path, Path]) -> None:
    options = TransformersOptions("bfloat16")
    encoding = HiddenEncoding(StageShape(31, V), read_base_head(folders[0], options))
    engine = TransformersEngine(folders[1], CONTEXT, options)
    tokens = np.full(CONTEXT, 5, np.int32)
    side = engine.side(tokens)
    assert side is not None
    frame = bytearray(31 * encoding.head.width * 2)
    frame[100:102] = b"\x80\x7f"  # infinity
    soon = BaseSide(encoding, side.weight.device).begin(
        bytes(frame), side, tokens[:31], llama_compat=False
    )
    with pytest.raises(FormatError, match="holds a value that is not finite"):
        soon.result()


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
