"""Where a job runs: a built-in name, a name in clusters/, or a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.errors import SpecError
from kldcloud.spec.cluster import ClusterSpec, load_cluster
from kldcloud.spec.engine import EngineOptions

REPOSITORY = Path(__file__).parents[2]


def test_local_is_built_in(tmp_path: Path) -> None:
    cluster = load_cluster("local", folder=tmp_path / "none")
    assert cluster == ClusterSpec()
    assert (cluster.provider, cluster.workers) == ("local", "auto")
    assert (cluster.threads_per_worker, cluster.memory_per_worker) == (None, None)


def test_the_local_file_that_people_copy_says_what_is_built_in() -> None:
    assert load_cluster("local", folder=REPOSITORY / "clusters") == ClusterSpec()


def test_what_the_local_file_has_commented_out_is_valid_too(tmp_path: Path) -> None:
    text = (REPOSITORY / "clusters" / "local.yaml").read_text()
    for line in ("threads_per_worker: 4", "memory_per_worker: 4GiB", "engine:"):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    text = text.replace("#   n_gpu_layers", "  n_gpu_layers")
    (tmp_path / "mine.yaml").write_text(text)
    cluster = load_cluster("mine", folder=tmp_path)
    assert (cluster.threads_per_worker, cluster.memory_per_worker) == (4, 4 << 30)
    assert cluster.engine.given() == ["n_gpu_layers"]


def test_a_file_called_local_goes_before_the_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text("workers: 3\n")
    assert load_cluster("local", folder=tmp_path).workers == 3


def test_a_path_is_read_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text("provider: local\nworkers: 2\nthreads_per_worker: 8\n")
    assert load_cluster(str(path)).threads_per_worker == 8


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    for name in ("rig.yaml", "attic.yml", ".hidden.yaml", "notes.txt"):
        (tmp_path / name).write_text("workers: 1\n")
    with pytest.raises(SpecError) as caught:
        load_cluster("h100", folder=tmp_path)
    assert str(caught.value) == (
        f"there is no cluster 'h100' in {tmp_path}/; known clusters: local, attic, rig"
    )
    with pytest.raises(SpecError) as caught:
        load_cluster("rigg", folder=tmp_path)
    assert str(caught.value) == f"there is no cluster 'rigg' in {tmp_path}/; did you mean 'rig'?"


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("4GiB", 4 << 30),
        ("512 MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2GB", 2_000_000_000),
        ("1024", 1024),
        ("100B", 100),
    ],
)
def test_memory_is_counted_in_bytes(tmp_path: Path, size: str, count: int) -> None:
    (tmp_path / "c.yaml").write_text(f"memory_per_worker: {size}\n")
    assert load_cluster("c", folder=tmp_path).memory_per_worker == count


SIZE = "must be a size such as 4GiB or 512MiB"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("memory_per_worker: lots", f"memory_per_worker: {SIZE}, not 'lots'"),
        ("memory_per_worker: 4 G", f"memory_per_worker: {SIZE}, not '4 G'"),
        ("memory_per_worker: 0GiB", f"memory_per_worker: {SIZE}, not '0GiB'"),
        ("memory_per_worker: -1", f"memory_per_worker: {SIZE}, not -1"),
        ("memory_per_worker: true", f"memory_per_worker: {SIZE}, not true"),
        ("memory_per_worker: [4]", f"memory_per_worker: {SIZE}"),
        ("workers: 0", "workers: must be auto or a whole number from 1 to 4096, not 0"),
        ("worker: 2", "worker: unknown key; did you mean 'workers'?"),
        ("provider: sky", "provider: must be one of local, skypilot, not 'sky'"),
        ("engine: {thread: 2}", "engine.thread: unknown key; did you mean 'threads'?"),
        ("threads_per_worker: 0", "threads_per_worker: must be at least 1, not 0"),
    ],
)
def test_a_cluster_file_is_refused_as_a_job_file_is(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"# a comment\n{line}\n")
    with pytest.raises(SpecError) as caught:
        load_cluster(str(path))
    assert str(caught.value) == f"{path}:2: {message}"


def test_a_cluster_replaces_only_the_engine_options_that_it_gives() -> None:
    cluster = ClusterSpec.model_validate({"engine": {"n_gpu_layers": -1, "repack": True}})
    job = EngineOptions(threads=2, repack=False, n_gpu_layers=5)
    assert cluster.engine_for(job) == EngineOptions(threads=2, repack=True, n_gpu_layers=-1)
    assert ClusterSpec().engine_for(job) == job


def test_of_the_options_of_transformers_too() -> None:
    cluster = ClusterSpec.model_validate({"engine": {"transformers": {"offload": True}}})
    job = EngineOptions.model_validate({"transformers": {"dtype": "float16", "offload": False}})
    assert cluster.engine_for(job).transformers.model_dump() == {
        **job.transformers.model_dump(),
        "offload": True,
    }
    travelled = cluster.model_dump(mode="json", exclude_unset=True)
    assert ClusterSpec.model_validate(travelled).engine_for(job) == cluster.engine_for(job)


RENTED = """\
provider: skypilot
nodes: 2
resources:
  accelerators: H100:1
  any_of: [{use_spot: true}, {use_spot: false}]
