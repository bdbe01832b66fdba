"""The models of a distillation job: the teacher, and what the student is and starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from kldcloud.errors import SpecError
from kldcloud.spec.fields import (
    AnyModel,
    ModelSource,
    Name,
    SpecModel,
    Switch,
    any_model,
    model_source,
    name_after,
    refused,
)
from kldcloud.spec.qad_fields import ImatrixChoice, TrainableType
from kldcloud.spec.quants import TAKES_NO_IMPORTANCE_MATRIX, check_importance
from kldcloud.spec.uri import SourceUri


class TeacherSpec(SpecModel):
    """The model that the student is drawn back to; never changed. A file alone stands for `model`.

    Attributes:
        model: a GGUF file, or a folder or repository of safetensors, of which a GGUF is made.
        convert: the type that it is converted to first, which makes a quantised file usable as the
            base of `quantize`; a folder has its own without it.
        name: what reports call it.
    """

    model: AnyModel
    convert: Literal["F32", "F16", "BF16"] | None = None
    name: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _file_alone(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic hands over what was given
        return {"model": any_model(data)} if isinstance(data, str | SourceUri) else data

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not self.display_name:
            raise refused("no name can be made from the file's name: give one with 'name'")
        return self

    @property
    def display_name(self) -> str:
        """As the base of the sweep that measures the student has it."""
        return self.name or name_after(self.model, self.convert)


class InitSpec(SpecModel):
    """The quantised file that the student starts from. A file alone stands for `model`.

    Its scales and mins stay as they are; training moves its codes.

    Attributes:
        quantize: the llama.cpp type that the teacher is quantised to.
        imatrix: the file of an importance matrix for that, or auto, which computes one from the
            training text, or none; never None where `quantize` is given.
        model: a GGUF file that exists already, instead.
    """

    quantize: TrainableType | None = None
    imatrix: ImatrixChoice | None = None
    model: ModelSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic hands over what was given
        if isinstance(data, str | SourceUri):
            return {"model": model_source(data)}
        if isinstance(data, Mapping) and data.get("imatrix") is None:
            quantize = data.get("quantize")
            if isinstance(quantize, str):
                heeds = quantize.upper() not in TAKES_NO_IMPORTANCE_MATRIX
                return {**data, "imatrix": "auto" if heeds else "none"}
        return data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.quantize is None) == (self.model is None):
            raise refused("give exactly one of 'quantize' and 'model'")
        if self.model is not None and self.imatrix is not None:
            raise refused("only what is quantised here takes one: leave it out", "imatrix")
        if self.quantize is not None:
            try:
                check_importance(self.quantize, given=self.imatrix != "none")
            except SpecError as error:
                raise refused(str(error), "imatrix") from None
        return self


class StudentSpec(SpecModel):
    """What is trained.

    Attributes:
        format: how its weights are kept: in the blocks of the init file, or those of the layers in
            NVFP4 and the rest as the teacher has it.
        init: the quantised file that a gguf student starts from; an nvfp4 one starts at the
            teacher's weights.
        activations: whether the inputs of an nvfp4 student's layers are NVFP4 as well.
        trainer: who trains it: this package, or NVIDIA Model Optimizer on a machine with GPUs.
    """

    format: Literal["gguf", "nvfp4"] = "gguf"
    trainer: Literal["kldcloud", "modelopt"] = "kldcloud"
    init: InitSpec | None = None
    activations: Switch = False

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.format == "nvfp4":
            if self.init is not None:
                reason = "an nvfp4 student starts at the teacher's own weights: leave it out"
                raise refused(reason, "init")
            return self
        if self.init is None:
            raise refused("is missing", "init")
        if self.activations:
            raise refused("only the format nvfp4 has activations of its own", "activations")
        return self
