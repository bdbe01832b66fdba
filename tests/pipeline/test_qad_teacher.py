"""A folder of safetensors as the teacher: found here or shipped, it becomes the same GGUF."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kldcloud.errors import FormatError, UserError
from kldcloud.models.folder_digest import folder_sha256
from kldcloud.models.model_folder import read_model_folder
from kldcloud.models.transformers_engine import TransformersEngine
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.models.transformers_tokenizer import folder_vocabulary
from kldcloud.pipeline import qad_teacher
from kldcloud.pipeline.launches import ship
from kldcloud.pipeline.model_files import folder_model
from kldcloud.pipeline.options import engines
from kldcloud.pipeline.progress import Silent
from kldcloud.pipeline.qad_files import source_of
from kldcloud.pipeline.qad_folder import export_folder, what_is_missing
from kldcloud.pipeline.qad_teacher import find_teacher, tokenizer_files
from kldcloud.pipeline.sources import HERE, Sources
from kldcloud.qad.from_folder import convert
from kldcloud.report.summary_file import parse_summary
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.qad_job import QadJob
from kldcloud.store.folder import FolderStore
from tests.pipeline.sweeps import TEXT, Notes, launch
from tests.pipeline.test_qad import STEPS, job, qad_run
from tests.qad.from_folder.folders import SMALL, configure, tiny_folder
from tests.qad.small_training import tiny_teacher
from tests.qad.tiny_architectures import TinyShape


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path, TinyShape("qwen3", **SMALL), pre="qwen2", dtype="bfloat16")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose name leaves room for those of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="k-") as place:
        yield Path(place)


def job_of(teacher: Path, **changes: Any) -> QadJob:
    return QadJob.model_validate(job(teacher, **changes))


def test_it_is_a_gguf_made_here_in_the_folders_own_dtype(folder: Path) -> None:
    told = Notes()
    wanted = job_of(folder)
    found = find_teacher(wanted, told, HERE)
    assert (found.name, found.file, found.origin) == ("folder", "folder.gguf", "")
    assert {each.type_name for each in found.header.tensors.values()} == {"BF16", "F32"}
    assert source_of(found, wanted.teacher.model) == str(found.path)
    assert "converting folder" in told.bars
    assert [each for each in told.notes if "is a GGUF of BF16 now" in each]
    again = Notes()
    assert find_teacher(wanted, again, HERE) == found
    assert not again.notes


def test_chunks_beyond_what_it_was_trained_for_are_told_of(folder: Path) -> None:
    most = read_model_folder(folder).config["max_position_embeddings"]
    for context, warnings in ((most, 0), (2 * most, 1)):
        told = Notes()
        find_teacher(job_of(folder, data={"text": str(TEXT), "context": context}), told, HERE)
        assert len(told.warnings) == warnings
    assert f"data.text has chunks of {2 * most:,} tokens" in told.warnings[0]


def test_convert_gives_it_another_type(folder: Path) -> None:
    spec = {"model": str(folder), "convert": "F16", "name": "original"}
    wanted = QadJob.model_validate({**job(folder), "teacher": spec})
    found = find_teacher(wanted, Notes(), HERE)
    assert (found.name, found.file) == ("original", "folder-F16.gguf")
    assert {each.type_name for each in found.header.tensors.values()} == {"F16", "F32"}


def test_an_nvfp4_student_of_it_is_a_folder_that_others_load_as_it_is(
    folder: Path, tmp_path: Path
) -> None:
    wanted = job_of(folder, student={"format": "nvfp4"}, export={"to": "hf"})
    told, store, copy = Notes(), FolderStore(tmp_path / "store"), tmp_path / "copy"
    teacher = find_teacher(wanted, told, HERE)
    order: Any = SimpleNamespace(run="run", prefix="qad/run", activations=False)
    beside = tokenizer_files(wanted, told, HERE)
    export_folder(order, teacher.path, {}, beside, store, told, copy)
    assert told.notes[-1] == f"copied to {copy}"
    for each in copy.iterdir():
        assert store.read(f"qad/run/student/{each.name}") == each.read_bytes()
    assert (copy / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    tokens = np.arange(64, dtype=np.int32)
    student = folder_model("student", "copy", copy, told)
    options = engines(EngineOptions(), 1).of(student)
    assert isinstance(options, TransformersOptions)
    assert options.dtype == "bfloat16"  # to which compressed-tensors unpacks it
    asked = EngineOptions.model_validate({"transformers": {"dtype": "float32"}})
    with pytest.raises(UserError, match=r"unpacks its NVFP4 weights to bfloat16, and the job says"):
        engines(asked, 1).of(student)
    engine = TransformersEngine(copy, 64, options)
    assert engine.vocabulary == folder_vocabulary(read_model_folder(folder))
    assert np.isfinite(engine.evaluate(tokens).logits).all()


def test_a_gguf_has_no_tokenizer_files(tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path, layers=1, feed_forward=256)
    assert tokenizer_files(job_of(teacher), Notes(), HERE) == ()
    assert what_is_missing(["config.json"]) == "; add the original model's tokenizer files"


def test_tokens_are_compared_on_the_beginning_of_a_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, str]] = []

    def noting(_: Path, _sha256: str, texts: Mapping[str, str], **_rest: object) -> Path:
        seen.append(texts)
        return tiny_teacher(tmp_path, layers=1, feed_forward=256)

    monkeypatch.setattr(convert, "folder_gguf", noting)
    monkeypatch.setattr(qad_teacher, "COMPARED_BYTES", 4)
    text = tmp_path / "text.txt"
    text.write_text("ab\u20accd")  # its third character takes three bytes
    find_teacher(job_of(folder, data={"text": str(text)}), Notes(), HERE)
    assert seen == [{"data.text": "ab"}]


def test_machines_that_get_the_folder_make_the_same_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = job_of(folder, eval={"second_text": "builtin:python-reference"})
    store = FolderStore(tmp_path / "store")
    shipped = ship(wanted, store, Silent())
    assert [(each.uri, each.folder) for each in shipped[:2]] == [
        (str(folder), True),
        (str(TEXT), False),
    ]
    assert shipped[0].sha256 == folder_sha256(folder)
    here = find_teacher(wanted, Notes(), HERE)
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "elsewhere"))
    folder.rename(tmp_path / "gone")
    there = find_teacher(wanted, Notes(), Sources(store, {each.uri: each for each in shipped}))
    assert there.path != here.path
    assert (there.sha256, there.origin) == (here.sha256, "")


def test_what_cannot_be_a_teacher_is_refused_before_anything_is_sent_or_hashed(
    folder: Path, tmp_path: Path
) -> None:
    configure(folder, quantization_config={"quant_method": "gptq"})
    store = FolderStore(tmp_path / "store")
    message = r"^teacher: .*folder: is quantised \(gptq\), and a teacher is the original"
    with pytest.raises(FormatError, match=message):
        ship(job_of(folder), store, Silent())
    assert not list(store.list(""))
    told = Notes()
    with pytest.raises(FormatError, match=message):
        find_teacher(job_of(folder), told, HERE)
    assert not [each for each in told.bars if each.startswith("hashing")]


def test_its_texts_are_needed_first(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.text: /missing\.txt does not exist"):
        find_teacher(job_of(folder, data={"text": "/missing.txt"}), Notes(), HERE)
    with pytest.raises(UserError, match=r"^eval\.second_text: /missing\.txt does not exist"):
        find_teacher(job_of(folder, eval={"second_text": "/missing.txt"}), Notes(), HERE)


def test_a_launch_refuses_one_in_one_line(folder: Path, short_folder: Path, tmp_path: Path) -> None:
    configure(folder, attention_bias=True)
    code, out, errors = launch(short_folder / "t", job(folder), tmp_path / "store").wait(120)
    assert (code, out) == (2, "")
    assert errors.splitlines()[-1] == (
        f"kldcloud: teacher: {folder}/config.json: attention_bias is True, which a GGUF of qwen3 "
        "cannot say here; use a plain dense model of llama, qwen2, qwen3 or gemma3, unquantised"
    )
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_job_trains_towards_it_and_goes_on(short_folder: Path, tmp_path: Path) -> None:
    shape = TinyShape("llama", layers=1, feed_forward=256)
    folder = tiny_folder(tmp_path, shape, pre="llama-bpe", bos=True)
    store = tmp_path / "store"
    # Its tokens are longer than those of that job's own model, so there are fewer.
    whole = job(folder)
    whole["data"]["heldout"] = 0.4
    code, out, errors = launch(short_folder / "t", whole, store).wait(240)
    assert code == 0, errors
    assert "folder is a GGUF of F32 now: " in errors
    result = json.loads((qad_run(store) / "result.json").read_text())
    assert (result["steps"], result["failed"], result["teacher"]) == (STEPS, None, "folder")
    summary = parse_summary((store / "runs" / result["sweep"] / "summary.json").read_bytes())
    means = {each.candidate: each.result.kld.mean.value for each in summary.results if each.result}
    assert means["Q4_0-imat-qad"] < means["Q4_0-imat"]
    assert "held-out: KLD" in out
    again, _, errors = launch(short_folder / "u", whole, store).wait(240)
    assert again == 0
    assert "is a GGUF of" not in errors
    assert "is complete already" in errors
