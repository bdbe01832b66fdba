"""What a plan knows of a job's files, and which of them are on this machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.errors import UserError
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.sources import model_at_hand
from kldcloud.spec.job import SweepJob
from kldcloud.spec.uri import SourceUri
from kldcloud.staging.choose import BaseShape


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A file of the job.

    Attributes:
        name: what reports call the model.
        uri: where it comes from; None for one that is quantised from the base.
        size: bytes, or None if nothing says.
        here: whether it is on this machine.
        trained_context: the longest context that it was trained for, in tokens; None where it is
            not here or does not say.
    """

    name: str
    uri: SourceUri | None
    size: int | None
    here: bool
    trained_context: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedBase:
    """The base.

    Attributes:
        file: the model's or .kld file.
        vocabulary: V, or None if nothing says.
        shape: what the choice of an encoding needs, or None.
        weights: how many, or None.
        kld: whether it is a llama.cpp base file.
        path: of a file on this machine that can count a text's tokens.
        folder: what is known of one in safetensors that is on this machine.
    """

    file: PlannedModel
    vocabulary: int | None
    shape: BaseShape | None
    weights: int | None
    kld: bool
    path: Path | None = None
    folder: ModelFolder | None = None

    @property
    def in_safetensors(self) -> bool:
        """Whether it is a folder or a repository, as far as can be seen from here."""
        uri = self.file.uri
        return self.folder is not None or (uri is not None and uri.is_repository)


@dataclass(frozen=True, slots=True)
class PlannedCorpus:
    """A text.

    Attributes:
        tokens: in the whole text.
        source: how they are known: counted, stated, or estimated from the text's size.
        chunks: that will be evaluated.
        context: tokens of one.
        size: bytes of the text, or None.
        uri: where it comes from; None for the tokens of a .kld file.
    """

    name: str
    tokens: int
    source: str
    chunks: int
    context: int
    size: int | None = None
    uri: SourceUri | None = None

    @property
    def rows(self) -> int:
        """Scored positions."""
        return self.chunks * ChunkShape(self.context).rows


def has_folders(job: SweepJob) -> bool:
    """Whether transformers would run any of a job's models, as far as can be seen from here."""
    named = (job.base.model, *(each.model for each in job.candidates))
    return any(uri is not None and _is_folder(uri) for uri in named)


def _is_folder(uri: SourceUri) -> bool:
    path = None if uri.is_repository else model_at_hand(uri)
    return uri.is_repository or (path is not None and path.is_dir())


def at_hand(uri: SourceUri) -> Path | None:
    """The path of what a URI names, if it is on this machine; nothing is downloaded."""
    if uri.scheme == "file":
        path = Path(uri.path).expanduser()
        return path if path.is_file() else None
    if uri.scheme == "package":
        from kldcloud.models.sources import fetch

        try:
            return fetch(uri, cache=Path())
        except UserError:
            return None
    if uri.scheme == "hf" and uri.path and importlib.util.find_spec("huggingface_hub"):
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(
            uri.container, uri.path, revision=uri.revision
        )
        return Path(found) if isinstance(found, str) else None
    return None


def model_here(uri: SourceUri) -> Path | None:
    """The path of a model file or folder, if it is on this machine; nothing is downloaded."""
    return at_hand(uri) or model_at_hand(uri)
