"""A realistic summary built in code: two candidates of a small model on one short corpus."""

from __future__ import annotations

import json
from typing import Any

from kldcloud.report.summary_file import Summary, parse_summary

QUANTILES = (
    "minimum",
    "p0.1",
    "p1",
    "p5",
    "p10",
    "median",
    "p90",
    "p95",
    "p99",
    "p99.9",
    "maximum",
)
CHANGE_QUANTILES = (*QUANTILES[:5], "p25", "median", "p75", *QUANTILES[6:])


def estimate(value: float | None, error: float | None = None) -> dict[str, Any]:
    """An estimate whose naive error is half of the cluster-robust one, as it often is."""
    known = value is not None and error is not None
    return {
        "value": value,
        "error_naive": None if error is None else error / 2,
        "error": error,
        "interval95": [value - 1.96 * error, value + 1.96 * error] if known else None,
    }


def llama_block(mean: float, error: float) -> dict[str, Any]:
    return {
        "ppl_q": [15.5, 0.2],
        "ppl_base": [14.9176, 0.19],
        "ln_ppl_correlation": 0.9912,
        "ln_ppl_ratio": [0.0383, 0.0016],
        "ppl_ratio": [1.039, 0.0017],
        "ppl_difference": [0.5824, 0.0262],
        "kld_mean": [mean, error],
        "kld": dict(zip(QUANTILES, spread(mean), strict=True)),
        "dp_mean": [-0.004, 0.0003],
        "dp": dict(zip(CHANGE_QUANTILES, change_spread(), strict=True)),
        "dp_rms": [0.0583, 0.0005],
        "same_top": [0.8862, 0.0013],
    }


def spread(mean: float) -> list[float]:
    """KLD quantiles in the proportions that quantised models show."""
    shares = (-1e-6, 1e-5, 2e-4, 0.002, 0.01, 0.35, 2.4, 3.7, 8.9, 24.0, 96.0)
    return [mean * share for share in shares]


def change_spread() -> list[float]:
    return [-0.9, -0.4, -0.19, -0.1, -0.06, -0.013, -1e-4, 0.007, 0.04, 0.08, 0.17, 0.39, 0.92]


def result(mean: float, error: float | None, *, llama: bool = True) -> dict[str, Any]:
    naive = 0.0 if error is None else error / 2
    return {
        "chunks": 220,
        "tokens": 56100,
        "kld": {
            "mean": estimate(mean, error),
            **dict(zip(QUANTILES, spread(mean), strict=True)),
            "quantiles": "exact",
        },
        "reverse_kld": {"mean": estimate(mean * 1.1, error)},
        "entropy_base": {"mean": estimate(2.31, error and 0.02)},
        "perplexity": {
            "candidate": estimate(15.5, error and 0.41),
            "base": estimate(14.9315, error and 0.38),
            "ratio": estimate(1.03812, error and 0.0034),
            "log_ratio": estimate(0.0374, error and 0.0033),
            "difference": estimate(0.5685, error and 0.05),
            "correlation": 0.9912,
        },
        "probability_change": {
            "mean": estimate(-0.004, error and 0.0006),
            "rms": estimate(0.0583, error and 0.0011),
            **dict(zip(CHANGE_QUANTILES, change_spread(), strict=True)),
            "quantiles": "exact",
        },
        "same_top": estimate(0.88617, error and 0.0026),
        "llama": llama_block(mean * 0.998, naive) if llama else None,
    }


def candidate(name: str, size: int, bits: float) -> dict[str, Any]:
    return {
        "name": name,
        "file": f"/data/models/smollm2-135m-{name.lower()}.gguf",
        "sha256": name.lower().encode().hex().ljust(64, "0"),
        "bytes": size,
        "parameters": 134515008,
        "bits_per_weight": bits,
    }


def measured(name: str, corpus: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "candidate": name,
        "corpus": corpus,
        "status": "complete",
        "error": None,
        "result": found,
    }


def failed(name: str, corpus: str, cause: str) -> dict[str, Any]:
    return {
        "candidate": name,
        "corpus": corpus,
        "status": "failed",
        "error": cause,
        "result": None,
    }


def corpus(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "sha256": "c0" * 32,
        "tokens": 112900,
        "context": 512,
        "chunks": 220,
        "scored": 56100,
    }


def compared(name: str, better: str, worse: str, difference: float, p: float) -> dict[str, Any]:
    """Two candidates on one corpus; told apart where p says so."""
    apart = p <= 0.05
    error = difference / 3
    return {
        "corpus": name,
        "ranks": [
            {"candidate": better, "low": 1, "high": 1 if apart else 2},
            {"candidate": worse, "low": 2 if apart else 1, "high": 2},
        ],
        "pairs_tested": 1,
        "pairs": [
            {
                "better": better,
                "worse": worse,
                "difference": difference,
                "error": error,
                "interval95": [difference - 1.96 * error, difference + 1.96 * error],
                "p": p,
                "p_holm": p,
                "distinguishable": apart,
            }
        ],
    }


def summary_dict() -> dict[str, Any]:
    """A complete run: Q8_0 and Q4_K_M on one corpus, with llama.cpp's statistics."""
    return {
        "schema": "kldcloud.summary/2",
        "run": "3f9ac1d2e4b5",
        "name": "smollm2-requantised",
        "status": "complete",
        "kldcloud": "0.1.0",
        "engine": {
            "name": "llama.cpp",
            "version": "0.3.36",
            "backend": "CPU",
            "flash_attention": "on",
        },
        "encoding": "logits",
        "llama_compat": True,
        "base": {
            "name": "smollm2-f16",
            "sha256": "ba5e" * 16,
            "bytes": 270885568,
            "parameters": 134515008,
            "bits_per_weight": 16.01,
        },
        "corpora": [corpus("pydoc")],
        "candidates": [candidate("Q8_0", 144811008, 8.51), candidate("Q4_K_M", 105454400, 6.27)],
        "results": [
            measured("Q8_0", "pydoc", result(0.004065, 0.000061)),
            measured("Q4_K_M", "pydoc", result(0.053735, 0.00081)),
        ],
        "comparisons": [compared("pydoc", "Q8_0", "Q4_K_M", 0.04967, 1e-9)],
    }


def rename(shape: dict[str, Any], old: str, new: str) -> None:
    """Call a candidate, or a corpus, something else wherever the summary names it."""

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return new if value == old else value

    for field in ("corpora", "candidates", "results", "comparisons"):
        shape[field] = renamed(shape[field])


def as_summary(shape: dict[str, Any]) -> Summary:
    return parse_summary(json.dumps(shape).encode())
