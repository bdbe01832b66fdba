"""Before anything is spent, a person sees what SkyPilot would take, its price, and what is next."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import md5
from pathlib import Path

import pytest
from moto_aws import Desk, SkyHome, desk, moto_endpoint, sky_home

from kldcloud.clusters.prices import Offer, quote

__all__ = ["moto_endpoint"]

BIG_SPOT = ["aws/us-east-1", "p5.48xlarge", "H100:8", True, 20.0]
BIG = ["aws/us-east-1", "p5.48xlarge", "H100:8", False, 50.0]
BIG_NORTH = ["aws/eu-north-1", "p5.48xlarge", "H100:8", False, 60.0]
SMALL_SPOT = ["aws/us-east-1", "p5.4xlarge", "H100:1", True, 1.5]
SMALL = ["aws/us-east-1", "p5.4xlarge", "H100:1", False, 4.0]
LAMBDA = ["lambda/us-east-1", "gpu_1x_h100_pcie", "H100:1", False, 3.0]
SPOT_OR_NOT = [{"use_spot": True}, {"use_spot": False}]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory, moto_endpoint: str) -> Iterator[Desk]:
    """Somebody with an AWS account."""
    with desk(sky_home(tmp_path_factory.mktemp("account"), moto_endpoint)) as someone:
        yield someone


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Somebody with price lists and no account at all."""
    with desk(sky_home(tmp_path_factory.mktemp("stranger"))) as someone:
        yield someone


class TestChoice:
    def test_on_demand_unless_spot_is_asked_for(self, account: Desk) -> None:
        assert account.ask({"accelerators": "H100:8"})["offers"] == [BIG, BIG_NORTH]
        spot = account.ask({"accelerators": "H100:8", "use_spot": True})
        assert spot["offers"][0] == BIG_SPOT

    def test_the_cheapest_of_any_of(self, account: Desk) -> None:
        found = account.ask({"accelerators": "H100:1", "any_of": SPOT_OR_NOT})
        assert found["offers"][0] == SMALL_SPOT, "the cheapest zone's price, and no zone in infra"

    def test_what_is_listed_first_goes_before_what_is_cheaper(self, account: Desk) -> None:
        ordered = {"accelerators": "H100:8", "ordered": SPOT_OR_NOT[::-1]}
        assert account.ask(ordered)["offers"] == [BIG, BIG_NORTH]

    def test_the_price_is_of_one_node(self, account: Desk) -> None:
        assert account.ask({"accelerators": "H100:8"}, nodes=4)["offers"][0] == BIG

    def test_one_gpu_or_eight(self, account: Desk) -> None:
        assert account.ask({"accelerators": "H100:1"})["offers"][0] == SMALL
        either = {"accelerators": ["H100:8", "H100:1"], "infra": "aws/us-east-1"}
        assert account.ask(either)["offers"] == [BIG, SMALL], "a list is an order of preference"
        assert account.ask({**either, "cpus": "16"})["offers"] == [SMALL]

    def test_without_accelerators(self, account: Desk) -> None:
        found = account.ask({"cpus": "2+", "use_spot": True})
        assert found["offers"] == [["aws/us-east-1", "m6i.large", "", True, 0.04]]

    def test_the_runner_up_is_where_skypilot_would_go_next(self, account: Desk) -> None:
        spot_first = account.ask({"accelerators": "H100:8", "any_of": SPOT_OR_NOT})
        north_spot = ["aws/eu-north-1", "p5.48xlarge", "H100:8", True, 25.0]
        assert spot_first["offers"] == [BIG_SPOT, north_spot]
        only_one = account.ask({"accelerators": "H100:8", "infra": "aws/us-east-1"})
        assert only_one["offers"] == [BIG]

    @pytest.mark.parametrize(
        "others", [{"disk_size": 512}, {"autostop": {"idle_minutes": 10, "down": True}}]
    )
    def test_takes_what_else_resources_say(self, account: Desk, others: dict[str, object]) -> None:
        assert account.ask({"accelerators": "H100:8", **others})["offers"][0] == BIG


