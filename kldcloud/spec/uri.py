"""Where a model, a text or a base file is: a path, or one of five schemes, as typed in a job."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from kldcloud.errors import SpecError
from kldcloud.spec.nearest import did_you_mean

Scheme = Literal["file", "s3", "hf", "package", "builtin"]

BUILTIN_TEXTS: Final = ("python-reference",)
KNOWN_FORMS: Final = (
    "a path, file:path, s3://bucket/key, hf:org/repo/file@revision, package:module/file, "
    "builtin:name"
)
_WEB_SCHEMES: Final = ("http", "https", "ftp")
_HUB_PREFIX: Final = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/")
_HUB_FILE: Final = re.compile(r"(?P<repo>[^/?#]+/[^/?#]+)/(?:resolve|blob)/(?P<tail>[^?#]+)")
_HUB_PAGE: Final = re.compile(
    r"(?P<repo>(?!datasets/|spaces/|docs/|papers/)[^/?#]+/[^/?#]+?)/?(?:/tree/(?P<revision>[^?#]+?)/?)?"
)
_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<rest>.*)", re.DOTALL)
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
# What ends so is a file, whose organisation or repository was forgotten.
_FILES: Final = (".gguf", ".json", ".jsonl", ".kld", ".safetensors", ".txt")
# Not in `Llama-3.1-8B` or `model.Q4_0`.
_SUFFIX: Final = re.compile(r"\.[A-Za-z]+")
_LONGEST_URI: Final = 4096
_LONGEST_S3_KEY: Final = 1024  # bytes of UTF-8: S3's own limit
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class SourceUri:
    """One place to read from. Parsing it touches nothing; `models.sources` reads.

    Attributes:
        scheme: what kind of place it is; a plain path is a `file`.
        container: bucket (s3), `org/repo` (hf) or dotted module (package); else empty.
        path: path (file), key (s3), file inside the repository (empty for the whole of it) or the
            package's folder, or the built-in text's name.
        revision: branch, tag or commit of a Hugging Face repository; None for other schemes.
    """

    scheme: Scheme
    container: str
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return the form that `parse_uri` reads back to the same value."""
        match self.scheme:
            case "file":
                return f"file:{self.path}" if _SCHEME.match(self.path) else self.path
            case "s3":
                return f"s3://{self.container}/{self.path}"
            case "hf":
                path = f"/{self.path}" if self.path else ""
                return f"hf:{self.container}{path}@{self.revision}"
            case "package":
                return f"package:{self.container}/{self.path}"
            case "builtin":
                return f"builtin:{self.path}"

    @property
    def filename(self) -> str:
        """The name of the file, the folder or the repository, without what it is in."""
        return PurePosixPath(self.path or self.container).name

    @property
    def stem(self) -> str:
        """As `filename`, without a file's last suffix, which is a dot and letters.

        Nothing is looked at, so a folder called `model.awq` loses it too; a repository never does.
        """
        name = PurePosixPath(self.filename)
        is_file = not self.is_repository and _SUFFIX.fullmatch(name.suffix)
        return name.stem if is_file else name.name

    @property
    def is_repository(self) -> bool:
        """Whether this is a whole repository of the Hugging Face Hub, not a file of one."""
        return self.scheme == "hf" and not self.path

    def resolved(self, folder: Path) -> SourceUri:
        """Return the same place with a relative path made absolute, seen from `folder`.

        Other schemes come back as they are. `~` is the home folder.
        """
        if self.scheme != "file":
            return self
        return replace(self, path=os.path.abspath(folder / Path(self.path).expanduser()))  # noqa: PTH100 - Path.resolve would follow links, and so change the file's name


def parse_uri(text: str) -> SourceUri:
    """Parse what a job file says of where something is.

    Characters are taken literally: there is no percent-decoding.

    Raises:
        SpecError: unknown scheme, or a part that cannot be what the scheme needs. The message
            never repeats a user:password part or a query string.
    """
    if not text.strip():
        raise SpecError("is empty", hint=f"write {KNOWN_FORMS}")
    if len(text) > _LONGEST_URI:
        raise SpecError(f"is longer than {_LONGEST_URI} characters")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):  # noqa: PLR2004 - the ASCII control characters
        raise SpecError(f"{shown_uri(text)} has control characters in it")
    found = _SCHEME.fullmatch(text)
    if found is None:
        return SourceUri("file", "", text)
    scheme, rest = found["scheme"].lower(), found["rest"]
    if scheme in _WEB_SCHEMES:
        raise _web_refusal(text)
    if scheme not in _PARSERS:
        unknown = f"{shown_uri(text)} has the unknown scheme '{scheme[:20]}:'"
        raise SpecError(unknown, hint=f"write {KNOWN_FORMS}")
    return _PARSERS[scheme](text, rest)


def check_store(text: str) -> str:
    """Return a store's address unchanged if it is a folder or `s3://bucket[/prefix]`.

    Raises:
        SpecError: another scheme, or a bucket name that S3 would not accept.
    """
    if not text.strip():
        raise SpecError("is empty", hint="write a folder or s3://bucket/prefix")
    if any(ord(character) < 0x20 for character in text):  # noqa: PLR2004 - the ASCII control characters
        raise SpecError(f"{shown_uri(text)} has control characters in it")
    found = _SCHEME.fullmatch(text)
    if found is None or found["scheme"].lower() == "file":
        return text
    if found["scheme"].lower() != "s3":
        raise SpecError(
            f"{shown_uri(text)} is not a store", hint="write a folder or s3://bucket/prefix"
        )
    if not found["rest"].startswith("//"):
        raise SpecError(f"{shown_uri(text)} is not a store", hint="write s3://bucket/prefix")
    _check_bucket(text, found["rest"][2:].split("/", 1)[0])
    return text


