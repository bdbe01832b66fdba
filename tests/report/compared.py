"""Summaries whose comparisons are computed: candidates at given levels on synthetic chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kldcloud.divergence.summary import ChunkMeans
from kldcloud.pipeline.facts import comparison_facts

from .summaries import candidate, corpus, measured, result, summary_dict

CHUNKS = 40
ROWS = 255


def chunk_means(levels: Sequence[float], *, noise: float, seed: int = 1) -> Any:
    """``[candidates, chunks]``: what a chunk does to all alike is larger than their own noise."""
    random = np.random.default_rng(seed)
    shared = random.gamma(4.0, 0.005, CHUNKS)
    return np.array(levels)[:, None] + shared + random.normal(0, noise, (len(levels), CHUNKS))


def comparison(name: str, candidates: Sequence[str], means: Any) -> dict[str, Any]:
    """As a run's summary says it."""
    sizes = (ROWS,) * means.shape[1]
    rows = zip(candidates, means, strict=True)
    return comparison_facts(name, {each: ChunkMeans(sizes, row) for each, row in rows})


def compared_run(corpora: Mapping[str, Mapping[str, float]], *, noise: float = 2e-4) -> Any:
    """A run in which each candidate has its level on each corpus.

    Args:
        corpora: corpus -> candidate -> mean KL divergence, before what chunks add.
        noise: of a candidate's chunks, in nats.
    """
    names = list(dict.fromkeys(name for levels in corpora.values() for name in levels))
    shape = summary_dict()
    shape["candidates"] = [candidate(name, 100_000_000, 6.0) for name in names]
    shape["corpora"] = [
        {**corpus(name), "sha256": f"{0xC0 + at:02x}" * 32} for at, name in enumerate(corpora)
    ]
    shape["results"], shape["comparisons"] = [], []
    for at, (name, levels) in enumerate(corpora.items()):
        means = chunk_means(list(levels.values()), noise=noise, seed=at)
        for each, row in zip(levels, means, strict=True):
            error = float(row.std(ddof=1) / np.sqrt(CHUNKS))
            shape["results"].append(measured(each, name, result(float(row.mean()), error)))
        shape["comparisons"].append(comparison(name, list(levels), means))
    return shape
