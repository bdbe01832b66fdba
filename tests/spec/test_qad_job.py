"""What a distillation job may say, and how one that makes no sense is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kldcloud.errors import SpecError
from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.load import load_job, load_sweep
from kldcloud.spec.qad_fields import TRAINABLE
from kldcloud.spec.qad_job import QadJob
from kldcloud.spec.uri import SourceUri

REPOSITORY = Path(__file__).parents[2]
JOB = """\
kind: qad
name: demo
teacher: {model: teacher.gguf, convert: F16}
student:
  init: {quantize: q4_0}
data:
  text: a.txt
  tokens: 20k
train: {seed: 2}
eval: {every: 5}
checkpoints: {keep: 3}
export: {path: out.gguf}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(JOB)
    return path


def job_of(path: Path, *overrides: str) -> QadJob:
    job = load_job(path, overrides)
    assert isinstance(job, QadJob)
    return job


def refusal_of(path: Path, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_job(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path.parent}/")


def refusal_with(path: Path, old: str, new: str) -> str:
    """The refusal of the job with one piece of it replaced."""
    assert JOB.count(old) == 1
    path.write_text(JOB.replace(old, new))
    return refusal_of(path)


def test_the_shipped_demo_starts_from_what_it_has_to_beat() -> None:
    job = job_of(REPOSITORY / "jobs" / "qad-demo.yaml")
    assert job.teacher.display_name == "SmolLM2-135M-Instruct.Q4_1-F16"
    assert (job.student.init.quantize, job.student.init.imatrix) == ("Q4_0", "auto")
    assert str(job.data.text) == "builtin:python-reference"
    assert (job.cluster, job.store) == ("local", "./kldcloud-store")


def test_an_nvfp4_student_needs_no_init_and_may_go_into_a_folder() -> None:
    shipped = job_of(REPOSITORY / "jobs" / "qad-nvfp4.yaml", "export.to=hf", "export.path=a/folder")
    assert (shipped.student.format, shipped.student.init) == ("nvfp4", None)
    assert not shipped.student.activations
    assert (shipped.export.to, shipped.export.path) == ("hf", Path("a/folder"))
    rough = job_of(REPOSITORY / "jobs" / "qad-nvfp4.yaml", "student.activations=true")
    assert rough.student.activations
    assert QadJob.model_validate(rough.model_dump(mode="json")) == rough
    said = refusal_of(REPOSITORY / "jobs" / "qad-nvfp4.yaml", "train.train_head=true")
    assert (
        said == "--set: train.train_head: an nvfp4 student has the teacher's own head: write false"
    )


def test_what_is_left_out_has_the_documented_default() -> None:
    job = QadJob.model_validate(
        {
            "kind": "qad",
            "name": "demo",
            "teacher": "teacher.gguf",
            "student": {"init": "init.gguf"},
            "data": {"text": "a.txt"},
        }
    )
    assert job.student.format == "gguf"
    assert (job.data.tokens, job.data.context, job.data.heldout) == ("all", 512, 0.1)
    assert job.train.model_dump() == {
        "epochs": 1,
        "global_batch": 8,
        "micro_batch": 1,
        "lr": 2e-4,
        "lr_norms": None,
        "schedule": "cosine",
        "final_lr": 0.1,
        "warmup": 0.05,
        "clip": 1.0,
        "weight_decay": 0.0,
        "train_codes": True,
        "train_norms": True,
        "train_head": False,
        "seed": 1,
        "precision": "auto",
        "recompute": False,
        "patience": 3,
        "skip_below": None,
    }
    assert (job.eval.every, job.eval.chunks, job.eval.heldout_chunks) == (20, 4, "all")
    assert (job.eval.second_text, job.eval.second_chunks) == (None, 16)
    assert (job.checkpoints.every, job.checkpoints.keep) == (20, 2)
    assert (job.export.to, job.export.path) == ("gguf", None)
    assert job.engine == EngineOptions()
    assert (job.cluster, job.store) == ("local", "./kldcloud-store")


def test_a_file_alone_stands_for_its_model(job_file: Path) -> None:
    short = job_of(job_file, "teacher=t.gguf", "student.init=i.gguf")
    long = job_of(job_file, "teacher={model: t.gguf}", "student.init={model: i.gguf}")
    assert short == long
    assert short.student.init.imatrix is None


@pytest.mark.parametrize("place", ["hf:org/repo@v1", "package:models/folder", "models/folder"])
def test_a_teacher_may_be_a_folder_or_a_repository(job_file: Path, place: str) -> None:
    short = job_of(job_file, f"teacher={place}")
    assert short == job_of(job_file, f"teacher={{model: {place}}}")
    assert short.teacher.display_name in {"repo", "folder"}
    assert "repository; write hf:org/repo/file" in refusal_of(job_file, "student.init=hf:org/repo")


def test_an_importance_matrix_is_computed_unless_the_job_says_otherwise(job_file: Path) -> None:
    assert job_of(job_file).student.init.imatrix == "auto"
    assert job_of(job_file, "student.init.imatrix=").student.init.imatrix == "auto"
    assert job_of(job_file, "student.init.imatrix=none").student.init.imatrix == "none"
    given = job_of(job_file, "student.init.imatrix=s3://bucket/some.dat").student.init.imatrix
    assert given == SourceUri("s3", "bucket", "some.dat")
    assert job_of(job_file, "student.init.quantize=q8_0").student.init.imatrix == "none"


def test_paths_to_read_are_relative_to_the_job_file_and_one_to_write_to_where_we_are(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    job_file.write_text(JOB.replace("every: 5", "second_text: b.txt").replace("q4_0", "Q4_0"))
    job = job_of(job_file, "student.init.imatrix=auto.dat")
    assert str(job.teacher.model) == str(tmp_path / "teacher.gguf")
    assert str(job.data.text) == str(tmp_path / "a.txt")
    assert str(job.eval.second_text) == str(tmp_path / "b.txt")
    assert str(job.student.init.imatrix) == str(elsewhere / "auto.dat")
    assert job.export.path == Path("out.gguf")
    job = job_of(job_file, "teacher=t.gguf", "student.init=i.gguf")
    assert str(job.teacher.model) == str(elsewhere / "t.gguf")
    assert str(job.student.init.model) == str(elsewhere / "i.gguf")
    job_file.write_text(JOB.replace("q4_0", "Q4_0, imatrix: m.gguf"))
    assert str(job_of(job_file).student.init.imatrix) == str(tmp_path / "m.gguf")
    job_file.write_text(JOB.replace("q4_0", "Q4_0, imatrix: ./auto"))
    assert str(job_of(job_file).student.init.imatrix) == str(tmp_path / "auto")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("student.init=i.gguf", "train.patience=never", "data.tokens=all", "export="),
        ("student.init={quantize: Q8_0}", "train.patience=7", "eval.second_text=b.txt"),
        ("student.init.imatrix=none", "train.lr=1e-4", "engine.flash_attention=on"),
        ("student.init.imatrix=m.dat", "train.skip_below=0.01", "teacher.name=t"),
    ],
)
def test_a_job_survives_json_unchanged(job_file: Path, overrides: tuple[str, ...]) -> None:
    job = job_of(job_file, *overrides)
    assert QadJob.model_validate(json.loads(job.model_dump_json())) == job


