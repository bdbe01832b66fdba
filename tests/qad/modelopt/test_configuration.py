"""The contract with Model Optimizer's scripts: every key, flag and file is one that they know."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from kldcloud.errors import UserError
from kldcloud.qad.modelopt import configuration
from kldcloud.qad.modelopt.configuration import write_configuration
from kldcloud.qad.modelopt.environment import Environment
from kldcloud.qad.modelopt.pinned import COMMIT, REQUIREMENTS, VERSION
from kldcloud.qad.modelopt.place_chunks import place
from kldcloud.qad.modelopt.workplace import Workplace, steps
from kldcloud.qad.nvfp4_file import RUN_BY_LLAMA_CPP
from kldcloud.qad.training_order import TrainingOrder
from kldcloud.store import open_store
from tests.qad.modelopt import their_flags
from tests.qad.small_training import CONTEXT, order, tiny_teacher, training_tokens

WORK = Workplace(Path("/a folder"))
ENVIRONMENT = Environment(Path("/the environment"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"), layers=1)


def order_of(teacher: Path, *, activations: bool = False, **train: Any) -> TrainingOrder:
    store = open_store(str(teacher.parent / "store"))
    return replace(order(teacher, teacher, store, train=train), activations=activations)


def of_transformers() -> set[str]:
    from transformers import TrainingArguments

    return {each.name for each in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"schedule": "constant", "train_norms": False, "final_lr": 0},
        {"lr_norms": 1e-3, "train_codes": False, "final_lr": 0.1, "epochs": 3},
    ],
)
def test_the_scripts_know_every_setting(teacher: Path, train: dict[str, Any]) -> None:
    wanted = order_of(teacher, **train)
    quantize = configuration.quantize_settings(wanted, WORK)
    assert set(quantize) <= their_flags.MODEL | their_flags.DATA | their_flags.QUANTIZE
    assert quantize["recipe"] in their_flags.RECIPES
    settings = configuration.train_settings(wanted, WORK, 1)
    ours = their_flags.MODEL | their_flags.DATA | their_flags.DISTILL | their_flags.TRAINER
    assert set(settings) <= ours | of_transformers()
    blend = configuration.blend_settings(wanted, WORK)
    assert set(blend) == {"blend_size", "splits", "sources"}
    assert all(set(each) <= their_flags.SOURCE for each in blend["sources"])
    accelerate = configuration.accelerate_settings("llama", 8)
    assert set(accelerate) <= their_flags.ACCELERATE
    assert set(accelerate["fsdp_config"]) <= their_flags.FSDP


def test_the_commands_are_those_of_its_readme() -> None:
    place, quantize, train, export = steps(ENVIRONMENT, WORK, 512)
    example = "/the environment/source/examples/llm_qat"
    assert quantize.argv == (
        "/the environment/bin/python",
        f"{example}/quantize.py",
        "--config",
        "/a folder/quantize.yaml",
    )
    assert train.argv == (
        "/the environment/bin/accelerate",
        "launch",
        "--config-file",
        "/a folder/fsdp2.yaml",
        f"{example}/train.py",
        "--config",
        "/a folder/train.yaml",
    )
    assert export.argv == (
        "/the environment/bin/python",
        f"{example}/export.py",
        "--pyt_ckpt_path",
        "/a folder/trained",
        "--export_path",
        "/a folder/exported",
    )
    assert {each for each in export.argv if each.startswith("--")} <= their_flags.EXPORT
    assert (place.argv[1], Path(place.argv[2]).name) == ("-I", "place_chunks.py")
    assert Path(place.argv[2]).is_file()


def test_what_a_job_says_is_what_training_is_told(teacher: Path) -> None:
    wanted = order_of(
        teacher,
        activations=True,
        lr=3e-5,
        warmup=0.25,
        global_batch=4,
        micro_batch=2,
        epochs=3,
        clip=0.5,
        weight_decay=0.01,
        seed=7,
        final_lr=0.1,
        lr_norms=1e-3,
    )
    told = configuration.train_settings(wanted, WORK, 2)
    assert told["max_steps"] == wanted.batches.steps == 15
    assert (told["learning_rate"], told["warmup_steps"]) == (3e-5, 4)
    assert (told["per_device_train_batch_size"], told["gradient_accumulation_steps"]) == (2, 1)
    assert (told["max_grad_norm"], told["weight_decay"]) == (0.5, 0.01)
    assert (told["seed"], told["data_seed"]) == (7, 7)
    assert (told["eval_steps"], told["save_steps"], told["save_total_limit"]) == (5, 5, 2)
    assert (told["lr_scheduler_type"], told["lr_scheduler_kwargs"]) == (
        "cosine_with_min_lr",
        {"min_lr_rate": 0.1},
    )
    assert told["model_max_length"] == CONTEXT
    assert (told["train_samples"], told["eval_samples"]) == (20, 3)
    assert told["teacher_model"] == "/a folder/teacher"
    assert told["frozen_params"] == ["*embed_tokens*", "*lm_head*"]
    assert told["distill"] is True
    quantize = configuration.quantize_settings(wanted, WORK)
    assert quantize["recipe"] == "general/ptq/nvfp4_default-kv_fp8"
    only = configuration.train_settings(order_of(teacher, train_norms=False), WORK, 1)
    assert only["frozen_params"][2:] == ["*norm.weight"]
    assert "lr_config" not in only


def test_gpus_that_cannot_share_a_step_are_told_so(teacher: Path) -> None:
    with pytest.raises(UserError, match="global_batch of 2 cannot be shared by 8 GPUs") as caught:
        configuration.train_settings(order_of(teacher), WORK, 8)
    assert "a multiple of 8" in str(caught.value)


def test_the_files_hold_our_chunks_and_say_the_same_again(teacher: Path, tmp_path: Path) -> None:
    work, wanted = Workplace(tmp_path / "work"), order_of(teacher, lr_norms=1e-3)
    write_configuration(wanted, training_tokens(), work, "qwen3", 2)
    np.testing.assert_array_equal(np.load(work.training_chunks), training_tokens())
    np.testing.assert_array_equal(np.load(work.looked_at_chunks), wanted.heldout)
    told = yaml.safe_load(work.train.read_text())
    # YAML takes 1e-05 for a text; a rate must come back as a number.
    assert told == configuration.train_settings(wanted, work, 2)
    assert yaml.safe_load(work.norms.read_text()) == {"*norm.weight": {"lr": 1e-3}}
    accelerate = yaml.safe_load(work.accelerate.read_text())
    assert accelerate["num_processes"] == 2
    wrapped = accelerate["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    assert wrapped == "Qwen3DecoderLayer"
    source = yaml.safe_load(work.blend.read_text())["sources"][0]["hf_path"]
    assert not Path(source).exists()


@pytest.mark.parametrize("architecture", RUN_BY_LLAMA_CPP)
def test_fsdp_wraps_a_layer_that_the_model_has(architecture: str, tmp_path: Path) -> None:
    from kldcloud.qad.torch_model import load_model

    model = load_model(tiny_teacher(tmp_path, architecture, layers=1))
    named = configuration.accelerate_settings(architecture, 1)["fsdp_config"]
    layer = model.get_submodule("model.layers.0")
    assert type(layer).__name__ == named["fsdp_transformer_layer_cls_to_wrap"]


def test_our_chunks_go_where_its_loader_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Path
) -> None:
    """With stand-ins for its packages: checked is what they are given, and where it goes."""
    work, wanted = Workplace(tmp_path), order_of(teacher)
    write_configuration(wanted, training_tokens(), work, "llama", 1)
    saved: dict[str, Any] = {}

    class Parts(dict[str, Any]):
        def save_to_disk(self, folder: str) -> None:
            saved[folder] = self

    def named(*arguments: object) -> str:
        return "|".join(map(str, arguments))

    rows = SimpleNamespace(from_generator=lambda make, gen_kwargs: list(make(**gen_kwargs)))
    for name, module in {
        "datasets": SimpleNamespace(Dataset=rows, DatasetDict=Parts),
        "dataset_utils": SimpleNamespace(load_blend_config=Path, _build_cache_path=named),
        "transformers": SimpleNamespace(
            AutoTokenizer=SimpleNamespace(
                from_pretrained=lambda model, model_max_length: f"{model}-{model_max_length}"
            )
        ),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    place(*steps(ENVIRONMENT, work, CONTEXT)[0].argv[3:])
    assert sys.path[0] == str(ENVIRONMENT.example)
    where = named(work.blend, f"{work.teacher}-{CONTEXT}", CONTEXT, work.tokenized)
    assert list(saved) == [where]
    for part, chunks in (("train", training_tokens()), ("eval", wanted.heldout)):
        for row, chunk in zip(saved[where][part], chunks, strict=True):
            assert row["input_ids"] == row["labels"] == chunk.tolist()
            assert row["attention_mask"] == [1] * CONTEXT


def test_one_version_is_installed() -> None:
    assert f"nvidia-modelopt=={VERSION}" in REQUIREMENTS
    assert len(COMMIT) == 40
