"""Which layers a recipe takes, and what it says of one that it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from kldcloud.errors import UserError
from kldcloud.models import transformers_recipes
from kldcloud.models.engines import load_engine
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_load import outlined
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.models.transformers_recipes import check_recipe, linear_layers, quantised_share
from kldcloud.pipeline.found import Found, check_recipes
from kldcloud.pipeline.model_files import folder_model, with_recipe
from kldcloud.spec.job import SweepJob
from tests.pipeline.sweeps import Notes, corpus, facts
from tests.tiny_folders import VOCABULARY, save_experts, save_llama, save_words


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A model of width 64 whose feed-forward has 90 inputs, which is no whole number of 32."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=90,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "odd")
    save_words(tmp_path / "odd")
    return tmp_path / "odd"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("torchao-int4", r"layers\.0\.mlp\.down_proj\.weight \(64 x 90\): torchao divides inputs"),
        ("bnb-nf4", r"layers\.0\.mlp\.gate_proj\.weight \(90 x 64\): bitsandbytes divides outputs"),
        ("bnb-fp4", r"layers\.0\.mlp\.gate_proj\.weight \(90 x 64\): bitsandbytes divides outputs"),
    ],
)
def test_a_width_that_a_recipe_does_not_take_is_refused_by_the_tensors_name(
    odd: Path, recipe: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_recipes, "_packs_for_bfloat16", lambda: True)
    with pytest.raises(UserError, match=message) as caught:
        load_engine(odd, 32, TransformersOptions("float32", recipe=recipe))
    assert "torchao-int8, torchao-fp8 or bnb-int8" in str(caught.value)


@pytest.mark.parametrize("recipe", ["torchao-int8", "torchao-fp8", "bnb-int8"])
def test_the_recipes_that_are_named_instead_take_it(odd: Path, recipe: str) -> None:
    engine = load_engine(odd, 32, TransformersOptions("float32", recipe=recipe))
    assert np.isfinite(engine.evaluate(np.arange(32, dtype=np.int32)).logits).all()
    engine.close()


def test_a_gpu_and_another_cpu_take_any_number_of_outputs(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = outlined(read_model_folder(odd)).model
    monkeypatch.setattr(transformers_recipes, "_packs_for_bfloat16", lambda: True)
    check_recipe(odd, model, "bnb-nf4", "cuda")
    monkeypatch.setattr(transformers_recipes, "_packs_for_bfloat16", lambda: False)
    check_recipe(odd, model, "bnb-nf4", "cpu")


def of_base(path: Path, recipe: str) -> tuple[SweepJob, Found]:
    job = SweepJob.model_validate(facts(path, [{"quantize": recipe}], [corpus()]))
    return job, Found("base", path.name, path, read_model_folder(path))


def test_a_base_that_a_recipe_does_not_take_is_refused_before_it_is_staged(odd: Path) -> None:
    job, base = of_base(odd, "torchao-int4")
    with pytest.raises(UserError, match=r"candidate torchao-int4: .*down_proj\.weight"):
        check_recipes(job, base, "cpu", Notes())


def test_experts_that_a_recipe_leaves_as_they_are_are_told_of_and_counted(tmp_path: Path) -> None:
    save_experts(tmp_path / "moe")
    save_llama(tmp_path / "dense")
    job, base = of_base(tmp_path / "moe", "torchao-int8")
    notes = Notes()
    check_recipes(job, base, "cpu", notes)
    (warning,) = notes.warnings
    assert "candidate torchao-int8: recipes quantise linear layers, here 40 %" in warning
    model = folder_model("m", "moe", tmp_path / "moe", Notes())
    outline = outlined(model.folder).model
    # Queries, keys, values and outputs: float32 to octets, with a scale a row.
    saved = sum(3 * rows * width - 4 * rows for rows, width in linear_layers(outline).values())
    router = 4 * 4 * 64
    assert 0 <= model.bytes - saved - with_recipe(model, "torchao-int8", "x").bytes < router
    job, base = of_base(tmp_path / "dense", "torchao-int8")
    check_recipes(job, base, "cpu", notes)
    assert len(notes.warnings) == 1
    assert quantised_share(outlined(read_model_folder(base.path)).model) == 1
