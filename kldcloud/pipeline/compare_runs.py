"""Candidates of several runs held against each other, where the runs measured alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np

from kldcloud.divergence.sequential import decide
from kldcloud.divergence.summary import ChunkMeans
from kldcloud.errors import FormatError, UserError
from kldcloud.pipeline.facts import Stopped, comparison_facts, rule_of, stop_facts
from kldcloud.pipeline.measured_chunks import Pair, measured_chunks
from kldcloud.pipeline.runs import FoundRun, read_summary
from kldcloud.report.compared import ComparedRuns
from kldcloud.report.escaping import printable
from kldcloud.report.known_names import check_known
from kldcloud.report.summary_file import SCHEMA, dump_summary, parse_summary
from kldcloud.report.summary_shape import Candidate, Measurement, Stop, Summary
from kldcloud.staging.stage import MAX_CHUNKS
from kldcloud.status.run_files import read_plan_note

_VALUE_SHOWN: Final = 80
_ALIKE: Final = "only what was measured alike can be compared"


@dataclass(frozen=True, slots=True)
class _Run:
    """A run, what it says of itself, and the keys of its base stages by corpus."""

    found: FoundRun
    summary: Summary
    stages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Difference:
    """A field, in words, that two runs do not have in common, and its values."""

    what: str
    one: object
    other: object


@dataclass(slots=True)
class _Entry:
    """A candidate, and every measurement that there is of it.

    Attributes:
        candidate: as its first run has it.
        engine: what differs in its engine from the base's, as the runs have it.
        sources: (run, candidate's name there), in the runs' order.
    """

    candidate: Candidate
    engine: Mapping[str, str]
    sources: list[tuple[_Run, str]] = field(default_factory=list)


def compare_runs(runs: Sequence[FoundRun], corpus: str | None = None) -> ComparedRuns:
    """Compare all candidates of some runs, on the same tokens.

    The same file in two runs is one candidate; its first measurement counts. Files of one name
    that differ are told apart by their run's id.

    Args:
        runs: at least one; one that is named twice counts once.
        corpus: only this one; None for all, which the runs must then share.

    Raises:
        UserError: the runs did not measure alike; the message names the field.
        FormatError: what a run left in its store is damaged.
    """
    distinct = {(found.store.uri, found.run): found for found in runs}
    opened = [_open(found, corpus) for found in distinct.values()]
    for first, other in pairwise(opened):
        _refuse(first, other, _of_models(first, other), _ALIKE)
        one_text = "" if corpus else "; --corpus names one that they share"
        _refuse(first, other, _of_texts(first, other), f"{_ALIKE}{one_text}")
    entries = _entries(opened)
    names = _names(entries)
    facts = _combined(opened, entries, names)
    summary = parse_summary(dump_summary(facts))
    origins = {
        name: entry.sources[0][0].found.run for name, entry in zip(names, entries, strict=True)
    }
    return ComparedRuns(tuple(each.found.run for each in opened), origins, summary)


def _open(found: FoundRun, corpus: str | None) -> _Run:
    summary = read_summary(found)
    plan = read_plan_note(found.store, found.run)
    if corpus is not None:
        check_known("corpus", corpus, [each.name for each in summary.corpora])
        kept = tuple(each for each in summary.corpora if each.name == corpus)
        summary = summary.model_copy(update={"corpora": kept})
    return _Run(found, summary, plan.stages if plan else {})


def _refuse(first: _Run, other: _Run, differences: Iterator[_Difference], hint: str) -> None:
    for each in differences:
        raise UserError(
            f"runs {first.found.run} and {other.found.run} differ in {each.what}:"
            f" {_shown(each.one)}, {_shown(each.other)}",
            hint=hint,
        )


def _of_models(first: _Run, other: _Run) -> Iterator[_Difference]:
    """What makes two runs incomparable, whatever their texts are."""
    one, two = first.summary, other.summary
    if one.base.sha256 != two.base.sha256 or one.base.sha256 is None:
        yield _Difference("the base's sha256", one.base.sha256, two.base.sha256)
    for key in sorted({*one.engine, *two.engine}):
        if one.engine.get(key) != two.engine.get(key):
            name = f"the engine's {_shown(key)}"
            yield _Difference(name, one.engine.get(key), two.engine.get(key))
    if one.encoding != two.encoding:
        yield _Difference("the base stage's encoding", one.encoding, two.encoding)


def _of_texts(first: _Run, other: _Run) -> Iterator[_Difference]:
    one, two = first.summary, other.summary
    mine, theirs = ({each.name: each for each in run.corpora} for run in (one, two))
    if set(mine) != set(theirs):
        yield _Difference("their corpora", ", ".join(mine), ", ".join(theirs))
    for name in (each for each in mine if each in theirs):
        shown = _shown(name)
        for key in ("sha256", "context", "chunks"):
            a, b = (getattr(corpora[name], key) for corpora in (mine, theirs))
            if a != b or a is None:
                yield _Difference(f"the {key} of corpus {shown}", a, b)
        rules = [_rule_words(each.summary, name) for each in (first, other)]
        if rules[0] != rules[1]:
            yield _Difference(f"when to stop on corpus {shown}", *rules)
        # Its key holds the tokens' digest: chunks of one text may stand in two orders.
        a, b = (run.stages.get(name) for run in (first, other))
        if a != b:
            yield _Difference(f"the base stage of corpus {shown}", a, b)


def _rule_words(summary: Summary, corpus: str) -> str | None:
    """When a run would have stopped on a corpus; None if it measured all there was."""
    for stop in summary.stops:
        if stop.corpus == corpus:
            width = "" if stop.half_width is None else f" to {stop.half_width:g}"
            of = f"{stop.least} of {stop.of} chunks at least"
            return f"{stop.when}{width} at {stop.confidence:g}, {of}"
    return None


def _entries(runs: Sequence[_Run]) -> list[_Entry]:
    entries: list[_Entry] = []
    known: dict[tuple[object, ...], _Entry] = {}
    for run in runs:
        new: dict[tuple[object, ...], _Entry] = {}
        for candidate in run.summary.candidates:
            engine = run.summary.engines.get(candidate.name, {})
            # The same file on another engine, or otherwise run, is another candidate.
            key = (candidate.sha256 or "", *sorted(engine.items()))
            entry = known.get(key)
            if entry is None:
                entry = _Entry(candidate, engine)
                entries.append(entry)
                new.setdefault(key, entry)
            entry.sources.append((run, candidate.name))
        # Not before the run is through: two names for one file in one run are meant.
        known |= {key: entry for key, entry in new.items() if key[0]}
    return entries


def _names(entries: Sequence[_Entry]) -> list[str]:
    times = Counter(entry.candidate.name for entry in entries)
    return [
        name if times[name] == 1 else f"{name} ({entry.sources[0][0].found.run})"
        for entry in entries
        for name in [entry.candidate.name]
    ]


def _combined(
    runs: Sequence[_Run], entries: Sequence[_Entry], names: Sequence[str]
) -> dict[str, Any]:
    """A summary of all runs as one would have it."""
    first = runs[0].summary.to_json_dict()
    results: list[dict[str, Any]] = []
    chosen: dict[Pair, tuple[_Run, Pair]] = {}
    corpora = [each.name for each in runs[0].summary.corpora]
    for corpus in corpora:
        for name, entry in zip(names, entries, strict=True):
            found = _measurement(entry, corpus)
            if found is None:
                continue
            run, measured = found
            plain = measured.model_dump(mode="json", by_alias=True, exclude_unset=True)
            results.append({**plain, "candidate": name})
            if measured.result is not None:
                chosen[name, corpus] = (run, (measured.candidate, corpus))
    floors = [each for each in first.get("noise_floor", ()) if each["corpus"] in corpora]
    wanted = len(entries) * len(corpora)
    comparisons, stops = _comparisons(runs[0].summary, corpora, chosen)
    engines = {
        name: dict(entry.engine) for name, entry in zip(names, entries, strict=True) if entry.engine
    }
    first.pop("engines", None)
    return {
        **first,
        **({"engines": engines} if engines else {}),
        "schema": SCHEMA,
        "run": runs[0].found.run if len(runs) == 1 else f"{len(runs)} runs",
        "name": ", ".join(dict.fromkeys(each.summary.name for each in runs))[:_VALUE_SHOWN],
        "status": "complete" if len(chosen) == wanted else "partial",
        "llama_compat": any(each.summary.llama_compat for each in runs),
        "kldcloud": " / ".join(dict.fromkeys(each.summary.kldcloud for each in runs)),
        "candidates": [
            {**entry.candidate.model_dump(mode="json"), "name": name}
            for name, entry in zip(names, entries, strict=True)
        ],
        "results": results,
        "comparisons": comparisons,
        "stops": stops,
        "noise_floor": floors,
    }


def _measurement(entry: _Entry, corpus: str) -> tuple[_Run, Measurement] | None:
    """The first complete measurement of a candidate, else its first failure, else None."""
    found = [
        (run, each)
        for run, name in entry.sources
        for each in run.summary.results
        if (each.candidate, each.corpus) == (name, corpus)
    ]
    complete = [each for each in found if each[1].result is not None]
    return next(iter([*complete, *found]), None)


def _comparisons(
    summary: Summary, corpora: Sequence[str], chosen: Mapping[Pair, tuple[_Run, Pair]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Comparisons, and stops: whose rule all runs share, and which their looks must allow for."""
    runs = {id(run): run for run, _ in chosen.values()}
    read = {
        key: measured_chunks(
            run.found, run.summary, [pair for owner, pair in chosen.values() if owner is run]
        )
        for key, run in runs.items()
    }
    rules = {stop.corpus: stop for stop in summary.stops}
    comparisons, stops = [], []
    for corpus in corpora:
        measured = {
            name: read[id(run)][pair] for (name, on), (run, pair) in chosen.items() if on == corpus
        }
        if len({each.sizes for each in measured.values()}) > 1:
            raise FormatError(f"chunks of corpus {_shown(corpus)} differ in their positions")
        if not measured:
            continue
        stopped = _stopped(rules[corpus], measured) if corpus in rules else None
        comparisons.append(comparison_facts(corpus, measured, stopped))
        if stopped is not None:
            stops.append(stop_facts(corpus, stopped))
    return comparisons, stops


def _stopped(stop: Stop, measured: Mapping[str, ChunkMeans]) -> Stopped:
    """What the rule of runs that may stop says of all of their candidates together.

    Raises:
        FormatError: no run has such a rule.
    """
    sizes = next(iter(measured.values())).sizes
    possible = (
        2 <= stop.least <= len(sizes) <= stop.of <= MAX_CHUNKS  # noqa: PLR2004 - none of one
        and 0 < stop.confidence < 1
        and (stop.when == "ranked" or stop.half_width is not None)
    )
    if possible:
        means = np.stack([each.means for each in measured.values()])
        decision = decide(rule_of(stop), means, sizes, stop.of)
        if decision is not None:
            return Stopped(decision, tuple(measured))
    raise FormatError(f"corpus {_shown(stop.corpus)} was stopped by a rule that no run has")


def _shown(value: object) -> str:
    return "none" if value is None else printable(str(value), limit=_VALUE_SHOWN)
