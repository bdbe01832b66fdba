"""How the pipeline's dispatch scales: 1 to 64 workers on real Ray, healthy and with faults.

    python benchmarks/scaling.py [--actors 1 2 ...] [--shard-seconds 1] [--shards-per-actor 16]
                                 [--store s3://bucket/prefix] [--ask-ms 0] [--quick] [--json]

A worker sleeps for as long as a shard takes, commits 64 KiB create-only and replies; dispatch,
actors, heartbeats and store are the pipeline's own. The limit is the sleep alone, spread evenly:
efficiency is limit / wall clock. The peer is `ray.util.ActorPool` with the same actors and shards;
it never asks the store whether a shard is done, and its first failure ends it, so it has no fault
run. There, 1 % of the commits fail once and a worker is killed every 10 s; the limit is then that
of the processes which were alive, and work that was done twice counts as lost time.
Starting Ray and the actors, and a first shard for each, is in no efficiency. `--ask-ms 30` shows a
store that is far from the driver.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from kernel import machine
from scaling_runs import Bench, FaultRow, Row, faulty, healthy

from kldcloud.errors import KldcloudError
from kldcloud.store import check_usable, open_store

ACTORS = (1, 2, 4, 8, 16, 32, 64)
GOAL = 0.95
ACTOR_BYTES = 150 << 20
"""What to have free for a worker, which has about 100 MiB resident and shares some of it."""
RAY_BYTES = 1 << 30
"""For Ray's own processes and the driver."""
DISTURBED = 0.4
"""Share of the cores that others may take before a row says nothing about us alone."""


def main() -> int:
    """Run all rows and the fault run; 1 if a shard was lost, 2 if the machine or store is short."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="kld-scaling-") as folder:
        store = open_store(arguments.store or f"{folder}/store")
        try:
            check_usable(store)
        except KldcloudError as error:
            print(error, file=sys.stderr)
            return 2
        bench = Bench(store, arguments.shard_seconds, arguments.ask_ms / 1e3)
        print(_heading(arguments), file=sys.stderr if arguments.json else sys.stdout)
        rows, faults, short = _run_all(bench, arguments)
    if arguments.json:
        print(json.dumps(_tree(bench, arguments, rows, faults), indent=2))
    elif arguments.store:
        print(f"objects are left in {store.uri} under runs/{bench.run}/")
    if short:
        print(short, file=sys.stderr)
        return 2
    return 1 if any(row.lost for row in rows) or (faults and not _whole(faults)) else 0


def _run_all(
    bench: Bench, arguments: argparse.Namespace
) -> tuple[list[Row], FaultRow | None, str | None]:
    """All rows, printed as they come unless they go into JSON, and why it stopped early."""
    rows: list[Row] = []
    say = (lambda _: None) if arguments.json else (lambda text: print(text, flush=True))
    for count in arguments.actors:
        if short := _short_of_memory(count):
            return rows, None, short
        rows.append(healthy(bench, count, count * arguments.shards_per_actor))
        say(_line(rows[-1]))
    if rows:
        say(_verdict(rows))
    count = arguments.fault_actors
    if not count or (short := _short_of_memory(count)):
        return rows, None, short if count else None
    shards = count * arguments.fault_shards_per_actor
    faults = faulty(bench, count, shards, arguments.kill_every)
    say(_faults(faults, arguments.kill_every))
    return rows, faults, None


def _tree(
    bench: Bench, arguments: argparse.Namespace, rows: list[Row], faults: FaultRow | None
) -> dict[str, object]:
    return {
        "machine": machine(),
        "cores": os.cpu_count(),
        "shard_seconds": arguments.shard_seconds,
        "ask_ms": arguments.ask_ms,
        "goal": GOAL,
        "store": bench.store.uri if arguments.store else "a temporary folder",
        "run": bench.run,
        "rows": [asdict(row) for row in rows],
        "faults": asdict(faults) if faults else None,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--actors", type=int, nargs="*", help="numbers of workers, a row each")
    add("--shard-seconds", type=float, default=1.0)
    add("--shards-per-actor", type=int)
    add("--fault-actors", type=int, default=16, help="workers of the fault run; 0 for none")
    add("--fault-shards-per-actor", type=int)
    add("--kill-every", type=float, default=10.0, help="seconds between two kills")
    add("--store", help="folder or s3://bucket/prefix; a temporary folder if not given")
    add("--ask-ms", type=float, default=0.0, help="put on each of the driver's questions to it")
    add("--quick", action="store_true", help="three rows of 8 shards an actor")
    add("--json", action="store_true", help="figures as JSON on stdout")
    arguments = parser.parse_args()
    actors, shards, fault_shards = ((1, 4, 16), 8, 25) if arguments.quick else (ACTORS, 16, 60)
    if arguments.actors is None:
        arguments.actors = actors
    arguments.shards_per_actor = arguments.shards_per_actor or shards
    arguments.fault_shards_per_actor = arguments.fault_shards_per_actor or fault_shards
    return arguments


def _short_of_memory(actors: int) -> str | None:
    """Why so many actors are not started, in one line."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    needed = actors * ACTOR_BYTES + RAY_BYTES
    if free >= needed:
        return None
    return (
        f"stopped before {actors} actors: they want {needed / 2**30:.1f} GiB, "
        f"{free / 2**30:.1f} GiB are free"
    )


