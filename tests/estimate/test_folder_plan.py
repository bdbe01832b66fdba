"""Plans of models in safetensors: from their headers where they are here, else as the job says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import FormatError, UserError
from kldcloud.estimate import speed
from kldcloud.estimate.sweep import SweepEstimate, estimate_sweep
from kldcloud.models.model_folder import read_model_folder
from kldcloud.pipeline.model_files import FolderModel, with_recipe
from kldcloud.pipeline.prepare import prepare_base
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.spec.recipes import RECIPES
from tests.model_folders import damaged, folder_of
from tests.pipeline.sweeps import TEXT, Notes, corpus, facts
from tests.tiny_models import WIDTH, TinyPair, tiny_pair

VOCABULARY, CHUNKS, CONTEXT = 321, 4, 128
ROWS = CHUNKS * 63
HOME = ClusterSpec(workers=1, threads_per_worker=1)
GPUS = ClusterSpec(provider="skypilot", nodes=2, resources={"accelerators": "H100:4"})
NO_GPU = ClusterSpec(provider="skypilot", nodes=2, resources={"infra": "ssh/my-box"})
FAR = {"bytes": 16_060_522_496, "vocabulary": 128_256, "width": 4096}
HEAD = 128_256 * 4096
WEIGHTS = 16_060_522_496 // 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("models"), vocabulary=VOCABULARY, bos=True)


@pytest.fixture(scope="module")
def base(pair: TinyPair) -> Path:
    return folder_of(pair.base, pair.base.parent / "base-hf", dtype="bfloat16", max_shard="40KB")


@pytest.fixture(autouse=True)
def no_sky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sky", None)


def estimate(job: dict[str, Any], cluster: ClusterSpec = GPUS, **options: Any) -> SweepEstimate:
    facts_ = SweepJob.model_validate({**job, **options})
    return estimate_sweep(facts_, cluster, 100.0, Notes())


def near(base: Path, *candidates: Any) -> dict[str, Any]:
    return facts(base, [*candidates], [corpus(CONTEXT, CHUNKS)])


def far(**changes: Any) -> dict[str, Any]:
    """A model that is nowhere near, quantised in two ways, and another repository."""
    text = {"name": "wiki", "text": "hf:org/no-such-text/a.raw", "expect": {"tokens": 297_053}}
    return {
        **facts(
            {"model": "hf:org/no-such-model", "expect": FAR},
            [
                {"model": "hf:org/no-such-awq", "expect": {"bytes": 5_700_000_000}},
                {"quantize": "torchao-int4"},
            ],
            [text],
        ),
        **changes,
    }


def test_on_gpus_states_are_staged_as_the_checkpoint_has_its_numbers(
    base: Path, pair: TinyPair
) -> None:
    plan = estimate(near(base, pair.candidate))
    hidden, logits = plan.stages
    assert (hidden.encoding, hidden.chosen, logits.chosen) == ("hidden", True, False)
    assert hidden.rows_bytes == ROWS * WIDTH * 2
    assert hidden.head_bytes == VOCABULARY * WIDTH * 2 + CHUNKS * CONTEXT * 4
    assert "on the GPU" in plan.reason
    # Two machines with four GPUs and no option that says so: folders take them by themselves.
    assert plan.crew.workers == min(8, CHUNKS)
    assert (plan.corpora[0].source, plan.corpora[0].chunks) == ("counted", CHUNKS)
    folder = read_model_folder(base)
    assert plan.base.file.size == folder.tensor_bytes
    assert plan.base.weights == sum(each.elements for each in folder.tensors)
    files = pair.candidate.stat().st_size + TEXT.stat().st_size
    assert plan.volumes.upload == folder.tensor_bytes + files
    assert plan.volumes.uploads == ("base-hf", "candidate.gguf", "text.txt")


@pytest.mark.parametrize("cluster", [NO_GPU, HOME], ids=["rented", "here"])
def test_on_cpus_they_are_float32(base: Path, pair: TinyPair, cluster: ClusterSpec) -> None:
    plan = estimate(near(base, pair.candidate), cluster, encoding="hidden")
    assert plan.stages[0].rows_bytes == ROWS * WIDTH * 4
    assert plan.stages[0].head_bytes == VOCABULARY * WIDTH * 4 + CHUNKS * CONTEXT * 4


@pytest.mark.parametrize("cluster", [GPUS, HOME], ids=["rented", "here"])
@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_a_candidate_that_is_here_and_cuts_a_text_otherwise_is_refused(
    base: Path, pair: TinyPair, tmp_path: Path, kind: str, cluster: ClusterSpec
) -> None:
    other = damaged(base, tmp_path / "other")
    job = near(pair.base if kind == "gguf" else base, other)
    with pytest.raises(
        FormatError, match=r"corpus text: candidate other cuts the text differently: token"
    ):
        estimate(job, cluster)


def test_conversations_are_rendered_by_the_bases_template_for_all(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    made = tiny_pair(tmp_path, vocabulary=VOCABULARY, bos=True, template=template)
    folder = folder_of(made.base, tmp_path / "hf")
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace("m.content", "m.role")
    )
    talk = tmp_path / "talk.jsonl"
    said = {"messages": [{"role": "user", "content": "the other one is in the house " * 30}]}
    talk.write_text(f"{json.dumps(said)}\n" * 20)
    text = corpus(CONTEXT, CHUNKS, text=talk) | {"format": "chat"}
    assert estimate(facts(made.base, [folder], [text])).corpora[0].chunks == CHUNKS
    other = damaged(folder, tmp_path / "other")
    with pytest.raises(FormatError, match="candidate other cuts the text differently"):
        estimate(facts(made.base, [other], [text]))


def test_a_gguf_base_beside_a_folder_takes_the_gpus_too(base: Path, pair: TinyPair) -> None:
    assert estimate(near(pair.base, pair.candidate)).crew.workers == 2
    assert estimate(near(pair.base, base)).crew.workers == CHUNKS
    on_cpu = {"transformers": {"device": "cpu"}}
    assert estimate(near(pair.base, base), engine=on_cpu).crew.workers == 2


def test_logits_as_the_model_returns_them_cannot_be_states(base: Path, pair: TinyPair) -> None:
    for job in (near(base, pair.candidate), far()):
        plan = estimate(job, engine={"transformers": {"head": "model"}})
        assert [each.encoding for each in plan.stages] == ["logits"]
        assert "engine.transformers.head" in plan.reason


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_recipe_of_a_folder_that_is_here_is_sized_as_a_launch_sizes_it(
    base: Path, recipe: str
) -> None:
    job = near(base, {"quantize": recipe})
    made, _ = prepare_base(SweepJob.model_validate(job), Notes())
    assert isinstance(made, FolderModel)
    plan = estimate(job)
    assert plan.candidates[0].size == with_recipe(made, recipe, "x").bytes
    assert 0 < (plan.candidates[0].size or 0) < made.bytes
    # What is made of the base while it is loaded travels as the base.
    assert plan.volumes.uploads == ("base-hf", "text.txt")
    assert plan.volumes.models_per_node == made.bytes


def test_a_repository_that_is_not_here_is_planned_as_the_job_states_it() -> None:
    plan = estimate(far())
    rows = 580 * 255
    assert (plan.rows, plan.base.vocabulary, plan.base.weights) == (rows, 128_256, WEIGHTS)
    assert plan.stages[0].encoding == "hidden"
    assert plan.stages[0].rows_bytes == rows * 4096 * 2
    assert "on the GPU" in plan.reason
    assert plan.crew.workers == 8
    assert plan.volumes.uploads == ()
    # Here, where no GPU is, nothing is downloaded for a plan either.
    here = estimate(far(encoding="hidden"), HOME)
    assert here.stages[0].rows_bytes == rows * 4096 * 4
    assert here.volumes.models_per_node == 16_060_522_496 + 5_700_000_000


@pytest.mark.parametrize(
    ("recipe", "bits"), [("torchao-int8", 8), ("torchao-int4", 5), ("bnb-nf4", 4.5)]
)
def test_a_recipe_of_one_that_is_not_here_keeps_the_head(recipe: str, bits: float) -> None:
    plan = estimate(far(candidates=[{"quantize": recipe}]))
    expected = (WEIGHTS - HEAD) * bits / 8 + HEAD * 2
    assert plan.candidates[0].size == pytest.approx(expected, rel=1e-6)


def test_a_repository_of_which_little_is_stated_leaves_blanks() -> None:
    plan = estimate(far(base={"model": "hf:org/no-such-model"}))
    assert (plan.stages, plan.candidates[1].size) == ((), None)
    assert plan.volumes.unknown == ("no-such-model",)
    plan = estimate(far(base={"model": "hf:org/no-such-model", "expect": {"vocabulary": 128_256}}))
    assert [each.encoding for each in plan.stages] == ["logits"]
    assert "base.expect.width" in plan.reason


def test_what_the_base_cannot_become_is_refused(base: Path, pair: TinyPair) -> None:
    for job in (near(base, {"quantize": "Q4_0"}), far(candidates=[{"quantize": "Q4_0"}])):
        with pytest.raises(UserError, match="and the base is a folder of safetensors"):
            estimate(job)
    with pytest.raises(UserError, match="bnb-nf4 is for a base in safetensors"):
        estimate(near(pair.base, {"quantize": "bnb-nf4"}))
    converted = near(base, pair.candidate)
    converted["base"] = {"model": str(base), "convert": "F16"}
    for cluster in (GPUS, HOME):
        with pytest.raises(UserError, match="convert is for GGUF files"):
            estimate(converted, cluster)


def test_scripts_read_the_same(base: Path) -> None:
    plan = estimate(near(base, {"quantize": "torchao-int4"}))
    said = json.loads(plan.to_json())
    assert said["encoding"] == "hidden"
    assert said["staged_bytes"]["hidden"] == plan.stages[0].bytes
    assert (said["vocabulary"], said["workers"]) == (VOCABULARY, CHUNKS)


_LIST = """
import sys
from kldcloud.cli.main import main
sys.argv = ["kldcloud", "plan", *sys.argv[1:]]
try:
    main()
finally:
    print(sorted({"torch", "transformers", "accelerate"} & set(sys.modules)))
"""


def test_a_plan_of_gguf_files_alone_leaves_torch_alone(pair: TinyPair, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(near(pair.base, pair.candidate, {"quantize": "Q8_0"})))
    done = subprocess.run(
        [sys.executable, "-c", _LIST, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("tiny: 2 candidates against base on "), done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_stated_rate_loads_no_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(speed, "load_engine", refused)
    assert estimate(near(base, {"quantize": "bnb-int8"}), HOME).rate.tokens == 100.0
