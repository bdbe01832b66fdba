"""Machines with other versions of torch, or other GPUs: refused for what runs on transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kldcloud.clusters.local_ray import LocalMachines
from kldcloud.errors import EngineError
from kldcloud.pipeline.machines import NodeFacts, this_node
from kldcloud.pipeline.sweep import Launched, mixed_libraries, run_sweep
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.store import open_store
from tests.model_folders import folder_of
from tests.pipeline.sweeps import Notes, corpus, facts
from tests.tiny_models import TinyPair, tiny_pair

pytestmark = pytest.mark.usefixtures("one_ray")
PLAIN = NodeFacts("node-0", "a", cores=8, memory=1, gpus=0, engine={})


class TwoMachines(LocalMachines):
    """This machine, said to be two with different versions of torch."""

    def nodes(self) -> Sequence[NodeFacts]:
        here = this_node()
        older = {**here.libraries, "torch": "2.9.0"}
        return (here, replace(here, host="elsewhere", libraries=older))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("models"), vocabulary=320, bos=True)


@pytest.fixture(scope="module")
def folder(pair: TinyPair) -> Path:
    return folder_of(pair.candidate, pair.base.parent / "noisy-hf")


class RunIsKnownError(Exception):
    """Ends a launch as soon as it has said which run it is."""


def run_of(
    pair: TinyPair, candidate: Path, store: Path, machines: LocalMachines, *, allowed: bool
) -> str:
    def known(run: str) -> None:
        raise RunIsKnownError(run)

    job = facts(pair.base, [candidate], [corpus(chunks=2)], encoding="logits")
    with pytest.raises(RunIsKnownError) as caught:
        run_sweep(
            SweepJob.model_validate(job),
            ClusterSpec(workers=1),
            open_store(str(store)),
            Notes(),
            machines,
            Launched(allow_mixed=allowed, on_run=known),
        )
    return str(caught.value)


def test_a_folder_among_the_models_is_refused_or_goes_on_record(
    pair: TinyPair, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError) as caught:
        run_of(pair, folder, tmp_path, TwoMachines(), allowed=False)
    here = this_node()
    assert str(caught.value) == (
        f"machines differ in the engine's torch: {here.host} has '{here.libraries['torch']}', "
        "elsewhere '2.9.0'; ask for machines of one kind, or add --allow-mixed to have it on record"
    )
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]
    mixed = run_of(pair, folder, tmp_path, TwoMachines(), allowed=True)
    plain = run_of(pair, folder, tmp_path, LocalMachines(), allowed=False)
    assert mixed != plain
    # Allowing what is not there changes nothing.
    assert run_of(pair, folder, tmp_path, LocalMachines(), allowed=True) == plain


def test_gguf_files_alone_do_not_care(pair: TinyPair, tmp_path: Path) -> None:
    runs = {
        run_of(pair, pair.candidate, tmp_path, machines, allowed=allowed)
        for machines, allowed in (
            (TwoMachines(), False),
            (TwoMachines(), True),
            (LocalMachines(), False),
        )
    }
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ({"GPUs": "NVIDIA H100"}, {"GPUs": "NVIDIA L4"}, "GPUs"),
        ({"GPUs": "NVIDIA H100"}, {}, "GPUs"),
        ({"torch": "2.13.0", "transformers": "5.1"}, {"torch": "2.13.0"}, "transformers"),
    ],
)
def test_whatever_differs_is_named_with_both_values(
    one: Mapping[str, str], other: Mapping[str, str], name: str
) -> None:
    nodes = [replace(PLAIN, libraries=one), replace(PLAIN, host="b", libraries=other)]
    told = f"differ in the engine's {name}: a has '{one[name]}', b '{other.get(name, '')}'"
    with pytest.raises(EngineError, match=told):
        mixed_libraries(nodes, gpus=True, allowed=False)
    found = mixed_libraries(nodes, gpus=True, allowed=True)
    assert found == {f"mixed {name}": " / ".join(sorted((one[name], other.get(name, ""))))}
    assert mixed_libraries(nodes[:1] * 2, gpus=True, allowed=False) == {}
    without = mixed_libraries(nodes, gpus=False, allowed=True)
    assert without == ({} if name == "GPUs" else found)
