"""People see how training goes: progress and charts in the store, and none of it is the result."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kldcloud.errors import EngineError, StoreError
from kldcloud.qad import in_sight, training
from kldcloud.qad.checkpoints import Checkpoints
from kldcloud.qad.loss import KldSum
from kldcloud.qad.process import REFUSED, read_refusal, train_process
from kldcloud.qad.progress_file import (
    PROGRESS,
    Telling,
    TrainingProgress,
    end_told,
    measuring_told,
    read_progress,
    tell,
)
from kldcloud.store import open_store
from kldcloud.store.base import Store
from kldcloud.store.folder import FolderStore
from tests.qad.small_training import CONTEXT, order

pytestmark = pytest.mark.usefixtures("one_thread")

PREFIX = "qad/tiny-0"


@pytest.fixture(scope="module")
def files(teacher: Path, init: Path) -> tuple[Path, Path]:
    return teacher, init


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def train(files: tuple[Path, Path], store: Store, **changes: Any) -> None:
    train_process(order(*files, store, **changes), store.uri, 0, 1, "cpu")


def charts(store: Store) -> list[EventAccumulator]:
    """Of each attempt, the first one first."""
    folders = sorted((Path(store.uri) / PREFIX / "tensorboard").iterdir())
    return [EventAccumulator(str(folder)).Reload() for folder in folders]


def points(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in found.Scalars(tag)]


@pytest.fixture(scope="module")
def trained(
    files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, float]:
    """A run that was trained to its end, and when that began."""
    store, began = open_store(str(tmp_path_factory.mktemp("trained"))), time.time()
    train(files, store, train={"lr_norms": 5e-4, "schedule": "constant"})
    return store, began


def test_progress_says_what_training_came_to(trained: tuple[Store, float]) -> None:
    store, began = trained
    found = read_progress(store, PREFIX)
    assert found is not None
    assert (found.stage, found.step, found.steps) == ("training", 10, 10)
    assert found.tokens_a_step == 2 * CONTEXT
    assert began <= found.started <= found.moved <= found.seen <= time.time()
    looks = Checkpoints(store, PREFIX, "tiny-0").progressed(10).looks
    assert (found.start, found.latest) == (looks[0], looks[2])
    assert found.best in looks
    assert found.kld is not None
    assert found.tokens_per_second is not None
    # Ten steps took at most as long as the whole process.
    assert found.tokens_per_second > 10 * 2 * CONTEXT / (found.seen - began)
    assert found.warning == ""


def test_loading_and_the_first_look_are_seen_before_any_step(
    files: tuple[Path, Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainingProgress | None] = []

    def quickly(self: Any) -> None:
        with self._lock:
            progress = self._progress
        tell(store, PREFIX, progress)
        seen.append(read_progress(store, PREFIX))

    def change(self: Telling, **facts: Any) -> None:
        quickly(self)
        before(self, **facts)
        quickly(self)

    before = Telling.change
    monkeypatch.setattr(Telling, "change", change)
    train(files, store)
    loading, looked, *_ = [each for each in seen if each]
    assert (loading.stage, loading.step, loading.start) == ("loading", 0, None)
    assert (looked.stage, looked.step, looked.kld) == ("training", 0, None)
    assert looked.start is not None
    assert looked.start == looked.latest == looked.best
    # A launch that goes on says at once how far the one before was.
    seen.clear()
    store.delete(f"{PREFIX}/checkpoints/00000010/state.json")
    train(files, store)
    assert seen[0] is not None
    assert (seen[0].stage, seen[0].step, seen[0].start) == ("loading", 5, looked.start)
    assert seen[0].started == loading.started


def test_tensorboard_reads_what_was_trained(trained: tuple[Store, float]) -> None:
    store, _ = trained
    (found,) = charts(store)
    tags = {"train/loss", "train/grad_norm", "train/tokens_per_second", "lr/codes", "lr/norms"}
    assert set(found.Tags()["scalars"]) == tags | {"heldout/kld", "heldout/same_top"}
    for tag in tags:
        assert [step for step, _ in points(found, tag)] == list(range(1, 11))
    assert [value for _, value in points(found, "lr/codes")] == pytest.approx([1e-3] * 10)
    assert [value for _, value in points(found, "lr/norms")] == pytest.approx([5e-4] * 10)
    looks = Checkpoints(store, PREFIX, "tiny-0").progressed(10).looks
    for tag, name in (("heldout/kld", "kld"), ("heldout/same_top", "same_top")):
        assert [step for step, _ in points(found, tag)] == [0, 5, 10]
        expected = [getattr(each, name) for each in looks]
        assert [value for _, value in points(found, tag)] == pytest.approx(expected, rel=1e-6)
    progress = read_progress(store, PREFIX)
    assert progress is not None
    assert points(found, "train/loss")[-1] == (10, pytest.approx(progress.kld, rel=1e-6))


def test_charts_are_in_the_store_at_each_checkpoint_and_go_on_in_another_attempt(
    files: tuple[Path, Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """As SIGKILL: nothing is tidied up after it."""

    def dies(*_: Any) -> None:
        raise KilledError

    steps = training.Training.step

    def step(self: training.Training) -> training.StepDone:
        if self.progressed.step == 7:
            raise KilledError
        return steps(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "step", step)
        patch.setattr(in_sight.Metrics, "__exit__", dies)
        with pytest.raises(KilledError):
            train(files, store)
    (first,) = charts(store)
    assert [step for step, _ in points(first, "train/loss")] == [1, 2, 3, 4, 5]
    train(files, store)
    again, second = charts(store)
    assert points(again, "train/loss") == points(first, "train/loss")
    assert [step for step, _ in points(second, "train/loss")] == [6, 7, 8, 9, 10]


def test_training_goes_on_without_charts_and_says_so_once(
    files: tuple[Path, Path], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(files, store)
    expected = store.read(f"{PREFIX}/checkpoints/00000010/weights.safetensors")

    write = FolderStore.write

    def full(self: Any, key: str, data: bytes) -> None:
        if "tensorboard" in key:
            raise StoreError(f"{key}: No space left on device")
        write(self, key, data)

    other = open_store(str(tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "write", full)
        train(files, other)
    third = open_store(str(tmp_path / "third"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(files, third)
    for each, why in ((other, "No space left on device"), (third, "torch.utils.tensorboard")):
        found = read_progress(each, PREFIX)
        assert found is not None
        assert found.step == 10
        assert found.warning.startswith("no charts for TensorBoard: ")
        assert why in found.warning
        assert not list(each.list(f"{PREFIX}/tensorboard/"))
        assert each.read(f"{PREFIX}/checkpoints/00000010/weights.safetensors") == expected


def test_a_store_that_takes_no_progress_ends_no_training(
    files: tuple[Path, Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise StoreError("not reachable")

    monkeypatch.setattr(FolderStore, "write", away)
    train(files, store)
    assert Checkpoints(store, PREFIX, "tiny-0").steps()[-1] == 10
    assert read_progress(store, PREFIX) is None


def test_what_ended_training_is_in_the_store(
    files: tuple[Path, Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_refusal(store, PREFIX) is None
    monkeypatch.setattr(
        training, "kld_sum", lambda *_: KldSum(torch.tensor(float("nan"), requires_grad=True), 1)
    )
    with pytest.raises(EngineError, match="the loss is nan"):
        train(files, store)
    found = read_refusal(store, PREFIX)
    assert found is not None
    assert found.message.startswith("the loss is nan")
    store.write(f"{PREFIX}/{REFUSED}", b'{"message": 7}')
    assert read_refusal(store, PREFIX) is None


def test_the_driver_says_how_it_ended(store: Store) -> None:
    def told() -> tuple[str, str]:
        found = read_progress(store, PREFIX)
        assert found is not None
        return found.stage, found.error

    begun = TrainingProgress("training", 3, 10, 64, started=1.0, moved=2.0, seen=3.0)
    for error, expected in (
        (StoreError("no space"), ("failed", "no space")),
        (ValueError("x"), ("failed", "ValueError")),
        (KeyboardInterrupt(), ("stopped", "KeyboardInterrupt")),
    ):
        tell(store, PREFIX, begun)
        with pytest.raises(type(error)), end_told(store, PREFIX):
            raise error
        assert told() == expected
        with pytest.raises(type(error)), measuring_told(store, PREFIX):
            raise error
        assert told() == expected
    with measuring_told(store, PREFIX):
        deadline = time.monotonic() + 20
        while told()[0] != "measuring" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told() == ("measuring", "")
    assert told() == ("finished", "")


WHOLE = (
    b'{"stage":"training","step":1,"steps":2,"tokens_a_step":1,"started":1,"moved":1,"seen":1,'
    b'"best":{"step":1,"kld":0.5,"same_top":1}}'
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        WHOLE.replace(b',"seen":1', b""),
        WHOLE.replace(b'"seen":1', b'"seen":NaN'),
        WHOLE.replace(b'"step":1', b'"step":-5'),
        WHOLE.replace(b"0.5", b"1e999"),
        WHOLE + b" " * (64 << 10),
    ],
)
def test_progress_of_nonsense_is_none(store: Store, data: bytes) -> None:
    store.write(f"{PREFIX}/{PROGRESS}", WHOLE)
    assert read_progress(store, PREFIX) is not None
    store.write(f"{PREFIX}/{PROGRESS}", data)
    assert read_progress(store, PREFIX) is None
