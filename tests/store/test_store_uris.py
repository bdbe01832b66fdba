"""From what a person types to a store, or to a sentence about what is wrong with it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kldcloud.errors import SpecError, StoreError
from kldcloud.store import open_store, store_option


def test_a_path_a_file_uri_and_a_tilde_name_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    forms = [
        str(tmp_path / "a b"),
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a%20b/",
        "~/a b",
        "a b",
        "./x/../a b/",
    ]
    assert {open_store(form).uri for form in forms} == {str(tmp_path / "a b")}


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "żółć", "$HOME;x"])
def test_a_store_in_a_command_can_be_pasted_into_a_shell(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path / name))
    option, value = shlex.split(store_option(store.uri))
    assert option == "--store"
    assert open_store(value).uri == store.uri


def test_opening_a_folder_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "typo"))
    assert list(store.list("")) == []
    assert store.size("x") is None
    assert not (tmp_path / "typo").exists()


def test_an_s3_uri_is_normalised(s3_store_uri: Callable[[str], str]) -> None:
    uri = s3_store_uri("normal")
    assert open_store(f"{uri}/").uri == uri
    assert open_store("s3://bucket-name").uri == "s3://bucket-name"
    assert open_store("S3://bucket-name/").uri == "s3://bucket-name"


@pytest.mark.parametrize(
    "uri", ["gs://bucket/x", "http://host/x", "hf://a/b", "abfs:x", "memory://", "ftp:/x"]
)
def test_another_scheme_is_refused_with_those_allowed(uri: str) -> None:
    with pytest.raises(SpecError, match=r"not supported; use a path, file:///path or s3://"):
        open_store(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "  ",
        "a\0b",
        "a\nb",
        "file://otherhost/x",
        "file:relative",
        "file:///a%00b",
        "s3:bucket/x",
        "s3://",
        "s3:///x",
        "s3://ab",
        "s3://Upper/x",
        "s3://bucket/a//b",
        "s3://bucket/../x",
        "s3://bucket/x?versionId=1",
        "s3://bucket/" + "x/" * 150,
        "~nobody-of-that-name/x",
    ],
)
def test_a_uri_that_names_no_place_is_refused(uri: str) -> None:
    with pytest.raises(SpecError):
        open_store(uri)


@pytest.mark.parametrize("uri", ["s3://me:hunter2@bucket/x", "http://me:hunter2@host/"])
def test_a_password_in_a_uri_is_never_repeated(uri: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_store(uri)
    assert "hunter2" not in str(caught.value)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(StoreError, match="is a file; name a folder"):
        open_store(str(path))


def test_a_folder_store_never_loads_boto3(tmp_path: Path) -> None:
    script = (
        "import sys; from kldcloud.store import open_store; s = open_store(sys.argv[1]);"
        " s.write_new('x', b'1'); s.probe();"
        " print(sorted({'boto3', 'botocore', 'tenacity', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout == "[]\n"
