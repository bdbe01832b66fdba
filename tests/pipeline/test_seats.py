"""How machines are shared among workers, and machines that do not agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import TinyPair, tiny_pair

from kldcloud.clusters.local_ray import LocalMachines
from kldcloud.errors import EngineError
from kldcloud.models import llama_library
from kldcloud.models.llama_library import build_facts
from kldcloud.pipeline.machines import NodeFacts, Seat, this_node
from kldcloud.pipeline.sweep import Launched, check_layers_on_gpu, mixed_engines, run_sweep
from kldcloud.pipeline.workers import seats_for
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.job import SweepJob
from kldcloud.store import open_store
from tests.pipeline.sweeps import Notes, corpus, facts, sweep

GIB = 1 << 30
LOGITS = GIB // 4
PLAIN = NodeFacts("node-0", "a", cores=8, memory=64 * GIB, gpus=0, engine={})
RICH = replace(PLAIN, gpus=4)
ON_GPU = EngineOptions(n_gpu_layers=-1)


def seats(nodes: Sequence[NodeFacts], *, chunks: int = 1000, **cluster: object) -> list[Seat]:
    engine = EngineOptions.model_validate(cluster.pop("engine", {}))
    spec = ClusterSpec.model_validate(cluster)
    found = seats_for(
        spec,
        engine,
        nodes,
        model_bytes=2 * GIB,
        logits_bytes=LOGITS,
        chunks=chunks,
        on_gpu=engine.n_gpu_layers != 0,
    )
    return list(found)


def test_a_machine_without_gpus_gets_a_worker_a_core_while_memory_lasts() -> None:
    assert seats([PLAIN]) == [Seat("node-0", 1, None)] * 8
    # 70 % of 16 GiB; each takes 1.5 models, half a GiB and 4 chunks of logits: 4.5 GiB.
    small = replace(PLAIN, memory=16 * GIB)
    assert seats([small]) == [Seat("node-0", 4, None)] * 2


def test_a_gpu_gets_a_worker_of_its_own() -> None:
    assert seats([RICH], engine=ON_GPU) == [Seat("node-0", 2, None, gpus=1)] * 4
    assert seats([RICH], engine=ON_GPU, gpus_per_worker=2) == [Seat("node-0", 4, None, gpus=2)] * 2
    # A GPU that is no NVIDIA one is left to llama.cpp, for one worker.
    assert seats([PLAIN], engine=ON_GPU) == [Seat("node-0", 8, None)]


def test_more_workers_than_gpus_share_them() -> None:
    assert seats([RICH], engine=ON_GPU, workers=6) == [Seat("node-0", 1, None)] * 6


def test_machines_take_turns_so_that_few_chunks_spread_over_all() -> None:
    other = replace(PLAIN, name="node-1")
    dealt = [seat.node for seat in seats([PLAIN, other], workers=3)]
    assert dealt == ["node-0", "node-1"] * 3
    assert [seat.node for seat in seats([PLAIN, other], chunks=2)] == ["node-0", "node-1"]


def test_what_the_cluster_file_says_goes_before_what_the_machine_has() -> None:
    found = seats([PLAIN], workers=2, threads_per_worker=3, memory_per_worker="4GiB")
    assert found == [Seat("node-0", 3, 4 * GIB)] * 2


@pytest.mark.parametrize(("layers", "backend"), [(0, "CPU"), (-1, "GPU"), (7, "GPU")])
def test_layers_have_a_gpu_or_want_none(layers: int, backend: str) -> None:
    notes = Notes()
    check_layers_on_gpu(layers, [replace(RICH, engine={"backend": backend})], notes)
    assert notes.warnings == []


def test_gpus_that_llama_cpp_was_not_built_for_are_not_paid_for_in_vain() -> None:
    built = replace(RICH, engine={"backend": "GPU"})
    other = replace(RICH, host="b", engine={"backend": "CPU"})
    with pytest.raises(
        EngineError, match=r"n_gpu_layers is -1, and llama\.cpp of b sees none of its GPUs"
    ):
        check_layers_on_gpu(-1, [built, other], Notes())


@pytest.mark.usefixtures("one_ray")
def test_a_machine_without_a_gpu_runs_all_layers_and_says_so(
    pair: TinyPair, tmp_path: Path
) -> None:
    notes = Notes()
    engine = {"n_gpu_layers": -1}
    job = facts(pair.base, [pair.candidate], [corpus(128, 2)], engine=engine)
    outcome = sweep(job, tmp_path, progress=notes)
    assert outcome.summary.engine["backend"] == "CPU"
    (warning,) = notes.warnings
    assert warning.startswith("n_gpu_layers is -1, and ")
    assert warning.endswith("has no GPU that llama.cpp knows: its models run on the CPU")


class TwoMachines(LocalMachines):
    """This machine, said to be two with different instruction sets."""

    def nodes(self) -> Sequence[NodeFacts]:
        here = this_node()
        other = dict(here.engine_on_cpu) | {"instructions": "SSE3"}
        return (here, replace(here, host="elsewhere", engine_on_cpu=other))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("models"), vocabulary=320, bos=True)


@pytest.mark.usefixtures("one_ray")
def test_machines_that_differ_are_refused_before_work_starts_or_go_on_record(
    pair: TinyPair, tmp_path: Path
) -> None:
    job = SweepJob.model_validate(facts(pair.base, [pair.candidate], [corpus(chunks=2)]))
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(EngineError, match="machines differ in the engine's instructions") as caught:
        run_sweep(job, ClusterSpec(workers=1), store, Notes(), TwoMachines())
    assert "elsewhere 'SSE3'" in str(caught.value)
    assert "--allow-mixed" in str(caught.value)
    assert not list(store.list(""))
    mixed = run_sweep(
        job, ClusterSpec(workers=1), store, Notes(), TwoMachines(), Launched(allow_mixed=True)
    )
    plain = run_sweep(job, ClusterSpec(workers=1), store, Notes())
    assert mixed.run != plain.run
    assert "SSE3" in mixed.summary.engine["mixed instructions"]
    assert "mixed instructions" not in plain.summary.engine


def test_gpus_may_differ_where_none_takes_part() -> None:
    alike = {"version": "1", "backend": "CPU"}
    nodes = [
        replace(PLAIN, engine={**alike, "backend": "GPU", "devices": "H100"}, engine_on_cpu=alike),
        replace(PLAIN, host="b", engine=alike, engine_on_cpu=alike),
    ]
    assert mixed_engines(nodes, gpus=False, allowed=False) == {}
    told = "machines differ in the engine's backend: a has 'GPU', b 'CPU'"
    with pytest.raises(EngineError, match=told):
        mixed_engines(nodes, gpus=True, allowed=False)


def test_a_machine_knows_its_engine_with_and_without_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        llama_library, "_accelerators", lambda *, gpus: ["Some GPU"] if gpus else []
    )
    build_facts.cache_clear()
    try:
        here = this_node()
    finally:
        build_facts.cache_clear()
    assert here.engine["devices"] == "Some GPU"
    assert here.engine_on_cpu == {**here.engine_on_cpu, "backend": "CPU"}
    assert "devices" not in here.engine_on_cpu
