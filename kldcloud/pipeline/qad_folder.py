"""An NVFP4 student as a folder of safetensors: made, kept in the store, copied where wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kldcloud.models.cache import cache_folder
from kldcloud.models.folder_files import TOKENIZER_FILES
from kldcloud.pipeline.progress import Progress
from kldcloud.store.base import Store

if TYPE_CHECKING:
    from kldcloud.qad.checkpoints import Tensors
    from kldcloud.qad.training_order import TrainingOrder

FOLDER: Final = "student"
"""Of the run's keys."""


def export_folder(
    order: TrainingOrder,
    teacher: Path,
    weights: Tensors,
    tokenizer: Sequence[Path],
    store: Store,
    progress: Progress,
    copy: Path | None,
) -> None:
    """Write the folder of a student.

    Args:
        order: of its training.
        teacher: the GGUF on this machine.
        weights: of the checkpoint that is exported.
        tokenizer: files of the original that belong beside it.
        store: gets all files under `FOLDER`.
        progress: told what was compared.
        copy: a folder here that gets them too.

    Raises:
        FormatError: what was written is not what was trained.
        StoreError: no room for it.
    """
    from kldcloud.qad.architectures import map_model
    from kldcloud.qad.calibration import read_inputs
    from kldcloud.qad.hf_folder import FILES, copy_files, export_hf
    from kldcloud.qad.nvfp4_layers import fused_groups

    inputs = None
    if order.activations:
        names = tuple(name for names in fused_groups(map_model(teacher)) for name in names)
        inputs = read_inputs(store, order.prefix, names)
    folder = cache_folder("qad", "students") / f"{order.run}-hf"
    compared = export_hf(teacher, weights, folder, inputs)
    progress.note(f"{compared:,} weights of its safetensors are what training used")
    files = [*(folder / name for name in FILES), *tokenizer]
    for each in files:
        store.write_new_file(f"{order.prefix}/{FOLDER}/{each.name}", each)
    if copy is not None:
        copy_files(files, copy)
        progress.note(f"copied to {copy}{what_is_missing(each.name for each in files)}")


def what_is_missing(names: Iterable[str]) -> str:
    """What a person has to add to a folder of these files, if anything, to end a line with."""
    there = frozenset(TOKENIZER_FILES).intersection(names)
    return "" if there else "; add the original model's tokenizer files"
