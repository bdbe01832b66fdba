"""What a distillation job would do, told from its file alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kldcloud.clusters.prices import Offer
from kldcloud.errors import UserError
from kldcloud.estimate.cost import Price
from kldcloud.estimate.qad import QadPlan, plan_qad
from kldcloud.estimate.sweep import refuse_above
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.qad_job import QadJob

FREE = Price(None, None, "", 0.0)
RENTED = ClusterSpec.model_validate(
    {
        "provider": "skypilot",
        "nodes": 2,
        "resources": {"accelerators": "H100:8"},
        "max_duration": "2h",
    }
)
OFFER = Offer("aws/us-east-2", "p5.48xlarge", "H100:8", spot=True, hourly=30.0)


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
    return QadPlan(QadJob.model_validate({**said, **changes}), ClusterSpec(), FREE)


def test_a_plan_counts_what_the_file_lets_it_count() -> None:
    assert plan_of().to_text().splitlines() == [
        "demo: Q4_0, distilled from t-F16 on local",
        (
            "  text        a.txt: the first 12,000 tokens at most, 23 chunks of 512; "
            "the last 12.5 % of it are held out"
        ),
        (
            "  training    10 steps of 4 chunks in 2 passes: codes, norms, head; lr 0.0002; "
            "bfloat16 on GPUs"
        ),
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
    assert "  training    steps of 8 chunks: codes, norms; lr 0.0002; bfloat16 on GPUs" in text
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


def test_a_folder_becomes_a_gguf_first(tmp_path: Path) -> None:
    for folder in (str(tmp_path), "hf:org/model", {"model": str(tmp_path), "convert": "F16"}):
        first, *others = plan_of(teacher=folder).files
        assert first == "the teacher as a GGUF"
        assert ("the teacher as F16" in others) is isinstance(folder, dict)
    for file in (tmp_path / "t.gguf", "hf:org/model/t.gguf", "package:no_such/x"):
        assert "the teacher as a GGUF" not in plan_of(teacher=str(file)).files


def test_a_plan_for_scripts_holds_the_whole_job() -> None:
    plan = plan_of()
    facts = json.loads(plan.to_json())
    assert (facts["schema"], facts["chunks"], facts["steps"]) == ("kldcloud.qad-plan/1", 23, 10)
    assert QadJob.model_validate(facts["job"]) == plan.job


def test_machines_have_a_price_and_hours_only_if_somebody_says_how_fast_they_are() -> None:
    price = Price(OFFER, None, "2026-11-01", 60.0)
    plan = replace(plan_of(cluster="big", store="s3://bucket/p"), where=RENTED, price=price)
    assert (plan.processes, plan.cost_estimate, plan.cost_at_most) == (16, None, 120.0)
    assert plan.to_text().splitlines()[-5:] == [
        "  store       s3://bucket/p",
        "  machine     aws/us-east-2 p5.48xlarge, H100:8, spot, $30.00 an hour",
        "              (SkyPilot's price lists of 2026-11-01)",
        "  money       unknown, as the time is; at most $120.00, when max_duration (2 h) ends it",
        "              ($60.00 an hour for all machines)",
    ]
    # 10 steps of 4 chunks of 512 tokens.
    told = replace(plan, rate=12.8)
    assert told.seconds == 100.0
    assert "about 100 s of training by 16 processes (12.8 tokens/s a process, as --rate" in (
        told.to_text()
    )
    assert told.cost_estimate == pytest.approx((600 + 100) / 3600 * 60)
    facts = json.loads(told.to_json())
    assert (facts["processes"], facts["tokens"], facts["training_seconds"]) == (16, 20480, 100.0)
    assert facts["cost_at_most"] == 120.0


def test_a_bound_on_the_money_holds() -> None:
    price = Price(OFFER, None, "", 60.0)
    plan = replace(plan_of(cluster="big"), where=RENTED, price=price)
    refuse_above(plan, 120.0)
    with pytest.raises(UserError, match=r"how long demo takes is unknown.*; give --rate"):
        refuse_above(plan, 119.0)
    refuse_above(replace(plan, rate=12.8), 12.0)
    with pytest.raises(UserError, match=r"demo would cost about \$11.67 on big, more than"):
        refuse_above(replace(plan, rate=12.8), 11.0)


def test_a_plan_says_who_trains_and_refuses_where_it_cannot() -> None:
    job = plan_of(
        student={"format": "nvfp4", "trainer": "modelopt"}, train={}, export={"to": "hf"}
    ).job
    first, *lines = QadPlan(job, RENTED, FREE).to_text().splitlines()
    assert first == "demo: NVFP4, distilled from t-F16 by NVIDIA Model Optimizer 0.46.0 on local"
    assert any(line.endswith("lr 1e-05; bfloat16") for line in lines)
    with pytest.raises(UserError, match="trains on all NVIDIA GPUs of one machine, and local has"):
        plan_qad(job, RENTED, None)
