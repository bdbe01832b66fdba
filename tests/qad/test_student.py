"""The student: computes with quantised weights, trains the real ones, and nothing else moves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kldcloud.errors import UserError
from kldcloud.qad.architectures import EMBEDDING
from kldcloud.qad.loss import OutputHead, kld_sum, token_kld
from kldcloud.qad.student import Student, hidden_states, make_student, output_head
from kldcloud.qad.torch_model import load_model
from tests.qad.tiny_architectures import ARCHITECTURES, VOCABULARY, TinyShape, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


class Steps:
    """Multiples of one step: coarse enough to hurt, and to see."""

    def __init__(self, step: float = 0.05) -> None:
        self.step = step

    def fake_quantize(self, w: Tensor) -> Tensor:
        values: Tensor = StraightThrough.apply(w, (w.detach() / self.step).round() * self.step)
        return values


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, __: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(_: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[0], None


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    folder = tmp_path_factory.mktemp("tiny")
    small = {"width": 64, "layers": 2, "head_width": 16, "feed_forward": 96}
    return {
        (name, tied): tiny_model(
            folder / f"{name}-{tied}.gguf", TinyShape(name, tied=tied, **small)
        )
        for name in ARCHITECTURES
        for tied in (True, False)
    }


def linears(model: Any) -> list[str]:
    return [f"{name}.weight" for name, module in model.model.named_modules(prefix="model")
            if isinstance(module, nn.Linear)]  # fmt: skip


def every_linear(path: Path, **options: bool) -> Student:
    model = load_model(path)
    return make_student(model, {name: Steps() for name in linears(model)}, **options)


def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_it_computes_with_the_quantised_weights_and_trains_the_real_ones(
    name: str, tied: bool, paths: dict[tuple[str, bool], Path]
) -> None:
    # All matrices, the head and a tied embedding too, against a model that holds the values.
    plain, model = (load_model(paths[name, tied]) for _ in range(2))
    head = EMBEDDING if tied else "lm_head.weight"
    formats = {weight: Steps() for weight in [*linears(model), head]}
    with torch.no_grad():
        for weight in formats:
            parameter = plain.get_parameter(weight)
            parameter.copy_(Steps().fake_quantize(parameter))
    real = copy.deepcopy(model.state_dict())
    student = make_student(model, formats, head=True)
    assert torch.equal(logits(student.model), logits(plain))
    assert model.state_dict().keys() == real.keys()
    assert all(torch.equal(tensor, real[key]) for key, tensor in model.state_dict().items())

    logits(student.model).square().mean().backward()
    logits(plain).square().mean().backward()
    for weight in formats:
        gradient = model.get_parameter(weight).grad
        assert gradient is not None
        assert gradient.any()
        assert torch.equal(gradient, plain.get_parameter(weight).grad), weight


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_the_loss_is_the_one_of_the_model(
    tied: bool, paths: dict[tuple[str, bool], Path]
) -> None:
    name = EMBEDDING if tied else "lm_head.weight"
    student = make_student(load_model(paths["gemma3", tied]), {name: Steps()}, head=True)
    states = hidden_states(student.model, TOKENS)
    assert torch.equal(states @ output_head(student.model).weight.T, logits(student.model))
    assert not torch.equal(output_head(student.model).weight, student.model.lm_head.weight)
    real = OutputHead(student.model.lm_head.weight)
    kld_sum(states, output_head(student.model), states, real).total.backward()
    assert student.model.lm_head.weight.grad.any()


def test_the_softcap_is_the_models(tmp_path: Path) -> None:
    shape = TinyShape("gemma3", layers=1, metadata={"final_logit_softcapping": 3.0})
    model = load_model(tiny_model(tmp_path / "model.gguf", shape))
    head = output_head(model)
    assert head.softcap == 3.0
    raw = hidden_states(model, TOKENS) @ head.weight.T
    assert torch.equal(head.softcap * torch.tanh(raw / head.softcap), logits(model))
    bare = kld_sum(hidden_states(model, TOKENS), OutputHead(head.weight), raw, OutputHead(
        torch.eye(VOCABULARY), 3.0))  # fmt: skip
    assert bare.total > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_only_the_asked_groups_train(
    name: str, norms: bool, head: bool, paths: dict[tuple[str, bool], Path]
) -> None:
    student = every_linear(paths[name, False], norms=norms, head=head)
    assert list(student.groups) == ["codes"] + ["norms"] * norms + ["head"] * head
    named = {key for group in student.groups.values() for key in group}
    trained = {key for key, item in student.model.named_parameters() if item.requires_grad}
    assert named == trained
    assert len(student.groups["codes"]) == 2 * 7
    if norms:
        each = {"llama": 2, "qwen2": 2, "qwen3": 4, "gemma3": 6}[name]
        assert len(student.groups["norms"]) == 2 * each + 1
        assert all(item.dim() == 1 for item in student.groups["norms"].values())
    if head:
        assert list(student.groups["head"]) == ["lm_head.weight"]
    logits(student.model).square().mean().backward()
    for key, item in student.model.named_parameters():
        assert (item.grad is not None) == (key in trained), key


def test_a_tied_head_trains_under_the_embeddings_name(
    paths: dict[tuple[str, bool], Path],
) -> None:
    student = every_linear(paths["llama", True], head=True)
    assert list(student.groups["head"]) == [EMBEDDING]


def test_real_weights_are_quantised_before_the_activations_round_them() -> None:
    linear = nn.Linear(32, 8, bias=False)
    holder = nn.ModuleDict({"only": linear})
    holder.get_output_embeddings = lambda: linear  # type: ignore[method-assign,assignment]
    make_student(holder, {"only.weight": Steps(0.01)}, head=True)
    x = torch.randn(4, 32, dtype=torch.bfloat16)
    expected = x @ Steps(0.01).fake_quantize(linear.weight).to(torch.bfloat16).T
    assert torch.equal(linear(x), expected)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.9.mlp.up_proj.weight", "lm_head.weight", "weight"]
)
def test_a_format_without_a_place_changes_nothing(
    name: str, paths: dict[tuple[str, bool], Path]
) -> None:
    model = load_model(paths["llama", False])
    before = logits(model)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        make_student(model, {"model.layers.0.mlp.up_proj.weight": Steps(), name: Steps()})
    assert torch.equal(logits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def step(student: Student, teacher: Any, optimizer: torch.optim.Optimizer, seed: int) -> float:
    tokens = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        target = hidden_states(teacher, tokens)
    found = kld_sum(hidden_states(student.model, tokens), output_head(student.model), target,
                    output_head(teacher))  # fmt: skip
    (found.total / found.count).backward()
    optimizer.step()
    optimizer.zero_grad()
    return found.total.item() / found.count


def adamw(student: Student) -> torch.optim.Optimizer:
    groups = [{"params": list(group.values())} for group in student.groups.values()]
    return torch.optim.AdamW(groups, lr=3e-4, weight_decay=0.0)


def test_training_brings_it_nearer_to_its_teacher(paths: dict[tuple[str, bool], Path]) -> None:
    teacher = load_model(paths["qwen3", False])
    model = load_model(paths["qwen3", False])
    student = make_student(model, {name: Steps(0.1) for name in linears(model)}, norms=True)
    optimizer = adamw(student)

    def divergence() -> float:
        states = hidden_states(student.model, TOKENS), hidden_states(teacher, TOKENS)
        return float(
            token_kld(
                states[0], output_head(student.model), states[1], output_head(teacher)
            ).kld.mean()
        )

    before = divergence()
    losses = [step(student, teacher, optimizer, seed) for seed in range(12)]
    assert before > 0.2
    assert divergence() < 0.75 * before
    assert losses[0] > losses[-1] > 0


def test_a_resumed_run_ends_with_the_same_bits(
    paths: dict[tuple[str, bool], Path],
) -> None:
    teacher = load_model(paths["gemma3", True])
    whole, first, second = (
        every_linear(paths["gemma3", True], norms=True, head=True) for _ in range(3)
    )
    optimizer = adamw(whole)
    for seed in range(4):
        step(whole, teacher, optimizer, seed)

    optimizer = adamw(first)
    for seed in range(2):
        step(first, teacher, optimizer, seed)
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    resumed = adamw(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(2, 4):
        step(second, teacher, resumed, seed)
    expected = whole.model.state_dict()
    for name, tensor in second.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_gradient_checkpointing_changes_no_bit(paths: dict[tuple[str, bool], Path]) -> None:
    gradients = []
    for checkpointed in (False, True):
        student = every_linear(paths["llama", False])
        if checkpointed:
            student.model.gradient_checkpointing_enable()
            student.model.train()
        hidden_states(student.model, TOKENS).square().sum().backward()
        gradients.append([item.grad for item in student.groups["codes"].values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_fsdp2_shards_it_and_finds_the_same_gradients(
    paths: dict[tuple[str, bool], Path],
) -> None:
    from torch.distributed.fsdp import fully_shard

    plain, sharded = (every_linear(paths["llama", False], norms=True) for _ in range(2))
    names = [name for name, _ in sharded.model.named_parameters()]
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for layer in sharded.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded.model, mesh=mesh)
    for student in (plain, sharded):
        logits(student.model).square().mean().backward()
    assert [name for name, _ in sharded.model.named_parameters()] == names
    parameters = dict(sharded.model.named_parameters())
    for name, parameter in plain.model.named_parameters():
        gradient = parameters[name].grad
        if parameter.grad is None:
            assert gradient is None
        else:
            assert torch.equal(gradient.full_tensor(), parameter.grad), name