def test_a_job_cannot_be_changed(job_file: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job_of(job_file).train.lr = 1.0


@pytest.mark.parametrize(
    ("override", "way", "meant"),
    [
        ("data.tokens=20000", ("data", "tokens"), 20_000),
        ("data.tokens=20k", ("data", "tokens"), 20_000),
        ("data.tokens=20 K", ("data", "tokens"), 20_000),
        ("data.tokens=12.5k", ("data", "tokens"), 12_500),
        ("data.tokens=5M", ("data", "tokens"), 5_000_000),
        ("data.tokens=1.5B", ("data", "tokens"), 1_500_000_000),
        ("data.tokens='20480'", ("data", "tokens"), 20_480),
        ("data.tokens=all", ("data", "tokens"), "all"),
        ("data.heldout=10%", ("data", "heldout"), 0.1),
        ("data.heldout=0.5", ("data", "heldout"), 0.5),
        ("train.lr=1e-4", ("train", "lr"), 1e-4),
        ("train.lr=1.0e-4", ("train", "lr"), 1e-4),
        ("train.lr=1", ("train", "lr"), 1.0),
        ("train.warmup=0", ("train", "warmup"), 0.0),
        ("train.warmup=5%", ("train", "warmup"), 0.05),
        ("train.final_lr=100%", ("train", "final_lr"), 1.0),
        ("train.weight_decay=0", ("train", "weight_decay"), 0.0),
        ("train.patience=never", ("train", "patience"), "never"),
        ("train.patience=", ("train", "patience"), 3),
        ("train.seed=4294967295", ("train", "seed"), (1 << 32) - 1),
        ("eval.chunks=all", ("eval", "chunks"), "all"),
        ("student.init.quantize=q5_k_m", ("student", "init", "quantize"), "Q5_K_M"),
        ("export.path=~/x.gguf", ("export", "path"), Path.home() / "x.gguf"),
        ("export.path=file:x.gguf", ("export", "path"), Path("x.gguf")),
    ],
)
def test_values_are_written_as_people_write_them(
    job_file: Path, override: str, way: tuple[str, ...], meant: object
) -> None:
    found: Any = job_of(job_file, override)
    for name in way:
        found = getattr(found, name)
    assert found == meant


def test_a_type_can_be_trained_if_every_tensor_in_its_files_can() -> None:
    from kldcloud.qad.formats.blocks import BLOCK_TYPES

    tensors_of = {
        "Q4_K_S": {"Q4_K", "Q5_K", "Q6_K"},
        "Q4_K_M": {"Q4_K", "Q6_K"},
        "Q5_K_S": {"Q5_K", "Q6_K"},
        "Q5_K_M": {"Q5_K", "Q6_K"},
    }
    stand_ins = {"Q5_0", "Q5_1", "Q8_0"}  # for K-quants, where rows are no multiples of 256
    for name in TRAINABLE:
        assert tensors_of.get(name, {name}) | stand_ins <= set(BLOCK_TYPES), name


SHARE = "must be a share such as 10% or 0.1"
TOKENS = "data.tokens: must be all or a number of tokens such as 20k, 5M or 1B"
TYPES = "types that can: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K"
HF = "only nvfp4 students are exported to hf: write gguf"
MAPPING = "must be a mapping (indented 'key: value' lines)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # Shape
        ("name: demo", "nmae: demo", "x.yaml:2: nmae: unknown key; did you mean 'name'?"),
        (
            "name: demo",
            "name: demo\ncandidates: []",
            (
                "x.yaml:3: candidates: unknown key; known keys: kind, name, teacher, student, "
                "data, train, eval, checkpoints, export, engine, cluster, store"
            ),
        ),
        ("name: demo\n", "", "x.yaml:1: name: is missing"),
        ("data:\n  text: a.txt\n", "data:\n", "x.yaml:6: data.text: is missing"),
        ("train: {seed: 2}", "train: fast", f"x.yaml:9: train: {MAPPING}"),
        ("train: {seed: 2}", "train: {lrs: 1}", "x.yaml:9: train.lrs: unknown key; did you mean "),
        # Teacher
        (
            "teacher: {model: teacher.gguf, convert: F16}",
            "teacher: http://x/m.gguf",
            (
                "x.yaml:3: teacher: 'http://x/m.gguf' is a web address; "
                "download it first and give the file's path"
            ),
        ),
        (
            "teacher: {model: teacher.gguf, convert: F16}",
            "teacher: 3",
            f"x.yaml:3: teacher: {MAPPING}",
        ),
        (
            "model: teacher.gguf",
            "model: builtin:python-reference",
            "x.yaml:3: teacher.model: a built-in text is not a model",
        ),
        ("model: teacher.gguf, ", "", "x.yaml:3: teacher.model: is missing"),
        (
            "convert: F16",
            "convert: Q8_0",
            "x.yaml:3: teacher.convert: must be one of F32, F16, BF16, not 'Q8_0'",
        ),
        (
            "model: teacher.gguf",
            "model: '???.gguf'",
            "x.yaml:3: teacher: no name can be made from the file's name: give one with 'name'",
        ),
        # Student
        (
            "student:\n",
            "student:\n  format: nvfp4\n",
            (
                "x.yaml:6: student.init: an nvfp4 student starts at the teacher's own weights: "
                "leave it out"
            ),
        ),
        (
            "student:\n",
            "student:\n  activations: true\n",
            "x.yaml:5: student.activations: only the format nvfp4 has activations of its own",
        ),
        (
            "student:\n",
            "student:\n  format: exl3\n",
            "x.yaml:5: student.format: must be one of gguf, nvfp4, not 'exl3'",
        ),
        ("  init: {quantize: q4_0}", "  init:", "x.yaml:5: student.init: is missing"),
        (
            "{quantize: q4_0}",
            "{name: x}",
            ("x.yaml:5: student.init.name: unknown key; known keys: quantize, imatrix, model"),
        ),
        (
            "{quantize: q4_0}",
            "{imatrix: auto}",
            "x.yaml:5: student.init: give exactly one of 'quantize' and 'model'",
        ),
        (
            "{quantize: q4_0}",
            "{quantize: Q4_0, model: i.gguf}",
            "x.yaml:5: student.init: give exactly one of 'quantize' and 'model'",
        ),
        (
            "{quantize: q4_0}",
            "{quantize: iq4_xs}",
            f"x.yaml:5: student.init.quantize: IQ4_XS files cannot be trained; {TYPES}",
        ),
        (
            "{quantize: q4_0}",
            "{quantize: Q4_K}",
            (
                "x.yaml:5: student.init.quantize: unknown quantisation type 'Q4_K'; "
                "did you mean 'Q4_K_M'?"
            ),
        ),
        (
            "{quantize: q4_0}",
            "{quantize: 4}",
            "x.yaml:5: student.init.quantize: must be text, not 4; put it in quotes",
        ),
        (
            "{quantize: q4_0}",
            "{quantize: Q4_0, imatrix: no}",
            "x.yaml:5: student.init.imatrix: must be auto, none or a file, not false",
        ),
        (
            "{quantize: q4_0}",
            "{quantize: Q4_0, imatrix: builtin:python-reference}",
            "x.yaml:5: student.init.imatrix: a built-in text is no importance matrix",
        ),
        (
            "{quantize: q4_0}",
            "{model: i.gguf, imatrix: auto}",
            ("x.yaml:5: student.init.imatrix: only what is quantised here takes one: leave it out"),
        ),
        (
            "{quantize: q4_0}",
            "{quantize: Q8_0, imatrix: auto}",
            (
                "x.yaml:5: student.init.imatrix: "
                "Q8_0 takes no importance matrix; leave 'imatrix' out"
            ),
        ),
        (
            "{quantize: q4_0}",
            "teacher.gguf",
            "x.yaml:5: student.init: is the teacher itself: there is nothing to win back",
        ),
        # Data
        ("tokens: 20k", "tokens: 20kB", f"x.yaml:8: {TOKENS}, not '20kB'"),
        ("tokens: 20k", "tokens: 0", f"x.yaml:8: {TOKENS}, not 0"),
        ("tokens: 20k", "tokens: 0.5", f"x.yaml:8: {TOKENS}, not 0.5"),
        ("tokens: 20k", "tokens: 1.0001k", f"x.yaml:8: {TOKENS}, not '1.0001k'"),
        ("tokens: 20k", "tokens: true", f"x.yaml:8: {TOKENS}, not true"),
        ("tokens: 20k", "tokens: some", f"x.yaml:8: {TOKENS}, not 'some'"),
        ("tokens: 20k", "tokens: 10000B", f"x.yaml:8: {TOKENS}, not '10000B'"),
        (
            "tokens: 20k",
            "tokens: 4095",
            ("x.yaml:8: data.tokens: is less than one step of 8 chunks of 512 tokens, not 4095"),
        ),
        ("tokens: 20k", "context: 15", "x.yaml:8: data.context: must be at least 16, not 15"),
        (
            "tokens: 20k",
            "context: 2000000",
            "x.yaml:8: data.context: must be at most 1048576, not 2000000",
        ),
        (
            "tokens: 20k",
            "heldout: 0",
            f"x.yaml:8: data.heldout: {SHARE}, more than 0 and at most 50%, not 0",
        ),
        (
            "tokens: 20k",
            "heldout: 51%",
            f"x.yaml:8: data.heldout: {SHARE}, more than 0 and at most 50%, not '51%'",
        ),
        (
            "tokens: 20k",
            "heldout: .nan",
            f"x.yaml:8: data.heldout: {SHARE}, more than 0 and at most 50%, not nan",
        ),
        # Training
        ("seed: 2", "epochs: 0", "x.yaml:9: train.epochs: must be at least 1, not 0"),
        ("seed: 2", "epochs: 10001", "x.yaml:9: train.epochs: must be at most 10000, not 10001"),
        (
            "seed: 2",
            "global_batch: 1.5",
            "x.yaml:9: train.global_batch: must be a whole number, not 1.5",
        ),
        (
            "seed: 2",
            "global_batch: 8, micro_batch: 3",
            "x.yaml:9: train.micro_batch: must divide global_batch, which is 8, not 3",
        ),
        (
            "seed: 2",
            "global_batch: 8, micro_batch: 16",
            "x.yaml:9: train.micro_batch: must divide global_batch, which is 8, not 16",
        ),
        ("seed: 2", "lr: 0", "x.yaml:9: train.lr: must be more than 0, not 0"),
        ("seed: 2", "lr: 1.5", "x.yaml:9: train.lr: must be at most 1, not 1.5"),
        ("seed: 2", "lr: .nan", "x.yaml:9: train.lr: must be more than 0, not nan"),
        ("seed: 2", "lr: true", "x.yaml:9: train.lr: must be a number, not true"),
        ("seed: 2", "lr: fast", "x.yaml:9: train.lr: must be a number, not 'fast'"),
        ("seed: 2", "lr: [1]", "x.yaml:9: train.lr: must be a number"),
        ("seed: 2", "lr_norms: -1", "x.yaml:9: train.lr_norms: must be more than 0, not -1"),
        (
            "seed: 2",
            "lr_norms: 0.1, train_norms: false",
            "x.yaml:9: train.lr_norms: is of no use while train_norms is false",
        ),
        (
            "seed: 2",
            "schedule: linear",
            "x.yaml:9: train.schedule: must be one of cosine, constant, not 'linear'",
        ),
        (
            "seed: 2",
            "final_lr: 2",
            f"x.yaml:9: train.final_lr: {SHARE}, from 0 to 100%, not 2",
        ),
        ("seed: 2", "warmup: 60%", f"x.yaml:9: train.warmup: {SHARE}, from 0 to 50%, not '60%'"),
        ("seed: 2", "warmup: 20", f"x.yaml:9: train.warmup: {SHARE}, from 0 to 50%, not 20"),
        ("seed: 2", "clip: 0", "x.yaml:9: train.clip: must be more than 0, not 0"),
        ("seed: 2", "clip: .inf", "x.yaml:9: train.clip: must be at most 1000000, not inf"),
        (
            "seed: 2",
            "weight_decay: -0.1",
            "x.yaml:9: train.weight_decay: must be at least 0, not -0.1",
        ),
        (
            "seed: 2",
            "train_codes: false, train_norms: false",
            (
                "x.yaml:9: train: nothing is left to train: "
                "set train_codes, train_norms or train_head"
            ),
        ),
        ("seed: 2", "train_head: 1", "x.yaml:9: train.train_head: must be true or false, not 1"),
        ("seed: 2", "seed: -1", "x.yaml:9: train.seed: must be at least 0, not -1"),
        (
            "seed: 2",
            "patience: 0",
            ("x.yaml:9: train.patience: must be never or a whole number from 1 to 1000000, not 0"),
        ),
        ("seed: 2", "skip_below: 0", "x.yaml:9: train.skip_below: must be more than 0, not 0"),
        # Evaluation, checkpoints, export
        ("every: 5", "every: 0", "x.yaml:10: eval.every: must be at least 1, not 0"),
        (
            "every: 5",
            "chunks: 0",
            ("x.yaml:10: eval.chunks: must be all or a whole number from 1 to 2147483647, not 0"),
        ),
        (
            "every: 5",
            "second_text: ./a.txt",
            "x.yaml:10: eval.second_text: is the training text: give another, or none",
        ),
        ("keep: 3", "keep: 0", "x.yaml:11: checkpoints.keep: must be at least 1, not 0"),
        ("keep: 3", "keep: 1001", "x.yaml:11: checkpoints.keep: must be at most 1000, not 1001"),
        ("path: out.gguf", "to: hf", f"x.yaml:12: export.to: {HF}"),
        ("path: out.gguf", "to: exl3", "x.yaml:12: export.to: must be one of gguf, hf, not 'exl3'"),
        (
            "path: out.gguf",
            "to: hf, path: out.gguf",
            "x.yaml:12: export.path: is a folder where 'to' is hf, and cannot end in .gguf",
        ),
        (
            "path: out.gguf",
            "path: out.bin",
            "x.yaml:12: export.path: must be a path here that ends in .gguf, not 'out.bin'",
        ),
        (
            "path: out.gguf",
            "path: s3://bucket/out.gguf",
            ("x.yaml:12: export.path: must be a path here, not 's3://bucket/out.gguf'"),
        ),
        (
            "path: out.gguf",
            "path: 3",
            "x.yaml:12: export.path: must be text, not 3; put it in quotes",
        ),
        (
            "path: out.gguf",
            "path: gs://me:hunter2@host/m.gguf",
            "x.yaml:12: export.path: 'gs://***@host/m.gguf' has the unknown scheme 'gs:'; write ",
        ),
    ],
)
def test_every_refusal_is_one_line_with_place_field_and_remedy(
    job_file: Path, old: str, new: str, message: str
) -> None:
    refusal = refusal_with(job_file, old, new)
    assert (refusal[: len(message)] if message.endswith(" ") else refusal) == message


