"""One file of a Hugging Face repository, through huggingface_hub and its own cache."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kldcloud.errors import UserError
from kldcloud.models.part_file import ProgressCallback

if TYPE_CHECKING:
    from kldcloud.spec.uri import SourceUri

_SET_TOKEN = "run `hf auth login`, or set HF_TOKEN to a token that may read it"  # noqa: S105 - advice, not a token


def download_from_hub(uri: SourceUri, *, progress: ProgressCallback | None = None) -> Path:
    """Return the path of the file in the Hugging Face cache (HF_HOME), fetched if need be.

    That cache and not ours: what other tools have downloaded is not downloaded again.

    Raises:
        UserError: huggingface_hub is not installed, or the file cannot be had; one line that
            repeats neither the token nor the server's words.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils import tqdm
    except ImportError:
        raise UserError(
            f"{uri} needs huggingface_hub, which is not installed",
            hint="pip install 'kldcloud[hub]'",
        ) from None
    options: dict[str, Any] = {}
    if "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters:
        options["tqdm_class"] = _reporting_bar(tqdm, progress)
    try:
        path = huggingface_hub.hf_hub_download(
            uri.container, uri.path, revision=uri.revision, **options
        )
    except Exception as error:
        raise explain(error, uri) from error
    return Path(path)


def _reporting_bar(bar: Any, progress: ProgressCallback | None) -> type:  # noqa: ANN401 - untyped
    """Return a progress bar class for huggingface_hub that draws nothing and reports to us."""

    class Reporting(bar):  # type: ignore[misc]  # the class is known only at run time
        def __init__(self, *_: object, **options: Any) -> None:  # noqa: ANN401 - tqdm's own options
            super().__init__(disable=True, total=options.get("total"))
            self._done = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if progress:
                progress(self._done, int(self.total or 0))

    return Reporting


def explain(error: Exception, uri: SourceUri) -> UserError:
    """What huggingface_hub's exception means, in one line without the token or its own words."""
    from huggingface_hub import errors

    repository = f"hf:{uri.container}"
    if isinstance(error, errors.GatedRepoError):
        hint = f"ask for access on its page, then {_SET_TOKEN}"
        return UserError(f"{repository} is gated: its owner has to let you in", hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = f"check the name; for a private one, {_SET_TOKEN}"
        return UserError(f"{repository}: there is no such repository, or it is private", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repository} has no revision '{uri.revision}'")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _explain_unreached(error.__cause__, uri)
    if isinstance(error, errors.EntryNotFoundError):
        return UserError(f"{repository} has no file '{uri.path}' at revision '{uri.revision}'")
    return _explain_unreached(error, uri)


def _explain_unreached(error: BaseException | None, uri: SourceUri) -> UserError:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(
            f"{uri} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE, or give the path of a file",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403}:
        return UserError(f"the Hugging Face Hub refused {uri} ({status})", hint=_SET_TOKEN)
    if status is not None:
        return UserError(
            f"the Hugging Face Hub answered {status} for {uri}", hint="try again a little later"
        )
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
        return UserError(f"{uri} cannot be kept in the Hugging Face cache: {error.strerror}")
    return UserError(
        f"{uri} could not be downloaded ({type(error).__name__})",
        hint="check the network and HF_ENDPOINT, then run the same command again",
    )
