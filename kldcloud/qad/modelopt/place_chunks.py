"""Put our chunks where Model Optimizer's example looks for a tokenised dataset.

Runs in that environment, by its path, and imports nothing of ours. The example splits and shuffles
whatever it tokenises itself, so the parts of a text would not stay apart; what it finds in its
cache it takes as it is. The name of that place is the example's own affair: it is asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def rows(path: str) -> Iterator[dict[str, list[int]]]:
    """The chunks of one part, as a model takes them: every token is a label."""
    import numpy as np

    for chunk in np.load(path, mmap_mode="r", allow_pickle=False):
        tokens = chunk.tolist()
        yield {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": tokens}


def place(
    example: str, blend: str, model: str, context: str, cache: str, training: str, heldout: str
) -> str:
    """Write both parts; returns the folder.

    Args:
        example: folder of its scripts.
        blend: the dataset configuration that they are given.
        model: folder of the teacher, for its tokenizer.
        context: tokens in a chunk.
        cache: the folder of tokenised datasets that they are given.
        training: int32 [n, context], a .npy file.
        heldout: int32 [m, context], likewise.
    """
    sys.path.insert(0, example)
    import dataset_utils
    import datasets
    import transformers

    length = int(context)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, model_max_length=length)
    configuration = dataset_utils.load_blend_config(blend)
    folder: str = dataset_utils._build_cache_path(configuration, tokenizer, length, cache)  # noqa: SLF001
    parts: dict[str, Any] = {
        name: datasets.Dataset.from_generator(rows, gen_kwargs={"path": path})
        for name, path in (("train", training), ("eval", heldout))
    }
    datasets.DatasetDict(parts).save_to_disk(folder)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"chunks are in {place(*sys.argv[1:])}\n")
