"""Every cluster and job file that comes with the project can be used as it is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kldcloud.spec.cluster import load_cluster
from kldcloud.spec.job import SweepJob
from kldcloud.spec.load import load_job
from tests.clusters.moto_aws import sky_home

REPOSITORY = Path(__file__).parents[1]
CLUSTERS = sorted((REPOSITORY / "clusters").glob("*.yaml"))
JOBS = sorted((REPOSITORY / "jobs").glob("*.yaml"))
REMOTE = [path for path in CLUSTERS if load_cluster(str(path)).remote]
COMMENTED = (
    "max_hourly_cost:",
    "gpus_per_worker:",
    "setup:",
    "  module load",
    "packages:",
    "transformers:",
    "  dtype:",
    "  offload:",
    "  dequantize:",
    "  round_activations:",
    "envs:",
    "  AWS_ENDPOINT_URL:",
    "  AWS_DEFAULT_REGION:",
)
_ASK_SKY = """
import json, sys
import sky

for name, facts in json.load(sys.stdin).items():
    task = sky.Task.from_yaml_config(facts)
    found = [
        [each.infra.cloud or "", each.infra.region or "", each.accelerators, each.use_spot]
        for each in task.resources
    ]
    print(json.dumps([name, task.num_nodes, found]))
"""


def stem(path: Path) -> str:
    return path.stem


def test_the_clusters_that_the_readme_speaks_of_are_there() -> None:
    assert {"local", "rtx5080", "slurm", "h100", "h100x8"} <= set(map(stem, CLUSTERS))
    assert {"demo", "qad-demo", "qad-nvfp4", "qwen3.5-35b-a3b", "safetensors"} <= set(
        map(stem, JOBS)
    )


@pytest.mark.parametrize("path", JOBS, ids=stem)
def test_a_job_names_clusters_that_are_there(path: Path) -> None:
    job = load_job(path)
    rates = job.rates if isinstance(job, SweepJob) else {}
    for name in (job.cluster, *rates):
        load_cluster(name, folder=REPOSITORY / "clusters")


@pytest.mark.parametrize("path", REMOTE, ids=stem)
def test_a_remote_cluster_ends_by_itself_and_holds_no_secret(path: Path) -> None:
    cluster = load_cluster(str(path))
    assert cluster.max_duration <= 24 * 3600
    assert cluster.autodown <= 3600
    assert all(name.endswith("?") for name in cluster.secrets)
    assert {"AWS_ACCESS_KEY_ID?", "AWS_SECRET_ACCESS_KEY?", "HF_TOKEN?"} <= set(cluster.secrets)
    assert not cluster.envs


@pytest.mark.parametrize("path", REMOTE, ids=stem)
def test_what_a_cluster_file_has_commented_out_is_valid_too(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    for start in COMMENTED:
        text = text.replace(f"# {start}", start)
    assert text != path.read_text()
    (tmp_path / path.name).write_text(text)
    mine = load_cluster(str(tmp_path / path.name))
    assert mine.envs["AWS_ENDPOINT_URL"] == "https://s3.example.org"


@pytest.mark.skipif(not importlib.util.find_spec("sky"), reason="SkyPilot is not installed")
def test_skypilot_takes_every_cluster(tmp_path: Path) -> None:
    home = sky_home(tmp_path)
    (home.folder / ".sky" / "ssh_node_pools.yaml").write_text("my-box: {hosts: [my-5080]}\n")
    asked = {}
    for path in REMOTE:
        cluster = load_cluster(str(path))
        asked[path.stem] = {
            "num_nodes": cluster.nodes,
            "resources": dict(cluster.resources),
            "run": "true",
        }
    done = subprocess.run(
        [sys.executable, "-c", _ASK_SKY],
        input=json.dumps(asked),
        env=dict(home.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {name: (nodes, sorted(each)) for name, nodes, each in map(json.loads, lines(done))}
    assert found["rtx5080"] == (1, [["SSH", "ssh-my-box", {"RTX5080": 1}, False]])
    assert found["slurm"] == (2, [["Slurm", "my-cluster", {"H100": 1}, False]])
    assert found["h100"] == (1, [["", "", {"H100": 1}, False], ["", "", {"H100": 1}, True]])
    assert found["h100x8"] == (1, [["", "", {"H100": 8}, False], ["", "", {"H100": 8}, True]])


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("[")]