@pytest.mark.parametrize("read", ["teacher.model", "student.init", "student.init.imatrix"])
def test_an_export_never_overwrites_what_the_job_reads(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal_of(job_file, f"{read}=./sub/../m.gguf", f"export.path={tmp_path}/m.gguf")
    assert said == "--set: export.path: would overwrite a file that this job reads"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=fast", "--set: train.lr: must be a number, not 'fast'"),
        ("train.lrr=1", "--set: train.lrr: unknown key; did you mean 'lr'?"),
        ("student.format=nvfp5", "--set: student.format: must be one of gguf, nvfp4, not 'nvfp5'"),
        ("kind=sweep", "x.yaml:3: teacher: unknown key; "),
        (
            "eval.heldout_chunks=1",
            (
                "--set: eval.heldout_chunks: must be at least 2, or all: the verdict goes by how "
                "much chunks differ, not 1"
            ),
        ),
    ],
)
def test_a_wrong_override_is_refused_the_same_way(
    job_file: Path, override: str, message: str
) -> None:
    assert refusal_of(job_file, override).startswith(message)


def test_a_refusal_does_not_repeat_a_password(job_file: Path) -> None:
    for override in ("teacher=ftp://me:hunter2@h/m", "export.path=s3://me:hunter2@b/m.gguf"):
        assert "hunter2" not in refusal_of(job_file, override)


