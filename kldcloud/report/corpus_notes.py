"""What to know of a corpus beside its table: the noise floor, and whether the run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kldcloud.report.rounding import Measured, kld_with_error
from kldcloud.report.summary_shape import NoiseFloor, Stop, Summary

Quote = Callable[[str], str]
"""Makes a stranger's name safe to print."""


def corpus_notes(summary: Summary, corpus: str, quote: Quote) -> Iterator[str]:
    """Sentences about one corpus, the most important first.

    Args:
        summary: the run.
        corpus: which.
        quote: for names and causes.
    """
    for stop in summary.stops:
        if stop.corpus == corpus:
            yield _stopped(stop, quote)
    for floor in summary.noise_floor:
        if floor.corpus == corpus:
            yield _floor(floor, quote)


def _stopped(stop: Stop, quote: Quote) -> str:
    """How far the run went, and what that settles."""
    what = "The ranking" if stop.when == "ranked" else "Every mean"
    if stop.when == "precise" and stop.half_width is not None:
        what += f" to {100 * stop.half_width:g} %"
    sure = f"with {100 * stop.confidence:g} % confidence whenever one stops"
    # Runs that are compared with one another may all have stopped, each for its own candidates.
    by = f"all {stop.of:,}" if stop.chunks == stop.of else f"{stop.chunks:,} of {stop.of:,}"
    if stop.settled and stop.chunks == stop.of:
        return f"{what} is settled {sure} by {by} chunks."
    if stop.settled:
        return (
            f"{what} is settled {sure}: stopped after {by} chunks, taken in a pseudo-random order; "
            f"{100 * stop.saved:.0f} % saved."
        )
    text = f"{what} is not settled {sure} by {by} chunks"
    if stop.when == "ranked" and stop.undecided:
        better, worse = stop.undecided[0]
        text += f": undecided are {quote(better)} and {quote(worse)}"
        others = len(stop.undecided) - 1
        text += f" and {others} more pairs" if others > 1 else " and one more pair" * others
    return f"{text}."


def _floor(floor: NoiseFloor, quote: Quote) -> str:
    """What the base comes to against itself."""
    if floor.mean is None:
        cause = quote(floor.error or "no cause recorded")
        return f"The base could not be measured against itself: {cause}."
    mean = kld_with_error(Measured(floor.mean.value, floor.mean.error))
    return f"Noise floor, the base measured against itself: mean KLD {mean}."
