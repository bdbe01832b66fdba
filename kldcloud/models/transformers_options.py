"""How transformers runs a model: what of it decides numbers, and what it is called in reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kldcloud.models.folder_config import of_language_model
from kldcloud.models.transformers_classes import lacks_sdpa
from kldcloud.models.transformers_library import (
    cpu_instructions,
    cuda_device,
    library_versions,
    transformers,
)
from kldcloud.models.transformers_methods import packages_of
from kldcloud.models.transformers_recipes import recipe_library

NAME: Final = "transformers"
AUTO: Final = "auto"
DTYPES: Final = ("float32", "bfloat16", "float16")
_CAP: Final = "attn_logit_softcapping"
_CAP_BY_DEFAULT: Final = ("gemma2", "gemma2_text", "vaultgemma")
"""Model types whose configuration has one where the file says nothing of it."""


@dataclass(frozen=True, slots=True)
class TransformersOptions:
    """What decides a logit, besides the model and its tokens.

    Attributes:
        dtype: of weights and states; see `DTYPES`.
        device: cpu or cuda.
        attention: transformers' implementation, sdpa or eager.
        head: float32, for the output head's product made here; model, for transformers' logits.
        threads: that torch divides one operation among, on a CPU. Unlike llama.cpp's, its sums
            depend on them, so they belong to the options and not to the machine.
        recipe: how weights are quantised once they are loaded; empty for as they are.
        quantization: the method by which they were quantised before, in transformers' words.
        offload: let layers that the GPU has no room for wait in the machine's memory.
        dequantize: write its weights out in `dtype`, by `dequantized_folder`, instead of running
            it by the method by which it was quantised.
        round_activations: then round what enters its layers too, by `fp8_activations`.
    """

    dtype: str
    device: str = "cpu"
    attention: str = "sdpa"
    head: str = "float32"
    threads: int = 1
    recipe: str = ""
    quantization: str = ""
    offload: bool = False
    dequantize: bool = False
    round_activations: bool = False

    def fingerprint(self) -> dict[str, str]:
        """What these options and the installed versions add up to, for keys and reports."""
        transformers()
        versions = library_versions()
        facts = {
            "name": NAME,
            "version": versions["transformers"],
            "torch": versions["torch"],
            "backend": "CPU",
            "dtype": self.dtype,
            "attention": self.attention,
            "head": self.head,
        }
        if self.recipe:
            facts["recipe"] = f"{self.recipe} ({recipe_library(self.recipe)})"
        if self.quantization:
            packages = "" if self.dequantize else packages_of(self.quantization)
            facts["quantization"] = self.quantization + (f" ({packages})" if packages else "")
        if self.dequantize:
            facts["dequantized"] = "weights"
        if self.round_activations:
            facts["activations"] = "rounded to FP8"
        if self.device == "cpu":
            return facts | {"instructions": cpu_instructions(), "threads": str(self.threads)}
        kernels = {"triton": versions["triton"]} if "triton" in versions else {}
        return facts | {"backend": "GPU", "devices": cuda_device(), **kernels}


def resolved_dtype(asked: str, stored: str, device: str) -> str:
    """The dtype that a model runs in.

    Args:
        asked: a name of `DTYPES`, or auto: as the weights are stored on a GPU. On a CPU that is
            float32, which takes every stored weight as it is and is the faster one there.
        stored: what the model's configuration says; empty if it says nothing.
        device: cpu or cuda.
    """
    if asked != AUTO:
        return asked
    return stored if device != "cpu" and stored in DTYPES else "float32"


def resolved_attention(asked: str, config: Mapping[str, Any]) -> str:
    """The implementation of attention that computes what a model is.

    Args:
        asked: sdpa or eager.
        config: its config.json. It is eager where transformers has no sdpa for such a model
            (gpt-oss), and where the logits of attention are capped (Gemma 2): its sdpa leaves the
            cap out, and says nothing (5.17.0).

    Raises:
        UserError: transformers is not installed.
    """
    said = of_language_model(config)
    default = said.get("model_type") in _CAP_BY_DEFAULT
    return "eager" if said.get(_CAP, default) or lacks_sdpa(config.get("model_type")) else asked