def test_what_needs_a_sweep_says_that_this_is_none(job_file: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_sweep(job_file)
    assert str(caught.value) == (
        f"{job_file}: this is a qad job, whose run cannot be told from its file; "
        "give the run's id, as launch printed it"
    )


MODELOPT = """\
kind: qad
name: demo
teacher: t.gguf
student: {format: nvfp4, trainer: modelopt}
data: {text: a.txt}
export: {to: hf}
"""


def test_model_optimizer_starts_from_its_own_settings_and_takes_a_jobs(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(MODELOPT)
    plain = job_of(path)
    assert (plain.train.lr, plain.train.final_lr, plain.train.patience) == (1e-5, 0.0, "never")
    assert plain.train.warmup == 0.05
    own = job_of(path, "train={lr: 3e-5, lr_norms: 1e-4, patience: }", "train.seed=4")
    assert (own.train.lr, own.train.lr_norms, own.train.seed) == (3e-5, 1e-4, 4)
    assert own.train.patience == "never"
    for job in (plain, own):
        assert QadJob.model_validate(job.model_dump(mode="json")) == job
    assert job_of(path, "student.trainer=kldcloud").train.lr == 2e-4


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["student={init: {quantize: Q4_0}, trainer: modelopt}"], "student.format: modelopt tr"),
        (["student.trainer=nvidia"], "student.trainer: "),
        (["export.to=gguf"], "export.to: modelopt exports a folder"),
        (["export="], "export.to: modelopt exports a folder (its GGUF is made beside it): write"),
        (["train.patience=3"], "train.patience: modelopt trains all steps"),
        (["train.skip_below=0.1"], "train.skip_below: modelopt trains in any case"),
        (["train.precision=float32"], "train.precision: modelopt trains in bfloat16: leave it"),
        (["train.recompute=false"], "train.recompute: modelopt keeps no activations: leave it"),
        (["train.train_head=true"], "train.train_head: an nvfp4 student has"),
        (["checkpoints.every=40"], "checkpoints.every: modelopt keeps the best of what it looks"),
        (["train=fast"], "train: "),
        (["student=nvfp4"], "student: "),
    ],
)
def test_what_model_optimizers_script_cannot_do_is_refused(
    tmp_path: Path, overrides: list[str], reason: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(MODELOPT)
    assert reason in refusal_of(path, *overrides)
