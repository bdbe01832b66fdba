"""Training in bfloat16: what is computed in it, what stays float32, and how near it comes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from kldcloud.qad import training as module
from kldcloud.qad.calibration import INPUTS
from kldcloud.qad.checkpoints import Checkpoint, Checkpoints
from kldcloud.qad.loss import KldSum, kld_sum
from kldcloud.qad.pair import Pair, load_pair
from kldcloud.qad.precision import narrow
from kldcloud.qad.student import (
    HEAD,
    QuantizedLinear,
    head_parameter,
    hidden_states,
    output_head,
)
from kldcloud.qad.torch_model import load_model
from kldcloud.qad.training import StepDone, Training
from kldcloud.spec.qad_job import TrainSpec
from kldcloud.store import open_store
from kldcloud.store.base import Store
from tests.qad.small_training import order, tiny_init, tiny_teacher
from tests.qad.tiny_architectures import ARCHITECTURES

BFLOAT16 = torch.bfloat16
TOKENS = torch.arange(64).reshape(2, 32)
pytestmark = pytest.mark.usefixtures("one_thread")

MATRICES = ("_proj.weight", "embed_tokens.weight", "lm_head.weight")


def narrowed(teacher: Path, init: Path, **train: Any) -> Pair:
    pair = load_pair(teacher, init, TrainSpec.model_validate(train))
    narrow(pair.teacher)
    narrow(pair.student.model)
    return pair


def trained(pair: Pair) -> Mapping[str, nn.Parameter]:
    return {name: each for group in pair.student.groups.values() for name, each in group.items()}


def loss(pair: Pair, dtype: torch.dtype | None) -> Tensor:
    with torch.no_grad():
        wanted = hidden_states(pair.teacher, TOKENS, dtype)
    states = hidden_states(pair.student.model, TOKENS, dtype)
    heads = output_head(pair.student.model, dtype), output_head(pair.teacher, dtype)
    return kld_sum(states, heads[0], wanted, heads[1]).total / TOKENS.numel()


def run(
    store: Store, *args: Any, upto: int | None = None, train: dict[str, Any], **changes: Any
) -> list[StepDone]:
    return list(islice(Training(order(*args, store, train=train, **changes), store).steps(), upto))


def last(store: Store) -> Checkpoint:
    return Checkpoints(store, "qad/tiny-0", "tiny-0").read(10)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("architecture", "tied"), [*((each, False) for each in ARCHITECTURES), ("llama", True)]
)
def test_loss_and_gradients_are_near_float64s(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    teacher = tiny_teacher(tmp_path, architecture, tied=tied)
    init = tiny_init(teacher)
    # Plain models of the files' values: a gradient that passes straight through is theirs.
    models = [load_model(path, dtype=torch.float64) for path in (teacher, init)]
    p, q = (log_softmax(each(TOKENS, use_cache=False).logits, -1) for each in models)
    expected = kl_div(q, p.detach(), log_target=True, reduction="sum") / TOKENS.numel()
    expected.backward()
    exact = dict(models[1].named_parameters())

    options = {"train_head": not tied}  # tied, the embedding's own gradient would come on top
    single = load_pair(teacher, init, TrainSpec.model_validate(options))
    half = narrowed(teacher, init, **options)
    errors = []
    for pair, dtype in ((single, None), (half, BFLOAT16)):
        found = loss(pair, dtype)
        found.backward()
        of_gradients = [
            float((each.grad.double() - exact[name].grad).norm() / exact[name].grad.norm())
            for name, each in trained(pair).items()
        ]
        assert {each.grad.dtype for each in trained(pair).values()} == {torch.float32}
        errors.append((abs(float(found.detach() / expected.detach()) - 1), max(of_gradients)))
    assert errors[0][0] < 1e-5
    assert errors[0][1] < 5e-5
    # Measured: a loss within 0.3 %, a tensor's gradient within 4 to 9 % of its norm.
    assert errors[1][0] < 0.01
    assert 1e-3 < errors[1][1] < 0.12


def test_what_never_changes_takes_half_the_memory_and_what_trains_is_float32(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    options = {"precision": "bfloat16"}
    store = open_store(str(tmp_path))
    training = Training(order(teacher, init, store, train=options), store)
    training.step()
    pair = training._pair
    for name, each in pair.teacher.named_parameters():
        assert each.dtype == (BFLOAT16 if name.endswith(MATRICES) else torch.float32), name
    whole = sum(each.nbytes for each in load_model(teacher).parameters())
    assert sum(each.nbytes for each in pair.teacher.parameters()) < 0.51 * whole
    dtypes = {name: each.dtype for name, each in pair.student.model.named_parameters()}
    frozen = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name, each in dtypes.items() if each == BFLOAT16} == frozen
    for each in trained(pair).values():
        kept = training._state._optimizer.state[each]
        dtypes = {each.dtype, each.grad.dtype, kept["exp_avg"].dtype, kept["exp_avg_sq"].dtype}
        assert dtypes == {torch.float32}


@pytest.mark.parametrize("trains", [False, True])
def test_a_tied_head_stays_the_embedding(tmp_path: Path, trains: bool) -> None:
    teacher = tiny_teacher(tmp_path, "gemma3", tied=True)
    pair = narrowed(teacher, tiny_init(teacher), train_head=trains)
    for model, dtype in (
        (pair.teacher, BFLOAT16),
        (pair.student.model, torch.float32 if trains else BFLOAT16),
    ):
        embedding = model.get_input_embeddings()
        assert model.get_output_embeddings().weight is embedding.weight
        assert embedding.weight.dtype == dtype
        rows = embedding(TOKENS)
        assert rows.dtype == torch.float32
        wanted = embedding.weight.float()[TOKENS] * embedding.embed_scale
        assert trains or torch.equal(rows, wanted)
    assert (head_parameter(pair.student.model) in pair.student.groups.get(HEAD, {})) == trains


def test_a_head_that_trains_without_a_format_stays_float32(teacher: Path, nvfp4_init: Path) -> None:
    pair = narrowed(teacher, nvfp4_init, train_head=True)
    weight = pair.student.groups[HEAD]["lm_head.weight"]
    loss(pair, BFLOAT16).backward()
    assert (weight.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
    assert output_head(pair.student.model, BFLOAT16).weight.dtype == BFLOAT16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_in_bfloat16_and_the_residual_stream_is_not(
    tmp_path: Path, architecture: str
) -> None:
    teacher = tiny_teacher(tmp_path, architecture)
    pair = narrowed(teacher, tiny_init(teacher))
    for model in (pair.teacher, pair.student.model):
        streams = []

        def see(_module: Any, _inputs: Any, out: Tensor) -> None:
            streams.append(out.dtype)  # noqa: B023 - called before the next turn

        for each in (*model.model.layers, model.model.norm):
            each.register_forward_hook(see)
        with Products() as seen:
            assert hidden_states(model, TOKENS, BFLOAT16).dtype == BFLOAT16
        assert streams == [torch.float32] * 3
        # Seven matrices a layer; and attention, by whichever kernel.
        assert seen.linear == [BFLOAT16] * 14
        assert seen.attention == [BFLOAT16] * 2


class Products(TorchDispatchMode):
    """Types of what enters each matrix product and each attention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear: list[torch.dtype] = []
        self.attention: list[torch.dtype] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        if name.startswith(("aten.mm", "aten.addmm")):
            self.linear.append(args[-1].dtype)
        elif "attention" in name:
            self.attention.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_weights_are_quantised_before_they_are_rounded(teacher: Path, init: Path) -> None:
    pair = narrowed(teacher, init)
    name = "model.layers.0.mlp.up_proj"
    layer = pair.student.model.get_submodule(name)
    assert isinstance(layer, QuantizedLinear)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    # Between two codes, where bfloat16 would take the other one.
    step = layer.weight_format.scales.step.view(512, -1).repeat_interleave(32, dim=1)
    with torch.no_grad():
        layer.weight.copy_(step * (4.5 + 2**-12))
        assert not torch.equal(
            layer.weight_format.fake_quantize(layer.weight),
            layer.weight_format.fake_quantize(layer.weight.to(BFLOAT16)),
        )
        with torch.autocast("cpu", BFLOAT16, cache_enabled=False):
            found = layer(x)
        wanted = x.to(BFLOAT16) @ layer.weight_format.fake_quantize(layer.weight).to(BFLOAT16).T
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", [{}, {"recompute": True, "train_head": True}])
def test_it_goes_on_in_the_same_bits_after_a_kill(
    teacher: Path, init: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    train = {"precision": "bfloat16"} | options
    quiet, disturbed = (open_store(str(tmp_path / name)) for name in "ab")
    run(quiet, teacher, init, train=train)
    for upto in (4, 1):
        run(disturbed, teacher, init, train=train, upto=upto)
    run(disturbed, teacher, init, train=train)
    ours, theirs = last(quiet), last(disturbed)
    assert same(ours.weights, theirs.weights)
    assert same(ours.optimizer, theirs.optimizer)
    assert ours.progressed == theirs.progressed
    assert len(ours.progressed.looks) == 3


def test_it_learns_as_float32_does(teacher: Path, init: Path, tmp_path: Path) -> None:
    looks = {}
    for precision in ("float32", "bfloat16"):
        store = open_store(str(tmp_path / precision))
        run(store, teacher, init, train={"precision": precision, "lr": 3e-4, "epochs": 3})
        found = Checkpoints(store, "qad/tiny-0", "tiny-0").progressed(30).looks
        looks[precision] = [each.kld for each in found]
    assert looks["bfloat16"][-1] < 0.95 * looks["bfloat16"][0]
    assert looks["bfloat16"] == pytest.approx(looks["float32"], rel=0.05)
    assert looks["bfloat16"] != looks["float32"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_computed_again_change_no_bit(
    teacher: Path, init: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0
    forward = QuantizedLinear.forward

    def counted(self: QuantizedLinear, input: Tensor) -> Tensor:  # noqa: A002
        nonlocal passes
        passes += 1
        return forward(self, input)

    monkeypatch.setattr(QuantizedLinear, "forward", counted)
    found = []
    for again in (False, True):
        store = open_store(str(tmp_path / str(again)))
        train = {"precision": precision, "recompute": again}
        training = Training(order(teacher, init, store, train=train), store)
        passes = 0
        training.step()
        assert passes == 14 * 2 * (2 if again else 1)
        run(store, teacher, init, train=train)
        found.append(last(store))
    assert same(found[0].weights, found[1].weights)
    assert same(found[0].optimizer, found[1].optimizer)
    assert found[0].progressed == found[1].progressed


def test_nvfp4_inputs_and_their_calibration(
    teacher: Path, nvfp4_init: Path, tmp_path: Path
) -> None:
    kept = {}
    for precision in ("float32", "bfloat16"):
        store = open_store(str(tmp_path / precision))
        done = run(
            store,
            teacher,
            nvfp4_init,
            train={"precision": precision},
            activations=True,
            upto=1,
        )
        progressed = Checkpoints(store, "qad/tiny-0", "tiny-0").progressed(0)
        kept[precision] = (
            store.read(f"qad/tiny-0/{INPUTS}"), progressed.looks[0].kld, done[0].grad_norm
        )  # fmt: skip
    single, half = kept.values()
    assert half[0] == single[0]
    # Inputs that lie between two codes fall to the other side.
    assert half[1:] == pytest.approx(single[1:], rel=0.2)
    assert half[1:] != single[1:]


def test_it_is_float32_on_cpus_unless_the_job_says_otherwise(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    stores = [open_store(str(tmp_path / name)) for name in "ab"]
    for store, precision in zip(stores, ("auto", "float32"), strict=True):
        run(store, teacher, init, train={"precision": precision})
    assert same(last(stores[0]).weights, last(stores[1]).weights)
    decided = [
        TrainSpec(precision=said).on(gpus=gpus).precision
        for said in ("auto", "float32", "bfloat16")
        for gpus in (False, True)
    ]
    assert decided == ["float32", "bfloat16", "float32", "float32", "bfloat16", "bfloat16"]


def test_no_process_wide_setting_makes_products_coarser(
    teacher: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = torch.backends.cuda.matmul
    seen = []

    def looks(*states: Any) -> KldSum:
        seen.append((matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction))
        return kld_sum(*states)

    monkeypatch.setattr(module, "kld_sum", looks)
    before = matmul.fp32_precision
    store = open_store(str(tmp_path))
    training = Training(order(teacher, init, store), store)
    try:
        matmul.fp32_precision = "tf32"
        training.step()
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
    assert seen == [("ieee", False)] * 2
