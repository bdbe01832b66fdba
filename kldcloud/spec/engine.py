"""How models are evaluated: the options of a job, some of which a cluster may replace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from kldcloud.spec.fields import OnOff, SpecModel, Switch, Whole, refused

KvType = Literal["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]

_LONGEST_PATTERN: Final = 1024
_MOST_OVERRIDES: Final = 256
_MOST_THREADS: Final = 1024


class TransformersSpec(SpecModel):
    """How transformers runs models in safetensors.

    Attributes:
        dtype: of weights and states. auto is what the checkpoint has on a GPU, and float32 on a
            CPU.
        device: auto takes a GPU where torch finds one.
        attention: transformers' implementation; eager in any case where it has no sdpa for a model,
            or where a model caps the logits of its attention, which sdpa does not.
        head: float32 makes logits of the states that enter the output head, in float32; model
            takes them as the model returns them, rounded to its dtype.
        offload: let layers that a GPU has no room for wait in the machine's memory.
        dequantize: write the weights of FP8, MXFP4, GPTQ and AWQ checkpoints out in dtype instead
            of running them by their own kernels; activations are then not rounded. Models that are
            quantised otherwise, or not, run as they do without it.
        round_activations: with dequantize, round what enters the layers of an FP8 checkpoint to
            FP8 as its kernels do.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"
    head: Literal["float32", "model"] = "float32"
    offload: Switch = False
    dequantize: Switch = False
    round_activations: Switch = False

    def replaced_by(self, other: TransformersSpec) -> TransformersSpec:
        """Return these options with those that were given in `other` in their place."""
        return self.model_copy(
            update={name: getattr(other, name) for name in other.model_fields_set}
        )


class EngineOptions(SpecModel):
    """What changes how, and how fast, logits are made. Every option is part of a run's identity.

    Attributes:
        n_gpu_layers: layers kept on the GPU; 0 is none, -1 is all.
        tensor_overrides: regular expression of tensor names -> buffer type such as CPU, in the
            order in which llama.cpp tries them.
        threads: CPU threads for one model; None leaves the choice to the cluster. transformers
            takes 1 where it is None, for its sums depend on it.
        flash_attention: llama.cpp's fused attention; auto lets it choose.
        kv_type_k: type of the cached keys.
        kv_type_v: type of the cached values.
        repack: whether llama.cpp may rearrange weights for this CPU when it loads them.
        transformers: for models in safetensors; the others are for GGUF files.
    """

    n_gpu_layers: Annotated[Whole, Field(ge=-1, le=65536)] = 0
    tensor_overrides: Mapping[str, str] = Field(default_factory=dict, max_length=_MOST_OVERRIDES)
    threads: Annotated[Whole, Field(ge=1, le=_MOST_THREADS)] | None = None
    flash_attention: Annotated[Literal["auto", "on", "off"], OnOff] = "auto"
    kv_type_k: KvType = "f16"
    kv_type_v: KvType = "f16"
    repack: Switch = True
    transformers: TransformersSpec = TransformersSpec()

    @field_validator("tensor_overrides")
    @classmethod
    def _patterns_compile(cls, overrides: Mapping[str, str]) -> Mapping[str, str]:
        for pattern, buffer_type in overrides.items():
            if not pattern or len(pattern) > _LONGEST_PATTERN:
                raise refused(f"a pattern needs 1 to {_LONGEST_PATTERN} characters", pattern)
            if not buffer_type.strip():
                raise refused("needs a buffer type such as CPU", pattern)
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise refused(f"is not a regular expression: {error}", pattern) from None
        return overrides

    def replaced_by(self, other: EngineOptions) -> EngineOptions:
        """Return these options with those that were given in `other` in their place."""
        given = {name: getattr(other, name) for name in other.given()}
        if "transformers" in given:
            given["transformers"] = self.transformers.replaced_by(other.transformers)
        return self.model_copy(update=given)

    def given(self) -> list[str]:
        """Return the options that were written down, in the order of the fields."""
        return [name for name in type(self).model_fields if name in self.model_fields_set]
