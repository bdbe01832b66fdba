"""SkyPilot's price lists as they lie on this machine: which clouds, what they offer, how old."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kldcloud.errors import UserError
from kldcloud.spec.nearest import nearest

OWN: Final = frozenset({"ssh", "slurm", "kubernetes", "k8s"})
"""What SkyPilot calls machines that people own: these have no price list."""

_ACCELERATORS: Final = "common/accelerators.csv"
_PRICES: Final = "{cloud}/vms.csv"
_READERS: Final = 8


def clouds_with_prices(accelerators: Iterable[str], only: Collection[str]) -> list[Any]:
    """Return the clouds whose price list is here or can be fetched now, as SkyPilot's objects.

    Args:
        accelerators: names that are asked for: clouds that offer none of them are left out, for
            each list is megabytes. Where there is none, or an unknown one, no cloud is.
        only: names of clouds, lower case; where it is empty, all that rent machines.
    """
    from sky.utils import registry

    offers = {name.lower(): clouds for name, clouds in _offers().items()}
    asked = [offers.get(name.lower()) for name in accelerators]
    offering = {cloud for clouds in asked for cloud in clouds or ()}
    clouds = [
        cloud
        for name, cloud in registry.CLOUD_REGISTRY.items()
        if name not in OWN | {"vsphere"}  # a company's own: its list is written by its own server
        and (not only or name in only)
        and (not asked or None in asked or name in offering)
    ]
    with ThreadPoolExecutor(_READERS) as readers:
        here = list(readers.map(_has_prices, clouds))
    return [cloud for cloud, is_here in zip(clouds, here, strict=True) if is_here]


def nothing_would_do(said: str, accelerators: list[str], clouds: list[str]) -> UserError:
    """Return what a person can do about resources that no machine has.

    Args:
        said: SkyPilot's own message; it names other counts of the same accelerator.
        accelerators: names that are asked for.
        clouds: names of the clouds that were looked at.
    """
    offers = _offers()
    for name in accelerators:
        if offers and name not in offers:
            match = nearest(name, offers)
            hint = f"did you mean '{match}'?" if match else "see: sky gpus list --all"
            return UserError(f"SkyPilot knows no accelerator '{name}'", hint=hint)
    counts = re.search(r"offered accelerators: (?:\x1b\[\d+m)?\[(.*?)\]", said)
    sellers = sorted({cloud for name in accelerators for cloud in offers.get(name, ())})
    if counts:
        hint = f"there is {counts[1].replace(chr(39), '')}"
    elif sellers and not set(sellers) & set(clouds):
        hint = f"{' and '.join(accelerators)} may be had from {', '.join(sellers)}"
    else:
        hint = "ask for less, or allow more regions and clouds"
    return UserError(f"no machine of {', '.join(sorted(clouds))} has these resources", hint=hint)


def oldest_date(clouds: Iterable[str]) -> str:
    """Return the day (UTC, ISO 8601) of the oldest price list among these clouds'; '' if none."""
    arrivals = [
        arrival for cloud in set(clouds) if (arrival := _arrival(_PRICES.format(cloud=cloud)))
    ]
    return datetime.fromtimestamp(min(arrivals), UTC).date().isoformat() if arrivals else ""


def _arrival(name: str) -> float | None:
    """When a price list came here, in seconds since the epoch; None where there is none.

    SkyPilot touches a list that it could not fetch anew, but writes the digest beside it only
    after a download. A list without a digest of its own was put there by hand.
    """
    from sky.catalog import common

    path = _path(name)
    if not path.is_file():
        return None
    if common.is_catalog_modified(name):
        return path.stat().st_mtime
    return _path(f".meta/{name}.md5").stat().st_mtime


def _offers() -> dict[str, tuple[str, ...]]:
    """Every accelerator that SkyPilot knows, with the clouds (lower case) that offer it.

    Empty where the list is not here; SkyPilot fetches it when it first reads a name.
    """
    path = _path(_ACCELERATORS)
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        return {
            row["AcceleratorName"]: tuple(re.findall(r"\w+", row["Clouds"].lower()))
            for row in csv.DictReader(lines)
        }


def _has_prices(cloud: Any) -> bool:  # noqa: ANN401 - sky has no types
    from sky import catalog

    try:
        catalog.instance_type_exists("", clouds=cloud.canonical_name())
    except Exception:  # noqa: BLE001 - each cloud's own library may raise anything
        return False
    return True


def _path(name: str) -> Path:
    from sky.catalog import common

    return Path(common.get_catalog_path(name))
