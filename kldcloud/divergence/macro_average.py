"""The macro average of a statistic: every corpus counts alike, however long it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def macro_average(values: Sequence[float], errors: Sequence[float | None]) -> MacroAverage:
    """Average one statistic over C corpora.

    Corpora are independent samples, so the variances of their estimates add:
    ``sqrt(sum_c error_c**2) / C``.

    Args:
        values: one a corpus, at least one.
        errors: their standard errors, in the same order.
    """
    count = len(values)
    known = [error for error in errors if error is not None]
    # hypot, for the squares of tiny errors would underflow.
    error = math.hypot(*known) / count if len(known) == count else None
    return MacroAverage(math.fsum(values) / count, error)
