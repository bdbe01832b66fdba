"""Trying out what a launch needs: engine, kernel, Ray, store, this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kldcloud.errors import KldcloudError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    subject: str
    ok: bool
    text: str


def check_all(store: str, cluster: str) -> Iterator[Finding]:
    """Try everything; a failure does not stop the rest."""
    for subject, attempt in (
        ("engine", _engine),
        ("transformers", _transformers),
        ("kernel", _kernel),
        ("cluster", lambda: _cluster(cluster)),
        ("store", lambda: _store(store)),
        ("cache", _cache),
    ):
        yield _tried(subject, attempt)


def _tried(subject: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, attempt())
    except KldcloudError as error:
        return Finding(subject, False, str(error))


def _engine() -> str:
    from kldcloud.models.amx import extra_buffers_work
    from kldcloud.models.llama_library import build_facts

    facts = build_facts()
    devices = f" ({facts['devices']})" if "devices" in facts else ""
    found = f"{facts['version']}, {facts['backend']}{devices}, {facts['instructions']}"
    if not extra_buffers_work():
        found += (
            " (without AMX and repacked weights: the compiler of this build breaks them;"
            " GCC 12.4, 13.3, 14 and later do not)"
        )
    return found


def _transformers() -> str:
    from kldcloud.models.transformers_library import (
        cpu_instructions,
        cuda_device,
        library_versions,
    )

    found = library_versions()
    if not {"torch", "transformers"} <= found.keys():
        return "not installed: models in safetensors need pip install 'kldcloud[hf]'"
    device = cuda_device() or f"CPU ({cpu_instructions()})"
    return f"{found['transformers']}, torch {found['torch']}, {device}"


def _kernel() -> str:
    from kldcloud.divergence.kernel import implementation

    module = implementation().__name__.rsplit(".", 1)[1]
    if module == "row_numpy":
        return "numpy (numba is missing: correct, about ten times slower)"
    return "numba"


def _cluster(name: str) -> str:
    from kldcloud.clusters.local_ray import local_ray
    from kldcloud.spec.cluster import load_cluster

    spec = load_cluster(name)
    if spec.remote:
        from kldcloud.clusters.prices import quote

        found = quote(spec.resources, spec.nodes)
        found.require_enabled()
        best = found.offers[0]
        words = [best.infra, best.instance, best.accelerators, "spot" if best.spot else ""]
        cost = f"${best.hourly:,.2f} an hour each" if best.hourly else "nothing by the hour"
        return f"{spec.nodes} x {' '.join(filter(None, words))}, {cost}"
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    with local_ray(1):
        pass
    return f"{spec.provider}, {cores} cores, {memory:.1f} GiB free, Ray starts and ends"


def _store(uri: str) -> str:
    from kldcloud.errors import StoreError
    from kldcloud.store import open_store

    kept = open_store(uri)
    probe = kept.probe()
    text = f"{kept.uri}: {'; '.join(probe.findings)}"
    if not probe.ok:
        raise StoreError(text, hint="use another store")
    return text


def _cache() -> str:
    from kldcloud.errors import StoreError
    from kldcloud.models.cache import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        raise StoreError(
            f"{folder}: {error.strerror}", hint="set KLDCLOUD_CACHE to a folder that can be written"
        ) from error
    return f"{folder}, {free:.1f} GiB free"
