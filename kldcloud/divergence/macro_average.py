"""The macro average of a statistic: every corpus counts alike, however long it is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MacroAverage:
    """A mean over corpora, in the unit of what was averaged.

    Attributes:
        value: the mean, each corpus with the weight 1 / C.
        error: its standard error; None where one of the corpora has none.
    """

    value: float
    error: float | None


def macro_average(
    values: Sequence[float], errors: Sequence[float | None], texts: Sequence[Hashable] | None = None
) -> MacroAverage:
    """Average one statistic over C corpora.

    Corpora of different texts are independent samples, so the variances of their estimates add:
    ``sqrt(sum_c error_c**2) / C``. Those of one text, cut in other ways, go up and down together:
    their errors add as they are, which is the most that they can come to.

    Args:
        values: one a corpus, at least one.
        errors: their standard errors, in the same order.
        texts: what each corpus is cut from; None if all from different texts.
    """
    count = len(values)
    by_text: dict[Hashable, list[float]] = {}
    for error, text in zip(errors, range(count) if texts is None else texts, strict=True):
        if error is None:
            return MacroAverage(math.fsum(values) / count, None)
        by_text.setdefault(text, []).append(error)
    # hypot, for the squares of tiny errors would underflow.
    error = math.hypot(*(math.fsum(each) for each in by_text.values())) / count
    return MacroAverage(math.fsum(values) / count, error)
