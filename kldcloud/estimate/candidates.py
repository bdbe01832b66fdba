"""The candidates of a plan: read where they are at hand, else as the job states them."""

from __future__ import annotations

from typing import Final

from kldcloud.errors import FormatError, UserError
from kldcloud.estimate.files import PlannedBase, PlannedModel, model_here
from kldcloud.models.ggml_types import BITS
from kldcloud.models.gguf_header import GgufHeader
from kldcloud.models.trained_context import trained_context
from kldcloud.pipeline.found import check_quants, model_header
from kldcloud.pipeline.model_files import recipe_bytes
from kldcloud.spec.job import CandidateSpec, SweepJob
from kldcloud.spec.recipes import RECIPES, Recipe

MIXTURE: Final = 1.12
"""Size of a K- or I-quant mixture over its namesake type alone: Q4_K_M is 5.08 bits, Q4_K 4.5."""


def planned_candidates(job: SweepJob, base: PlannedBase) -> tuple[PlannedModel, ...]:
    """The candidates; those that are here must be models of the base's vocabulary.

    Raises:
        UserError: for a path where nothing is and of which the job states nothing, and for a type
            that the base cannot be quantised to.
    """
    if base.in_safetensors or base.path is not None:
        check_quants(job, folder=base.in_safetensors)
    return tuple(_candidate(spec, base) for spec in job.candidates)


def _candidate(spec: CandidateSpec, base: PlannedBase) -> PlannedModel:
    name, size = spec.display_name, spec.expect.bytes
    if spec.model is None:
        quant = spec.quantize or ""
        if size is None and quant in RECIPES:
            size = _recipe_size(base, RECIPES[quant])
        elif size is None and base.weights is not None:
            size = _quantised_size(base, base.weights, quant)
        most = base.file.trained_context
        return PlannedModel(name, None, size, here=False, trained_context=most)
    path = model_here(spec.model)
    if path is None:
        if size is None and spec.model.scheme == "file":
            raise UserError(
                f"candidate {name}: {spec.model.path} does not exist",
                hint="correct it in the job, or state its expect: {bytes: ...}",
            )
        return PlannedModel(name, spec.model, size, here=False)
    header = model_header(path)
    if base.vocabulary is not None and header.vocabulary_size != base.vocabulary:
        raise FormatError(
            f"candidate {name} ({path}) has a vocabulary of {header.vocabulary_size:,}, "
            f"the base {base.vocabulary:,}",
            hint="only models with the base's tokenizer can be compared with it",
        )
    size = header.file_bytes if isinstance(header, GgufHeader) else header.tensor_bytes
    return PlannedModel(name, spec.model, size, here=True, trained_context=trained_context(header))


def _recipe_size(base: PlannedBase, recipe: Recipe) -> int | None:
    """Bytes of a base in safetensors as a recipe leaves it: of one that is not here, to a tenth."""
    if base.folder is not None:
        return recipe_bytes(base.folder, recipe)
    if base.weights is None or base.shape is None or base.file.size is None:
        return None
    # A scale of a whole row is next to nothing; the head, at least, stays as it is stored.
    bits = recipe.bits + (recipe.scale_bits / recipe.group if recipe.group else 0)
    head = base.shape.vocabulary * base.shape.width
    stored = base.file.size * 8 / base.weights
    return int(((base.weights - head) * bits + head * stored) / 8)


def _quantised_size(base: PlannedBase, weights: int, quant: str) -> int:
    """Bytes of the base in a type of llama.cpp's, to a tenth or so."""
    bits = _bits_of(quant)
    head = base.shape.vocabulary * base.shape.width if base.shape else 0
    # The quantiser keeps the output head at 6 bits or more, whatever the rest becomes.
    return int(((weights - head) * bits + head * max(bits, BITS["Q6_K"])) / 8)


def _bits_of(quant: str) -> float:
    """Bits a weight of a type, without its output head."""
    namesakes = [name for name in BITS if quant.startswith(name)]
    if namesakes:
        exact = max(namesakes, key=len)
        return BITS[exact] * (1.0 if exact == quant else MIXTURE)
    return BITS.get(f"{quant.rpartition('_')[0]}_S", 8.0)
