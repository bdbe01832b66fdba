"""Chunks beyond what a model was trained for are measured, and launch and plan say so first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from kldcloud.errors import UserError
from kldcloud.estimate.sweep import estimate_sweep
from kldcloud.models.gguf_header import TensorInfo, read_gguf_header
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.safetensors_header import read_safetensors_header
from kldcloud.pipeline.found import Found, check_positions
from kldcloud.pipeline.long_contexts import warn_of_long_contexts
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from tests.model_folders import folder_of
from tests.pipeline.sweeps import Notes, corpus, facts, sweep
from tests.tiny_folders import write_folder
from tests.tiny_models import CONTEXT, tiny_pair

BEYOND = (
    "corpus text has chunks of 128 tokens, and by what their files say 64 is the most that these "
    "were trained for: short, torchao-int8; beyond it, figures tell of positions that they never "
    "saw as well"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base made for 64 tokens, what is made of it, and a GGUF made for more."""
    room = tmp_path_factory.mktemp("models")
    pair = tiny_pair(room, vocabulary=320, bos=True)
    folder = folder_of(pair.base, room / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    candidates: list[Path | dict[str, Any]] = [{"quantize": "torchao-int8"}, pair.candidate]
    return facts(folder, candidates, [corpus(128, 2), corpus(64, 2, "within")])


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_a_launch_says_which_models_and_goes_on(job: dict[str, Any], tmp_path: Path) -> None:
    notes = Notes()
    outcome = sweep(job, tmp_path, progress=notes)
    assert notes.warnings == [BEYOND]
    assert not outcome.failures


@pytest.mark.parametrize("provider", ["local", "skypilot"])
def test_a_plan_says_it_too(job: dict[str, Any], provider: str) -> None:
    notes = Notes()
    where = ClusterSpec.model_validate(
        {"provider": provider, **({"resources": {"infra": "ssh/x"}} if provider != "local" else {})}
    )
    estimate_sweep(SweepJob.model_validate(job), where, 100.0, notes)
    assert notes.warnings == [BEYOND]


def test_each_length_has_a_line_of_its_own_and_silence_is_no_length() -> None:
    notes = Notes()
    trained = {"base": CONTEXT, "short": 64, "shorter": 32, "silent": None}
    warn_of_long_contexts({"text": 100, "short-text": 32}, trained, notes)
    said = [(each.split(" has ")[0], each.split(": ")[1].split(";")[0]) for each in notes.warnings]
    assert said == [("corpus text", "shorter"), ("corpus text", "short")]


@pytest.mark.parametrize("gguf_file", [True, False])
def test_chunks_longer_than_a_table_of_positions_are_refused(
    gguf_file: bool, tmp_path: Path
) -> None:
    if gguf_file:
        pair = tiny_pair(tmp_path, vocabulary=320, bos=True)
        header = read_gguf_header(pair.base)
        table = TensorInfo("position_embd.weight", (64, 100), "F32", 0, 25_600)
        whole = replace(header, tensors={**header.tensors, table.name: table})
        found = Found("old", "base.gguf", pair.base, whole)
    else:
        save_file({"transformer.wpe.weight": np.zeros((100, 8), np.float32)}, tmp_path / "x")
        folder = read_model_folder(write_folder(tmp_path / "model"))
        (position,) = read_safetensors_header(tmp_path / "x").tensors.values()
        whole_folder = replace(folder, tensors=(*folder.tensors, position))
        found = Found("old", "model", folder.path, whole_folder)
    with pytest.raises(UserError, match=r"corpus text has chunks of 101 .* table of 100 positions"):
        check_positions({"short": 8, "text": 101}, [found])
    check_positions({"text": 100}, [found])
