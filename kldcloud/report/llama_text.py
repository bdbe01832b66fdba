"""The block that `llama-perplexity --kl-divergence` prints, line for line, from a summary."""

from __future__ import annotations

from collections.abc import Iterator

from kldcloud.errors import UserError
from kldcloud.report.escaping import printable
from kldcloud.report.known_names import check_known
from kldcloud.report.summary_shape import LlamaBlock, Measurement, Summary


def render_llama(summary: Summary, candidate: str | None = None, corpus: str | None = None) -> str:
    """Write llama.cpp's statistics block for each candidate and corpus that was measured.

    Args:
        summary: the run.
        candidate: only this candidate; None for all.
        corpus: only this corpus; None for all.

    Returns:
        One block alone, or several with a line before each that says whose it is; a candidate
        that failed has its cause in place of a block.

    Raises:
        UserError: no such candidate or corpus, or nothing of llama.cpp's kind was measured.
    """
    if candidate is not None:
        check_known("candidate", candidate, [known.name for known in summary.candidates])
    if corpus is not None:
        check_known("corpus", corpus, [known.name for known in summary.corpora])
    chosen = [
        measurement
        for measurement in summary.results
        if candidate in {None, measurement.candidate} and corpus in {None, measurement.corpus}
    ]
    if not any(measurement.result and measurement.result.llama for measurement in chosen):
        raise UserError(f"no llama.cpp statistics to print: {_why_none(summary, chosen)}")
    if len(chosen) == 1:
        return _text(chosen[0])
    return "\n".join(
        f"{printable(measurement.candidate)} on {printable(measurement.corpus)}:\n"
        f"{_text(measurement)}"
        for measurement in chosen
    )


def order_notes(summary: Summary, corpus: str | None = None) -> Iterator[str]:
    """What to know before the blocks are held against those of llama.cpp's own tool.

    Args:
        summary: the run.
        corpus: only this corpus; None for all.
    """
    for stop in summary.stops:
        if corpus in {None, stop.corpus} and stop.chunks < stop.of:
            yield (
                f"{printable(stop.corpus)}: {stop.chunks:,} chunks of {stop.of:,} in a "
                f"pseudo-random order; llama-perplexity --chunks {stop.chunks} takes others"
            )


def _text(measurement: Measurement) -> str:
    result = measurement.result
    if result is None:
        return f"failed: {printable(measurement.error or 'no cause recorded')}\n"
    if result.llama is None:
        return "measured without llama.cpp's statistics\n"
    return _block(result.llama, result.tokens)


def _block(llama: LlamaBlock, positions: int) -> str:
    from kldcloud.divergence.llama_statistics import LlamaStatistics, render_block

    plain = llama.model_dump(mode="json", by_alias=True)
    return render_block(LlamaStatistics.from_json_dict(plain, count=positions))


def _why_none(summary: Summary, chosen: list[Measurement]) -> str:
    if not summary.llama_compat:
        return "the run was made without them"
    failures = [measurement.error for measurement in chosen if measurement.status == "failed"]
    if failures and len(failures) == len(chosen):
        return f"failed: {printable(failures[0] or 'no cause recorded', limit=200)}"
    return "nothing that they need is complete yet"
