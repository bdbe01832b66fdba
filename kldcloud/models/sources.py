"""Bringing what a URI names onto this machine: a model file's path, or a text."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from kldcloud.errors import FormatError, UserError
from kldcloud.models.part_file import ProgressCallback
from kldcloud.spec.nearest import nearest
from kldcloud.spec.uri import SourceUri

__all__ = ["MAX_TEXT_BYTES", "ProgressCallback", "decode_text", "fetch", "read_text"]

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
    match uri.scheme:
        case "file":
            return _local_file(uri)
        case "package":
            return _package_file(uri)
        case "s3":
            from kldcloud.models.s3_download import download_object

            return download_object(uri.container, uri.path, cache=cache, progress=progress)
        case "hf":
            from kldcloud.models.hub_download import download_from_hub

            return download_from_hub(uri, progress=progress)
        case "builtin":
            raise UserError(f"{uri} is a text, not a file")


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
        raise FormatError(
            f"{name} is not UTF-8 text: byte {raw[error.start]:#04x} at offset {error.start:,}",
            hint="convert it with iconv -t UTF-8",
        ) from None


def _local_file(uri: SourceUri) -> Path:
    path = Path(uri.path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file")
    if path.exists():
        raise UserError(f"{path} is not a regular file")
    raise UserError(f"{path} does not exist", hint=_similar_in(path.parent, path.name))


def _package_file(uri: SourceUri) -> Path:
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
        if (root / uri.path).is_file():
            return root / uri.path
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