class TestMostExpensive:
    def test_takes_what_is_below(self, account: Desk) -> None:
        capped = {"accelerators": "H100:8", "any_of": SPOT_OR_NOT, "max_hourly_cost": 22}
        assert account.ask(capped)["offers"][0] == BIG_SPOT

    def test_does_not_bind_the_next_region(self, account: Desk) -> None:
        capped = {"accelerators": "H100:8", "max_hourly_cost": 55}
        assert account.ask(capped)["offers"] == [BIG, BIG_NORTH]

    @pytest.mark.parametrize("where", ["outside", "inside"])
    def test_refuses_what_is_above(self, account: Desk, where: str) -> None:
        cap = {"max_hourly_cost": 10}
        inside = [{**each, **(cap if where == "inside" else {})} for each in SPOT_OR_NOT]
        outside = cap if where == "outside" else {}
        found = account.ask({"accelerators": "H100:8", "any_of": inside, **outside})
        assert found == {
            "refusal": "every machine that would do costs more than max_hourly_cost: the cheapest "
            "is p5.48xlarge in aws/us-east-1 at $20.00 an hour as spot; "
            "raise max_hourly_cost or ask for less"
        }


class TestAccounts:
    def test_an_account_may_rent(self, account: Desk) -> None:
        found = account.ask({"accelerators": "H100:8"})
        assert found["enabled"]
        assert "refusal" not in found

    def test_prices_are_for_everybody_but_machines_are_not(self, stranger: Desk) -> None:
        found = stranger.ask({"accelerators": "H100:1"})
        assert found["offers"] == [LAMBDA, SMALL]
        assert not found["enabled"]
        assert found["refusal"] == (
            "SkyPilot finds no credentials for lambda or aws; "
            "set them up, then run: sky check lambda aws"
        )

    @pytest.mark.parametrize("where", [{"infra": "aws"}, {"cloud": "aws", "region": "us-east-1"}])
    def test_shows_only_what_is_asked_for(self, stranger: Desk, where: dict[str, str]) -> None:
        found = stranger.ask({"accelerators": "H100:1", "any_of": SPOT_OR_NOT, **where})
        assert found["offers"][0] == SMALL_SPOT
        assert "sky check aws" in found["refusal"]

    def test_an_account_elsewhere_does_not_help(self, account: Desk) -> None:
        found = account.ask({"infra": "lambda", "accelerators": "H100:1"})
        assert found["offers"] == [LAMBDA]
        assert not found["enabled"]
        assert "no credentials for lambda;" in found["refusal"]

    def test_passes_over_clouds_without_an_account(self, account: Desk) -> None:
        several = [{"infra": "lambda"}, {"infra": "aws/us-east-1"}]
        found = account.ask({"accelerators": "H100:1", "any_of": several})
        assert found["offers"] == [SMALL]
        assert found["enabled"]

    def test_a_shared_api_server_has_its_own(self, tmp_path: Path) -> None:
        home = sky_home(tmp_path)
        shared = {"SKYPILOT_API_SERVER_ENDPOINT": "http://192.0.2.1:46580"}
        with desk(SkyHome(home.folder, {**home.environment, **shared})) as someone:
            assert someone.ask({"accelerators": "H100:1"})["enabled"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("resources", "words"),
        [
            (
                {"accelerators": "H10O:8"},
                "SkyPilot knows no accelerator 'H10O'; did you mean 'H100'?",
            ),
            (
                {"accelerators": "H100:3"},
                "no machine of aws has these resources; there is H100:8",
            ),
            (
                {"accelerators": "RTX5080"},
                "no machine of aws has these resources; RTX5080 may be had from runpod",
            ),
            (
                {"cpus": "1000+"},
                (
                    "no machine of aws has these resources; "
                    "ask for less, or allow more regions and clouds"
                ),
            ),
            (
                {"acelerators": "H100"},
                (
                    "SkyPilot refuses the resources: Invalid resources YAML: "
                    "Instead of 'acelerators', did you mean 'accelerators'?"
                ),
            ),
            (
                {"infra": "aws/nowhere", "accelerators": "H100"},
                (
                    "SkyPilot refuses the resources: Invalid region 'nowhere' "
                    "List of supported aws regions: 'eu-north-1, us-east-1'"
                ),
            ),
            (
                {"infra": "nocloud"},
                (
                    "SkyPilot refuses the resources: Invalid resources YAML: 'nocloud' "
                    "does not match what it knows. Check problematic field(s): $.infra"
                ),
            ),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_say_in_one_line_what_to_change(
        self, account: Desk, resources: dict[str, object], words: str
    ) -> None:
        assert account.ask(resources) == {"refusal": words}

    def test_a_stranger_hears_the_same(self, stranger: Desk) -> None:
        assert "did you mean 'H100'?" in stranger.ask({"accelerators": "H10O"})["refusal"]
        capped = stranger.ask({"accelerators": "H100:8", "max_hourly_cost": 1})
        assert "the cheapest is p5.48xlarge in aws/us-east-1 at $50.00" in capped["refusal"]

    def test_no_price_list_and_no_network(self, tmp_path: Path) -> None:
        with desk(sky_home(tmp_path, lists=False)) as someone:
            for resources in ({"accelerators": "H100"}, {"infra": "lambda"}):
                assert someone.ask(resources) == {
                    "refusal": "the price lists that this needs are not on this machine, and "
                    "SkyPilot cannot fetch them; "
                    "connect once to the network: it keeps them in ~/.sky/catalogs"
                }

    def test_no_skypilot(self) -> None:
        program = (
            "import sys; sys.modules['sky'] = None\n"
            "from kldcloud.clusters.prices import quote\n"
            "print(quote({'infra': 'ssh/my-box', 'accelerators': 'RTX5080'}, 1).offers[0].hourly)\n"
            "quote({'accelerators': 'H100'}, 1)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True
        )
        assert done.stdout == "0.0\n"
        assert done.stderr.splitlines()[-1] == (
            "kldcloud.errors.UserError: machines elsewhere need SkyPilot; "
            "pip install 'kldcloud[sky]'"
        )


def test_the_date_is_that_of_the_oldest_list_that_was_used(tmp_path: Path) -> None:
    home = sky_home(tmp_path)
    by_hand = home.catalogs / "aws" / "vms.csv"
    _set_age(by_hand, 2021)
    fetched = home.catalogs / "lambda" / "vms.csv"
    digest = home.catalogs / ".meta" / "lambda" / "vms.csv.md5"
    digest.parent.mkdir(parents=True)
    digest.write_text(md5(fetched.read_bytes(), usedforsecurity=False).hexdigest())
    _set_age(fetched, 2020)
    _set_age(digest, 2020)
    with desk(home) as someone:
        both = someone.ask({"accelerators": "H100:1"})
        only_aws = someone.ask({"accelerators": "H100:1", "infra": "aws"})
    touched = datetime.fromtimestamp(fetched.stat().st_mtime, UTC)
    assert touched.year > 2021, "SkyPilot touches a list that it failed to fetch again"
    assert both["catalog_date"] == "2020-01-01"
    assert only_aws["catalog_date"] == "2021-01-01"


def _set_age(path: Path, year: int) -> None:
    noon = datetime(year, 1, 1, 12, tzinfo=UTC).timestamp()
    os.utime(path, (noon, noon))


class TestOwnMachines:
    @pytest.mark.parametrize(
        ("resources", "offers"),
        [
            ({"infra": "ssh/my-box", "accelerators": "RTX5080:1"}, [("ssh/my-box", "RTX5080:1")]),
            ({"infra": "slurm/lab", "accelerators": {"A100": 2}}, [("slurm/lab", "A100:2")]),
            ({"cloud": "kubernetes", "region": "home"}, [("kubernetes/home", "")]),
            (
                {"accelerators": "H100", "any_of": [{"infra": "ssh/a"}, {"infra": "k8s/b"}]},
                [("ssh/a", "H100:1"), ("k8s/b", "H100:1")],
            ),
        ],
    )
    def test_cost_nothing_by_the_hour(
        self, resources: dict[str, object], offers: list[tuple[str, str]]
    ) -> None:
        found = quote(resources, nodes=2)
        assert found.offers == tuple(
            Offer(infra, "", accelerators, spot=False, hourly=0.0) for infra, accelerators in offers
        )
        assert found.catalog_date == ""
        assert found.enabled

    def test_among_clouds_are_asked_for_by_skypilot(self, account: Desk) -> None:
        mixed = [{"infra": "slurm"}, {"infra": "aws/us-east-1"}]
        assert account.ask({"accelerators": "H100:1", "any_of": mixed})["offers"] == [SMALL]
        unknown = [{"infra": "slurm/lab"}, {"infra": "aws"}]
        refusal = account.ask({"accelerators": "H100:1", "any_of": unknown})["refusal"]
        assert "Cluster lab not found in Slurm config" in refusal
