"""Bringing what a URI names onto this machine: the path of a file or of a model folder, a text."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Final

from kldcloud.errors import FormatError, SpecError, UserError
from kldcloud.models.part_file import ProgressCallback
from kldcloud.spec.nearest import nearest
from kldcloud.spec.uri import SourceUri, parse_uri

__all__ = [
    "MAX_TEXT_BYTES",
    "ProgressCallback",
    "decode_text",
    "fetch",
    "fetch_model",
    "model_at_hand",
    "not_utf8",
    "pinned",
    "read_text",
]

MAX_TEXT_BYTES: Final = 4 << 30


def fetch(uri: SourceUri, *, cache: Path, progress: ProgressCallback | None = None) -> Path:
    """Return the path of the file that `uri` names, downloaded if it is elsewhere.

    Args:
        uri: where it is; a relative path is relative to the current folder.
        cache: our cache folder; see `cache.cache_dir`. Files of the Hugging Face Hub are kept in
            its own cache instead.
        progress: called with bytes done and in all; never for what is here already.

    Raises:
        UserError: it is not there, or is no file.
        StoreError: S3 cannot be reached or read, or the cache has no room.
    """
    if uri.is_repository:
        raise UserError(
            f"{uri} is a whole repository, not a file", hint=f"write hf:{uri.container}/file"
        )
    match uri.scheme:
        case "file":
            return _local_file(uri)
        case "package":
            return _package_path(uri, folders=False)
        case "s3":
            from kldcloud.models.s3_download import download_object

            return download_object(uri.container, uri.path, cache=cache, progress=progress)
        case "hf":
            from kldcloud.models.hub_download import download_from_hub

            return download_from_hub(uri, progress=progress)
        case "builtin":
            raise UserError(f"{uri} is a text, not a file")


def fetch_model(uri: SourceUri, *, cache: Path, progress: ProgressCallback | None = None) -> Path:
    """Return the path of a model: of a file as `fetch` does, or of a folder of safetensors.

    A folder is what `model_folder.read_model_folder` checks; here it only has to be there. One of
    the Hugging Face Hub is fetched at one commit: see `pinned`.

    Args:
        uri: where it is.
        cache: as `fetch`.
        progress: as `fetch`, over all files together.

    Raises:
        UserError: as `fetch`.
        StoreError: as `fetch`.
        FormatError: a repository has no safetensors of a whole model.
    """
    if uri.is_repository:
        from kldcloud.models.hub_repository import download_repository

        return download_repository(uri, progress=progress)
    if uri.scheme == "package":
        return _package_path(uri, folders=True)
    if uri.scheme == "file":
        path = Path(uri.path).expanduser()
        if path.is_dir():
            return path
        if not path.exists() and not path.parent.exists():
            raise UserError(f"{path} does not exist", hint=_as_repository(path))
    return fetch(uri, cache=cache, progress=progress)


def model_at_hand(uri: SourceUri) -> Path | None:
    """The path of a model that `fetch_model` would not download anything of, else None."""
    if uri.is_repository:
        if importlib.util.find_spec("huggingface_hub") is None:
            return None
        from kldcloud.models.hub_repository import cached_repository

        return cached_repository(uri)
    if uri.scheme not in {"file", "package"}:
        return None
    try:
        return fetch_model(uri, cache=Path())
    except UserError:
        return None


def pinned(uri: SourceUri, path: Path) -> SourceUri:
    """Return what names the same model on every machine, whatever its branch comes to mean.

    Args:
        uri: where the model is.
        path: what `fetch_model` returned for it.
    """
    return replace(uri, revision=path.name) if uri.is_repository else uri


def read_text(uri: SourceUri, *, cache: Path, progress: ProgressCallback | None = None) -> str:
    """Return the text that `uri` names, exactly: no byte order mark or line ending is changed.

    `builtin:python-reference` is the reference text that the running Python carries for `help()`:
    its topics in the order of their names, with a blank line between two. Another minor version
    of Python has another text.

    Raises:
        UserError: as `fetch`, or a text of more than MAX_TEXT_BYTES.
        FormatError: it is not UTF-8; the message gives the offset of the first bad byte.
    """
    if uri.scheme == "builtin":
        return _python_reference()
    path = fetch(uri, cache=cache, progress=progress)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MAX_TEXT_BYTES:
                raise UserError(
                    f"{uri} has {size:,} bytes, more than the {MAX_TEXT_BYTES:,} of a text"
                )
            raw = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode_text(raw, str(uri))


def decode_text(raw: bytes, name: str) -> str:
    """A text from its bytes.

    Raises:
        FormatError: it is not UTF-8; the message gives the offset of the first bad byte.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(name, raw[error.start], error.start) from None


def not_utf8(name: str, byte: int, offset: int) -> FormatError:
    """The refusal of a text by its first bad byte."""
    return FormatError(
        f"{name} is not UTF-8 text: byte {byte:#04x} at offset {offset:,}",
        hint="convert it with iconv -t UTF-8",
    )


def _local_file(uri: SourceUri) -> Path:
    path = Path(uri.path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file")
    if path.exists():
        raise UserError(f"{path} is not a regular file")
    raise UserError(f"{path} does not exist", hint=_similar_in(path.parent, path.name))


def _as_repository(path: Path) -> str | None:
    """What to write if this was meant to be `org/repo`, as other tools take it."""
    try:
        uri = parse_uri(f"hf:{path.parent.name}/{path.name}")
    except SpecError:
        return None
    return f"for a repository of the Hugging Face Hub, write hf:{uri.container}"


def _package_path(uri: SourceUri, *, folders: bool) -> Path:
    """Find a file of an installed package from its metadata alone: none of its code runs."""
    top, *below = uri.container.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(
            f"{uri}: the package {top} is not installed",
            hint=f"pip install --no-deps {top.replace('_', '-')}",
        )
    roots = [Path(root, *below) for root in spec.submodule_search_locations or ()]
    if not roots:
        raise UserError(f"{uri}: {top} is a module without a folder of files")
    for root in roots:
        path = root / uri.path
        if path.is_file() or (folders and path.is_dir()):
            return path
    missing = roots[0] / uri.path
    raise UserError(
        f"{uri}: the package has no such file", hint=_similar_in(missing.parent, missing.name)
    )


def _similar_in(folder: Path, name: str) -> str | None:
    try:
        names = [each.name for each in folder.iterdir() if each.is_file()]
    except OSError:
        return None
    match = nearest(name, names)
    return f"did you mean '{match}'?" if match else None


def _python_reference() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "builtin:python-reference: this Python comes without pydoc_data",
            hint="give the path of a text instead",
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))
