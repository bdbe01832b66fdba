"""Models on this machine, with what a run must know of them; and those made by quantising."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from kldcloud.models.digests import model_sha256
from kldcloud.models.folder_digest import folder_sha256
from kldcloud.models.gguf_header import GgufHeader, read_gguf_header
from kldcloud.models.model_folder import ModelFolder, read_model_folder
from kldcloud.models.quantize import quantized
from kldcloud.models.trained_context import trained_context
from kldcloud.pipeline.progress import Progress
from kldcloud.spec.recipes import RECIPES, Recipe
from kldcloud.staging.kld_file import KldHeader
from kldcloud.store.digest import sha256_bytes

_MATRIX: Final = 2
"""Dimensions of what linear layers multiply by."""
_EXPERTS: Final = ".experts."
"""In the names of what transformers puts into one tensor a layer, and recipes leave as it is."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF on this machine.

    Attributes:
        name: what reports and keys call it.
        file: the file name that people know it by.
        origin: the URI that any machine can fetch it from; empty if there is none.
    """

    name: str
    file: str
    path: Path
    sha256: str
    header: GgufHeader
    origin: str = ""

    @property
    def vocabulary(self) -> int:
        """Tokens, V."""
        return self.header.vocabulary_size

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self.header.file_bytes

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return self.header.parameters

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight over all tensors."""
        return self.header.bits_per_weight

    @property
    def trained_context(self) -> int | None:
        """The longest context that it was trained for, in tokens; None where nothing says."""
        return trained_context(self.header)


@dataclass(frozen=True, slots=True)
class FolderModel:
    """A folder of safetensors on this machine.

    Attributes:
        name: what reports and keys call it.
        file: the folder's or repository's name that people know it by.
        sha256: of all files that decide its logits and tokens, and of the recipe.
        files_sha256: of the files alone.
        origin: the URI that any machine can fetch it from; empty if there is none.
        recipe: how it is quantised while it is loaded; empty for as it is.
    """

    name: str
    file: str
    path: Path
    sha256: str
    files_sha256: str
    folder: ModelFolder
    origin: str = ""
    recipe: str = ""

    @property
    def vocabulary(self) -> int:
        """Tokens, V."""
        return self.folder.vocabulary_size

    @property
    def bytes(self) -> int:
        """Of all tensors, as they are stored or as the recipe leaves them."""
        if not self.recipe:
            return self.folder.tensor_bytes
        return recipe_bytes(self.folder, RECIPES[self.recipe])

    @property
    def parameters(self) -> int | None:
        """Weights in all tensors; None where several are packed into one number."""
        if self.folder.quantization is not None:
            return None
        return sum(tensor.elements for tensor in self.folder.tensors)

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits a weight over all tensors; None where their number is not known."""
        parameters = self.parameters
        return 8 * self.bytes / parameters if parameters else None

    @property
    def trained_context(self) -> int | None:
        """The longest context that it was trained for, in tokens; None where nothing says."""
        return trained_context(self.folder)


@dataclass(frozen=True, slots=True)
class KldBase:
    """A llama.cpp base file that stands for a base model."""

    name: str
    file: str
    path: Path
    sha256: str
    header: KldHeader


Model: TypeAlias = ModelFile | FolderModel
"""What a sweep measures."""


def quantize_model(
    source: ModelFile, quant: str, name: str, progress: Progress, imatrix: Path | None = None
) -> ModelFile:
    """A model at another type, from the cache or made now.

    Args:
        source: what is quantised.
        quant: a llama.cpp type name.
        name: what reports call the new one.
        progress: for a bar.
        imatrix: an importance matrix of `source`.

    Raises:
        EngineError: if llama.cpp fails.
        FormatError: if the importance matrix is none of this model.
        StoreError: if there is no room.
    """
    label = quant if imatrix is None else f"{quant}-imat"
    with progress.bar(f"quantising to {label}", len(source.header.tensors)) as bar:
        path = quantized(source.path, source.sha256, quant, imatrix=imatrix, progress=bar.reach)
    stem = Path(source.file).stem
    return model_file(name, f"{stem}-{label}.gguf", path, progress)


def model_file(name: str, file: str, path: Path, progress: Progress, origin: str = "") -> ModelFile:
    """Look at a GGUF's header and hash it; arguments as attributes of `ModelFile`.

    Raises:
        FormatError: it is no whole GGUF.
    """
    header = read_gguf_header(path)
    with progress.bar(f"hashing {file}", header.file_bytes) as bar:
        digest = model_sha256(path, bar.advance)
    return ModelFile(name, file, path, digest, header, origin)


def folder_model(
    name: str, file: str, path: Path, progress: Progress, origin: str = ""
) -> FolderModel:
    """Look at a folder's headers and hash it; arguments as attributes of `FolderModel`.

    Raises:
        FormatError: it is no whole model in safetensors.
    """
    folder = read_model_folder(path)
    with progress.bar(f"hashing {file}", folder.tensor_bytes) as bar:
        digest = folder_sha256(path, bar.advance)
    return FolderModel(name, file, path, digest, digest, folder, origin)


def with_recipe(base: FolderModel, recipe: str, name: str) -> FolderModel:
    """The same folder, quantised while it is loaded."""
    digest = sha256_bytes(f"{base.files_sha256}+{recipe}".encode())
    return replace(base, name=name, file=f"{base.file}+{recipe}", sha256=digest, recipe=recipe)


def recipe_bytes(folder: ModelFolder, recipe: Recipe) -> int:
    """Bytes of all tensors where the matrices of linear layers are as a recipe leaves them."""
    head = folder.head
    saved = sum(
        tensor.nbytes - recipe.weight_bytes(*tensor.shape)
        for tensor in folder.tensors
        if len(tensor.shape) == _MATRIX
        and (head is None or tensor.name != head.tensor.name)
        and "embed" not in tensor.name
        and _EXPERTS not in tensor.name
    )
    return int(folder.tensor_bytes - saved)
