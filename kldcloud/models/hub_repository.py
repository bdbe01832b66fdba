"""A model repository of the Hugging Face Hub: the files of it that decide logits and tokens.

They lie in huggingface_hub's own cache, in its folder of one commit, as `hf download` leaves them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from kldcloud.errors import KldcloudError, UserError
from kldcloud.models.folder_files import CONFIG, WEIGHTS, choose_files
from kldcloud.models.hub_download import download_from_hub, explain
from kldcloud.models.model_folder import model_file_names, read_weight_map
from kldcloud.models.part_file import ProgressCallback, one_of_many
from kldcloud.spec.uri import SourceUri

_GENERATION: Final = "generation_config.json"


def download_repository(uri: SourceUri, *, progress: ProgressCallback | None = None) -> Path:
    """Return the folder of the repository at the commit that its revision means now.

    Weights come last, so that a download that was cut off is never taken for a whole model; the
    next one goes on where it stopped. One file comes at a time: huggingface_hub itself fetches a
    large one in pieces at once where the Hub lets it, and Ctrl-C ends it.

    Args:
        uri: a whole repository.
        progress: called with bytes done and in all, of all files together.

    Returns:
        A folder whose name is the commit.

    Raises:
        UserError: as `hub_download.download_from_hub`.
        FormatError: the repository holds no safetensors of a whole model, or its index is none.
    """
    try:
        # By the revision, so that the cache learns the commit it means: it is offline's only guide.
        folder = download_from_hub(replace(uri, path=CONFIG)).parent
    except UserError as error:
        if not _is_missing(error.__cause__):
            raise
        choose_files(_sizes(uri), str(uri))
        raise
    at = replace(uri, revision=folder.name)
    try:
        sizes = _sizes(at)
    except UserError:
        if _is_whole(folder):
            return folder
        raise
    chosen = choose_files(sizes, str(uri))
    first = [CONFIG, *chosen.tokenizer, *({_GENERATION} & sizes.keys())]
    weights = [WEIGHTS]
    if chosen.index is not None:
        index = download_from_hub(replace(at, path=chosen.index))
        weights = sorted(set(read_weight_map(index).values()))
    names = [*first, *weights]
    done, total = 0, sum(sizes.get(name, 0) for name in names)
    for name in names:
        download_from_hub(replace(at, path=name), progress=one_of_many(done, total, progress))
        done += sizes.get(name, 0)
    return folder


def cached_repository(uri: SourceUri) -> Path | None:
    """The folder of a repository if all of it is in the cache, else None; nothing is asked.

    Args:
        uri: a whole repository.
    """
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(uri.container, CONFIG, revision=uri.revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if _is_whole(folder) else None


def _sizes(uri: SourceUri) -> dict[str, int]:
    """The repository's files at a revision: name -> bytes."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(
            uri.container, revision=uri.revision, files_metadata=True
        )
    except Exception as error:
        raise explain(error, uri) from error
    return {str(each.rfilename): int(each.size or 0) for each in info.siblings or ()}


def _is_whole(folder: Path) -> bool:
    try:
        return all((folder / name).exists() for name in model_file_names(folder))
    except KldcloudError:
        return False


def _is_missing(error: BaseException | None) -> bool:
    """Whether the Hub said that the repository has no such file; not that the cache has none."""
    from huggingface_hub import errors

    missing = isinstance(error, errors.EntryNotFoundError)
    return missing and not isinstance(error, errors.LocalEntryNotFoundError)
