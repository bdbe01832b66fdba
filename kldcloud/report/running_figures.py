"""How numbers of work under way read: shares, lengths of time, running means."""

from __future__ import annotations

from typing import Final

from kldcloud.report.rounding import Measured, kld_with_error
from kldcloud.report.table import percent_figure
from kldcloud.status.progress import ResultStatus

_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def of_total(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


def span(seconds: float) -> str:
    """A length of time to two units at most."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:02.0f} min"
    return f"{seconds // _DAY:,.0f} d {seconds % _DAY // _HOUR:.0f} h"


def mean_figure(result: ResultStatus) -> str:
    """The mean KL divergence so far, in nats."""
    return kld_with_error(Measured(result.kld, result.error))


def top_figure(result: ResultStatus) -> str:
    """The share of positions with the base's top token so far, in per cent."""
    return percent_figure(Measured(result.same_top, result.same_top_error).scaled(100))