def no_hub_file(text: str) -> SpecError:
    """The refusal of what should name a file of the Hugging Face Hub."""
    return SpecError(
        f"{shown_uri(text)} does not name a file of a Hugging Face repository",
        hint="write hf:org/repo/file.gguf, and @revision after it if not main",
    )


def shown_uri(text: str) -> str:
    """Return `text` quoted for a message: short, one line, without user:password or query."""
    text = re.sub(r"//.*@", "//***@", text, flags=re.DOTALL)  # a secret may itself hold '/' or '@'
    if re.match(r"[A-Za-z]+://", text):
        text = text.split("?", 1)[0]
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


def _parse_file(text: str, rest: str) -> SourceUri:
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in {"", "localhost"} or not slash:
            raise SpecError(
                f"{shown_uri(text)} names another machine", hint="write file:path or file:///path"
            )
        rest = f"/{path}"
    if not rest:
        raise SpecError("'file:' has no path", hint="write file:path")
    return SourceUri("file", "", rest)


def _parse_s3(text: str, rest: str) -> SourceUri:
    bucket, slash, key = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not slash or not key:
        raise SpecError(f"{shown_uri(text)} is not an object", hint="write s3://bucket/key")
    _check_bucket(text, bucket)
    if key.rsplit("/", 1)[-1] in {"", ".", ".."}:
        raise SpecError(f"{shown_uri(text)} does not name one object", hint="write s3://bucket/key")
    if len(key.encode("utf-8", "replace")) > _LONGEST_S3_KEY:
        raise SpecError(f"the key of {shown_uri(text)} is longer than {_LONGEST_S3_KEY} bytes")
    return SourceUri("s3", bucket, key)


def _check_bucket(text: str, bucket: str) -> None:
    if "@" in bucket:
        raise SpecError(
            f"{shown_uri(text)} has credentials in it",
            hint="take them out; they are read from the environment or ~/.aws",
        )
    if not _BUCKET.fullmatch(bucket):
        raise SpecError(
            f"{shown_uri(text)} does not begin with a bucket name",
            hint="3 to 63 of a-z, 0-9, '.' and '-'",
        )


def _parse_hf(text: str, rest: str) -> SourceUri:
    location, at, revision = rest.rpartition("@")
    if not at:
        location, revision = rest, "main"
    parts = location.split("/")
    named = len(parts) >= 2 and all(_HUB_NAME.fullmatch(part) for part in parts[:2])  # noqa: PLR2004 - org and repo
    path = "/".join(parts[2:])
    if not named or (_climbs(path) if parts[2:] else parts[1].lower().endswith(_FILES)):
        raise no_hub_file(text)
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise SpecError(
            f"{shown_uri(text)} has no usable revision after '@'",
            hint="write a branch, a tag or a commit",
        )
    return SourceUri("hf", "/".join(parts[:2]), path, revision)


def _parse_package(text: str, rest: str) -> SourceUri:
    module, _, path = rest.partition("/")
    identifiers = module.split(".")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in identifiers):
        raise SpecError(
            f"{shown_uri(text)} does not begin with a module's name",
            hint="write package:module/file",
        )
    if _climbs(path):
        raise SpecError(
            f"{shown_uri(text)} does not name a file inside the package's folder",
            hint="write package:module/file",
        )
    return SourceUri("package", module, path)


def _parse_builtin(_: str, name: str) -> SourceUri:
    if name not in BUILTIN_TEXTS:
        raise SpecError(
            f"there is no built-in text {name[:40]!r}",
            hint=did_you_mean(name, BUILTIN_TEXTS, kind="built-in texts"),
        )
    return SourceUri("builtin", "", name)


def _web_refusal(text: str) -> SpecError:
    hint = "download it first and give the file's path"
    prefix = _HUB_PREFIX.match(text)
    page = text[prefix.end() :].split("?", 1)[0] if prefix else ""
    if found := _HUB_FILE.fullmatch(page):
        revision, _, path = found["tail"].partition("/")
        suffix = "" if revision == "main" else f"@{revision}"
        hint = f"write hf:{found['repo']}/{path}{suffix}"
    elif found := _HUB_PAGE.fullmatch(page):
        suffix = f"@{found['revision']}" if found["revision"] not in {None, "main"} else ""
        hint = f"write hf:{found['repo']}{suffix}"
    return SpecError(f"{shown_uri(text)} is a web address", hint=hint)


def _climbs(path: str) -> bool:
    """Whether a path inside a container is empty, absolute, or has empty, `.` or `..` parts."""
    return any(part in {"", ".", ".."} for part in path.split("/"))


_PARSERS: Final[Mapping[str, Callable[[str, str], SourceUri]]] = {
    "file": _parse_file,
    "s3": _parse_s3,
    "hf": _parse_hf,
    "package": _parse_package,
    "builtin": _parse_builtin,
}
