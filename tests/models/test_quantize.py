"""Quantising: once for each source and type, whole or not at all, and a failure in one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kldcloud.errors import EngineError, StoreError
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.quantize import quantized
from kldcloud.store.digest import sha256_file
from tests.pipeline.odd_models import hungry
from tests.tiny_models import TinyPair, tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_a_quantised_file_is_of_that_type_and_tells_how_far_it_is(
    pair: TinyPair, cache: Path
) -> None:
    seen: list[tuple[int, int]] = []
    path = quantized(
        pair.base, sha256_file(pair.base), "Q8_0", progress=lambda *done: seen.append(done)
    )
    assert path.is_relative_to(cache)
    header = read_gguf_header(path)
    assert header.tensors["blk.0.ffn_up.weight"].type_name == "Q8_0"
    total = len(read_gguf_header(pair.base).tensors)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_it_is_made_once_for_a_digest_and_a_type(pair: TinyPair, cache: Path) -> None:
    digest = sha256_file(pair.base)
    first = quantized(pair.base, digest, "Q8_0")
    state = first.stat()
    assert quantized(pair.base, digest, "Q8_0") == first
    assert first.stat().st_ino == state.st_ino
    assert first.stat().st_mtime_ns == state.st_mtime_ns
    assert quantized(pair.base, digest, "F16") != first
    assert quantized(pair.candidate, sha256_file(pair.candidate), "Q8_0") != first
    assert len(files(cache)) == 3


def test_the_same_source_gives_the_same_bytes(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = set()
    for name in ("one", "two"):
        monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / name))
        made.add(quantized(pair.base, sha256_file(pair.base), "Q8_0").read_bytes())
    assert len(made) == 1


def test_a_failure_is_one_line_with_the_tools_own_reason_and_leaves_nothing(
    pair: TinyPair, cache: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(pair.base.read_bytes()[:-1000])
    with pytest.raises(EngineError) as caught:
        quantized(damaged, sha256_file(damaged), "Q8_0")
    message = str(caught.value)
    assert message.startswith("damaged.gguf: llama.cpp could not make Q8_0 of it: ")
    assert "not within the file bounds" in message
    assert "\n" not in message
    assert files(cache) == []


def test_a_cache_that_cannot_be_written_is_named(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="set KLDCLOUD_CACHE to a folder with room"):
        quantized(pair.base, sha256_file(pair.base), "Q8_0")


def test_a_killed_quantiser_is_a_failure_that_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    # 30 MB of attention: it is at work for a while after its first line.
    source = hungry(tmp_path / "source.gguf", 320, 32768)

    def kill_it(done: int, _total: int) -> None:
        if done == 1:
            (child,) = _children(os.getpid(), "kldcloud.models.quantize")
            os.kill(child, signal.SIGKILL)

    with pytest.raises(EngineError, match="it was killed by signal 9"):
        quantized(source, sha256_file(source), "IQ4_NL", progress=kill_it)
    assert files(cache) == []


def test_an_interruption_ends_the_quantiser_and_leaves_nothing(pair: TinyPair, cache: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantized(pair.base, sha256_file(pair.base), "Q8_0", progress=interrupt)
    assert files(cache) == []
    assert _children(os.getpid(), "kldcloud.models.quantize") == []


def test_two_at_once_end_with_one_whole_file(pair: TinyPair, cache: Path) -> None:
    digest = sha256_file(pair.base)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=quantized, args=(pair.base, digest, "Q8_0")) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0]
    (name,) = files(cache)
    assert read_gguf_header(cache / name).tensors["output.weight"].type_name == "Q8_0"


def test_a_quantiser_whose_parent_was_killed_ends_soon(pair: TinyPair, cache: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from kldcloud.models.quantize import quantized\n"
        "quantized(Path(sys.argv[1]), 'ab' * 32, 'Q8_0',"
        " progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(pair.base)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while _commands(str(cache)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [name for name in files(cache) if not name.endswith(".part")] == []


def _commands(part: str) -> list[int]:
    """Processes with these words in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if part in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _children(parent: int, part: str) -> list[int]:
    """Direct children of a process with these words in their command line."""
    found = []
    for child in _commands(part):
        try:
            status = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(status[1]) == parent and status[0] != "Z":
            found.append(child)
    return found
