"""Which engine ran what: of a sweep whose candidates were not all run as the base was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kldcloud.report.summary_shape import Summary

_LEAD = ("name", "version", "backend")
_LLAMA = "llama.cpp"


def engine_of(summary: Summary, candidate: str) -> Mapping[str, str]:
    """The fingerprint of what ran a candidate."""
    its = summary.engines.get(candidate, {})
    return its if "name" in its else {**summary.engine, **its}


def engine_words(facts: Mapping[str, str]) -> list[str]:
    """A fingerprint for people: its name and version as words, the rest as key=value."""
    lead = [facts[key] for key in _LEAD if facts.get(key)]
    return lead + [f"{key}={value}" for key, value in facts.items() if value and key not in _LEAD]


def other_engines(summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """Candidates that were not run as the base was, each with what differs."""
    for candidate in summary.candidates:
        if candidate.name in summary.engines:
            yield candidate.name, engine_words(summary.engines[candidate.name])


def engine_note(summary: Summary, shown: Callable[[str], str]) -> str | None:
    """What to know of candidates that another engine ran than the base's; None if there are none.

    Args:
        summary: the run's.
        shown: a name from outside, as the report may show it.
    """
    # A base file is llama.cpp's, whoever measures against it.
    of_base = _LLAMA if summary.encoding == "kld" else summary.engine.get("name")
    ran = {each.name: engine_of(summary, each.name) for each in summary.candidates}
    others = [
        f"{shown(name)} ({shown(facts.get('name', ''))} {shown(facts.get('version', ''))})"
        for name, facts in ran.items()
        if facts.get("name") != of_base
    ]
    if not others:
        return None
    return (
        f"Run by another engine than the base: {', '.join(others)}. Their KL divergence holds what"
        " the engines differ in as well: the base's own weights, given to the other engine as a"
        " candidate, show how much that is."
    )


def dequantized_note(summary: Summary, shown: Callable[[str], str]) -> str | None:
    """What to know of checkpoints whose weights were written out; None if there are none.

    Args:
        summary: the run's.
        shown: a name from outside, as the report may show it.
    """
    ran = {each.name: engine_of(summary, each.name) for each in summary.candidates}
    if summary.encoding != "kld":
        ran = {"the base": summary.engine, **ran}
    methods = {name: each.get("quantization") for name, each in ran.items() if _is_written(each)}
    if not methods:
        return None
    names = ", ".join(f"{shown(name)} ({shown(str(how))})" for name, how in methods.items())
    note = f"Run with dequantised weights and no kernels of their own: {names}."
    if any(how == "fp8" and not ran[name].get("activations") for name, how in methods.items()):
        note += (
            " What serves fp8 rounds activations to FP8 as well, which these figures leave out"
            " (engine.transformers.round_activations: true takes them in)."
        )
    return note


def _is_written(facts: Mapping[str, str]) -> bool:
    return facts.get("dequantized") == "weights"
