"""Which clusters Model Optimizer can train on, as far as their files tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import UserError
from kldcloud.spec.cluster import ClusterSpec, load_cluster
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.qad_modelopt import check_cluster

CLUSTERS = Path(__file__).parents[2] / "clusters"
JOB = {
    "kind": "qad",
    "name": "demo",
    "teacher": "t.gguf",
    "student": {"format": "nvfp4", "trainer": "modelopt"},
    "data": {"text": "a.txt"},
    "export": {"to": "hf"},
    "cluster": "some",
}


def job(**changes: Any) -> QadJob:
    return QadJob.model_validate({**JOB, **changes})


@pytest.mark.parametrize("name", ["h100", "h100x8", "rtx5080", "local"])
def test_shipped_clusters_with_gpus_fit_and_this_machine_may(name: str) -> None:
    check_cluster(job(), load_cluster(name, folder=CLUSTERS))


@pytest.mark.parametrize(
    ("cluster", "reason"),
    [
        (
            {"nodes": 2, "resources": {"accelerators": "H100:8"}},
            "some has nodes: 2; write nodes: 1",
        ),
        ({"workers": 2, "resources": {"accelerators": "H100:8"}}, "has workers: 2; write workers:"),
        ({"resources": {"cpus": 8}}, "some asks for none; write resources: {accelerators: H100:8}"),
        ({"resources": {"any_of": [{"use_spot": True}]}}, "some asks for none"),
    ],
)
def test_a_cluster_that_cannot_train_is_refused_in_one_line(
    cluster: dict[str, Any], reason: str
) -> None:
    where = ClusterSpec.model_validate({"provider": "skypilot", **cluster})
    with pytest.raises(UserError) as caught:
        check_cluster(job(), where)
    assert reason in str(caught.value)
    ours = job(student={"format": "nvfp4"})
    check_cluster(ours, where)


@pytest.mark.parametrize(
    "resources",
    [
        {"instance_type": "p5.48xlarge"},
        {"ordered": [{"use_spot": True}, {"accelerators": {"A100": 8}}]},
    ],
)
def test_a_cluster_that_may_have_gpus_is_not_refused(resources: dict[str, Any]) -> None:
    check_cluster(
        job(), ClusterSpec.model_validate({"provider": "skypilot", "resources": resources})
    )
