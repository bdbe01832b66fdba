"""`kldcloud report --format html`, svg and png, and `--open`: where the bytes go."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Said

from kldcloud.report.html import render_figure, render_html
from kldcloud.report.summary_file import dump_summary
from tests.report.summaries import as_summary, corpus, measured, result, summary_dict


def shape() -> dict[str, object]:
    whole = summary_dict()
    whole["corpora"].append(corpus("code"))
    whole["results"].append(measured("Q8_0", "code", result(0.002, 0.0001)))
    return whole


SUMMARY = as_summary(shape())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one finished run."""
    folder = tmp_path / "store" / "runs" / SUMMARY.run
    folder.mkdir(parents=True)
    (folder / "summary.json").write_bytes(dump_summary(shape()))
    return tmp_path / "store"


def report(store: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        _command(store, *options),
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


def _command(store: Path, *options: str) -> list[str]:
    main = [sys.executable, "-m", "kldcloud.cli.main"]
    return [*main, "report", "latest", "--store", str(store), *options]


def said(done: subprocess.CompletedProcess[bytes]) -> Said:
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_page_is_utf8_whatever_the_terminal_is(store: Path) -> None:
    done = report(store, "--format", "html", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == render_html(SUMMARY).encode()
    assert "\u00b1".encode() in done.stdout


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_goes_into_a_file(store: Path, kind: str) -> None:
    done = report(store, "--format", kind)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == render_figure(SUMMARY, kind)  # type: ignore[arg-type]
    one = report(store, "--format", kind, "--corpus", "code")
    assert one.stdout == render_figure(SUMMARY, kind, corpus="code")  # type: ignore[arg-type]
    assert one.stdout != done.stdout


def test_a_picture_of_a_corpus_that_is_not_there_is_refused(store: Path) -> None:
    done = said(report(store, "--format", "png", "--corpus", "c4"))
    assert done.complaint == 'no corpus "c4" in this run; it has: pydoc, code'


def test_no_png_goes_to_a_terminal(store: Path) -> None:
    parent, terminal = pty.openpty()
    try:
        done = subprocess.run(
            _command(store, "--format", "png"),
            stdout=terminal,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.set_blocking(parent, False)
        with pytest.raises(BlockingIOError):
            os.read(parent, 1)
    finally:
        os.close(parent)
        os.close(terminal)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "kldcloud: a PNG is no text for a terminal;"
        " send it to a file: kldcloud report RUN --format png > plot.png\n"
    )


@pytest.mark.parametrize("options", [[], ["--format", "html"]])
def test_open_shows_the_page_and_says_where_it_is(
    store: Path, tmp_path: Path, options: list[str]
) -> None:
    browser, shown = tmp_path / "browser", tmp_path / "shown"
    browser.write_text(f'#!/bin/sh\necho "$1" > {shlex.quote(str(shown))}\n')
    browser.chmod(0o755)
    # %s makes Python's webbrowser run this very command and wait for it.
    environment = {"BROWSER": f"{browser} %s", "TMPDIR": str(tmp_path)}
    done = report(store, *options, "--open", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    path = Path(done.stdout.decode().removesuffix("\n"))
    assert path.is_relative_to(tmp_path)
    assert path.suffix == ".html"
    assert path.read_bytes() == render_html(SUMMARY).encode()
    assert shown.read_text() == f"{path.as_uri()}\n"


def test_without_a_browser_open_says_so_and_the_page_is_there(store: Path, tmp_path: Path) -> None:
    done = report(store, "--open", BROWSER="", PATH="", TMPDIR=str(tmp_path))
    assert done.returncode == 0
    assert done.stderr == b"no browser was found: open that file with one\n"
    assert Path(done.stdout.decode().removesuffix("\n")).is_file()
