"""What a distillation job would do, told from its file alone."""

from __future__ import annotations

import json
from typing import Any

from kldcloud.estimate.qad import QadPlan
from kldcloud.spec.qad_job import QadJob


def plan_of(**changes: Any) -> QadPlan:
    said: dict[str, Any] = {
        "kind": "qad",
        "name": "demo",
        "teacher": {"model": "t.gguf", "convert": "F16"},
        "student": {"init": {"quantize": "Q4_0"}},
        "data": {"text": "a.txt", "tokens": "12k", "heldout": "12.5%"},
        "train": {"global_batch": 4, "epochs": 2, "train_head": True},
        "eval": {"second_text": "b.txt", "second_chunks": 1},
        "export": {"path": "out.gguf"},
    }
    return QadPlan(QadJob.model_validate({**said, **changes}))


def test_a_plan_counts_what_the_file_lets_it_count() -> None:
    assert plan_of().to_text().splitlines() == [
        "demo: Q4_0, distilled from t-F16 on local",
        (
            "  text        a.txt: the first 12,000 tokens at most, 23 chunks of 512; "
            "the last 12.5 % of it are held out"
        ),
        "  training    10 steps of 4 chunks in 2 passes: codes, norms, head; lr 0.0002",
        "  evaluation  before, after and every 20 steps: 4 chunks held out",
        "  checkpoints every 20 steps, 2 kept",
        (
            "  files       the teacher as F16; Q4_0 rounded to nearest; an importance matrix of "
            "the training text; Q4_0 with importances; the trained file in the store; "
            "its copy out.gguf"
        ),
        (
            "  proof       a sweep with the teacher as its base: all chunks held out after those, "
            "1 chunk of b.txt"
        ),
        "  store       ./kldcloud-store",
    ]


def test_what_the_text_decides_stays_open() -> None:
    plan = plan_of(data={"text": "a.txt"}, eval={}, train={})
    assert (plan.chunks, plan.steps) == (None, None)
    text = plan.to_text()
    assert "a.txt: all of it in chunks of 512 tokens; the last 10 % of it are held out" in text
    assert "  training    steps of 8 chunks: codes, norms; lr 0.0002" in text
    assert text.count("b.txt") == 0


def test_only_files_that_the_job_asks_for_are_made() -> None:
    def files(**changes: Any) -> list[str]:
        return plan_of(teacher="t.gguf", export={}, **changes).files

    trained = "the trained file in the store"
    rounded = "Q4_0 rounded to nearest"
    assert files(student={"init": "i.gguf"}) == [trained]
    init = {"quantize": "Q4_0", "imatrix": "none"}
    assert files(student={"init": init}) == [rounded, trained]
    init["imatrix"] = "m.dat"
    assert files(student={"init": init}) == [rounded, "Q4_0 with importances", trained]


def test_a_plan_for_scripts_holds_the_whole_job() -> None:
    plan = plan_of()
    facts = json.loads(plan.to_json())
    assert (facts["schema"], facts["chunks"], facts["steps"]) == ("kldcloud.qad-plan/1", 23, 10)
    assert QadJob.model_validate(facts["job"]) == plan.job
