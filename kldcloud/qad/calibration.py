"""How large the inputs of a teacher's matrices are: what NVFP4 activations are scaled by.

An engine for NVFP4 activations takes a fixed tensor scale from the file and derives block scales as
it goes; a tensor scale of each input's own would need a pass over it first. So training fixes the
tensor scale too, from the first training chunks, and once for a run: what calibration found is in
the store, where every process, the resumed run and the export find the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from kldcloud.errors import FormatError
from kldcloud.qad.pair import LargestInputs
from kldcloud.staging.stage import canonical_json, load_json
from kldcloud.store.base import Store

INPUTS: Final = "inputs.json"
CALIBRATION_CHUNKS: Final = 8
"""Training chunks that are looked at; what is larger in others is clipped."""


def calibration(store: Store, prefix: str, tokens: torch.Tensor) -> LargestInputs:
    """What `load_pair` calls with the teacher.

    Args:
        store: where the first process to come puts what it finds.
        prefix: of the run.
        tokens: int64 ``[n, context]``, the first training chunks.

    Returns:
        A function that raises FormatError where the store has something else there.
    """

    def calibrate(teacher: Any, names: tuple[str, ...]) -> Mapping[str, float]:  # noqa: ANN401
        key = f"{prefix}/{INPUTS}"
        if store.size(key) is None:
            found = largest_inputs(teacher, names, tokens)
            store.write_new(key, canonical_json(found))
        return read_inputs(store, prefix, names)

    return calibrate


def read_inputs(store: Store, prefix: str, names: tuple[str, ...]) -> Mapping[str, float]:
    """What calibration found: the largest magnitude that enters each of these matrices.

    Raises:
        FormatError: it is not what calibration writes.
    """
    key = f"{prefix}/{INPUTS}"
    found: Any = load_json(store, key)
    if isinstance(found, dict) and found.keys() == set(names):
        largest = {name: found[name] for name in names}
        if all(type(each) in (int, float) and math.isfinite(each) for each in largest.values()):
            return largest
    raise FormatError(f"{key}: not what calibration found", hint="delete it, and launch again")


@torch.no_grad()
def largest_inputs(
    model: Any,  # noqa: ANN401 - a transformers model
    names: tuple[str, ...],
    batches: torch.Tensor,
) -> Mapping[str, float]:
    """Calibrate: the largest magnitude that enters each of some linear layers.

    Args:
        model: the teacher.
        names: of the layers' weights.
        batches: int64 ``[n, context]``, evaluated a row at a time.
    """
    largest = dict.fromkeys(names, 0.0)
    hooks = []
    for name in names:

        def see(_module: Any, inputs: tuple[torch.Tensor], name: str = name) -> None:  # noqa: ANN401
            largest[name] = max(largest[name], float(inputs[0].abs().amax()))

        module = model.get_submodule(name.removesuffix(".weight"))
        hooks.append(module.register_forward_pre_hook(see))
    try:
        for tokens in batches:
            model.model(input_ids=tokens[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
