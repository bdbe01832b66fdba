"""What we call the choice and the runner-up is what `sky launch` itself tries, in that order."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from moto_aws import SkyHome, desk, free_port, moto_endpoint, sky_home

__all__ = ["moto_endpoint"]

pytestmark = pytest.mark.slow

SPOT_OR_NOT = [{"use_spot": True}, {"use_spot": False}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, moto_endpoint: str) -> Iterator[SkyHome]:
    """An account whose API server runs; it starts with the first command."""
    home = sky_home(tmp_path_factory.mktemp("server"), moto_endpoint)
    settings = {
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(free_port()),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        # It builds a wheel of itself, for which pip would fetch setuptools. (0 is its way of yes.)
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    serving = SkyHome(home.folder, {**home.environment, **settings})
    try:
        yield serving
    finally:
        _sky(serving, "api", "stop")


@pytest.mark.parametrize(
    "resources",
    [
        {"accelerators": "H100:1", "any_of": SPOT_OR_NOT},
        {"accelerators": "H100:8", "ordered": SPOT_OR_NOT[::-1]},
        {"accelerators": ["H100:8", "H100:1"], "infra": "aws/us-east-1"},
        {"accelerators": "H100:8", "max_hourly_cost": 55},
    ],
    ids=["any_of", "ordered", "list", "cap"],
)
def test_a_dry_run_tries_the_offers_in_order(
    server: SkyHome, resources: dict[str, object], tmp_path: Path
) -> None:
    """Our catalog has no image for a GPU, so a dry run turns from each machine to the next."""
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"num_nodes": 2, "resources": resources, "run": "true"}))
    said = _sky(server, "launch", "--dryrun", "--yes", str(job))
    with desk(server) as someone:
        offers = someone.ask(resources, nodes=2)["offers"]
    assert len(offers) == 2
    assert _tried(said)[:2] == [
        [infra, instance, accelerators, spot, round(2 * hourly, 2)]
        for infra, instance, accelerators, spot, hourly in offers
    ], said


def _tried(said: str) -> list[list[object]]:
    """The chosen row of each of SkyPilot's tables; of several zones of a region, the first."""
    rows: dict[tuple[str, str], list[object]] = {}
    for line in said.splitlines():
        if "\u2714" not in line:
            continue
        found = re.match(r" AWS \((.*?-\d)[a-z]?\) +(\S+) .* (\S+:\d) +(\S+) ", line)
        assert found, line
        region, instance, accelerators, cost = found.groups()
        name = instance.removesuffix("[Spot]")
        row = [f"aws/{region}", name, accelerators, name != instance, float(cost)]
        rows.setdefault((region, instance), row)
    return list(rows.values())


def _sky(home: SkyHome, *arguments: str) -> str:
    """What SkyPilot's own command prints; a dry run of ours never ends well."""
    command = [str(Path(sys.executable).parent / "sky"), *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=home.environment
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