def _heading(arguments: argparse.Namespace) -> str:
    store = "S3" if (arguments.store or "").startswith("s3:") else "folder"
    far = f" ({arguments.ask_ms:g} ms further away for the driver)" if arguments.ask_ms else ""
    about = (
        f"{machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Ray {version('ray')}, {store} store{far}; shards of {arguments.shard_seconds:g} s"
    )
    if not arguments.actors:
        return about
    return (
        f"{about}\n"
        "                 --------- kldcloud ---------   -- worker, ms --   - ActorPool -  "
        "  not counted    cores used\n"
        "                                     driver                             driver  "
        " start  worker      by      by\n"
        "actors   ideal      wall  efficiency CPU ms    commit   gap      effic. CPU ms  "
        "     s     MiB      us  others"
    )


def _line(row: Row) -> str:
    met = "met" if row.efficiency >= GOAL else "MISSED"
    disturbed = " disturbed" if (row.others or 0) > DISTURBED else ""
    return (
        f"{row.actors:6}{row.ideal_seconds:8.2f}{row.wall_seconds:10.2f}{row.efficiency:7.1%} "
        f"{met:<6}{row.driver_cpu_ms:5.2f}{row.commit_ms:10.1f}{row.gap_ms:6.1f}"
        f"{row.peer_efficiency:12.1%}{row.peer_driver_cpu_ms:7.2f}"
        f"{row.start_seconds:8.1f}{row.peak_mib:8.0f}"
        f"{_share(row.ours):>8}{_share(row.others):>8}{disturbed}"
    )


def _share(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _verdict(rows: list[Row]) -> str:
    missed = [str(row.actors) for row in rows if row.efficiency < GOAL]
    lost = sum(row.lost for row in rows)
    outcome = f"MISSED at {', '.join(missed)} actors" if missed else "met at each size"
    return f"goal {GOAL:.0%} of the ideal: {outcome}; shards lost: {lost}"


def _whole(faults: FaultRow) -> bool:
    """Whether every shard was committed, once, and counted once."""
    return (
        not (faults.lost or faults.surplus or faults.given_up) and faults.commits == faults.shards
    )


def _faults(faults: FaultRow, every: float) -> str:
    met = "met" if faults.efficiency >= GOAL else "MISSED"
    return (
        f"\nfaults: {faults.actors} actors, {faults.shards} shards, {faults.failing} fail once, "
        f"a worker killed every {every:g} s ({faults.kills} kills)\n"
        f"  wall {faults.wall_seconds:.2f} s; efficiency {faults.efficiency:.1%} of the processes "
        f"that were alive, goal {GOAL:.0%} {met} ({faults.of_all:.1%} of all; "
        f"{faults.dead_seconds:.1f} s dead)\n"
        f"  {faults.extra_attempts} extra attempts, {faults.driver_cpu_ms:.2f} ms of driver CPU "
        f"a shard; cores used by us {_share(faults.ours)}, by others {_share(faults.others)}\n"
        f"  commits counted {faults.commits} of {faults.shards}, shards lost {faults.lost}, "
        f"too many {faults.surplus}, given up {faults.given_up}: "
        f"{'every shard exactly once' if _whole(faults) else 'WRONG'}"
    )


if __name__ == "__main__":
    sys.exit(main())
