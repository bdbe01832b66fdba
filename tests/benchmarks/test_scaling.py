"""The scaling benchmark's accounts: what it counts as committed is what the store holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


@pytest.mark.slow
def test_under_failures_and_kills_every_shard_is_committed_once(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--json", "--store", tmp_path, "--shard-seconds", "0.05"]
    command += ["--actors", "2", "--shards-per-actor", "8"]
    command += ["--fault-actors", "2", "--fault-shards-per-actor", "80", "--kill-every", "3"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)
    partials = tmp_path / "runs" / result["run"] / "partials"
    (row,), faults = result["rows"], result["faults"]

    assert len(list((partials / "healthy-2").iterdir())) == row["shards"] == 16
    assert row["lost"] == 0

    assert len(list((partials / "faulty").iterdir())) == faults["shards"] == 160
    assert faults["commits"] == 160
    assert faults["lost"] == faults["surplus"] == faults["given_up"] == 0
    # Nor were the faults left out: each costs another attempt at least.
    assert faults["failing"] == 2
    assert faults["kills"] >= 1
    assert faults["extra_attempts"] >= faults["failing"] + faults["kills"]
