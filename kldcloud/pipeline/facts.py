"""Comparisons and profiles as summary.json and profile.json say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from kldcloud.corpus.token_texts import TOKEN_CLASSES
from kldcloud.divergence.comparison import compare
from kldcloud.divergence.estimates import finite
from kldcloud.divergence.profile import CURVE_SHARES, BinnedMean, Profile
from kldcloud.divergence.sequential import Decision, Rule
from kldcloud.divergence.summary import ChunkMeans, Reduction
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.report.summary_shape import Stop
from kldcloud.spec.stop import StopSpec

MOST_FULLY_PAIRED: Final = 64
"""Candidates: of more, the summary keeps neighbours' pairs alone, though all are tested."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """How measuring a corpus ended that may be left before its end.

    Attributes:
        decision: the last one.
        candidates: names of those it is about, in its order of indices.
    """

    decision: Decision
    candidates: tuple[str, ...]


NOT_STOPPED: Mapping[str, Stopped] = MappingProxyType({})


def rule_of(stop: StopSpec | Stop) -> Rule:
    """When to stop, as a job or a summary says it."""
    return Rule(stop.when, stop.half_width, stop.confidence, stop.least)


def stop_facts(corpus: str, stopped: Stopped) -> dict[str, Any]:
    """How far a run went on one corpus, and what that settles."""
    return {"corpus": corpus, **stopped.decision.to_json_dict(stopped.candidates)}


def comparison_facts(
    corpus: str, measured: Mapping[str, ChunkMeans], stopped: Stopped | None = None
) -> dict[str, Any]:
    """The comparison of all candidates that were measured on one corpus.

    Args:
        corpus: its name.
        measured: of candidates by name.
        stopped: how measuring ended if it may end early: then its decision has the comparison,
            which allows for the looks that were taken before.
    """
    if stopped is not None:
        names, comparison = list(stopped.candidates), stopped.decision.comparison
    else:
        names = list(measured)
        comparison = compare(
            np.stack([each.means for each in measured.values()]), measured[names[0]].sizes
        )
    pairs = comparison.pairs
    if len(names) > MOST_FULLY_PAIRED:
        pairs = tuple(comparison.neighbours())
    return {
        "corpus": corpus,
        "ranks": [
            {"candidate": names[at], **asdict(comparison.ranks[at])} for at in comparison.order
        ],
        "pairs_tested": len(comparison.pairs),
        "pairs": [
            {
                "better": names[pair.better],
                "worse": names[pair.worse],
                "difference": pair.value,
                "error": pair.error,
                "interval95": pair.interval95 and astuple(pair.interval95),
                "p": pair.p,
                "p_holm": pair.p_holm,
                "distinguishable": pair.distinguishable,
            }
            for pair in pairs
        ],
    }


def floor_facts(
    corpus: str, reduction: Reduction | None, error: str | None, level: float | None = None
) -> dict[str, Any]:
    """The base against itself on one corpus; the error instead, if that failed.

    Args:
        corpus: its name.
        reduction: what was measured.
        error: why there is nothing.
        level: of intervals, where the run may have stopped early; see `Reduction.result`.
    """
    if reduction is None:
        empty = dict.fromkeys(("mean", "p99.9", "maximum", "same_top"))
        return {"corpus": corpus, "error": error, "tokens": 0, **empty}
    found = reduction.result(level=level)
    return {
        "corpus": corpus,
        "error": None,
        "tokens": found.tokens,
        "mean": found.kld_mean.to_json_dict(),
        "p99.9": finite(found.kld_quantiles.values["p99.9"]),
        "maximum": finite(found.kld_quantiles.values["maximum"]),
        "same_top": found.same_top.to_json_dict(),
    }


def profile_facts(
    candidate: str, corpus: ChunkedCorpus, reduction: Reduction, profile: Profile
) -> dict[str, Any]:
    """Where one candidate's divergence lies on one corpus."""
    return {
        "candidate": candidate,
        "corpus": corpus.name,
        "curve": list(zip(CURVE_SHARES, reduction.kld_curve(CURVE_SHARES), strict=True)),
        "by_position": _bins(profile.by_position()),
        "by_confidence": _bins(profile.by_confidence()),
        "by_class": [
            {"name": name, **{key: bin_[key] for key in ("tokens", "mean", "error")}}
            for name, bin_ in zip(TOKEN_CLASSES, _bins(profile.by_class()), strict=True)
        ],
    }


def _bins(found: Sequence[BinnedMean]) -> list[dict[str, Any]]:
    return [
        {key: finite(value) if isinstance(value, float) else value for key, value in bin_.items()}
        for bin_ in map(asdict, found)
    ]
