"""What a distillation's report says of the training: which candidate, from where, how it went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from kldcloud.qad.looks import Look
from kldcloud.qad.result_file import QadResult
from kldcloud.report.rounding import MISSING, kld_figure

HEADINGS: Final = ("step", "held-out KLD", "same top %")
"""Of the rows of `look_rows`."""
_MOST_ROWS: Final = 20
_MOST_TEXTS: Final = 20
TEXT_SHOWN: Final = 400


def training_sentences(result: QadResult, quoted: Callable[[str], str]) -> Iterator[str]:
    """What was trained and what it was worth, a sentence each.

    Args:
        result: of the distillation.
        quoted: writes a name or a sentence from outside, of `TEXT_SHOWN` characters at most.
    """
    if not result.student:
        yield (
            f"Nothing was trained: {quoted(result.init)} loses less on held-out text than"
            " train.skip_below."
        )
        return
    trained = (
        f"{quoted(result.student)} is {quoted(result.init)} after {result.steps:,} steps of"
        f" distillation from {quoted(result.teacher)}, {result.tokens:,} tokens"
    )
    best = result.chosen
    yield f"{trained}; its file is that of step {best.step:,}." if best else f"{trained}."
    for line in result.verdict[:_MOST_TEXTS]:
        yield quoted(line)
    if result.failed is not None:
        yield f"Failed: {quoted(result.failed)}."


def look_rows(result: QadResult) -> list[tuple[str, str, str]]:
    """The looks on the way as figures; of very many, some, among them the first, last and best."""
    return [
        (f"{each.step:,}", kld_figure(each.kld), _percent(each.same_top))
        for each in _shown(result.looks, result.chosen)
    ]


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.2f}"


def _shown(looks: Sequence[Look], best: Look | None) -> Sequence[Look]:
    if len(looks) <= _MOST_ROWS:
        return looks
    last = len(looks) - 1
    at = {round(last * place / (_MOST_ROWS - 1)) for place in range(_MOST_ROWS)}
    return [look for place, look in enumerate(looks) if place in at or look is best]
