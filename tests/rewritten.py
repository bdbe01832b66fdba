"""A copy of a small GGUF that says something else of itself, or holds other tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tests.qad.tiny_architectures import add_value

Value = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]


def rewritten(
    source: Path,
    target: Path,
    *,
    architecture: str | None = None,
    metadata: Mapping[str, Value | None] | None = None,
    tensors: Mapping[str, npt.NDArray[np.floating] | None] | None = None,
) -> Path:
    """Copy a GGUF of F32 and F16 tensors, changed.

    Args:
        source: the file.
        target: where the copy goes.
        architecture: what it says it is; its metadata is renamed accordingly.
        metadata: values that replace or join the source's; None leaves one out.
        tensors: likewise, by their whole names.
    """
    reader = gguf.GGUFReader(source)
    old = str(reader.fields["general.architecture"].contents())
    new = architecture or old
    values = {
        name.replace(f"{old}.", f"{new}.", 1) if name.startswith(f"{old}.") else name: (
            field.contents()
        )
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    writer = gguf.GGUFWriter(target, new)
    for name, value in (values | dict(metadata or {})).items():
        add_value(writer, name, value)
    weights = {each.name: each.data for each in reader.tensors} | dict(tensors or {})
    for name, weight in weights.items():
        if weight is not None:
            writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
