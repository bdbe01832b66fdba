"""A run's id: what goes into it, and that what a job does not say leaves it as it was."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kldcloud import __version__
from kldcloud.corpus.order import ORDER_RULE
from kldcloud.divergence.kernel import NUMERICS_VERSION
from kldcloud.divergence.sequential import STOP_RULE
from kldcloud.models.gguf_header import GgufHeader
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.pipeline.corpora import ChunkedCorpus
from kldcloud.pipeline.model_files import ModelFile
from kldcloud.pipeline.options import Engines
from kldcloud.pipeline.plan import SweepPlan, make_plan
from kldcloud.pipeline.prepare import PreparedSweep
from kldcloud.spec.engine import TransformersSpec
from kldcloud.spec.job import SweepJob


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine says of itself is the engine's tests' subject."""
    monkeypatch.setattr(LlamaOptions, "fingerprint", lambda _options: {"engine": "none"})


def plan_of(**said: Any) -> SweepPlan:
    job = SweepJob.model_validate(
        {
            "kind": "sweep",
            "name": "demo",
            "base": {"model": "b.gguf"},
            "candidates": [{"model": "a.gguf"}, {"model": "c.gguf"}],
            "corpora": [{"name": "text", "text": "text.txt"}],
            "encoding": "logits",
            **said,
        }
    )
    facts = {"general.architecture": "none", "tokenizer.ggml.tokens": ["a"] * 50}
    header = GgufHeader(3, facts, {}, 1)
    base = ModelFile("b", "b.gguf", Path("b.gguf"), "0" * 64, header)
    corpus = ChunkedCorpus("text", "1" * 64, 32, np.zeros((4, 8), np.int32))
    return make_plan(
        PreparedSweep(job, base, (), (corpus,)),
        Engines(LlamaOptions(), TransformersSpec(), 1),
        remote=False,
    )


def run_of(**more: Any) -> str:
    """The id of that run, from the facts that have always been in it, and `more`."""
    plan = plan_of()
    facts = {
        "schema": "kldcloud.run/1",
        "kldcloud": __version__,
        "numerics": NUMERICS_VERSION,
        "name": "demo",
        "base": "b",
        "stages": [["text", plan.stages[0].key]],
        "candidates": [],
        "engine": {"engine": "none"},
        "llama_compat": True,
        **more,
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"demo-{sha256(text.encode()).hexdigest()[:12]}"


def test_without_a_rule_to_stop_the_id_is_what_it_was() -> None:
    assert plan_of().run == plan_of(stop=None).run == run_of()


def test_a_rule_to_stop_is_part_of_the_id_however_it_is_written() -> None:
    stop = {
        "rule": STOP_RULE,
        "order": ORDER_RULE,
        "when": "precise",
        "half_width": 0.007,
        "confidence": 0.95,
        "least": 20,
    }
    said = {"when": "precise", "half_width": "0.7%"}
    assert plan_of(stop=said).run == run_of(stop=stop)
    assert plan_of(stop={**said, "half_width": 0.007, "confidence": "95%"}).run == run_of(stop=stop)


def test_any_other_rule_is_another_run() -> None:
    rules: list[dict[str, Any]] = [
        {"when": "ranked"},
        {"when": "ranked", "confidence": 0.9},
        {"when": "ranked", "least": 30},
        {"when": "precise", "half_width": "2%"},
        {"when": "precise", "half_width": "3%"},
    ]
    assert len({plan_of(stop=rule).run for rule in rules}) == len(rules)
