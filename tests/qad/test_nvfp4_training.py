"""An NVFP4 student: it starts as its teacher rounded, learns, and its file is what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from kldcloud.errors import FormatError
from kldcloud.models.gguf_header import read_gguf_header, read_tensor_bytes
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.qad import nvfp4_file
from kldcloud.qad.architectures import map_model
from kldcloud.qad.calibration import INPUTS
from kldcloud.qad.checkpoints import Checkpoints
from kldcloud.qad.export import export_gguf
from kldcloud.qad.formats import nvfp4
from kldcloud.qad.nvfp4_file import RUN_BY_LLAMA_CPP
from kldcloud.qad.nvfp4_layers import fused_groups
from kldcloud.qad.pair import load_pair
from kldcloud.qad.student import CODES, HEAD, NORMS, QuantizedLinear, hidden_states, output_head
from kldcloud.qad.torch_model import load_model
from kldcloud.qad.training import Training
from kldcloud.qad.training_order import Tokens
from kldcloud.spec.qad_job import TrainSpec
from kldcloud.store import open_store
from kldcloud.store.base import Store
from tests.qad.small_training import CONTEXT, order, tiny_nvfp4, tiny_teacher
from tests.qad.tiny_architectures import ARCHITECTURES, VOCABULARY

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN = TrainSpec()
UNSCALED = sorted(set(ARCHITECTURES) - set(RUN_BY_LLAMA_CPP))
# A model of random weights has nothing in common with its neighbours: a few chunks a step would
# only teach the student their noise.
MANY: dict[str, Any] = {
    "train": {"global_batch": 16, "micro_batch": 16, "lr": 2e-4, "lr_norms": 2e-3},
    "tokens": np.random.default_rng(6).integers(0, VOCABULARY, (320, CONTEXT)).astype(np.int32),
    "heldout": np.random.default_rng(7).integers(0, VOCABULARY, (6, CONTEXT)).astype(np.int32),
}


@pytest.fixture
def init(nvfp4_init: Path) -> Path:
    return nvfp4_init


def weights(store: Store, step: int) -> Mapping[str, torch.Tensor]:
    return Checkpoints(store, "qad/tiny-0", "tiny-0").read(step).weights


def looks(store: Store, step: int) -> list[float]:
    found = Checkpoints(store, "qad/tiny-0", "tiny-0").progressed(step).looks
    return [each.kld for each in found]


def run(store: Store, *args: object, upto: int | None = None, **kwargs: object) -> None:
    steps = Training(order(*args, store, **kwargs), store).steps()  # type: ignore[arg-type]
    for _ in islice(steps, upto):
        pass


def llama_logits(path: Path, chunk: Tokens) -> torch.Tensor:
    engine = LlamaEngine(
        path, CONTEXT, LlamaOptions(repack=False, kv_type_k="f32", kv_type_v="f32")
    )
    found = torch.from_numpy(engine.evaluate(chunk).logits.copy()).double()
    engine.close()
    return torch.log_softmax(found, -1)


def torch_logits(path: Path, chunk: Tokens) -> torch.Tensor:
    with torch.no_grad():
        model = load_model(path)
        found = model(torch.from_numpy(chunk.astype(np.int64))[None]).logits
    return torch.log_softmax(found[0, CONTEXT // 2 : -1].double(), -1)


def kld(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("architecture", RUN_BY_LLAMA_CPP)
def test_the_rounded_teacher_runs_in_llama_cpp_as_in_torch(
    tmp_path: Path, architecture: str
) -> None:
    teacher = tiny_teacher(tmp_path, architecture)
    init = tiny_nvfp4(teacher)
    chunk = order(teacher, init, open_store(str(tmp_path / "store"))).heldout[0]
    ours, theirs = torch_logits(init, chunk), llama_logits(init, chunk)
    assert torch.isfinite(theirs).all()
    lost = kld(torch_logits(teacher, chunk), ours)
    # llama.cpp quantises activations to Q8_0, torch does not.
    assert kld(ours, theirs) < 2e-3 < lost / 10


def test_it_is_the_teacher_but_for_the_layers_matrices(teacher: Path, init: Path) -> None:
    before, after = (read_gguf_header(path) for path in (teacher, init))
    assert dict(before.metadata) == dict(after.metadata)
    matrices = {
        map_model(teacher).parameters[name].tensor.name
        for names in fused_groups(map_model(teacher))
        for name in names
    }
    assert len(matrices) == 14
    for name, info in before.tensors.items():
        if name not in matrices:
            there = read_tensor_bytes(init, after.tensors[name])
            assert np.array_equal(read_tensor_bytes(teacher, info), there), name
    scales = {f"{name.removesuffix('.weight')}.scale" for name in matrices}
    assert after.tensors.keys() == before.tensors.keys() | scales
    read = {each.name: each for each in gguf.GGUFReader(init).tensors}
    original = {each.name: each for each in gguf.GGUFReader(teacher).tensors}
    for name in matrices:
        scale = read[f"{name.removesuffix('.weight')}.scale"].data
        values = gguf.dequantize(read[name].data, read[name].tensor_type) * scale
        group = [name]
        for fused in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")):
            kind = name.split(".")[2]
            if kind in fused:
                group = [name.replace(kind, each) for each in fused]
        largest = max(np.abs(original[each].data).max() for each in group)
        assert scale[0] == largest / np.float32(6 * 448)
        w = torch.from_numpy(np.array(original[name].data))
        expected = nvfp4.fake_quantize(w, torch.from_numpy(scale.copy())[0])
        assert np.array_equal(values, expected.numpy())


@pytest.mark.parametrize("architecture", UNSCALED)
def test_where_llama_cpp_forgets_the_scales_it_is_refused(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher(tmp_path, architecture)
    with pytest.raises(FormatError, match=f"leaves NVFP4's tensor scales out of {architecture}"):
        tiny_nvfp4(teacher)
    # The day that this fails, the architecture can be taken in.
    monkeypatch.setattr(nvfp4_file, "RUN_BY_LLAMA_CPP", ARCHITECTURES)
    init = tiny_nvfp4(teacher)
    chunk = order(teacher, init, open_store(str(tmp_path / "store"))).heldout[0]
    ours, theirs = torch_logits(init, chunk), llama_logits(init, chunk)
    assert torch.isfinite(ours).all()
    assert not kld(ours, theirs) < 0.1


def test_widths_that_are_no_blocks_are_refused_by_tensor(tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path, feed_forward=544)
    with pytest.raises(FormatError, match=r"'blk\.0\.ffn_down\.weight' has rows of 544"):
        tiny_nvfp4(teacher)
    assert [each.name for each in tmp_path.iterdir()] == [teacher.name]


@pytest.mark.parametrize("architecture", RUN_BY_LLAMA_CPP)
def test_a_student_begins_as_the_rounded_teacher(tmp_path: Path, architecture: str) -> None:
    teacher = tiny_teacher(tmp_path, architecture)
    init = tiny_nvfp4(teacher)
    pair = load_pair(teacher, init, TRAIN)
    tokens = torch.arange(48).reshape(2, 24)
    with torch.no_grad():
        ours = hidden_states(pair.student.model, tokens)
        assert torch.equal(ours, hidden_states(load_model(init), tokens))
        theirs = dict(pair.teacher.named_parameters())
        for name, weight in pair.student.groups[CODES].items():
            assert torch.equal(weight, theirs[name])
    assert len(pair.student.groups[CODES]) == 14


def test_what_is_trained_is_what_the_job_says(teacher: Path, init: Path) -> None:
    for options, groups in (
        ({"train_norms": False}, {CODES}),
        ({"train_codes": False}, {NORMS}),
        ({"train_head": True}, {CODES, NORMS, HEAD}),
    ):
        pair = load_pair(teacher, init, TrainSpec.model_validate(options))
        assert pair.student.groups.keys() == groups
        quantised = [m for m in pair.student.model.modules() if isinstance(m, QuantizedLinear)]
        assert len(quantised) == 14


def test_an_init_that_is_not_this_teacher_rounded_is_refused(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    data = bytearray(init.read_bytes())
    data[read_gguf_header(init).tensors["blk.1.ffn_up.weight"].offset + 5] ^= 1
    other.write_bytes(data)
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.up_proj\.weight is not the teacher's"):
        load_pair(teacher, other, TRAIN)


def test_it_learns_and_its_file_runs_in_llama_cpp_and_loses_less(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    run(store, teacher, init, **MANY)
    found = looks(store, 20)
    best = int(np.argmin(found))
    assert found[best] < 0.95 * found[0]
    target, trained = tmp_path / "student.gguf", weights(store, 5 * best)
    assert export_gguf(init, trained, target) == sum(each.numel() for each in trained.values())
    assert read_gguf_header(target) == read_gguf_header(init)

    pair = load_pair(teacher, init, TRAIN)
    tokens = MANY["heldout"]
    with torch.no_grad():
        for group in pair.student.groups.values():
            for name, parameter in group.items():
                parameter.copy_(trained[name])
        first = torch.from_numpy(tokens[:1].astype(np.int64))
        states = hidden_states(pair.student.model, first)
        plain = load_model(target)
        assert torch.equal(hidden_states(plain, first), states)
        assert torch.equal(output_head(plain).weight, output_head(pair.student.model).weight)
    lost: dict[Path, float] = {}
    for path in (init, target):
        pairs = [(llama_logits(teacher, each), llama_logits(path, each)) for each in tokens]
        lost[path] = float(np.mean([kld(*each) for each in pairs]))
    assert lost[init] == pytest.approx(found[0], rel=0.05)
    assert lost[target] == pytest.approx(found[best], rel=0.05)
    assert lost[target] < 0.95 * lost[init]


@pytest.mark.parametrize("activations", [False, True])
def test_a_run_that_was_killed_ends_in_the_same_bits(
    teacher: Path, init: Path, tmp_path: Path, activations: bool
) -> None:
    quiet, disturbed = (open_store(str(tmp_path / name)) for name in ("quiet", "disturbed"))
    run(quiet, teacher, init, activations=activations)
    for upto in (4, 1):
        run(disturbed, teacher, init, upto=upto, activations=activations)
    run(disturbed, teacher, init, activations=activations)
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        key = f"qad/tiny-0/checkpoints/00000010/{name}"
        assert quiet.read(key) == disturbed.read(key)


def test_quantised_activations_are_calibrated_once_and_cost_something(
    teacher: Path, init: Path, tmp_path: Path
) -> None:
    plain, rough = (open_store(str(tmp_path / name)) for name in ("plain", "rough"))
    run(plain, teacher, init, upto=1)
    run(rough, teacher, init, upto=1, activations=True, **MANY)
    assert looks(rough, 0)[0] > 1.2 * looks(plain, 0)[0]
    key = f"qad/tiny-0/{INPUTS}"
    assert plain.size(key) is None
    before = rough.read(key)

    seen: dict[str, float] = {}
    model = load_model(teacher)
    for name in ("model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
        model.get_submodule(name).register_forward_hook(
            lambda _m, inputs, _o, name=name: seen.__setitem__(
                name, max(seen.get(name, 0.0), float(inputs[0].abs().max()))
            )
        )
    tokens = torch.from_numpy(MANY["tokens"][:8].astype(np.int64))
    with torch.no_grad():
        for each in tokens:
            model(each[None])
    training = Training(order(teacher, init, rough, activations=True, **MANY), rough)
    student = training._pair.student.model
    for name, largest in seen.items():
        scale = student.get_submodule(name).input_format.tensor_scale
        assert scale.item() == pytest.approx(largest / (6 * 448), rel=1e-6)
    assert student.get_output_embeddings().__class__ is torch.nn.Linear

    run(rough, teacher, init, upto=5, activations=True, **MANY)
    assert looks(rough, 5)[-1] < 0.97 * looks(rough, 0)[0]
    assert rough.read(key) == before
    rough.write(key, b'{"model.layers.0.mlp.up_proj.weight":1}')
    with pytest.raises(FormatError, match="not what calibration found"):
        run(rough, teacher, init, activations=True, **MANY)
