"""The peer: llama.cpp's own llama-perplexity, run as its users run it, if `make peer` built it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kldcloud.models.amx import extra_buffers_work

PEER_VERSION = "0.3.36"  # of the llama-cpp-python release whose llama.cpp is built
TEXT = Path(__file__).parent / "golden" / "text.txt"


def find_peer() -> Path | None:
    """The built llama-perplexity, or None.

    ``KLDCLOUD_PEER`` names a binary outright; else it lies where benchmarks/build_peer.sh builds.
    """
    named = os.environ.get("KLDCLOUD_PEER")
    if named:
        assert Path(named).is_file(), f"KLDCLOUD_PEER={named} is not there"
        return Path(named)
    cache = Path(os.environ.get("KLDCLOUD_CACHE") or Path.home() / ".cache" / "kldcloud")
    built = cache / "peer" / PEER_VERSION / "build" / "bin" / "llama-perplexity"
    return built if built.is_file() else None


def peer_version(peer: Path) -> str:
    """What the binary says of itself, on one line: version, llama.cpp's commit, compiler."""
    done = _run(peer, ["--version"])
    return " | ".join(line.strip() for line in done.splitlines() if line.strip())


def run_peer_base(
    peer: Path,
    model: Path,
    base_file: Path,
    *,
    n_ctx: int,
    chunks: int,
    text: Path = TEXT,
    threads: int = 1,
    batch: int | None = None,
) -> str:
    """Write the base file of `model` over `text` and return what the tool printed.

    The tool drops one newline from the text's end before it tokenises.
    """
    base_file.unlink(missing_ok=True)
    arguments = ["-m", str(model), "-f", str(text), "--chunks", str(chunks)]
    arguments += ["--kl-divergence-base", str(base_file), *_shape(n_ctx, threads, batch)]
    return _run_until(peer, arguments, "Final estimate: PPL = ")


def run_peer_kld(
    peer: Path,
    model: Path,
    base_file: Path,
    *,
    n_ctx: int,
    threads: int = 1,
    batch: int | None = None,
) -> str:
    """Measure `model` against a base file and return what the tool printed."""
    arguments = ["-m", str(model), "--kl-divergence", "--kl-divergence-base", str(base_file)]
    return _run_until(peer, [*arguments, *_shape(n_ctx, threads, batch)], "Same top p: ")


def statistics_block(printed: str) -> str:
    """The three tables at the end: from '====== Perplexity statistics' to 'Same top p'."""
    lines = printed.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("====== Perplexity stat"))
    last = next(at for at, line in enumerate(lines) if line.startswith("Same top p"))
    return "\n".join(lines[first : last + 1]) + "\n"


def instruction_sets(printed: str) -> str:
    """What the tool's build uses of the processor, from its system_info line."""
    return printed.split("system_info:", 1)[1].split("CPU :", 1)[1].splitlines()[0].strip(" |")


def _shape(n_ctx: int, threads: int, batch: int | None) -> list[str]:
    arguments = ["-c", str(n_ctx), "-t", str(threads)]
    if not extra_buffers_work():
        arguments.append("--no-repack")  # the same compiler built the tool
    return arguments if batch is None else [*arguments, "-b", str(batch)]


def _run_until(peer: Path, arguments: list[str], ending: str) -> str:
    """Run the tool until its output is whole.

    Its exit code is 0 whatever happened, and it exits without waiting for the thread that prints
    (common/log.cpp says so): a fast run loses its last lines about one time in ten.
    """
    for _ in range(20):
        printed = _run(peer, arguments)
        if ending in printed and printed[printed.rindex(ending) :].count("\n"):
            return printed
    raise AssertionError(f"llama-perplexity did not print {ending!r}:\n{printed[-2000:]}")


def _run(peer: Path, arguments: list[str]) -> str:
    done = subprocess.run([peer, *arguments], capture_output=True, check=False, timeout=280)
    printed = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, printed[-2000:]
    return printed