workers: 3
gpus_per_worker: 1
setup: |
  module load cuda
packages: [compressed-tensors, "gptqmodel[x]>=4,!=4.1.*"]
envs: {AWS_ENDPOINT_URL: "https://s3.example.org"}
secrets: [AWS_SECRET_ACCESS_KEY, 'HF_TOKEN?']
max_duration: 12h
autodown: 5m
shard_deadline: 90s
"""


def test_a_rented_cluster_says_all_that_skypilot_needs(tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text(RENTED)
    cluster = load_cluster("rig", folder=tmp_path)
    assert cluster.remote
    assert cluster.spot
    assert cluster.resources["accelerators"] == "H100:1"
    assert (cluster.nodes, cluster.workers, cluster.gpus_per_worker) == (2, 3, 1)
    assert (cluster.max_duration, cluster.autodown, cluster.shard_deadline) == (43200, 300, 90)
    assert cluster.setup == "module load cuda\n"
    assert cluster.packages == ("compressed-tensors", "gptqmodel[x]>=4,!=4.1.*")
    dumped = cluster.model_dump(mode="json", exclude_unset=True)
    assert ClusterSpec.model_validate(dumped) == cluster


def test_spot_is_seen_wherever_resources_say_it() -> None:
    for resources, spot in (
        ({}, False),
        ({"use_spot": True}, True),
        ({"ordered": [{"use_spot": False}, {"use_spot": True}]}, True),
        ({"any_of": [{"use_spot": False}]}, False),
        ({"any_of": "nonsense"}, False),
    ):
        cluster = ClusterSpec.model_validate({"provider": "skypilot", "resources": resources})
        assert cluster.spot is spot, resources


HOURS = "must be a time such as 90m, 12h or 2d, of a year at most"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_duration: soon", f"max_duration: {HOURS}, not 'soon'"),
        ("max_duration: 0h", f"max_duration: {HOURS}, not '0h'"),
        ("autodown: 900d", f"autodown: {HOURS}, not '900d'"),
        ("nodes: 0", "nodes: must be at least 1, not 0"),
        ("envs: {HF_TOKEN: abc}", "envs.HF_TOKEN: looks like a secret: write its name under"),
        ("envs: {AWS_ACCESS_KEY_ID: abc}", "envs.AWS_ACCESS_KEY_ID: looks like a secret"),
        ("envs: {SKYPILOT_X: a}", "envs.SKYPILOT_X: SKYPILOT_X is set by SkyPilot, Ray"),
        ("envs: {'A B': a}", "envs['A B']: 'A B' cannot name an environment variable"),
        ("secrets: ['a=b']", "secrets[0]: 'a=b' cannot name an environment variable"),
        ("packages: ['--index-url=https://abc']", "packages[0]: '--index-url=https://"),
        ("packages: [torch, 'a; rm -rf abc']", "packages[1]: 'a; rm -rf abc' is not a package"),
        ("packages: ['git+https://x/abc']", "packages[0]: 'git+https://x/abc' is not a package"),
        ("packages: ['./abc.whl']", "packages[0]: './abc.whl' is not a package with versions"),
        ("packages: ['abc @ file:///x']", "packages[0]: 'abc @ file:///x' is not a package"),
        ('packages: ["abc\\n-e ."]', "packages[0]: 'abc\\n-e .' is not a package"),
        ("packages: ['']", "packages[0]: '' is not a package with versions, such as"),
        ("packages: compressed-tensors", "packages: must be a list (lines that begin with '- ')"),
        ("secrets: {HF_TOKEN: abc}", "secrets: must be a list (lines that begin with '- ')"),
    ],
)
def test_what_only_rented_machines_have_is_refused_as_well(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"provider: skypilot\n{line}\n")
    with pytest.raises(SpecError) as caught:
        load_cluster(str(path))
    assert str(caught.value).startswith(f"{path}:2: {message}")
    assert "abc" not in str(caught.value) or line.startswith("packages")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["nodes: 2", "resources: {cpus: 4}", "setup: ls", "packages: [a]", "secrets: [A]"]
)
def test_this_machine_has_no_use_for_what_is_rented(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{line}\n")
    field = line.partition(":")[0]
    with pytest.raises(SpecError, match=f"{field}: is for provider: skypilot"):
        load_cluster(str(path))


def test_a_name_and_an_env_may_not_be_a_secret_as_well() -> None:
    facts = {"provider": "skypilot", "envs": {"PLACE": "here"}, "secrets": ["PLACE"]}
    with pytest.raises(ValueError, match="has PLACE, which 'secrets' has as well"):
        ClusterSpec.model_validate(facts)
