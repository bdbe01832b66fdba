"""What a job's options come to for each engine, and the memory that a model takes in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kldcloud.errors import UserError
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.pipeline import options
from kldcloud.pipeline.model_files import folder_model, model_file, with_recipe
from kldcloud.pipeline.options import engines, uses_gpu
from kldcloud.spec.engine import EngineOptions
from tests.model_folders import folder_of
from tests.pipeline.sweeps import Notes
from tests.quantised_folders import configured, gptq, rewritten
from tests.tiny_models import TinyPair, tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=321, bos=True)


def test_the_kind_of_model_decides_the_engine(pair: TinyPair, tmp_path: Path) -> None:
    folder = folder_of(pair.base, tmp_path / "hf", dtype="bfloat16")
    gguf = model_file("a", "a.gguf", pair.base, Notes())
    model = folder_model("b", "hf", folder, Notes())
    runs = engines(EngineOptions.model_validate({"threads": 3}), threads=8)
    assert isinstance(runs.of(gguf), LlamaOptions)
    found = runs.of(model)
    assert found == TransformersOptions("float32", threads=3)
    # The machine's threads are none of torch's business: its sums depend on them.
    assert engines(EngineOptions(), threads=8).of(model) == TransformersOptions("float32")
    quantised = runs.of(with_recipe(model, "bnb-nf4", "x"))
    assert isinstance(quantised, TransformersOptions)
    assert quantised.recipe == "bnb-nf4"


def test_weights_that_are_widened_take_more_memory_than_they_are_stored_in(
    pair: TinyPair, tmp_path: Path
) -> None:
    folder = folder_of(pair.base, tmp_path / "hf", dtype="bfloat16")
    model = folder_model("b", "hf", folder, Notes())
    wide = engines(EngineOptions(), threads=1).loaded_bytes(model)
    narrow = EngineOptions.model_validate({"transformers": {"dtype": "bfloat16"}})
    assert engines(narrow, threads=1).loaded_bytes(model) == model.bytes
    assert wide == 2 * model.bytes == 4 * (model.parameters or 0)
    gguf = model_file("a", "a.gguf", pair.base, Notes())
    assert engines(narrow, threads=1).loaded_bytes(gguf) == gguf.bytes


def test_packed_weights_are_counted_as_they_are_once_unpacked(
    pair: TinyPair, tmp_path: Path
) -> None:
    folder = folder_of(pair.base, tmp_path / "hf")
    whole = folder_model("b", "hf", folder, Notes()).bytes
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    packed = rewritten(folder, tmp_path / "packed", lambda *each: gptq(*each, group=32)[0])
    model = folder_model("q", "hf", configured(packed, settings), Notes())
    said = EngineOptions.model_validate({"transformers": {"dequantize": True}})
    runs = engines(said, threads=1)
    assert model.bytes < whole < runs.loaded_bytes(model) < 1.5 * whole
    found = runs.of(model)
    assert isinstance(found, TransformersOptions)
    assert found.dequantize
    # It is no option of what is not quantised, whose stages stay where they are.
    assert runs.of(folder_model("b", "hf", folder, Notes())) == TransformersOptions("float32")


def test_activations_are_rounded_of_fp8_alone(pair: TinyPair, tmp_path: Path) -> None:
    said = {"transformers": {"dequantize": True, "round_activations": True}}
    runs = engines(EngineOptions.model_validate(said), threads=1)
    for method, rounded in (("fp8", True), ("gptq", False)):
        folder = configured(folder_of(pair.base, tmp_path / method), {"quant_method": method})
        found = runs.of(folder_model("q", "hf", folder, Notes()))
        assert isinstance(found, TransformersOptions)
        assert found.round_activations is rounded
        assert ("activations" in found.fingerprint()) is rounded


def test_the_model_decides_on_attention_where_only_one_kind_computes_it(
    pair: TinyPair, tmp_path: Path
) -> None:
    folder = folder_of(pair.base, tmp_path / "hf")
    path = folder / "config.json"
    runs = engines(EngineOptions(), threads=1)
    for cap, attention in ((None, "sdpa"), (50.0, "eager")):
        config = json.loads(path.read_text()) | {"attn_logit_softcapping": cap}
        path.write_text(json.dumps(config))
        settings = runs.of(folder_model("capped", "hf", folder, Notes()))
        assert isinstance(settings, TransformersOptions)
        assert settings.fingerprint()["attention"] == attention


def test_a_checkpoint_that_would_not_run_is_refused_before_anything_is_loaded(
    pair: TinyPair, tmp_path: Path
) -> None:
    folder = folder_of(pair.base, tmp_path / "hf")
    model = folder_model("q", "hf", configured(folder, {"quant_method": "fp8"}), Notes())
    with pytest.raises(UserError, match=r"engine\.transformers\.dequantize: true"):
        engines(EngineOptions(), threads=1).of(model)


def test_a_gpu_is_asked_for_where_something_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, layers = EngineOptions(), EngineOptions(n_gpu_layers=-1)
    on_cpu = EngineOptions.model_validate({"transformers": {"device": "cpu"}})
    monkeypatch.setattr(
        options, "torch_device", lambda said: "cpu" if said.device == "cpu" else "cuda"
    )
    assert not uses_gpu(plain, folders=False)
    assert uses_gpu(layers, folders=False)
    assert uses_gpu(plain, folders=True)
    assert not uses_gpu(on_cpu, folders=True)
