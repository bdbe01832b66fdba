"""A config.json with other numbers than its weights': refused by name, and before room is made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import EngineError, FormatError
from kldcloud.models.folder_bounds import check_layer_counts, check_no_layer_left_out
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_engine import TransformersEngine
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.models.transformers_tokenizer import TransformersTokenizer
from tests.model_folders import folder_of
from tests.tiny_models import LAYERS, tiny_pair

CONFIG = Path("config.json")
OF_THREE = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pair = tiny_pair(tmp_path_factory.mktemp("models"), vocabulary=320, bos=True)
    return folder_of(pair.base, pair.base.parent / "hf")


def saying(whole: Path, tmp_path: Path, **changes: Any) -> Path:
    """The same folder with another configuration."""
    folder = shutil.copytree(whole, tmp_path / "changed")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("layers", [10**9, 10**300, -1, 0])
@pytest.mark.parametrize("inside", [False, True])
def test_layers_that_no_tensor_is_of_are_refused_from_the_headers(
    whole: Path, tmp_path: Path, layers: int, inside: bool
) -> None:
    said: dict[str, Any] = {"num_hidden_layers": layers}
    folder = saying(whole, tmp_path, **({"text_config": said} if inside else said))
    with pytest.raises(FormatError, match=r"config\.json: num_hidden_layers is .* tensors"):
        read_model_folder(folder)


def test_a_model_of_one_layer_many_times_over_passes() -> None:
    check_layer_counts(CONFIG, {"num_hidden_layers": 48, "num_layers": True}, ())


@pytest.mark.parametrize("key", ["intermediate_size", "hidden_size"])
def test_weights_that_the_files_cannot_hold_are_refused_before_there_is_room_for_them(
    whole: Path, tmp_path: Path, key: str
) -> None:
    folder = saying(whole, tmp_path, **{key: 1 << 20})
    with pytest.raises(FormatError, match=r"describes a model of [\d,]+ weights, and the files"):
        TransformersEngine(folder, 64, TransformersOptions("float32"))


def test_a_tensor_of_another_shape_is_named_with_both(whole: Path, tmp_path: Path) -> None:
    folder = saying(whole, tmp_path, intermediate_size=96)
    said = r"layers\.\d\.mlp\.\w+_proj\.weight is (128 x 64|64 x 128), and .* (96 x 64|64 x 96)$"
    with pytest.raises(FormatError) as caught:
        TransformersEngine(folder, 64, TransformersOptions("float32"))
    assert re.search(said, caught.value.message)


def test_half_a_model_is_not_measured_as_if_it_were_the_whole(whole: Path, tmp_path: Path) -> None:
    folder = saying(whole, tmp_path, num_hidden_layers=LAYERS - 1)
    with pytest.raises(FormatError, match=r"fewer layers than the weights: model\.layers\.1\."):
        TransformersEngine(folder, 64, TransformersOptions("float32"))


def test_layers_for_later_tokens_and_other_parts_may_be_left_out() -> None:
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    beside = [OF_THREE[2], "mtp.layers.0.mlp.up_proj.weight", "vision.blocks.0.up.weight"]
    check_no_layer_left_out(CONFIG, config, beside, OF_THREE[:2])
    with pytest.raises(FormatError, match=r"model\.layers\.2\."):
        check_no_layer_left_out(CONFIG, {**config, "num_hidden_layers": 1}, beside, OF_THREE[:1])
    with pytest.raises(FormatError, match=r"model\.layers\.2\."):
        check_no_layer_left_out(CONFIG, {"num_hidden_layers": 2}, beside, OF_THREE[:2])


def test_what_is_wrong_with_a_configuration_is_not_laid_at_the_tokenizers_door(
    whole: Path, tmp_path: Path
) -> None:
    folder = saying(whole, tmp_path, rms_norm_eps=-1)
    with pytest.raises(EngineError, match=r"refuses its config\.json: .*rms_norm_eps.*float"):
        TransformersTokenizer(folder)
