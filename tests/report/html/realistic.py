"""A realistic run drawn at random: eight quants of a large model on two texts, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.comparison import compare
from kldcloud.report.profile_shape import Profiles
from kldcloud.report.summary_file import Summary
from kldcloud.report.worst_shape import WorstOfRun
from tests.report.summaries import (
    CHANGE_QUANTILES,
    QUANTILES,
    as_summary,
    candidate,
    failed,
    llama_block,
    measured,
    result,
    summary_dict,
)

Floats = npt.NDArray[np.float64]

CHUNKS: Final = 120
ROWS: Final = 128
CONTEXT: Final = 256
SIZES: Final = {
    "Q8_0": (36.9, 0.0031),
    "UD-Q6_K_XL": (31.8, 0.0052),
    "Q5_K_M": (24.7, 0.0121),
    "UD-Q4_K_XL": (20.6, 0.0214),
    "Q4_K_M": (21.2, 0.0215),
    "IQ4_XS": (18.9, 0.0309),
    "UD-IQ3_XXS": (13.1, 0.0834),
    "Q2_K": (12.9, 0.171),
}
"""File size in GiB, mean KL divergence in nats."""
CORPORA: Final = {"wikitext-2": 1.0, "python-code": 0.62}
_QUANTILE_SHARES: Final = (0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1)


@dataclass(frozen=True, slots=True)
class Draws:
    """What was drawn of one candidate on one text: ``[chunks, rows]`` float64, in nats."""

    kld: Floats
    entropy: Floats


@cache
def draws(name: str, corpus: str) -> Draws:
    """Heavy-tailed divergences that follow the base's entropy, alike for all candidates."""
    place = list(CORPORA).index(corpus)
    shared = np.random.default_rng(7 + place)
    entropy = shared.gamma(1.3, 1.2, (CHUNKS, ROWS))
    common = shared.normal(0, 1.1, (CHUNKS, ROWS)) + shared.normal(0, 0.25, (CHUNKS, 1))
    own = np.random.default_rng([place, *name.encode()]).normal(0, 0.5, (CHUNKS, ROWS))
    late = np.linspace(0.15, -0.1, ROWS)
    kld = np.exp(common + own + late) * (0.05 + entropy)
    return Draws(kld * SIZES[name][1] * CORPORA[corpus] / kld.mean(), entropy)


def realistic_summary() -> Summary:
    """All eight on both texts."""
    return as_summary(realistic_dict())


def realistic_dict(*, failing: bool = False) -> dict[str, Any]:
    """The same as plain values; perhaps with a ninth candidate that failed."""
    shape = summary_dict()
    shape["run"] = "qwen3.5-35b-a3b-2f61c09be7d4"
    shape["name"] = "qwen3.5-35b-a3b"
    shape["engine"] = {
        "name": "llama.cpp",
        "version": "0.3.36 (llama-cpp-python)",
        "backend": "CUDA",
        "flash_attention": "on",
        "kv_type_k": "f16",
        "kv_type_v": "f16",
    }
    shape["encoding"] = "hidden"
    shape["base"] = model("Qwen3.5-35B-A3B-BF16", 64.6)
    shape["candidates"] = [
        {**model(name, gib), "file": f"/models/Qwen3.5-35B-A3B-{name}.gguf"}
        for name, (gib, _) in SIZES.items()
    ]
    shape["corpora"] = [text(name) for name in CORPORA]
    shape["results"] = [
        measured(name, corpus, drawn_result(draws(name, corpus)))
        for corpus in CORPORA
        for name in SIZES
    ]
    shape["comparisons"] = [comparison(corpus) for corpus in CORPORA]
    if failing:
        shape["status"] = "partial"
        shape["candidates"].append(candidate("TQ1_0", 8 * 2**30, 2.1))
        shape["results"] += [
            failed("TQ1_0", corpus, "TQ1_0.gguf: the file ends inside a tensor")
            for corpus in CORPORA
        ]
    return shape


def model(name: str, gib: float) -> dict[str, Any]:
    return {
        "name": name,
        "sha256": name.encode().hex().ljust(64, "0")[:64],
        "bytes": int(gib * 2**30),
        "parameters": 34_660_610_688,
        "bits_per_weight": gib * 2**33 / 34_660_610_688,
    }


def text(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "sha256": name.encode().hex().ljust(64, "0"),
        "tokens": CHUNKS * CONTEXT + 77,
        "context": CONTEXT,
        "chunks": CHUNKS,
        "scored": CHUNKS * ROWS,
    }


