"""Layers that wait elsewhere than where products are made, and a head that does not.

There is no GPU here. accelerate's hooks are real, and so is what they do to weights: layers wait
in the files instead of the machine's memory, and the CPU stands for the GPU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import has_offloaded_params
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from kldcloud.errors import EngineError
from kldcloud.models import transformers_load, transformers_offload
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_engine import TransformersEngine
from kldcloud.models.transformers_offload import bring_head, room_for_layers
from kldcloud.models.transformers_options import TransformersOptions
from tests.model_folders import folder_of
from tests.qad.small_training import tiny_teacher

GIB = 1 << 30
CHUNK = np.arange(3, 67, dtype=np.int32)
WAITS = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("offload")
    return folder_of(tiny_teacher(made, "qwen2"), made / "hf")


def offloading(monkeypatch: pytest.MonkeyPatch, places: dict[str, str]) -> TransformersOptions:
    """Options whose device is the CPU to torch, and any but the CPU to the loader."""
    monkeypatch.setattr(
        transformers_load, "offload_settings", lambda *_: {"device_map": dict(places)}
    )
    return TransformersOptions("bfloat16", device="cpu:0", offload=True)


@pytest.mark.parametrize("first", ["cpu", "disk"])
def test_states_and_logits_are_those_of_a_model_that_has_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    whole = TransformersEngine(folder, len(CHUNK), TransformersOptions("bfloat16"))
    options = offloading(monkeypatch, WAITS | {"model.embed_tokens": first})
    ours = TransformersEngine(folder, len(CHUNK), options)
    assert has_offloaded_params(ours._model.model.layers[1].mlp.up_proj)
    expected, found = (each.evaluate(CHUNK, hidden=True) for each in (whole, ours))
    np.testing.assert_array_equal(found.hidden, expected.hidden)
    # In float32, not in the bfloat16 of the head's own module: that is 8 bits.
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)
    side = ours.side(CHUNK)
    assert side is not None
    assert side.weight.shape == (320, ours._head.in_features)
    whole.close()
    ours.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = read_model_folder(folder).tensor_bytes
    monkeypatch.setattr(transformers_offload, "room_for_layers", lambda *_: weights * 2 // 3)
    chosen = [
        TransformersOptions("bfloat16", device="cuda", offload=each) for each in (False, True)
    ]
    whole, ours = (TransformersEngine(folder, len(CHUNK), each) for each in chosen)
    assert has_offloaded_params(ours._model.model.layers[1].mlp.up_proj)
    expected, found = (each.evaluate(CHUNK) for each in (whole, ours))
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_quantised_head_that_waits_is_called_as_a_layer_is() -> None:
    class Quantised(torch.nn.Linear):
        pass

    head = Quantised(4, 8, device="meta")
    bring_head(head)
    assert head.weight.device.type == "meta"


def test_room_is_left_for_both_heads_and_for_tiles(folder: Path) -> None:
    read = read_model_folder(folder)
    head = 320 * read.hidden_size * 2
    assert room_for_layers(16 * GIB, read, 2) == int(16 * GIB * 0.95) - 2 * head - GIB
    assert room_for_layers(GIB, read, 2) == 0


def test_a_gpu_without_room_for_one_layer_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = offloading(monkeypatch, dict.fromkeys(WAITS, "disk"))
    with pytest.raises(EngineError, match="not enough GPU memory even with offload") as caught:
        TransformersEngine(folder, len(CHUNK), options)
    assert "offload: true" not in str(caught.value)


class Cramped:
    """A GPU on which whole chunks run once enough layers wait; it has so many bytes for layers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, needs: int) -> None:
        self.spaces: list[int] = []
        self._needs = needs
        monkeypatch.setattr(transformers_load, "offload_settings", self._settings)
        forward = Qwen2Model.forward
        cramped = self

        def watched(model: Qwen2Model, input_ids: torch.Tensor, **others: Any) -> Any:
            whole = input_ids.shape[1] == len(CHUNK)
            if whole and cramped.spaces[-1] < cramped._needs:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(model, input_ids=input_ids, **others)

        monkeypatch.setattr(Qwen2Model, "forward", watched)

    def _settings(self, _folder: object, _dtype: object, workspace: int) -> dict[str, Any]:
        self.spaces.append(workspace)
        waits = WAITS if workspace < 16 * GIB else dict.fromkeys(WAITS, "disk")
        return {"device_map": dict(waits)}


OFFLOADED = TransformersOptions("bfloat16", device="cpu:0", offload=True)


@pytest.mark.parametrize("head", ["float32", "model"])
def test_layers_leave_the_gpu_until_a_chunk_has_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    plain = TransformersOptions("bfloat16", head=head)
    expected = TransformersEngine(folder, len(CHUNK), plain).evaluate(CHUNK).logits
    gpu = Cramped(monkeypatch, 3 * GIB)
    engine = TransformersEngine(folder, len(CHUNK), replace(OFFLOADED, head=head))
    found = engine.evaluate(CHUNK).logits
    assert gpu.spaces == [GIB, 2 * GIB, 4 * GIB]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    engine.evaluate(CHUNK)
    assert len(gpu.spaces) == 3, "what a chunk needed is known to the next"
    engine.close()


def test_once_no_layer_is_left_there_the_chunk_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Cramped(monkeypatch, 100 * GIB)
    engine = TransformersEngine(folder, len(CHUNK), OFFLOADED)
    with pytest.raises(EngineError, match="not enough GPU memory even with offload") as caught:
        engine.evaluate(CHUNK)
    assert gpu.spaces[-1] == 16 * GIB
    assert "offload: true" not in str(caught.value)
    engine.close()


def test_without_offload_a_chunk_says_what_it_lacked_and_what_would_help(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Cramped(monkeypatch, 100 * GIB)
    gpu.spaces.append(GIB)
    engine = TransformersEngine(folder, len(CHUNK), TransformersOptions("bfloat16"))
    with pytest.raises(EngineError, match=r"a chunk of 64 tokens: .*allocate 2\.00 GiB") as caught:
        engine.evaluate(CHUNK)
    assert "a smaller context, or engine.transformers.offload: true" in str(caught.value)
