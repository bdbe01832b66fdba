"""When a sweep may stop: what a job may say of it, and how nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import SpecError
from kldcloud.spec.job import StopSpec, SweepJob
from kldcloud.spec.load import load_job

JOB = """\
kind: sweep
name: demo
base: {model: base.gguf}
candidates:
  - quantize: Q8_0
  - quantize: Q4_0
corpora:
  - {name: text, text: a.txt}
"""


def stop_of(said: str) -> StopSpec:
    import yaml

    return StopSpec.model_validate(yaml.safe_load(said))


def refusal_of(folder: Path, said: str, job: str = JOB) -> str:
    path = folder / "x.yaml"
    path.write_text(f"{job}stop: {said}\n")
    with pytest.raises(SpecError) as caught:
        load_job(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder}/")


def test_without_it_all_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for ending in ("", "stop:\n"):
        path.write_text(JOB + ending)
        assert load_job(path).stop is None


def test_what_is_left_out_has_the_documented_default() -> None:
    stop = stop_of("{when: ranked}")
    assert (stop.half_width, stop.confidence, stop.least) == (None, 0.95, 20)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2%", 0.02),
        ("2 %", 0.02),
        ("0.02", 0.02),
        ("0.7%", 0.007),
        ("12.5%", 0.125),
        ("'99%'", 0.99),
    ],
)
def test_a_width_is_a_share_or_a_percentage_of_the_mean(said: str, meant: float) -> None:
    assert stop_of(f"{{when: precise, half_width: {said}}}").half_width == meant


@pytest.mark.parametrize(("said", "meant"), [("0.9", 0.9), ("99%", 0.99), ("99.9 %", 0.999)])
def test_a_confidence_is_a_share_or_a_percentage(said: str, meant: float) -> None:
    assert stop_of(f"{{when: ranked, confidence: {said}}}").confidence == meant


def test_it_survives_json_unchanged() -> None:
    job: dict[str, Any] = {
        "kind": "sweep",
        "name": "demo",
        "base": {"model": "base.gguf"},
        "candidates": [{"quantize": "Q8_0"}],
        "corpora": [{"name": "text", "text": "a.txt"}],
        "stop": {"when": "precise", "half_width": "0.7%", "confidence": "90%", "least": 30},
    }
    read = SweepJob.model_validate(job)
    assert SweepJob.model_validate(json.loads(read.model_dump_json())) == read


WIDTH = (
    "x.yaml:9: stop.half_width: must be a share of the mean such as 2% or 0.02, "
    "more than 0 and less than 100%"
)
CONFIDENCE = "x.yaml:9: stop.confidence: must be such as 95% or 0.95, from 50% to 99.99%"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{when: precise}", "x.yaml:9: stop: 'precise' needs a 'half_width' such as 2%"),
        (
            "{when: ranked, half_width: 2%}",
            "x.yaml:9: stop.half_width: is only for 'when: precise'",
        ),
        ("{when: precise, half_width: 2}", f"{WIDTH}, not 2"),
        ("{when: precise, half_width: 0}", f"{WIDTH}, not 0"),
        ("{when: precise, half_width: 0%}", f"{WIDTH}, not '0%'"),
        ("{when: precise, half_width: 100%}", f"{WIDTH}, not '100%'"),
        ("{when: precise, half_width: -2%}", f"{WIDTH}, not '-2%'"),
        ("{when: precise, half_width: .nan}", f"{WIDTH}, not nan"),
        ("{when: precise, half_width: .inf}", f"{WIDTH}, not inf"),
        ("{when: precise, half_width: true}", f"{WIDTH}, not true"),
        ("{when: precise, half_width: narrow}", f"{WIDTH}, not 'narrow'"),
        ("{when: precise, half_width: [2%]}", WIDTH),
        ("{when: ranked, confidence: 95}", f"{CONFIDENCE}, not 95"),
        ("{when: ranked, confidence: 1}", f"{CONFIDENCE}, not 1"),
        ("{when: ranked, confidence: 100%}", f"{CONFIDENCE}, not '100%'"),
        ("{when: ranked, confidence: 0.05}", f"{CONFIDENCE}, not 0.05"),
        ("{when: ranked, confidence: sure}", f"{CONFIDENCE}, not 'sure'"),
        ("{when: ranked, least: 7}", "x.yaml:9: stop.least: must be at least 8, not 7"),
        (
            "{when: ranked, least: few}",
            "x.yaml:9: stop.least: must be a whole number, not 'few'",
        ),
        (
            "{when: rankd}",
            (
                "x.yaml:9: stop.when: must be one of ranked, precise, not 'rankd'; "
                "did you mean 'ranked'?"
            ),
        ),
        ("{confidence: 0.9}", "x.yaml:9: stop.when: is missing"),
        (
            "{when: ranked, confidense: 0.9}",
            "x.yaml:9: stop.confidense: unknown key; did you mean 'confidence'?",
        ),
        ("ranked", "x.yaml:9: stop: must be a mapping (indented 'key: value' lines)"),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, said: str, message: str) -> None:
    assert refusal_of(tmp_path, said) == message


def test_a_single_candidate_has_no_rank(tmp_path: Path) -> None:
    job = JOB.replace("  - quantize: Q4_0\n", "")
    assert refusal_of(tmp_path, "{when: ranked}", job) == (
        "x.yaml:8: stop.when: one candidate has no rank: add another, or stop when it is 'precise'"
    )
    path = tmp_path / "x.yaml"
    path.write_text(f"{job}stop: {{when: precise, half_width: 2%}}\n")
    stop = load_job(path).stop
    assert stop is not None
    assert stop.when == "precise"
