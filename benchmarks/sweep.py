"""A whole sweep against llama-perplexity doing the same: CPU time, memory and wall-clock.

    make peer && python benchmarks/sweep.py [--chunks 16] [--workers N] [--encoding E] [--json]

Base and three candidates (Q8_0, Q4_K_M, Q4_0 of SmolLM2-135M at F16) over the same chunks of the
same text, one run of each, in turn, on the same number of cores. The models are made beforehand.
Ray's own start is told apart, as the workers' CPU time before they were given any work; the driver
is counted in. Both tools' blocks are compared as well: a fast wrong answer is no result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from kldcloud.cli.terminal import TerminalProgress
from kldcloud.models.amx import extra_buffers_work
from kldcloud.models.cache import cache_dir
from kldcloud.models.sources import read_text
from kldcloud.pipeline.model_files import ModelFile
from kldcloud.pipeline.prepare import prepare
from kldcloud.spec.load import load_sweep
from kldcloud.spec.uri import parse_uri

JOB = Path(__file__).parent.parent / "jobs" / "demo.yaml"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one tool took for the whole sweep."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: float
    staged_bytes: int


def main() -> int:
    """Run both and print the ratios."""
    arguments = _arguments()
    peer = _find_peer()
    if peer is None:
        print("no llama-perplexity: make peer", file=sys.stderr)
        return 2
    settings = [
        f"corpora[0].chunks={arguments.chunks}",
        f"encoding={arguments.encoding}",
    ]
    sweep = prepare(load_sweep(JOB, settings), TerminalProgress())
    if not isinstance(sweep.base, ModelFile):
        raise SystemExit("the demo job has a base model")
    with tempfile.TemporaryDirectory() as folder:
        theirs, blocks = _run_peer(peer, sweep.base, sweep.candidates, Path(folder), arguments)
        ours, summary, start = _run_ours(settings, Path(folder), arguments)
        same = all(
            _our_block(Path(folder), candidate.name) == blocks[candidate.name]
            for candidate in sweep.candidates
        )
    result = {
        "chunks": arguments.chunks,
        "cores": len(os.sched_getaffinity(0)),
        "encoding": summary["encoding"],
        "kldcloud": asdict(ours),
        "ray_start_cpu_seconds": start,
        "llama_perplexity": asdict(theirs),
        "cpu_ratio": ours.cpu_seconds / theirs.cpu_seconds,
        "wall_ratio": ours.wall_seconds / theirs.wall_seconds,
        "memory_ratio": ours.peak_bytes / theirs.peak_bytes,
        "staged_ratio": ours.staged_bytes / theirs.staged_bytes,
        "blocks_equal": same,
    }
    print(json.dumps(result, indent=2) if arguments.json else _text(result))
    return 0 if same else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--encoding", default="auto", choices=["auto", "hidden", "logits"])
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _find_peer() -> Path | None:
    named = os.environ.get("KLDCLOUD_PEER")
    built = cache_dir() / "peer" / "0.3.36" / "build" / "bin" / "llama-perplexity"
    path = Path(named) if named else built
    return path if path.is_file() else None


def _run_peer(
    peer: Path,
    base: ModelFile,
    candidates: tuple[ModelFile, ...],
    folder: Path,
    arguments: argparse.Namespace,
) -> tuple[Cost, dict[str, str]]:
    text = folder / "text.txt"
    text.write_text(read_text(parse_uri("builtin:python-reference"), cache=cache_dir()) + "\n")
    kld = folder / "base.kld"
    threads = ["-t", str(len(os.sched_getaffinity(0)))]
    if not extra_buffers_work():
        threads.append("--no-repack")  # as our engine does: the same compiler built the tool
    commands = {
        "": [
            *("-m", base.path, "-f", text, "--kl-divergence-base", kld),
            *("-c", 512, "--chunks", arguments.chunks),
        ]
    }
    for candidate in candidates:
        compare = ["--kl-divergence", "--kl-divergence-base", kld]
        commands[candidate.name] = ["-m", candidate.path, *compare]
    cpu = wall = peak = 0.0
    blocks = {}
    for name, options in commands.items():
        run = _run_whole(peer, [*map(str, options), *threads], folder / "out.txt", kld=bool(name))
        wall += run.wall_seconds
        cpu += run.cpu_seconds
        peak = max(peak, run.peak_bytes)
        begin = run.printed.find("====== Perplexity statistics")
        end = run.printed.find("\n", run.printed.find("Same top p", begin))
        blocks[name] = run.printed[begin : end + 1]
        print(f"llama-perplexity {name or 'base'}: done", file=sys.stderr)
    return Cost(cpu, wall, peak, kld.stat().st_size), blocks


@dataclass(frozen=True, slots=True)
class _PeerRun:
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: float
    printed: str


def _run_whole(peer: Path, arguments: list[str], out: Path, *, kld: bool) -> _PeerRun:
    """One run of the tool; again if it lost its last lines, as it does now and then with code 0."""
    for _ in range(10):
        started = time.monotonic()
        with out.open("wb") as sink:
            process = subprocess.Popen([peer, *arguments], stdout=sink, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        printed = out.read_text()
        if status != 0:
            raise SystemExit(f"llama-perplexity failed: {printed[-2000:]}")
        if not kld or "Same top p" in printed:
            cpu = usage.ru_utime + usage.ru_stime
            return _PeerRun(cpu, wall, usage.ru_maxrss * 1024.0, printed)
    raise SystemExit("llama-perplexity keeps losing its output")


def _run_ours(
    settings: list[str], folder: Path, arguments: argparse.Namespace
) -> tuple[Cost, dict[str, str], float]:
    store = folder / "store"
    cluster = folder / "cluster.yaml"
    cluster.write_text(f"provider: local\nworkers: {arguments.workers}\n")
    command = [sys.executable, "-m", "kldcloud.cli.main", "launch", str(JOB), "-y", "--json"]
    command += ["--store", str(store), "--cluster", str(cluster)]
    for setting in settings:
        command += ["--set", setting]
    started = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    wall = time.monotonic() - started
    summary = json.loads(done.stdout)
    life = json.loads(next(store.glob("runs/*/life/*/ended.json")).read_bytes())
    workers = life["worker_usage"]
    cpu = life["driver_cpu_seconds"] + sum(worker["cpu_seconds"] for worker in workers)
    staged = sum(path.stat().st_size for path in store.glob("stages/**/*") if path.is_file())
    start = sum(worker["start_cpu_seconds"] for worker in workers)
    peak = max(worker["peak_bytes"] for worker in workers)
    return Cost(cpu, wall, peak, staged), summary, start


def _our_block(folder: Path, candidate: str) -> str:
    command = [sys.executable, "-m", "kldcloud.cli.main", "report", "latest"]
    command += ["--store", str(folder / "store"), "--format", "llama", "--candidate", candidate]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _text(result: dict[str, object]) -> str:
    lines = [
        (
            f"base + 3 candidates x {result['chunks']} chunks of 512, {result['cores']} cores, "
            f"encoding {result['encoding']}"
        )
    ]
    for name in ("llama_perplexity", "kldcloud"):
        cost = result[name]
        assert isinstance(cost, dict)
        seconds = f"{cost['cpu_seconds']:7.1f} CPU s {cost['wall_seconds']:7.1f} s wall"
        memory = f"{cost['peak_bytes'] / 2**20:6.0f} MiB a process"
        lines.append(f"  {name:<17} {seconds} {memory} {cost['staged_bytes'] / 1e6:6.0f} MB staged")
    lines.append(f"  (Ray's workers took {result['ray_start_cpu_seconds']:.1f} CPU s to start)")
    ratios = ", ".join(
        f"{name} {result[f'{name}_ratio']:.2f}" for name in ("cpu", "wall", "memory", "staged")
    )
    lines.append(f"  ratio kldcloud / llama-perplexity: {ratios}")
    lines.append(f"  printed blocks equal: {result['blocks_equal']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
