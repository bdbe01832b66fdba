"""Model folders: what transformers saved is described, and nothing else costs more than a line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from kldcloud.errors import FormatError, UserError
from kldcloud.models.model_folder import model_file_names, read_model_folder
from tests.tiny_folders import CONFIG, VOCABULARY, WIDTH, save_llama, tensors, write_folder

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "llama"
    save_llama(folder)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", shards=3)


def refusal(folder: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_model_folder(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert caught.value.hint
    assert len(message) < 500 + 2 * len(str(folder))
    return message


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Change what is in a JSON file."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_a_folder_that_transformers_saved_is_described(llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = read_model_folder(llama)
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert folder.path == llama
    assert (folder.architecture, folder.model_type) == (type(model).__name__, "llama")
    assert (folder.vocabulary_size, folder.hidden_size) == (VOCABULARY, WIDTH)
    assert (folder.dtype, folder.tied_embeddings, folder.quantization) == ("bfloat16", False, None)
    assert len(folder.tensors) == len(model.state_dict())
    assert folder.tensor_bytes == sum(2 * each.numel() for each in model.state_dict().values())
    names = [path.name for path in folder.weight_files]
    assert names == [f"model-{index:05}-of-00003.safetensors" for index in (1, 2, 3)]
    assert folder.files == tuple(
        sorted([*names, INDEX, "config.json", "tokenizer.json", "tokenizer_config.json"])
    )
    assert folder.files == model_file_names(llama)
    assert not folder.needs_remote_code


def test_the_head_is_where_the_folder_says(llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    head = read_model_folder(llama).head
    assert head is not None
    assert (head.tensor.name, head.tensor.dtype) == ("lm_head.weight", "BF16")
    raw = np.fromfile(head.file, np.uint16, VOCABULARY * WIDTH, offset=head.tensor.offset)
    weight = (raw.astype(np.uint32) << 16).view(np.float32).reshape(head.tensor.shape)
    expected = AutoModelForCausalLM.from_pretrained(llama).lm_head.weight.float()
    np.testing.assert_array_equal(weight, expected.detach().numpy())


def test_links_are_followed_as_hugging_faces_cache_has_them(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for index, path in enumerate(sorted(llama.iterdir())):
        shutil.copyfile(path, tmp_path / "blobs" / str(index))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(index)))
    assert read_model_folder(snapshot).tensor_bytes == read_model_folder(llama).tensor_bytes


def head_name(folder: Path, change: Callable[[dict[str, Any]], object]) -> str | None:
    """The head of a folder whose tensors were changed."""
    held: dict[str, Any] = dict(tensors())
    change(held)
    save_file(held, folder / "model.safetensors")
    head = read_model_folder(folder).head
    return head and head.tensor.name


def test_a_tied_model_has_its_embedding_for_a_head(tmp_path: Path) -> None:
    write_folder(tmp_path, config={"tie_word_embeddings": True})
    drop = lambda held: held.pop("lm_head.weight")  # noqa: E731
    assert head_name(tmp_path, drop) == "model.embed_tokens.weight"
    # What a class does where its configuration is silent, only the class knows.
    write_folder(tmp_path, config={"tie_word_embeddings": None})
    assert head_name(tmp_path, drop) == "model.embed_tokens.weight"
    write_folder(tmp_path, config={"tie_word_embeddings": False})
    assert head_name(tmp_path, drop) is None


def test_a_head_that_is_quantised_is_none(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}, "tie_word_embeddings": True}
    write_folder(tmp_path, config=config)

    def pack(held: dict[str, Any]) -> None:
        held.pop("lm_head.weight")
        held["lm_head.qweight"] = np.zeros((1, 12), np.int32)

    assert head_name(tmp_path, pack) is None
    assert read_model_folder(tmp_path).quantization == "gptq"


def test_a_head_of_later_tokens_is_not_the_head(tmp_path: Path) -> None:
    write_folder(tmp_path)
    ahead = {"model.layers.9.mtp.lm_head.weight": np.zeros((12, 8), np.float32)}
    assert head_name(tmp_path, lambda held: held.update(ahead)) == "lm_head.weight"


def test_a_model_that_also_sees_has_the_sizes_of_its_text(tmp_path: Path) -> None:
    text = {"vocab_size": 12, "hidden_size": 8, "dtype": "bfloat16", "tie_word_embeddings": True}
    outer = dict.fromkeys(text)
    write_folder(tmp_path, config=outer | {"text_config": text, "model_type": "gemma3"})
    folder = read_model_folder(tmp_path)
    assert (folder.vocabulary_size, folder.hidden_size) == (12, 8)
    assert (folder.dtype, folder.tied_embeddings) == ("bfloat16", True)


def test_sizes_that_a_configuration_leaves_out_are_the_heads(tmp_path: Path) -> None:
    write_folder(tmp_path, config={"vocab_size": None, "hidden_size": None})
    folder = read_model_folder(tmp_path)
    assert (folder.vocabulary_size, folder.hidden_size) == (12, 8)
    (tmp_path / "model.safetensors").unlink()
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    assert "says no vocab_size or no hidden_size" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_both_words_for_the_type_are_read(tmp_path: Path, key: str) -> None:
    write_folder(tmp_path, config={"dtype": None, key: "float16"})
    assert read_model_folder(tmp_path).dtype == "float16"


def test_code_of_its_own_is_noted(tmp_path: Path) -> None:
    write_folder(tmp_path, config={"auto_map": {"AutoModelForCausalLM": "m.Model"}})
    assert read_model_folder(tmp_path).needs_remote_code


def test_pickles_beside_safetensors_are_not_looked_at(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert len(read_model_folder(tmp_path).tensors) == 3
    assert "pytorch_model.bin" not in read_model_folder(tmp_path).files


# What is refused


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["pytorch_model.bin", "config.json"],
            (
                "{} holds its weights as pickles (pytorch_model.bin), which can run any code;"
                " convert them to safetensors, or find a revision that has them"
            ),
        ),
        (
            ["model.Q4_0.gguf", "model.Q8_0.gguf", "config.json"],
            (
                "{0} holds GGUF files (model.Q4_0.gguf, model.Q8_0.gguf), of which each is a"
                " model; name one, such as {0}/model.Q4_0.gguf"
            ),
        ),
        (
            ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"],
            (
                "{} holds an adapter, which changes a model that is elsewhere;"
                " merge it into its model and give the folder of that"
            ),
        ),
        (
            ["model.safetensors", "config.json", "tokenizer.json", "adapter_config.json"],
            (
                "{} holds an adapter, which changes a model that is elsewhere;"
                " merge it into its model and give the folder of that"
            ),
        ),
        (
            ["consolidated.safetensors", "config.json"],
            (
                "{} has consolidated.safetensors, but neither model.safetensors nor"
                " model.safetensors.index.json;"
                " give a folder as transformers' save_pretrained writes it"
            ),
        ),
        (
            ["README.md"],
            (
                "{} holds no model: there is no model.safetensors in it;"
                " give a GGUF file, or a folder of safetensors"
            ),
        ),
        (
            ["model.safetensors", "tokenizer.json"],
            "{} has no config.json; give the folder that has all of it",
        ),
        (
            ["model.safetensors", "config.json", "tokenizer_config.json", "merges.txt"],
            (
                "{} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json);"
                " add the tokenizer files of the original model"
            ),
        ),
    ],
)
def test_what_is_in_a_folder_instead_of_a_model_is_said(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert refusal(tmp_path) == message.format(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (b"", "is an empty file"),
        (b"[]", "is not a JSON object"),
        (b"{}", "names no architecture"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b"[" * 200_000, "is not valid JSON"),
        (b'{"a": "' + b"x" * (8 << 20) + b'"}', "has more than 8,388,608 bytes"),
        (b'{"a": [' + b"0," * (1 << 18) + b"0]}", "has more than 262,144 values"),
        ({"architectures": "Llama"}, "names no architecture"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": ["../x"]}, "names no architecture"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "a\nb"}, "names no model_type"),
        ({"vocab_size": "12"}, "has an impossible vocab_size"),
        ({"vocab_size": 0}, "has an impossible vocab_size"),
        ({"vocab_size": True}, "has an impossible vocab_size"),
        ({"vocab_size": 1 << 40}, "has an impossible vocab_size"),
        ({"hidden_size": 8.0}, "has an impossible hidden_size"),
        ({"vocab_size": 13}, "vocab_size is 13, but lm_head.weight is 12 x 8"),
        ({"tie_word_embeddings": "no"}, "neither true nor false"),
        ({"dtype": ["float16"]}, "names no dtype"),
        ({"text_config": [1]}, "text_config is no object"),
        ({"quantization_config": {}}, "quantization_config names no quant_method"),
        ({"quantization_config": "fp8"}, "quantization_config names no quant_method"),
        ({"transformers_weights": "../other.safetensors"}, "names other weights"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(
    tmp_path: Path, config: bytes | dict[str, object], expected: str
) -> None:
    write_folder(tmp_path)
    raw = config if isinstance(config, bytes) else json.dumps(CONFIG | config).encode()
    (tmp_path / "config.json").write_bytes(raw)
    assert expected in refusal(tmp_path)


def test_a_shard_that_is_not_there_is_named(shards: Path) -> None:
    (shards / SHARD).unlink()
    assert refusal(shards) == f"shard {SHARD} is missing in {shards}; download it again"
    # An interrupted download leaves such a link in Hugging Face's cache.
    (shards / SHARD).symlink_to("../../blobs/none")
    assert refusal(shards) == f"shard {SHARD} is missing in {shards}; download it again"


def test_a_shard_that_is_cut_off_says_so(shards: Path) -> None:
    os.truncate(shards / SHARD, (shards / SHARD).stat().st_size - 1)
    message = refusal(shards)
    assert message.startswith(f"{shards / SHARD}: the file ends within the tensor 'model.norm")
    assert message.endswith("download it again")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda index: index.pop("weight_map"), "has no weight_map"),
        (lambda index: index.update(weight_map={}), "has no weight_map"),
        (lambda index: index.update(weight_map=[SHARD]), "has no weight_map"),
        *(
            (lambda index, name=name: index["weight_map"].update(x=name), "no safetensors file")
            for name in (
                "../model.safetensors",
                "/etc/passwd.safetensors",
                "a/b.safetensors",
                "..",
                ".safetensors",
                "pytorch_model.bin",
                "model\\..\\b.safetensors",
                "a\0.safetensors",
                "",
                7,
                None,
                ["model.safetensors"],
                "x" * 300 + ".safetensors",
            )
        ),
        (lambda index: index["weight_map"].update(x=SHARD), "has no tensor 'x', which the index"),
        (
            lambda index: index["weight_map"].update({"lm_head.weight": SHARD}),
            "has no tensor 'lm_head.weight', which the index says it has",
        ),
        (
            lambda index: index["weight_map"].update(
                {str(each): f"{each}.safetensors" for each in range(5000)}
            ),
            "names 5,003 files, more than 4,096",
        ),
    ],
)
def test_an_index_that_lies_is_refused(
    shards: Path, change: Callable[[Any], object], expected: str
) -> None:
    rewrite(shards / INDEX, change)
    assert expected in refusal(shards)


def test_a_tensor_that_is_in_two_shards_is_refused(shards: Path) -> None:
    both = load_file(shards / SHARD) | {"lm_head.weight": tensors()["lm_head.weight"]}
    save_file(both, shards / SHARD)
    message = refusal(shards)
    assert "has the tensor 'lm_head.weight', and so has" in message


def test_a_tensor_that_only_its_shard_names_counts(shards: Path) -> None:
    save_file(load_file(shards / SHARD) | {"more": np.zeros(2, np.float32)}, shards / SHARD)
    assert len(read_model_folder(shards).tensors) == 4


def test_weights_without_a_tensor_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    assert "there is no tensor in its weights" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["none", "file", "nul\0"])
def test_what_is_no_folder_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="check the path of the model") as caught:
        read_model_folder(tmp_path / name)
    assert not isinstance(caught.value, FormatError)


@pytest.mark.parametrize("name", ["config.json", INDEX, SHARD])
def test_every_truncation_of_every_file_is_refused(shards: Path, name: str) -> None:
    for size in range((shards / name).stat().st_size - 1, -1, -1):
        os.truncate(shards / name, size)
        with pytest.raises(FormatError):
            read_model_folder(shards)


@pytest.mark.parametrize("name", ["config.json", INDEX, SHARD])
def test_flipped_bytes_cost_at_most_one_line(shards: Path, name: str) -> None:
    whole = np.fromfile(shards / name, np.uint8)
    rng = np.random.default_rng(len(name))
    refused = 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), size=rng.integers(1, 3))] = rng.integers(0, 256)
        damaged.tofile(shards / name)
        try:
            folder = read_model_folder(shards)
        except FormatError as error:
            refused += "\n" not in str(error)
            continue
        for path in folder.weight_files:
            with safe_open(path, "np") as file:
                assert len(file.keys()) >= 1
    assert 10 < refused < 300
