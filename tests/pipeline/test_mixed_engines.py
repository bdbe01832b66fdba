"""Sweeps of models in safetensors, alone and beside GGUF files, as people launch them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import FormatError, KldcloudError, UserError
from kldcloud.pipeline.compare_runs import compare_runs
from kldcloud.pipeline.exchange import export_base_file
from kldcloud.pipeline.runs import FoundRun
from kldcloud.report.compared import render_compared
from kldcloud.report.engine_facts import engine_note
from kldcloud.report.reading import run_warnings
from kldcloud.report.summary_file import parse_summary
from kldcloud.report.summary_shape import Summary
from kldcloud.store import open_store
from tests.model_folders import damaged, folder_of
from tests.pipeline.sweeps import Notes, corpus, facts, result_bytes, sweep
from tests.quantised_folders import configured, fp8_blocks, rewritten
from tests.tiny_models import TinyPair, tiny_pair

pytestmark = pytest.mark.usefixtures("one_ray")

EXACT = {"kv_type_k": "f32", "kv_type_v": "f32", "flash_attention": "off"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=321, bos=True)


@pytest.fixture(scope="module")
def folders(pair: TinyPair) -> dict[str, Path]:
    place = pair.base.parent
    return {
        "base": folder_of(pair.base, place / "base-hf"),
        "noisy": folder_of(pair.candidate, place / "noisy-hf", dtype="float16", max_shard="40KB"),
    }


def means(summary: Summary) -> dict[str, float]:
    found = {each.candidate: each.result for each in summary.results}
    return {name: result.kld.mean.value or 0.0 for name, result in found.items() if result}


@pytest.mark.slow
def test_either_engine_measures_the_same_models_alike(
    pair: TinyPair, folders: dict[str, Path], tmp_path: Path
) -> None:
    """All four ways to measure one candidate against one base come to the same number."""
    found = {}
    for base in (pair.base, folders["base"]):
        candidates = [
            {"model": str(pair.candidate), "name": "gguf"},
            {"model": str(folders["noisy"]), "name": "folder"},
            {"model": str(pair.base), "name": "same-gguf"},
            {"model": str(folders["base"]), "name": "same-folder"},
        ]
        job = facts(base, candidates, [corpus()], engine=EXACT)
        summary = sweep(job, tmp_path / base.name).summary
        found[base.name] = means(summary)
        run_elsewhere = {"gguf", "same-gguf"} if base.is_dir() else {"folder", "same-folder"}
        assert {name for name, its in summary.engines.items() if "name" in its} == run_elsewhere
        assert summary.engine["name"] == ("transformers" if base.is_dir() else "llama.cpp")
    one, other = found.values()
    for numbers in (one, other):
        assert numbers["folder"] == pytest.approx(numbers["gguf"], rel=1e-3)
        assert numbers["gguf"] > 1e-3
        assert max(numbers["same-gguf"], numbers["same-folder"]) < 1e-8
    assert one["gguf"] == pytest.approx(other["gguf"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["hidden", "logits"])
def test_workers_and_a_second_launch_change_no_byte(
    folders: dict[str, Path], pair: TinyPair, tmp_path: Path, encoding: str
) -> None:
    job = facts(folders["base"], [folders["noisy"], pair.candidate], [corpus()], encoding=encoding)
    one = sweep(job, tmp_path / "one")
    two = sweep(job, tmp_path / "two", workers=2)
    assert one.run == two.run
    assert result_bytes(tmp_path / "one", one.run) == result_bytes(tmp_path / "two", two.run)
    notes = Notes()
    again = sweep(job, tmp_path / "one", progress=notes)
    assert again.run == one.run
    assert any("is complete already" in note for note in notes.notes)


def test_a_base_in_safetensors_measured_again_is_itself(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    job = facts(
        folders["base"], [folders["noisy"]], [corpus()], encoding="hidden", noise_floor=True
    )
    summary = sweep(job, tmp_path).summary
    assert summary.encoding == "hidden"
    (floor,) = summary.noise_floor
    assert floor.mean is not None
    assert floor.mean.value == 0.0
    assert floor.maximum == 0.0


@pytest.mark.slow
def test_recipes_quantise_the_base(folders: dict[str, Path], tmp_path: Path) -> None:
    recipes = ["torchao-int8", "torchao-int4", "bnb-nf4"]
    candidates = [{"quantize": each} for each in recipes]
    summary = sweep(facts(folders["base"], candidates, [corpus()]), tmp_path).summary
    numbers = means(summary)
    assert 0 < numbers["torchao-int8"] < numbers["torchao-int4"]
    assert set(summary.engines) == set(recipes)
    assert all("name" not in each for each in summary.engines.values())
    sizes = {each.name: each.bytes or 0 for each in summary.candidates}
    assert sizes["torchao-int4"] < sizes["torchao-int8"] < (summary.base.bytes or 0)
    assert {each.file for each in summary.candidates} == {f"base-hf+{each}" for each in recipes}


@pytest.mark.slow
def test_runs_of_recipes_and_engines_are_compared_candidate_by_candidate(
    pair: TinyPair, folders: dict[str, Path], tmp_path: Path
) -> None:
    store, texts = open_store(str(tmp_path)), [corpus()]
    one = sweep(facts(folders["base"], [{"quantize": "bnb-nf4"}, pair.candidate], texts), tmp_path)
    two = sweep(
        facts(folders["base"], [{"quantize": "bnb-fp4"}, folders["noisy"]], texts), tmp_path
    )
    compared = compare_runs([FoundRun(each.run, store) for each in (one, two)])
    assert [each.name for each in compared.summary.candidates] == [
        "bnb-nf4",
        "candidate",
        "bnb-fp4",
        "noisy-hf",
    ]
    engines = {**one.summary.engines, **two.summary.engines}
    assert compared.summary.engines == engines
    for summary in (one.summary, two.summary):
        for name, mean in means(summary).items():
            assert means(compared.summary)[name] == mean
    rows = render_compared(compared, "csv").splitlines()
    ran = {row.split(",")[4]: row for row in rows[1:]}
    assert ",llama.cpp," in ran["candidate"]
    assert ",transformers," in ran["noisy-hf"]


@pytest.mark.slow
def test_weights_that_were_written_out_are_on_record(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    packed = rewritten(folders["base"], tmp_path / "fp8", lambda *each: fp8_blocks(*each)[0])
    candidates = [{"model": str(configured(packed, settings)), "name": "blocks"}]
    engine = {"transformers": {"dequantize": True}}
    job = facts(folders["base"], candidates, [corpus(chunks=4)], engine=engine)
    summary = sweep(job, tmp_path / "store").summary
    assert 1e-7 < means(summary)["blocks"] < 1e-2
    assert summary.engines == {"blocks": {"quantization": "fp8", "dequantized": "weights"}}
    assert "dequantized" not in summary.engine
    (note,) = run_warnings(summary, str)
    assert note.startswith("Run with dequantised weights and no kernels of their own: blocks (fp8)")
    assert "rounds activations to FP8 as well" in note
    rounded = {"activations": "rounded to FP8", **summary.engines["blocks"]}
    (note,) = run_warnings(summary.model_copy(update={"engines": {"blocks": rounded}}), str)
    assert note.endswith("of their own: blocks (fp8).")


@pytest.mark.slow
def test_a_base_whose_weights_were_written_out_is_on_record(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    packed = rewritten(folders["base"], tmp_path / "fp8", lambda *each: fp8_blocks(*each)[0])
    candidates = [{"model": str(folders["base"]), "name": "plain"}]
    engine = {"transformers": {"dequantize": True}}
    job = facts(configured(packed, settings), candidates, [corpus(chunks=4)], engine=engine)
    summary = sweep(job, tmp_path / "store").summary
    assert summary.engines == {"plain": {"quantization": "", "dequantized": ""}}
    (note,) = run_warnings(summary, str)
    assert "of their own: the base (fp8)." in note


@pytest.mark.slow
def test_a_folder_is_measured_against_llama_cpps_base_file(
    pair: TinyPair, folders: dict[str, Path], tmp_path: Path
) -> None:
    by_model = sweep(
        facts(pair.base, [pair.candidate], [corpus()], encoding="logits", engine=EXACT), tmp_path
    )
    file = tmp_path / "base.kld"
    run = FoundRun(by_model.run, open_store(str(tmp_path)))
    export_base_file(run, file, corpus=None, overwrite=False, progress=Notes())
    base = {"logits": str(file)}
    summary = sweep(facts(base, [folders["noisy"], pair.candidate], []), tmp_path).summary
    found = means(summary)
    assert found["noisy-hf"] == pytest.approx(found["candidate"], rel=1e-3)
    assert summary.engine["name"] == "transformers"
    assert summary.engines["candidate"]["name"] == "llama.cpp"
    note = engine_note(summary, str)
    assert note is not None
    assert "Run by another engine than the base: noisy-hf (transformers" in note


@pytest.mark.slow
def test_conversations_are_rendered_alike(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    pair = tiny_pair(tmp_path, vocabulary=321, bos=True, template=template)
    folder = folder_of(pair.candidate, tmp_path / "hf")
    talk = tmp_path / "talk.jsonl"
    line = {"messages": [{"role": "user", "content": "the other one is in the house " * 20}]}
    talk.write_text(f"{json.dumps(line)}\n" * 20)
    text = {**corpus(chunks=4, text=talk), "format": "chat"}
    summary = sweep(facts(pair.base, [folder], [text]), tmp_path / "store").summary
    assert means(summary)["hf"] > 1e-3


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_the_first_token_that_differs_is_named(
    pair: TinyPair, folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    other = damaged(folders["noisy"], tmp_path / "other")
    base = pair.base if kind == "gguf" else folders["base"]
    with pytest.raises(FormatError, match=r"candidate other cuts the text differently: token") as e:
        sweep(facts(base, [other], [corpus()]), tmp_path / "store")
    assert "corpus text: " in str(e.value)
    assert "' for the base and " in str(e.value)
    assert not (tmp_path / "store" / "runs").exists()


def refused(job: dict[str, Any], store: Path) -> str:
    with pytest.raises(UserError) as caught:
        sweep(job, store)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_does_not_go_together_is_refused_in_one_line(
    pair: TinyPair, folders: dict[str, Path], tmp_path: Path
) -> None:
    texts = [corpus()]
    found = refused(facts(folders["base"], [{"quantize": "Q4_0"}], texts), tmp_path)
    assert "candidate Q4_0: llama.cpp quantises GGUF files" in found
    found = refused(facts(pair.base, [{"quantize": "bnb-nf4"}], texts), tmp_path)
    assert "candidate bnb-nf4: bnb-nf4 is for a base in safetensors" in found
    base = {"model": str(folders["base"]), "convert": "F16"}
    found = refused(facts(base, [pair.candidate], texts), tmp_path)
    assert "convert is for GGUF files" in found


def test_a_shard_that_is_missing_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders["noisy"], broken)
    shard = sorted(broken.glob("model-*.safetensors"))[1]
    shard.unlink()
    found = refused(facts(folders["base"], [broken], [corpus()]), tmp_path / "store")
    assert f"candidate broken: shard {shard.name} is missing in {broken}" in found


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "tomorrows"}, "has no class for model_type 'tomorrows'"),
        ({"hidden_act": "sigmoidal"}, "could not load it: KeyError: 'sigmoidal'"),
        ({"intermediate_size": 1 << 20}, "and the files beside it hold"),
    ],
)
def test_a_candidate_that_transformers_cannot_make_is_refused_before_the_base_is_staged(
    pair: TinyPair,
    folders: dict[str, Path],
    tmp_path: Path,
    change: dict[str, Any],
    complaint: str,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders["noisy"], broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | change))
    job = facts(pair.base, [pair.candidate, broken], [corpus()])
    with pytest.raises(KldcloudError, match=re.escape(complaint)) as caught:
        sweep(job, tmp_path / "store")
    assert str(broken) in str(caught.value)
    assert not list((tmp_path / "store").rglob("stages"))


def test_a_pickle_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(folders["base"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    found = refused(facts(folders["base"], [pickled], [corpus()]), tmp_path / "store")
    assert "candidate pickled" in found
    assert "safetensors" in found


def test_reports_say_which_engine_ran_what(
    pair: TinyPair, folders: dict[str, Path], tmp_path: Path
) -> None:
    job = facts(folders["base"], [pair.candidate, folders["noisy"]], [corpus()])
    outcome = sweep(job, tmp_path)
    run = tmp_path / "runs" / outcome.run
    parse_summary((run / "summary.json").read_bytes())
    for name in ("report.md", "report.html"):
        report = (run / name).read_text()
        assert "Run by another engine than the base" in report
        assert "llama.cpp" in report
    rows = (run / "report.csv").read_text().splitlines() if (run / "report.csv").exists() else []
    assert all("llama.cpp" in row or "transformers" in row for row in rows[1:])
