"""What `kldcloud plan` prints, and that it neither spends nor writes anything."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CHUNKS, CONTEXT, Desk, Said, run

from tests.clusters.moto_aws import SkyHome, sky_home

Command = Callable[..., Said]

REPOSITORY = Path(__file__).parents[2]
QWEN = REPOSITORY / "jobs" / "qwen3.5-35b-a3b.yaml"
needs_sky = pytest.mark.skipif(
    not importlib.util.find_spec("sky"), reason="SkyPilot is not installed"
)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> SkyHome:
    """A home with SkyPilot's price lists, no account, and no way out to any network."""
    return sky_home(tmp_path_factory.mktemp("stranger"))


def plan(home: SkyHome, *arguments: object) -> Said:
    """The plan of the large job, far from its files."""
    return run("plan", QWEN, *arguments, cwd=REPOSITORY, env=home.environment)


def test_a_plan_says_what_a_launch_would_do_and_writes_nothing(
    desk: Desk, command: Command, cache: Path
) -> None:
    made = sorted(cache.rglob("*.gguf"))
    said = command("plan", desk.job)
    assert said.code == 0, said.err
    assert said.out.startswith("tiny: 2 candidates against base on lone\n")
    assert f"{CHUNKS} chunks of {CONTEXT} tokens, {CHUNKS * 31} scored positions" in said.out
    assert "<- chosen" in said.out
    assert not desk.store.exists()
    assert sorted(cache.rglob("*.gguf")) == made


def test_a_plan_for_scripts_is_json_and_a_stated_rate_needs_no_calibration(
    desk: Desk, command: Command
) -> None:
    said = command("plan", desk.job, "--json", "--rate", "100")
    assert (said.code, said.err) == (0, "")
    estimate = json.loads(said.out)
    assert estimate["schema"] == "kldcloud.plan/1"
    assert estimate["evaluations"] == 3 * CHUNKS
    assert estimate["tokens_a_second"] == 100
    assert estimate["seconds"] == pytest.approx(
        3 * CHUNKS * CONTEXT / 100 / estimate["workers"], rel=1e-9
    )
    assert (estimate["hourly"], estimate["cost_estimate"]) == (0.0, 0.0)
    assert not desk.store.exists()


def test_a_plan_for_this_machine_leaves_skypilot_alone(desk: Desk) -> None:
    script = (
        "import sys\n"
        "from kldcloud.cli.main import main\n"
        f"sys.argv = ['kldcloud', 'plan', {str(desk.job)!r}, '--rate', '100']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    loaded = {'sky', 'ray', 'boto3'} & set(sys.modules)\n"
        "    print('loaded:', sorted(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr


def test_the_large_job_behind_a_small_gpu_is_planned_without_its_files(stranger: SkyHome) -> None:
    said = plan(stranger, "--cluster", REPOSITORY / "clusters" / "rtx5080.yaml")
    assert (said.code, said.err) == (0, "")
    for words in (
        "qwen3.5-35b-a3b: 3 candidates against Qwen3.5-35B-A3B-BF16 on rtx5080",
        "580 chunks of 512 tokens, 147,900 scored positions",
        "hidden: 1.62 GB, 45 times less than .kld <- chosen",
        ".kld, for comparison: 73.5 GB (73,455,427,060 bytes)",
        "151 GB of models on the machine",
        "69.4 GB from this machine, once: Qwen3.5-35B-A3B-BF16.gguf, wiki.test.raw",
        "2,320 chunk evaluations, 1,187,840 tokens",
        "ssh/my-box, RTX5080:1, your own machine",
        "nothing by the hour",
    ):
        assert words in said.out


@needs_sky
def test_the_large_job_on_a_rented_gpu_is_priced_without_its_files(stranger: SkyHome) -> None:
    where = ("--cluster", REPOSITORY / "clusters" / "h100.yaml", "--store", "s3://bucket/prefix")
    said = plan(stranger, *where)
    assert (said.code, said.err) == (0, "")
    for words in (
        "aws/us-east-1 p5.4xlarge, H100:1, spot, $1.50 an hour",
        "next: aws/eu-north-1 p5.4xlarge, H100:1, spot, $2.50 an hour",
        "anybody's prices: no credentials for it here",
        "SkyPilot's price lists of 20",
    ):
        assert words in said.out
    found = json.loads(plan(stranger, *where, "--json", "--rate", "1000").out)
    seconds = 4 * 580 * 512 / 1000
    assert found["seconds"] == pytest.approx(seconds)
    assert found["cost_estimate"] == pytest.approx(1.5 * (seconds + found["start_seconds"]) / 3600)
    assert found["cost_at_most"] == pytest.approx(1.5 * 4)
    assert (found["hourly"], found["enabled"]) == (1.5, False)


@needs_sky
def test_where_there_are_no_price_lists_money_is_unknown_and_the_rest_is_not(
    tmp_path: Path,
) -> None:
    home = sky_home(tmp_path, lists=False)
    found = json.loads(plan(home, "--cluster", "h100", "--json").out)
    assert (found["offer"], found["hourly"], found["cost_estimate"]) == (None, None, None)
    assert found["price_unknown"]
    assert found["kld_bytes"] == 73_455_427_060
    assert found["seconds"] > 0


def test_a_folder_is_no_store_for_other_machines(stranger: SkyHome) -> None:
    said = plan(stranger, "--cluster", "rtx5080", "--store", "./here")
    assert "./here is a folder here; other machines need --store s3://bucket/prefix" in said.out