def drawn_result(drawn: Draws) -> dict[str, Any]:
    mean, error = mean_and_error(drawn.kld)
    spread = np.quantile(drawn.kld, _QUANTILE_SHARES).tolist()
    found = result(mean, error)
    found.update(chunks=CHUNKS, tokens=drawn.kld.size)
    found["kld"].update(zip(QUANTILES, spread, strict=True))
    found["llama"] = llama_block(mean * 0.998, error / 2)
    # Coarser quants guess the base's first token less often; the exact figures do not matter.
    found["same_top"].update(value=1 - 0.55 * mean**0.5, error=0.004 * mean**0.25)
    rms = 0.25 * mean**0.5
    changes = (np.linspace(-0.9, 0.9, 13) * rms).tolist()
    found["probability_change"].update(zip(CHANGE_QUANTILES, changes, strict=True))
    found["probability_change"]["rms"].update(value=rms, error=rms / 60)
    found["perplexity"]["ratio"].update(value=1 + mean * 0.4, error=error * 1.5)
    return found


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Of all tokens, and its standard error with whole chunks as the observations."""
    chunk_means = values.mean(axis=1)
    return float(values.mean()), float(chunk_means.std(ddof=1) / len(chunk_means) ** 0.5)


def comparison(corpus: str) -> dict[str, Any]:
    names = list(SIZES)
    means = np.stack([draws(name, corpus).kld.mean(axis=1) for name in names])
    found = compare(means, [ROWS] * CHUNKS)
    return {
        "corpus": corpus,
        "ranks": [
            {"candidate": names[at], "low": found.ranks[at].low, "high": found.ranks[at].high}
            for at in found.order
        ],
        "pairs_tested": len(found.pairs),
        "pairs": [
            {
                "better": names[pair.better],
                "worse": names[pair.worse],
                "difference": pair.value,
                "error": pair.error,
                "interval95": [pair.interval95.low, pair.interval95.high],
                "p": pair.p,
                "p_holm": pair.p_holm,
                "distinguishable": pair.distinguishable,
            }
            for pair in found.pairs
            if pair.interval95
        ],
    }


def realistic_profiles() -> Profiles:
    """What `draws` come to, cut into bins."""
    return Profiles.model_validate(
        {
            "schema": "kldcloud.profile/2",
            "run": realistic_dict()["run"],
            "profiles": [
                {
                    "candidate": name,
                    "corpus": corpus,
                    "curve": curve(draws(name, corpus).kld),
                    "by_position": by_position(draws(name, corpus).kld),
                    "by_confidence": by_confidence(draws(name, corpus)),
                    "by_class": by_class(draws(name, corpus).kld),
                }
                for corpus in CORPORA
                for name in SIZES
            ],
        }
    )


def realistic_worst() -> WorstOfRun:
    """The largest of `draws`, with a text that was made up around them."""
    return WorstOfRun.model_validate(
        {
            "schema": "kldcloud.worst/1",
            "run": realistic_dict()["run"],
            "worst": [
                {"candidate": name, "corpus": corpus, "positions": worst(draws(name, corpus))}
                for corpus in CORPORA
                for name in SIZES
            ],
        }
    )


def worst(drawn: Draws, many: int = 60) -> list[dict[str, Any]]:
    flat = np.argsort(-drawn.kld, axis=None, kind="stable")[:many]
    words = [" the", " quick", "\n", "\u202e", " brown", " fox"]
    found = []
    for rank, (chunk, row) in enumerate(zip(*np.unravel_index(flat, drawn.kld.shape), strict=True)):
        nearby = drawn.kld[chunk, max(row - 6, 0) : row]
        before = [[words[at % len(words)], float(kld)] for at, kld in enumerate(nearby)]
        found.append(
            {
                "chunk": int(chunk),
                "position": int(CONTEXT - ROWS + row),
                "kld": float(drawn.kld[chunk, row]),
                "entropy_base": float(drawn.entropy[chunk, row]),
                "token": f" word{rank}",
                "probability_base": 0.75,
                "probability": 0.00012,
                "before": [["<s>", None], *before],
                "after": [[" and", 0.02], [" so", 0.7]],
                "top_base": [[f" word{rank}", 0.75], [" dog", 0.1], ["\\xe2", 0.05]],
                "top": [[" cat", 0.5], [" dog", 0.2], ["\n", 0.0]],
            }
        )
    return found


def curve(kld: Floats) -> list[list[float]]:
    shares = np.concatenate([np.linspace(0, 0.9, 31), 1 - np.logspace(-1, -4, 25)[1:], [1.0]])
    return np.stack([shares, np.quantile(kld, shares)], axis=1).tolist()


def by_position(kld: Floats, bins: int = 16) -> list[dict[str, Any]]:
    width = ROWS // bins
    return [
        binned(CONTEXT - ROWS + at * width, CONTEXT - ROWS + (at + 1) * width, part)
        for at, part in enumerate(np.split(kld, bins, axis=1))
    ]


def by_confidence(drawn: Draws, bins: int = 12) -> list[dict[str, Any]]:
    edges = np.quantile(drawn.entropy, np.linspace(0, 1, bins + 1))
    edges[0] = 0
    found = []
    for at in range(bins):
        inside = (drawn.entropy >= edges[at]) & (drawn.entropy < edges[at + 1])
        last = at == bins - 1
        found.append(
            binned(edges[at], None if last else edges[at + 1], np.where(inside, drawn.kld, np.nan))
        )
    return found


def by_class(kld: Floats) -> list[dict[str, Any]]:
    names = ("space and letters", "letters", "digits", "punctuation", "white space", "special")
    found = []
    for at, name in enumerate(names):
        one = binned(at, at + 1, kld[:, at :: len(names)])
        found.append({"name": name, **{key: one[key] for key in ("tokens", "mean", "error")}})
    return found


def binned(low: float, high: float | None, values: Floats) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    chunk_means = np.nanmean(values, axis=1)
    chunk_means = chunk_means[~np.isnan(chunk_means)]
    return {
        "low": float(low),
        "high": None if high is None else float(high),
        "tokens": int(known.size),
        "mean": float(known.mean()),
        "error": float(chunk_means.std(ddof=1) / len(chunk_means) ** 0.5),
    }
