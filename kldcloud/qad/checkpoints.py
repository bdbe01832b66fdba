"""Checkpoints in the store: what is trained and the optimiser's state, as safetensors with digests.

A checkpoint is a folder, `checkpoints/<step>/`: two safetensors files, then `state.json`, which
has their digests and is written last, so that a half-written one does not count. The same state
gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from safetensors.torch import load, save

from kldcloud.errors import FormatError
from kldcloud.qad.looks import Look, Progressed
from kldcloud.staging.stage import canonical_json, load_json
from kldcloud.store.base import Store
from kldcloud.store.digest import sha256_bytes

SCHEMA: Final = "kldcloud.checkpoint/1"
_STATE: Final = re.compile(r"([0-9]{8})/state\.json")
_WEIGHTS, _OPTIMISER = "weights", "optimizer"
_MOST_BYTES: Final = 1 << 42
_LONGEST_DIGEST: Final = 64
_AGAIN: Final = "delete that folder, and the same command goes on from the checkpoint before it"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        progressed: how far it was.
        weights: trained parameters by name.
        optimizer: AdamW's averages, ``<parameter>.<name>``.
    """

    progressed: Progressed
    weights: Tensors
    optimizer: Tensors


class Checkpoints:
    """The checkpoints of one training run.

    Args:
        store: where they are.
        prefix: of the run.
        run: its id, which a checkpoint must carry.
    """

    def __init__(self, store: Store, prefix: str, run: str) -> None:
        self._store = store
        self._folder = f"{prefix}/checkpoints"
        self._run = run

    def steps(self) -> list[int]:
        """Steps of those that are whole, ascending."""
        start = len(self._folder) + 1
        keys = (each.key[start:] for each in self._store.list(f"{self._folder}/"))
        return sorted(int(found[1]) for key in keys if (found := _STATE.fullmatch(key)))

    def write(self, progressed: Progressed, weights: Tensors, optimizer: Tensors) -> None:
        """Write one; nothing changes if it is there already, as another launch may have written."""
        if self._store.size(self._key(progressed.step)) is not None:
            return
        folder = self._at(progressed.step)
        objects = {}
        for name, tensors in ((_WEIGHTS, weights), (_OPTIMISER, optimizer)):
            data = save({key: each.detach().cpu().contiguous() for key, each in tensors.items()})
            digest = sha256_bytes(data)
            key = f"{folder}/{name}.safetensors"
            # What a killed process left half-done is not believed.
            if not self._store.write_new(key, data) and not self._has(key, digest):
                self._store.delete(key)
                self._store.write_new(key, data)
            objects[name] = {"bytes": len(data), "sha256": digest}
        state = {
            "schema": SCHEMA,
            "run": self._run,
            "step": progressed.step,
            "looks": [asdict(each) for each in progressed.looks],
            "objects": objects,
        }
        self._store.write_new(f"{folder}/state.json", canonical_json(state))

    def keep(self, steps: set[int]) -> None:
        """Delete all others; their state first, so that none is ever half there."""
        for step in self.steps():
            if step not in steps:
                for name in ("state.json", f"{_WEIGHTS}.safetensors", f"{_OPTIMISER}.safetensors"):
                    self._store.delete(f"{self._at(step)}/{name}")

    def progressed(self, step: int) -> Progressed:
        """How far one had come.

        Raises:
            FormatError: damaged, or of another job.
        """
        return _progressed(self._state(step), self._key(step))

    def read(self, step: int, *, optimizer: bool = True) -> Checkpoint:
        """Read one and check its digests.

        Args:
            step: which.
            optimizer: whether its state is wanted too.

        Raises:
            FormatError: damaged, or of another job.
        """
        state = self._state(step)
        names = (_WEIGHTS, _OPTIMISER) if optimizer else (_WEIGHTS,)
        found = {name: self._tensors(step, name, state) for name in names}
        return Checkpoint(
            _progressed(state, self._key(step)), found[_WEIGHTS], found.get(_OPTIMISER, {})
        )

    def _tensors(self, step: int, name: str, state: Mapping[str, Any]) -> Tensors:
        key = f"{self._at(step)}/{name}.safetensors"
        size, digest = _entry(state, name, self._key(step))
        if self._store.size(key) is None:
            raise FormatError(f"{key}: is missing", hint=_AGAIN)
        try:
            data = self._store.read(key, sha256=digest, limit=size)
        except FormatError as error:
            raise FormatError(f"{key}: was changed or damaged", hint=_AGAIN) from error
        try:
            return load(data)
        except Exception as error:  # safetensors has exceptions of its own, in Rust
            raise FormatError(f"{key}: not safetensors", hint=_AGAIN) from error

    def _state(self, step: int) -> Mapping[str, Any]:
        key = self._key(step)
        state: Any = load_json(self._store, key)
        whole = isinstance(state, dict) and state.get("schema") == SCHEMA
        if not whole or state.get("step") != step:
            raise FormatError(f"{key}: not a checkpoint of step {step}", hint=_AGAIN)
        if state.get("run") != self._run:
            raise FormatError(
                f"{key}: a checkpoint of another job, {state.get('run')!r}",
                hint="use another store, or another name for this job",
            )
        found: Mapping[str, Any] = state
        return found

    def _has(self, key: str, digest: str) -> bool:
        try:
            self._store.read(key, sha256=digest, limit=_MOST_BYTES)
        except FormatError:
            return False
        return True

    def _at(self, step: int) -> str:
        return f"{self._folder}/{step:08d}"

    def _key(self, step: int) -> str:
        return f"{self._at(step)}/state.json"


def _entry(state: Mapping[str, Any], name: str, key: str) -> tuple[int, str]:
    objects = state.get("objects")
    entry = objects.get(name) if isinstance(objects, dict) else None
    if isinstance(entry, dict):
        size, digest = entry.get("bytes"), entry.get("sha256")
        if type(size) is int and 0 <= size <= _MOST_BYTES and isinstance(digest, str):
            return size, digest[:_LONGEST_DIGEST]
    raise FormatError(f"{key}: does not say what its {name} are", hint=_AGAIN)


def _progressed(state: Mapping[str, Any], key: str) -> Progressed:
    try:
        looks = tuple(
            Look(int(each["step"]), float(each["kld"]), float(each["same_top"]))
            for each in state["looks"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{key}: its evaluations are none", hint=_AGAIN) from error
    return Progressed(int(state["step"]), looks)
