"""The training loop: it starts at the init, learns, and ends in the same bits if it is killed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kldcloud.errors import EngineError, FormatError, UserError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.qad import training
from kldcloud.qad.checkpoints import Checkpoints
from kldcloud.qad.export import changed_codes, export_gguf
from kldcloud.qad.looks import Look, Progressed
from kldcloud.qad.pair import load_pair
from kldcloud.qad.schedule import rate_at
from kldcloud.qad.student import CODES, HEAD, NORMS, hidden_states, output_head
from kldcloud.qad.torch_model import load_model
from kldcloud.qad.training import DivergedError, StepDone, Training
from kldcloud.qad.training_order import is_over
from kldcloud.spec.qad_job import TrainSpec
from kldcloud.store import open_store
from kldcloud.store.base import Store
from tests.qad.small_training import CONTEXT, order, tiny_init, tiny_teacher
from tests.qad.tiny_architectures import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN = TrainSpec()


def weights(store: Store, step: int) -> Mapping[str, torch.Tensor]:
    return Checkpoints(store, "qad/tiny-0", "tiny-0").read(step).weights


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M"])
def test_a_student_begins_exactly_as_its_init_file(
    tmp_path: Path, architecture: str, quant: str
) -> None:
    teacher = tiny_teacher(tmp_path, architecture)
    init = tiny_init(teacher, quant)
    pair = load_pair(teacher, init, TRAIN)
    tokens = torch.arange(48).reshape(2, 24)
    plain = load_model(init)
    with torch.no_grad():
        ours = hidden_states(pair.student.model, tokens)
        assert torch.equal(ours, hidden_states(plain, tokens))
        # Latent weights are the teacher's wherever those round to the init's codes.
        theirs = dict(pair.teacher.named_parameters())
        kept = [
            float((weight == theirs[name]).float().mean())
            for name, weight in pair.student.groups[CODES].items()
        ]
    assert min(kept) > 0.8
    assert pair.student.groups.keys() == {CODES, NORMS}


def test_what_is_trained_is_what_the_job_says(teacher: Path, init: Path) -> None:
    for options, groups in (
        ({"train_norms": False}, {CODES}),
        ({"train_codes": False}, {NORMS}),
        ({"train_head": True}, {CODES, NORMS, HEAD}),
    ):
        pair = load_pair(teacher, init, TrainSpec.model_validate(options))
        assert pair.student.groups.keys() == groups
        trained = {n for n, p in pair.student.model.named_parameters() if p.requires_grad}
        assert trained == {n for group in pair.student.groups.values() for n in group}
        assert not any(p.requires_grad for p in pair.teacher.parameters())


def test_an_init_of_another_shape_is_refused(teacher: Path, tmp_path: Path) -> None:
    other = tiny_teacher(tmp_path, layers=1)
    with pytest.raises(FormatError, match=r"model\.layers\.1\.\S+ is missing, the teacher's"):
        load_pair(teacher, other, TRAIN)
    wider = tiny_teacher(tmp_path / "..", feed_forward=768)
    with pytest.raises(FormatError, match=r"mlp\.\S+ is .*768.*, the teacher's .*512"):
        load_pair(teacher, wider, TRAIN)


def test_a_type_that_torch_cannot_have_is_named(teacher: Path) -> None:
    init = tiny_init(teacher, "IQ4_NL")
    with pytest.raises(UserError, match=r"tensor '\S+' is IQ4_NL, which torch cannot be given"):
        load_pair(teacher, init, TRAIN)


def test_an_init_without_codes_is_refused(teacher: Path) -> None:
    with pytest.raises(UserError, match="has no quantised tensor in its layers"):
        load_pair(teacher, tiny_init(teacher, "F16"), TRAIN)


def run(store: Store, *args: object, upto: int | None = None, **kwargs: object) -> list[StepDone]:
    """Train to the end, or until a process is killed after some steps."""
    done = []
    for each in Training(order(*args, store, **kwargs), store).steps():  # type: ignore[arg-type]
        done.append(each)
        if len(done) == upto:
            break
    return done


def test_it_learns_and_says_so(teacher: Path, init: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    done = run(store, teacher, init, train={"epochs": 3, "lr": 3e-4})
    assert [each.step for each in done] == list(range(1, 31))
    looks = [each.look for each in done if each.look]
    first = Checkpoints(store, "qad/tiny-0", "tiny-0").progressed(30).looks[0]
    assert [each.step for each in looks] == [5, 10, 15, 20, 25, 30]
    assert looks[-1].kld < 0.95 * first.kld
    assert 0 < changed_codes(init, weights(store, 30)) < 0.5


def test_a_look_is_the_divergence_of_the_sweeps_positions(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path))
    whole = order(teacher, init, store)
    next(Training(whole, store).steps())
    found = Checkpoints(store, whole.prefix, whole.run).progressed(0).looks[0]
    kld, same_top = [], []
    for chunk in whole.heldout:
        rows = []
        for path in (teacher, init):
            engine = LlamaEngine(
                path, CONTEXT, LlamaOptions(repack=False, kv_type_k="f32", kv_type_v="f32")
            )
            wide = engine.evaluate(chunk).logits.astype(np.float64)
            engine.close()
            shifted = wide - wide.max(axis=1, keepdims=True)
            rows.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
        kld.append((np.exp(rows[0]) * (rows[0] - rows[1])).sum(axis=1))
        same_top.append(rows[0].argmax(axis=1) == rows[1].argmax(axis=1))
    # llama.cpp multiplies quantised weights with quantised activations, torch does not.
    assert found.kld == pytest.approx(np.concatenate(kld).mean(), rel=0.05)
    assert found.same_top == pytest.approx(np.concatenate(same_top).mean(), abs=0.07)


@pytest.mark.parametrize("kills", [[1], [5], [7, 3], [4, 1, 9]])
def test_a_run_that_was_killed_ends_in_the_same_bits(
    teacher: Path, init: Path, tmp_path: Path, kills: list[int]
) -> None:
    quiet, disturbed = (open_store(str(tmp_path / name)) for name in ("quiet", "disturbed"))
    run(quiet, teacher, init)
    for upto in kills:
        run(disturbed, teacher, init, upto=upto)
    last = run(disturbed, teacher, init)
    assert last[-1].step == 10
    assert same(weights(quiet, 10), weights(disturbed, 10))
    for name in ("weights", "optimizer"):
        key = f"qad/tiny-0/checkpoints/00000010/{name}.safetensors"
        assert quiet.read(key) == disturbed.read(key)
    states = [s.read("qad/tiny-0/checkpoints/00000010/state.json") for s in (quiet, disturbed)]
    assert states[0] == states[1]


def test_two_launches_at_once_delete_nothing_that_the_other_needs(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path))
    # The best look is that of step 5: its checkpoint is none of the newest.
    options: dict[str, Any] = {"train": {"epochs": 2, "lr": 5e-4}, "keep": 1}
    options["checkpoint_every"] = 1
    whole = order(teacher, init, store, **options)
    slow = Training(whole, store).steps()
    next(slow)
    run(store, teacher, init, **options)
    kept = Checkpoints(store, whole.prefix, whole.run)
    assert kept.steps() == [5, 20]
    for done in slow:
        assert {5, 20} <= set(kept.steps()), done.step
    assert kept.steps() == [5, 20]


def test_micro_batches_change_memory_and_no_gradient(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    found = [
        run(open_store(str(tmp_path / str(micro))), teacher, init,
            train={"global_batch": 4, "micro_batch": micro}, upto=1)[0]
        for micro in (1, 2, 4)
    ]  # fmt: skip
    assert [each.kld for each in found] == pytest.approx([found[0].kld] * 3, rel=1e-6)
    assert [each.grad_norm for each in found] == pytest.approx([found[0].grad_norm] * 3, rel=1e-5)


def breaks_after(
    calls: int, name: str, spoil: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a function of the training spoil what it returns, once it was called so often."""
    whole, seen = getattr(training, name), count(1)

    def breaks(*states: Any) -> Any:
        found = whole(*states)
        return found if next(seen) <= calls else spoil(found)

    monkeypatch.setattr(training, name, breaks)


