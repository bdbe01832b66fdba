"""What distillation was worth: the student beside its init, on text that neither has seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kldcloud.errors import EngineError, KldcloudError
from kldcloud.report.differences import comparisons, find_pair
from kldcloud.report.summary_shape import Pair, Result, Summary

HELD_OUT: Final = "held-out"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a job.

    Attributes:
        lines: for people, one a text.
        failed: why the file is no better than what it started from; None if it is.
    """

    lines: tuple[str, ...]
    failed: KldcloudError | None


def verdict_of(summary: Summary, init: str, student: str | None) -> Verdict:
    """Compare a student with its init.

    Args:
        summary: of the sweep that measured both.
        init: the candidate that it started from.
        student: the candidate that was trained; None if nothing was.
    """
    if student is None:
        return Verdict((), None)
    lines = tuple(_lines(summary, init, student))
    return Verdict(lines, _failure(summary, init, student))


def _lines(summary: Summary, init: str, student: str) -> Iterator[str]:
    for corpus in summary.corpora:
        before = _result(summary, corpus.name, init)
        after = _result(summary, corpus.name, student)
        if before is None or after is None:
            continue
        old, new = before.kld.mean.value, after.kld.mean.value
        tops = before.same_top.value, after.same_top.value
        if old is None or new is None or tops[0] is None or tops[1] is None:
            continue
        told = f"{corpus.name}: KLD {new:.4f} against {old:.4f} of {init}"
        if old > 0:
            told += f" ({(new - old) / old:+.1%})"
        told += f", same top {tops[1]:.1%} against {tops[0]:.1%}"
        yield told + _interval(summary, corpus.name, init, student)


def _interval(summary: Summary, corpus: str, init: str, student: str) -> str:
    pair = _pair(summary, corpus, init, student)
    if pair is None or pair.interval95 is None:
        return ""
    low, high = pair.interval95
    if low is None or high is None:
        return ""
    if not pair.distinguishable:
        return "; not distinguishable"
    better = "better" if pair.better == student else "worse"
    return f"; {better} by {low:.4f} to {high:.4f} nats (95 %)"


def _failure(summary: Summary, init: str, student: str) -> KldcloudError | None:
    hint = "the file is kept; try more training text, or another train.lr"
    pair = _pair(summary, HELD_OUT, init, student)
    if pair is None:
        return EngineError(f"{student} was not compared with {init} on held-out text", hint=hint)
    if not pair.distinguishable:
        return EngineError(
            f"{student} is not distinguishable from {init} on held-out text",
            hint=f"{hint}, or measure more of it (eval.heldout_chunks)",
        )
    if pair.better != student:
        return EngineError(f"{student} is worse than {init} on held-out text", hint=hint)
    return None


def _pair(summary: Summary, corpus: str, init: str, student: str) -> Pair | None:
    comparison = comparisons(summary).get(corpus)
    return None if comparison is None else find_pair(comparison, init, student)


def _result(summary: Summary, corpus: str, candidate: str) -> Result | None:
    return next(
        (
            each.result
            for each in summary.results
            if (each.corpus, each.candidate) == (corpus, candidate)
        ),
        None,
    )
