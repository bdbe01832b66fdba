"""A section for a Hugging Face model card: the results as metadata, and as tables below it.

The metadata is the `model-index` of the Hub's model cards
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kldcloud.errors import UserError
from kldcloud.report.across_corpora import MACRO, macro_note, macro_rows
from kldcloud.report.corpus_notes import corpus_notes
from kldcloud.report.differences import comparisons, undecided_note
from kldcloud.report.escaping import printable
from kldcloud.report.markdown_tables import NAME_SHOWN, code_name, corpus_lines, macro_lines
from kldcloud.report.reading import corpus_note, how_to_read, progress_note, run_warnings
from kldcloud.report.summary_shape import Candidate, Corpus, Estimate, Result, Summary
from kldcloud.report.table import corpus_tables

_FENCE: Final = "---"


def render_hf_card(summary: Summary) -> str:
    """Write a model card's metadata and its section on KL divergence.

    One model of the index holds all candidates, as one repository on the Hub does: the Hub's own
    library keeps one model a card, and tells metrics apart by their names.

    Returns:
        YAML between two lines of dashes, then Markdown; ends in one newline. To extend a card that
        there is, put `model-index` beside the keys at its top, and the rest where it belongs.

    Raises:
        UserError: nothing was measured, so there is no result to put on a card.
    """
    index = _model_index(summary)
    if not index["results"]:
        raise UserError("no results for a model card: nothing is complete yet")
    metadata = _yaml({"model-index": [index]})
    return "\n".join([_FENCE, f"{metadata}{_FENCE}", "", *_section(summary)]) + "\n"


def _model_index(summary: Summary) -> dict[str, Any]:
    found = {(each.candidate, each.corpus): each.result for each in summary.results}
    results = []
    for corpus in summary.corpora:
        metrics = [
            metric
            for candidate in summary.candidates
            if (result := found.get((candidate.name, corpus.name))) is not None
            for metric in _metrics(candidate, result)
        ]
        if metrics:
            results.append(
                {
                    "task": {"type": "text-generation", "name": "Text Generation"},
                    "dataset": _dataset(corpus),
                    "metrics": metrics,
                }
            )
    return {"name": _Name(summary.name), "results": results}


def _dataset(corpus: Corpus) -> dict[str, Any]:
    facts: dict[str, Any] = {"context": corpus.context, "chunks": corpus.chunks}
    if corpus.sha256 is not None:
        facts["sha256"] = _Name(corpus.sha256)
    return {"name": _Name(corpus.name), "type": _Name(corpus.name), "args": facts}


def _metrics(candidate: Candidate, result: Result) -> Iterator[dict[str, Any]]:
    """What the Hub can show as a number; a number that does not exist is left out."""
    estimates = (
        ("kl_divergence", "mean KL divergence in nats", result.kld.mean),
        ("top_1_agreement", "share of positions with the base's top token", result.same_top),
        ("perplexity", "perplexity", result.perplexity.candidate),
    )
    for kind, words, estimate in estimates:
        if estimate.value is not None:
            yield {
                "type": kind,
                "value": estimate.value,
                "name": _Name(f"{words}, {candidate.name}"),
                "args": _circumstances(candidate, estimate),
            }


def _circumstances(candidate: Candidate, estimate: Estimate) -> dict[str, Any]:
    facts: dict[str, Any] = {"candidate": _Name(candidate.name)}
    if candidate.sha256 is not None:
        facts["sha256"] = _Name(candidate.sha256)
    if estimate.error is not None:
        facts["standard_error"] = estimate.error
    return facts


def _section(summary: Summary) -> Iterator[str]:
    yield f"## KL divergence from {code_name(summary.base.name)}"
    yield ""
    if note := progress_note(summary):
        yield f"**{note}**"
        yield ""
    compared = comparisons(summary)
    for table in corpus_tables(summary):
        yield f"### On {code_name(table.corpus.name)}, {corpus_note(table)}"
        yield ""
        yield from corpus_lines(table)
        yield ""
        for note in corpus_notes(summary, table.corpus.name, code_name):
            yield note
            yield ""
        comparison = compared.get(table.corpus.name)
        if comparison and (open_pairs := undecided_note(comparison, code_name)):
            yield open_pairs
            yield ""
    if rows := macro_rows(summary):
        yield f"### {MACRO.capitalize()} {macro_note(summary)}"
        yield ""
        yield from macro_lines(rows)
        yield ""
    for warning in run_warnings(summary, code_name):
        yield f"**{warning}**"
        yield ""
    yield how_to_read(summary)
    yield ""
    engine = (summary.engine.get(key) for key in ("name", "version", "backend"))
    made_with = [code_name(fact) for fact in engine if fact]
    yield f"Measured with {', '.join([f'kldcloud {code_name(summary.kldcloud)}', *made_with])}."


class _Name(str):
    """Text from outside: a string in every version of YAML, whatever it looks like."""

    __slots__ = ()


def _yaml(metadata: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def quoted(dumper: yaml.SafeDumper, name: _Name) -> yaml.ScalarNode:
        text = printable(name, limit=NAME_SHOWN)
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')

    Dumper.add_representer(_Name, quoted)
    # No line is folded, so none can look like the dashes that end the metadata.
    text: str = yaml.dump(metadata, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1e9)
    return text
