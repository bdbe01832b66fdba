"""The context that models were trained for, as files and folders of known families say it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kldcloud.models.gguf_header import GgufHeader, read_gguf_header
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.trained_context import trained_context
from tests.tiny_folders import write_folder
from tests.tiny_models import CONTEXT, tiny_pair


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return read_gguf_header(
        tiny_pair(tmp_path_factory.mktemp("gguf"), vocabulary=320, bos=True).base
    )


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),  # GPT-2
        ({"max_position_embeddings": 40960, "rope_scaling": YARN}, 131072),  # Qwen 3, switched on
        ({"max_position_embeddings": 131072, "rope_parameters": YARN}, 131072),  # after scaling
        ({"max_position_embeddings": 4096, "rope_scaling": {"factor": 4.0}}, 16384),  # Vicuna 16k
        ({"max_position_embeddings": 4096, "rope_scaling": {"factor": 1e400}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        ({"text_config": {"max_position_embeddings": 8192}, "max_position_embeddings": 77}, 8192),
        ({"max_position_embeddings": "many"}, None),
        ({"max_position_embeddings": -1}, None),
        ({}, None),
    ],
)
def test_a_folder_says_it_in_its_configuration(
    config: dict[str, Any], length: int | None, tmp_path: Path
) -> None:
    folder = replace(read_model_folder(write_folder(tmp_path)), config=config)
    assert trained_context(folder) == length


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, CONTEXT),
        ({"context_length": 512}, 512),
        ({"rope.scaling.factor": 2.0}, 2 * CONTEXT),
        ({"rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 512}, CONTEXT),
        ({"context_length": "many"}, None),
        ({"context_length": 0}, None),
    ],
)
def test_a_gguf_says_it_in_its_metadata(
    header: GgufHeader, changes: dict[str, Any], length: int | None
) -> None:
    named = {f"llama.{key}": value for key, value in changes.items()}
    assert trained_context(replace(header, metadata={**header.metadata, **named})) == length
