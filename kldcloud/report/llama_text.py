"""The block that `llama-perplexity --kl-divergence` prints, line for line, from a summary."""

from __future__ import annotations

from kldcloud.errors import UserError
from kldcloud.report.escaping import printable
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
    _check_name("candidate", candidate, [known.name for known in summary.candidates])
    _check_name("corpus", corpus, [known.name for known in summary.corpora])
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


def _check_name(kind: str, name: str | None, known: list[str]) -> None:
    if name is None or name in known:
        return
    names = ", ".join(printable(each, limit=80) for each in known[:20]) or "none"
    raise UserError(
        f'no {kind} "{printable(name, limit=80)}" in this run',
        hint=f"it has: {names}",
    )


def _why_none(summary: Summary, chosen: list[Measurement]) -> str:
    if not summary.llama_compat:
        return "the run was made without them"
    failures = [measurement.error for measurement in chosen if measurement.status == "failed"]
    if failures and len(failures) == len(chosen):
        return f"failed: {printable(failures[0] or 'no cause recorded', limit=200)}"
    return "nothing that they need is complete yet"