def test_a_loss_that_is_no_number_ends_it_and_keeps_what_was_good(
    teacher: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    breaks_after(14, "kld_sum", lambda it: replace(it, total=it.total * math.nan), monkeypatch)
    with pytest.raises(DivergedError, match=r"nan at step 8 of 10; the checkpoint of step 5 is"):
        run(store, teacher, init)
    assert all(torch.isfinite(each).all() for each in weights(store, 5).values())
    monkeypatch.undo()
    assert run(store, teacher, init)[0].step == 6


def test_weights_that_are_no_numbers_are_named_before_anything_is_kept(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    data = bytearray(teacher.read_bytes())
    start = read_gguf_header(teacher).tensors["blk.1.ffn_up.weight"].offset
    data[start : start + 4] = np.float32(np.inf).tobytes()
    broken.write_bytes(data)
    store = open_store(str(tmp_path / "store"))
    named = r"at the start: model\.layers\.1\.mlp\.up_proj\.weight of the teacher has weights that"
    with pytest.raises(DivergedError, match=named):
        run(store, broken, init)
    assert not list(store.list("qad/tiny-0/checkpoints/"))


def test_a_held_out_loss_that_is_no_number_ends_it_and_is_not_kept(
    teacher: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    # Three chunks each look: the third look, after step 10, is broken.
    breaks_after(6, "token_kld", lambda it: replace(it, kld=it.kld * math.nan), monkeypatch)
    said = r"held-out text is nan after step 10 of 10; the checkpoint of step 5 is good"
    with pytest.raises(DivergedError, match=said):
        run(store, teacher, init)
    assert Checkpoints(store, "qad/tiny-0", "tiny-0").steps() == [0, 5]


def test_patience_and_a_bound_end_it(teacher: Path, init: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    whole = order(teacher, init, store, train={"patience": 2, "skip_below": 0.1})
    looks = (Look(0, 0.5, 0.5), Look(5, 0.4, 0.5))
    assert not is_over(Progressed(0, ()), whole)
    assert not is_over(Progressed(0, looks[:1]), whole)
    assert is_over(Progressed(0, (Look(0, 0.09, 0.9),)), whole)
    assert not is_over(Progressed(5, looks), whole)
    worse = (*looks, Look(6, 0.41, 0.5))
    assert not is_over(Progressed(6, worse), whole)
    assert is_over(Progressed(7, (*worse, Look(7, 0.4, 0.5))), whole)
    assert is_over(Progressed(10, looks), whole)


def test_the_rate_rises_and_falls_as_it_says() -> None:
    train = TrainSpec.model_validate({"warmup": 0.2, "final_lr": 0.1})
    rates = [rate_at(step, 20, train) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert 0.1 < rates[-1] < 0.12
    assert rates[4:] == sorted(rates[4:], reverse=True)
    constant = TrainSpec.model_validate({"warmup": 0, "schedule": "constant"})
    assert {rate_at(step, 20, constant) for step in range(20)} == {1.0}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_exported_file_runs_in_llama_cpp_as_the_student_did(
    tmp_path: Path, architecture: str
) -> None:
    teacher = tiny_teacher(tmp_path, architecture)
    init = tiny_init(teacher, "Q4_K_M")
    store = open_store(str(tmp_path / "store"))
    run(store, teacher, init)
    target = tmp_path / "student.gguf"
    trained = weights(store, 10)
    assert export_gguf(init, trained, target) == sum(each.numel() for each in trained.values())
    assert target.stat().st_size == init.stat().st_size

    pair = load_pair(teacher, init, TRAIN)
    named = {n: p for group in pair.student.groups.values() for n, p in group.items()}
    chunk = order(teacher, init, store).heldout[0]
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(trained[name])
        states = hidden_states(pair.student.model, torch.from_numpy(chunk.astype(np.int64))[None])
        head = output_head(pair.student.model)
        logits = states[0, CONTEXT // 2 : -1] @ head.weight.T
        plain = hidden_states(load_model(target), torch.from_numpy(chunk.astype(np.int64))[None])
        assert torch.equal(plain, states)
    engine = LlamaEngine(
        target, CONTEXT, LlamaOptions(repack=False, kv_type_k="f32", kv_type_v="f32")
    )
    theirs = engine.evaluate(chunk).logits.copy()
    engine.close()
    ours = torch.log_softmax(logits.double(), -1)
    wanted = torch.log_softmax(torch.from_numpy(theirs).double(), -1)
    assert float((ours.exp() * (ours - wanted)).sum(-1).mean()) < 2e-3


def test_an_export_of_other_tensors_is_refused(init: Path, tmp_path: Path) -> None:
    target = tmp_path / "student.gguf"
    with pytest.raises(FormatError, match="has no parameter"):
        export_gguf(init, {"model.nothing.weight": torch.ones(2, 2)}, target)
    with pytest.raises(FormatError, match="has no parameter"):
        export_gguf(init, {"model.norm.weight": torch.ones(3)}, target)
    broken = {"model.layers.0.mlp.up_proj.weight": torch.full((512, 256), float("nan"))}
    with pytest.raises(EngineError, match="not a finite"):
        export_gguf(init, broken, target)
    assert not target.exists()
