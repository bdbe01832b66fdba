"""The sentences that tell people how to read the table, the same in every rendering."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kldcloud.report.across_corpora import rank_warnings
from kldcloud.report.differences import comparisons
from kldcloud.report.engine_facts import dequantized_note, engine_note
from kldcloud.report.summary_shape import Summary
from kldcloud.report.table import CorpusTable


def how_to_read(summary: Summary, *, naive_error: bool = True) -> str:
    """One line: the unit, which KLD is which, and what each ± means.

    Args:
        summary: the run.
        naive_error: whether the table shows the ± of llama.cpp's KLD.
    """
    results = [measured.result for measured in summary.results if measured.result]
    sentences = [f"KLD in nats a token against the base, {_exactness(summary)}; lower is better."]
    llama = any(result.llama for result in results)
    if llama:
        sentences.append("Beside it, what llama.cpp prints (clamped at 16 nats).")
    if llama and naive_error:
        sentences.append(
            "There ± takes tokens as independent; elsewhere it is one standard error,"
            " cluster-robust by chunk."
        )
    else:
        sentences.append("± is one standard error, cluster-robust by chunk.")
    if summary.encoding == "kld":
        sentences.append(
            "PPL ratios are on the high side: the file floors what the base gave improbable tokens."
        )
    if comparisons(summary):
        sentences.append(
            "Ranks are by mean KLD, and ranges where paired differences cannot tell candidates"
            " apart (95 % confidence for all of a table together)."
        )
    if any(result.kld.mean.error is None for result in results):
        sentences.append("No ± where too few chunks give no error.")
    if any(result.same_top.error == 0 for result in results):
        sentences.append("No ± where all positions agree, which is no certainty for others.")
    if any(result.kld.quantiles == "histogram" for result in results):
        sentences.append("Quantiles come from a histogram, to 0.1 %.")
    return " ".join(sentences)


def _exactness(summary: Summary) -> str:
    """What the base stage's encoding leaves of exactness; see `kldcloud.divergence.codes_numba`."""
    if summary.encoding == "hidden":
        return "exact"
    if summary.encoding == "kld":
        return (
            "renormalised over tokens within 16 nats of its top, all that a base file keeps, with"
            " what is certain of the others"
        )
    return "exact, with all tokens 16 nats or more below its top taken as one"


def run_warnings(summary: Summary, shown: Callable[[str], str]) -> Iterator[str]:
    """Sentences that a table must not be read without.

    Args:
        summary: the run.
        shown: a name from outside, as the report may show it.
    """
    yield from rank_warnings(summary, shown)
    if note := engine_note(summary, shown):
        yield note
    if note := dequantized_note(summary, shown):
        yield note


def progress_note(summary: Summary) -> str | None:
    """How much of a partial run stands in the table; None for a complete one."""
    if summary.status == "complete":
        return None
    done = sum(measured.status == "complete" for measured in summary.results)
    wanted = len(summary.candidates) * len(summary.corpora)
    return f"Partial run: {done} of {wanted} measurements are complete."


def corpus_note(table: CorpusTable) -> str:
    """A corpus's size as people quote it: chunks, context, scored positions; and if it is chat."""
    corpus = table.corpus
    chunks = f"{corpus.chunks:,} chunk{'' if corpus.chunks == 1 else 's'}"
    size = f"{chunks} of {corpus.context:,} tokens, {corpus.scored:,} scored positions"
    if corpus.format == "chat":
        size += ", conversations in the base's chat template"
    return size
