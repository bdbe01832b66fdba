"""What each verb prints and leaves behind, on one real sweep of tiny models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import CHUNKS, CONTEXT, Desk, Said, run
from tiny_models import TinyPair

from kldcloud import __version__
from kldcloud.models import llama_library, transformers_library
from kldcloud.pipeline.check import check_all
from kldcloud.report.html import FIGURE_FORMATS
from kldcloud.report.render import FORMATS
from kldcloud.staging.kld_file import read_kld_header
from kldcloud.store import open_store

Command = Callable[..., Said]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep and what its launch said."""

    desk: Desk
    said: Said
    run: str

    def kept(self, name: str) -> str:
        """One of the run's files in its store."""
        return open_store(str(self.desk.store)).read(f"runs/{self.run}/{name}").decode()

    def report(self, *options: str) -> list[str]:
        return ["report", "latest", "--store", str(self.desk.store), *options]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, pair: TinyPair) -> Sweep:
    desk = Desk(tmp_path_factory.mktemp("sweep"), pair)
    desk.write_job()
    said = run("launch", desk.job)
    assert said.code == 0, said.err
    (place,) = (desk.store / "runs").iterdir()
    return Sweep(desk, said, place.name)


# launch


def test_a_launch_prints_its_table_on_stdout_and_everything_else_on_stderr(sweep: Sweep) -> None:
    lines = sweep.said.out.splitlines()
    assert lines[0].startswith("tiny  against base")
    assert [line.split()[0] for line in lines if line.startswith(("candidate ", "Q8_0 "))] == [
        "candidate",  # the heading
        "candidate",
        "Q8_0",
    ]
    last = sweep.said.err.splitlines()[-1]
    assert last.startswith(f"run {sweep.run} in ")
    assert f"kldcloud report {sweep.run} --store {sweep.desk.store} shows it again" in last
    assert last.endswith("|".join([*FORMATS, *FIGURE_FORMATS]))


def test_the_second_launch_says_that_the_run_is_complete_and_prints_the_same(
    sweep: Sweep, command: Command
) -> None:
    again = command("launch", sweep.desk.job)
    assert again.code == 0
    assert again.out == sweep.said.out
    assert f"run {sweep.run} is complete already" in again.err


def test_launch_with_json_prints_summary_json_and_nothing_else(
    sweep: Sweep, command: Command
) -> None:
    said = command("launch", sweep.desk.job, "--json")
    assert said.code == 0
    assert said.out == sweep.kept("summary.json")
    assert json.loads(said.out)["run"] == sweep.run


@pytest.mark.slow
def test_settings_cluster_and_store_of_the_command_line_win_over_the_job(
    sweep: Sweep, tmp_path: Path, command: Command
) -> None:
    exported = tmp_path / "base.kld"
    said = command("export-kld", sweep.run, "--store", sweep.desk.store, "-o", exported)
    assert said.code == 0, said.err
    assert said.out == f"{exported}: {exported.stat().st_size:,} bytes\n"
    header = read_kld_header(exported)
    assert (header.n_ctx, header.n_vocab, header.n_chunks) == (CONTEXT, 320, CHUNKS)

    store = tmp_path / "other"
    said = command("import-kld", exported, "--store", store)
    assert said.code == 0, said.err
    assert said.out.endswith(f": {CHUNKS} chunks of {CONTEXT} tokens, vocabulary 320\n")
    stage = said.out.split(":")[0].removeprefix("stage ")
    assert (store / "stages" / stage / "manifest.json").is_file()

    pair = tmp_path / "pair.yaml"
    pair.write_text("provider: local\nworkers: 2\nthreads_per_worker: 1\n")
    said = run(
        *("launch", sweep.desk.job, "--cluster", pair, "--store", store, "--set", "name=renamed"),
        *("--set", f"base={{logits: {exported}}}", "--set", "corpora=[]", "--json"),
        *("--set", f"candidates=[{{model: {sweep.desk.pair.candidate}}}]"),
    )
    assert said.code == 0, said.err
    summary = json.loads(said.out)
    assert summary["run"].startswith("renamed-")
    assert summary["encoding"] == "kld"
    # The import is found, not repeated.
    assert [each.name for each in (store / "stages").iterdir()] == [stage]
    (life,) = (store / "runs" / summary["run"] / "life").glob("*/ended.json")
    assert json.loads(life.read_text())["workers"] == 2
    # The base file holds rounded and clamped numbers: the same result, but not the same digits.
    exact = json.loads(sweep.kept("summary.json"))["results"][0]["result"]
    rounded = summary["results"][0]["result"]
    mean = exact["kld"]["mean"]["value"]
    assert rounded["kld"]["mean"]["value"] == pytest.approx(mean, rel=1e-3)
    assert rounded["kld"]["mean"]["value"] != mean


