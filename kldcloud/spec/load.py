"""A job file and its `--set` overrides -> a validated job, or one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from kldcloud.errors import SpecError
from kldcloud.spec.fields import but_not
from kldcloud.spec.job import SweepJob
from kldcloud.spec.nearest import did_you_mean
from kldcloud.spec.overrides import apply_override
from kldcloud.spec.qad_fields import IMATRIX_WORDS
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.refusal import refusal
from kldcloud.spec.uri import parse_uri
from kldcloud.spec.yaml_tree import Located, place_of, read_tree

Job = SweepJob | QadJob

KINDS: Final[Mapping[str, type[Job]]] = MappingProxyType({"sweep": SweepJob, "qad": QadJob})
"""Every kind of job file that there is a model for."""

# The fields that hold a path of something to read, without the indices of their lists, and the
# words that are none.
_SOURCES: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = {
    ("base", "model"): (),
    ("base", "logits"): (),
    ("candidates", "model"): (),
    ("candidates", "imatrix"): (),
    ("candidates", "imatrix", "file"): (),
    ("candidates", "imatrix", "text"): (),
    ("corpora", "text"): (),
    ("teacher",): (),
    ("teacher", "model"): (),
    ("student", "init"): (),
    ("student", "init", "model"): (),
    ("student", "init", "imatrix"): IMATRIX_WORDS,
    ("data", "text"): (),
    ("eval", "second_text"): (),
}


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file; nothing but this one file is opened.

    Relative paths of models, texts and base files come back absolute. In the file they are
    relative to the file's own folder, so that a job and what it measures can be moved together;
    in an override they are relative to the current folder, where they were typed. `store` stays
    as written: it is relative to the current folder, and so is a `cluster` that is a path.

    Args:
        path: the job file: YAML, UTF-8, at most 1 MiB.
        overrides: `key=value` strings such as `corpora[0].chunks=4`, applied in order; each value
            is YAML.

    Raises:
        SpecError: one line: file and line (or `--set`), dotted field, what is wrong, and the
            nearest known key where there is one.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    kind = KINDS[_kind_of(tree)]
    try:
        return kind.model_validate(plain(tree))
    except ValidationError as error:
        raise refusal(error, kind, tree) from None


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepJob:
    """Read a job file whose run is looked for: only a sweep's can be told from its file.

    Raises:
        SpecError: as `load_job`, and for a job of another kind.
    """
    job = load_job(path, overrides)
    if not isinstance(job, SweepJob):
        raise SpecError(
            f"{path}: this is a {job.kind} job, whose run cannot be told from its file",
            hint="give the run's id, as launch printed it",
        )
    return job


def plain(tree: Located, way: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - any YAML value
    """Return the tree as plain values, with what names a file to read already found.

    Args:
        tree: what was read.
        way: the keys that lead to it, without the indices of lists.
    """
    if isinstance(tree.value, dict):
        return {key: plain(each, (*way, key)) for key, each in tree.value.items()}
    if isinstance(tree.value, list):
        return [plain(each, way) for each in tree.value]
    words = _SOURCES.get(way)
    if isinstance(tree.value, str) and words is not None and tree.value not in words:
        try:
            return parse_uri(tree.value).resolved(tree.origin.folder)
        except SpecError:
            return tree.value  # the model refuses it, with its field and its line
    return tree.value


def _kind_of(tree: Located) -> str:
    """The kind of a job; refuses one without a model before its keys are called unknown."""
    assert isinstance(tree.value, dict)  # noqa: S101 - read_tree refuses anything else
    kind = tree.value.get("kind")
    if kind is None or kind.value is None:
        known = ", ".join(KINDS)
        raise SpecError(f"{place_of(tree, ['kind'])}: kind: is missing; known kinds: {known}")
    if not isinstance(kind.value, str) or kind.value not in KINDS:
        word = kind.value if isinstance(kind.value, str) else ""
        hint = did_you_mean(word, KINDS, kind="known kinds")
        raise SpecError(f"{kind.place}: kind: must be a kind of job{but_not(kind.value)}; {hint}")
    return kind.value
