"""The command starts at once: what is heavy is not even looked at before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "ray",
    "numba",
    "numpy",
    "llama_cpp",
    "boto3",
    "botocore",
    "pyarrow",
    "huggingface_hub",
    "vl_convert",
    "torch",
    "transformers",
)

# Listing what was imported stands in for the time that it would have taken.
_LIST = """
import sys
from kldcloud.cli.main import main
sys.argv = ["kldcloud", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def imported_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _LIST, *arguments], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("imported: ")
    return set(last.split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["launch", "--help"], ["report", "--help"], ["no-such-verb"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    found = imported_by(*arguments)
    assert "typer" in found  # the list is a list
    assert not found & {*HEAVY, "scipy", "yaml", "zstandard", "tenacity"}


def test_listing_imports_would_notice_a_heavy_one(tmp_path: Path) -> None:
    assert "numpy" in imported_by("launch", str(tmp_path / "nope.yaml"))


def test_a_report_needs_no_engine_and_no_cluster(tmp_path: Path) -> None:
    found = imported_by("report", "latest", "--store", str(tmp_path))
    assert not found & {
        "ray",
        "numba",
        "llama_cpp",
        "boto3",
        "pyarrow",
        "huggingface_hub",
        "vl_convert",
    }