def test_an_interrupted_launch_says_so_and_the_same_command_goes_on(
    desk: Desk, sweep: Sweep
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kldcloud.cli.main", "launch", str(desk.job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not list(desk.store.glob("stages/*/*.shard")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "kldcloud: stopped; the same command goes on from here"
    assert "Traceback" not in err
    assert not list(desk.store.glob("runs/*/summary.json"))
    assert _session(process.pid) == []
    again = run("launch", desk.job)
    assert again.code == 0, again.err
    assert again.out == sweep.said.out


def _session(leader: int) -> list[str]:
    """Command lines of the processes that still live in a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


# report


@pytest.mark.parametrize("name", ["latest", "the whole id", "a prefix", "the job file"])
def test_a_report_finds_a_run_by_what_people_call_it(
    sweep: Sweep, command: Command, name: str
) -> None:
    called = {
        "latest": "latest",
        "the whole id": sweep.run,
        "a prefix": sweep.run[:7],
        "the job file": str(sweep.desk.job),
    }[name]
    place = [] if name == "the job file" else ["--store", str(sweep.desk.store)]
    said = command("report", called, *place)
    assert (said.code, said.out, said.err) == (0, sweep.said.out, "")


def test_a_run_is_found_by_its_job_wherever_it_ran(
    sweep: Sweep, command: Command, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "job.yaml"
    text = sweep.desk.job.read_text().replace(str(sweep.desk.cluster), "somewhere-else")
    elsewhere.write_text(f"{text}shard_chunks: 3\n# a remark\n")
    assert command("report", elsewhere).out == sweep.said.out


def test_a_changed_job_is_another_run(sweep: Sweep, command: Command, tmp_path: Path) -> None:
    other = tmp_path / "job.yaml"
    other.write_text(sweep.desk.job.read_text().replace(f"chunks: {CHUNKS}", "chunks: 4"))
    said = command("report", other)
    assert said.complaint == f"no run {other} in {sweep.desk.store}; launch the job"


@pytest.mark.parametrize(
    ("format_name", "file"),
    [
        ("md", "report.md"),
        ("json", "summary.json"),
        ("csv", "report.csv"),
        ("html", "report.html"),
    ],
)
def test_a_report_is_what_the_store_keeps(
    sweep: Sweep, command: Command, format_name: str, file: str
) -> None:
    said = command(*sweep.report("--format", format_name))
    assert (said.code, said.err) == (0, "")
    assert said.out == sweep.kept(file)


def test_a_report_in_the_words_of_llama_cpp_has_a_block_for_each_candidate(
    sweep: Sweep, command: Command
) -> None:
    both = command(*sweep.report("--format", "llama"))
    assert both.out.count("====== Perplexity statistics ======") == 2
    assert both.out.startswith("candidate on text:\n")
    one = command(*sweep.report("--format", "llama", "--candidate", "Q8_0"))
    assert one.out.startswith("====== Perplexity statistics ======")
    assert one.out in both.out


def test_a_real_run_can_be_drawn(sweep: Sweep, command: Command) -> None:
    said = command(*sweep.report("--format", "svg"))
    assert (said.code, said.err) == (0, "")
    assert "on text, " in said.out
    for name in ("candidate", "Q8_0"):
        assert f">{name}</text>" in said.out


def test_a_report_of_what_the_run_does_not_have_is_refused(sweep: Sweep, command: Command) -> None:
    line = command(*sweep.report("--format", "pdf")).complaint
    known = ", ".join([*FORMATS, *FIGURE_FORMATS])
    assert line == f'no report format "pdf"; choose one of {known}'
    line = command(*sweep.report("--format", "llama", "--candidate", "Q9")).complaint
    assert line == 'no candidate "Q9" in this run; it has: candidate, Q8_0'


def test_the_help_names_every_format(command: Command) -> None:
    text = " ".join(command("report", "--help").out.split())
    for name in FORMATS:
        assert re.search(rf"\b{name}\b", text), name


def test_a_pair_is_shown_whichever_is_named_first(sweep: Sweep, command: Command) -> None:
    said = command(*sweep.report("--pair", "candidate", "Q8_0"))
    assert (said.code, said.err) == (0, "")
    (pair,) = json.loads(sweep.kept("summary.json"))["comparisons"][0]["pairs"]
    heading, difference, *_ = said.out.splitlines()
    sign = "<" if pair["distinguishable"] else "~"
    assert heading.split()[::2] == ["text:", sign]
    assert heading.split()[1::2] == [pair["better"], pair["worse"]]
    assert f" {pair['difference']:.6f} ± {pair['error']:.6f} nats" in difference
    assert command(*sweep.report("--pair", "Q8_0", "candidate")).out == said.out


def test_a_pair_of_strangers_is_refused(sweep: Sweep, command: Command) -> None:
    line = command(*sweep.report("--pair", "Q8_0", "Q9")).complaint
    assert line == 'no candidate "Q9" in this run; it has: candidate, Q8_0'
    line = command(*sweep.report("--pair", "Q8_0", "candidate", "--format", "md")).complaint
    assert line.startswith("--pair is text, and no part of a format; ")


@pytest.mark.parametrize("options", [[], ["--format", "json"], ["--format", "md"]])
def test_a_reader_that_has_seen_enough_is_no_error_worth_a_word(
    sweep: Sweep, options: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "kldcloud.cli.main", *sweep.report(*options)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize("options", [[], ["--format", "json"]])
def test_an_output_that_cannot_be_written_is_no_success(sweep: Sweep, options: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kldcloud.cli.main", *sweep.report(*options)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "kldcloud: No space left on device; run the same command again once it is mended\n"
    )


# compare


def test_a_comparison_of_one_run_is_its_own(sweep: Sweep, command: Command) -> None:
    said = command("compare", sweep.run, "--store", sweep.desk.store, "--format", "json")
    assert (said.code, said.err) == (0, "")
    found, kept = json.loads(said.out), json.loads(sweep.kept("summary.json"))
    assert found["comparisons"] == kept["comparisons"]
    assert found["results"] == kept["results"]


# export-kld


def test_an_export_replaces_a_file_only_when_told_to(
    sweep: Sweep, command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "base.kld"
    output.write_text("precious")
    export = ("export-kld", "latest", "--store", sweep.desk.store, "--output", output)
    assert "--force" in command(*export).complaint
    assert output.read_text() == "precious"
    assert command(*export, "--force").code == 0
    assert read_kld_header(output).n_chunks == CHUNKS
    assert [each.name for each in tmp_path.iterdir()] == ["base.kld"]


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe"])
def test_an_export_never_replaces_what_is_not_a_file(
    sweep: Sweep, command: Command, tmp_path: Path, kind: str, force: list[str]
) -> None:
    output = tmp_path / "there"
    if kind == "folder":
        output.mkdir()
    elif kind == "pipe":
        os.mkfifo(output)
    else:
        os.mkfifo(tmp_path / "pipe")
        output.symlink_to(tmp_path / "pipe")
    before = output.lstat()
    said = command("export-kld", "latest", "--store", sweep.desk.store, "-o", output, *force)
    assert said.complaint == f"{output} is not a file; give the name of a file to write"
    assert output.lstat() == before


def test_an_export_to_a_folder_that_is_not_there_is_refused(
    sweep: Sweep, command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "no" / "base.kld"
    said = command("export-kld", "latest", "--store", sweep.desk.store, "-o", output)
    assert str(output.parent) in said.complaint


def test_an_export_of_a_corpus_that_the_run_lacks_is_refused(
    sweep: Sweep, command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "base.kld"
    export = ("export-kld", "latest", "--store", sweep.desk.store, "-o", output)
    assert "has the corpora text; name one" in command(*export, "--corpus", "other").complaint
    assert not output.exists()


# check


def test_check_finds_this_machine_fit(tmp_path: Path) -> None:
    store = tmp_path / "store"
    said = run("check", "--store", store)
    assert said.code == 0, said.err
    subjects = [line.split(":")[0] for line in said.out.splitlines()]
    names = ("engine", "transformers", "kernel", "cluster", "store", "cache")
    assert subjects == [f"ok   {name}" for name in names]
    found = f"ok   transformers: {version('transformers')}, torch {version('torch')}, "
    assert said.out.splitlines()[1].startswith(found)
    assert list(open_store(str(store)).list("")) == []


def test_check_says_what_to_mend_and_tries_the_rest(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = command("check", "--store", tmp_path / "file" / "store", "--cluster", "nope")
    assert said.code == 2
    lines = said.out.splitlines()
    assert lines[3].startswith("FAIL cluster: there is no cluster 'nope'")
    assert lines[4].startswith(f"FAIL store: {tmp_path}/file/store")
    assert lines[5].startswith("ok   cache: ")
    assert said.last_words == "2 of the checks failed; each line above says what to do"


@pytest.mark.parametrize(
    ("devices", "said"),
    [({}, ", CPU, AVX2"), ({"devices": "Some GPU"}, ", GPU (Some GPU), AVX2")],
)
def test_check_names_the_gpu_that_llama_cpp_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: dict[str, str], said: str
) -> None:
    facts = {"version": "1", "backend": "GPU" if devices else "CPU", "instructions": "AVX2"}
    monkeypatch.setattr(llama_library, "build_facts", lambda: facts | devices)
    found = {each.subject: each for each in check_all(str(tmp_path), "nope")}["engine"]
    assert found.ok
    assert found.text.startswith(f"1{said}")


def test_check_does_not_mind_that_transformers_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_library, "library_versions", dict)
    found = {each.subject: each for each in check_all(str(tmp_path), "nope")}["transformers"]
    assert found.ok
    assert found.text.startswith("not installed: models in safetensors need pip install 'kldcloud[")


# the command itself


def test_the_version_is_the_packages(command: Command) -> None:
    said = command("--version")
    assert (said.code, said.out, said.err) == (0, f"kldcloud {__version__}\n", "")
