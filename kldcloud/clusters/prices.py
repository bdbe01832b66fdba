"""What a job's machines would cost: SkyPilot's choice, its runner-up, and the prices' date."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kldcloud.clusters.catalogs import OWN, clouds_with_prices, nothing_would_do, oldest_date
from kldcloud.errors import UserError

_OFFERS: Final = 2  # the choice and the runner-up
_CAP: Final = "max_hourly_cost"
_HOUR: Final = 3600.0
_LONGEST: Final = 240  # where one region is wrong, SkyPilot lists all that a cloud has


@dataclass(frozen=True, slots=True)
class Offer:
    """One machine that would do.

    Attributes:
        infra: where it is, without a zone: 'aws/us-east-1', 'ssh/my-box', 'slurm/lab'.
        instance: the cloud's name for it, 'p5.48xlarge'; '' where there are none.
        accelerators: 'H100:8', or ''.
        spot: whether the cloud may take it back.
        hourly: USD a node and hour; 0 for machines that cost nothing by the hour.
    """

    infra: str
    instance: str
    accelerators: str
    spot: bool
    hourly: float


@dataclass(frozen=True, slots=True)
class Quote:
    """What SkyPilot would take, before anything is spent.

    Attributes:
        offers: one or two, as SkyPilot prefers them: its choice, and where it would go next if that
            region had none left. `max_hourly_cost` binds the choice, not the runner-up: SkyPilot
            does not look at it again when it turns to a dearer region.
        catalog_date: the day (UTC, ISO 8601) on which the oldest price list behind the offers came
            to this machine; '' where no price was looked up.
        enabled: False where nobody on this computer may rent them: then these are the prices that
            anybody would see. Own machines count as enabled, for nothing has asked them; so does
            what a shared API server may rent with credentials of its own.
    """

    offers: tuple[Offer, ...]
    catalog_date: str
    enabled: bool

    def require_enabled(self) -> None:
        """Refuse machines that nobody on this computer may rent.

        Raises:
            UserError: which clouds lack credentials, and SkyPilot's command that looks for them.
        """
        if self.enabled:
            return
        clouds = list(dict.fromkeys(offer.infra.split("/")[0] for offer in self.offers))
        raise UserError(
            f"SkyPilot finds no credentials for {' or '.join(clouds)}",
            hint=f"set them up, then run: sky check {' '.join(clouds)}",
        )


class _NotEnabledError(Exception):
    """No cloud that the resources name, or none at all, has credentials here."""


def quote(resources: Mapping[str, object], nodes: int) -> Quote:
    """Ask SkyPilot's optimizer what it would take, in this process and without its API server.

    Prices come from SkyPilot's catalogs, which it fetches where they are missing or hours old.
    Resources that name own machines only (ssh, slurm, kubernetes) need neither SkyPilot nor a
    network: whether those machines answer is found out at launch.

    Args:
        resources: SkyPilot's `resources`, as a person writes them.
        nodes: machines of the cluster.

    Raises:
        UserError: one line: SkyPilot is missing or refuses the resources, there are no catalogs,
            nothing in them would do, or all that would costs more than `max_hourly_cost`.
    """
    own = _own_machines(resources)
    if own:
        return Quote(own[:_OFFERS], "", enabled=True)
    _require_sky()
    with _quiet():
        try:
            found, enabled = _preferred(resources, nodes), True
        except _NotEnabledError:
            with _as_if_enabled(resources):
                found, enabled = _preferred(resources, nodes), _server_is_elsewhere()
        date = oldest_date(each.cloud.canonical_name() for each in found)
        return Quote(tuple(_offer(each) for each in found), date, enabled)


def _server_is_elsewhere() -> bool:
    from sky.server import common

    return not common.is_api_server_local()


def _require_sky() -> None:
    """Import SkyPilot (seconds, and files in ~/.sky), with its usage reports turned off.

    Raises:
        UserError: if it is not installed.
    """
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    try:
        import sky  # noqa: F401 - a later import of its parts then finds the setting
    except ImportError as error:
        if error.name != "sky":
            raise UserError(f"SkyPilot does not start here: {_one_line(error)}") from error
        raise UserError(
            "machines elsewhere need SkyPilot", hint="pip install 'kldcloud[sky]'"
        ) from None


def _preferred(resources: Mapping[str, object], nodes: int) -> list[Any]:
    """SkyPilot's choice, and its next with the first one's region blocked, as in a failover."""
    from requests.exceptions import RequestException
    from sky import exceptions
    from sky.optimizer import Optimizer

    found: list[Any] = []
    try:
        dag = _dag(resources, nodes)
        while len(found) < _OFFERS:
            blocked = [each.copy(zone=None) for each in found]
            Optimizer.optimize(dag, blocked_resources=blocked, quiet=True)
            found.append(dag.tasks[0].best_resources)
    except exceptions.NoCloudAccessError:
        raise _NotEnabledError from None
    except exceptions.ResourcesUnavailableError as error:
        if not found:
            raise _unavailable(str(error), resources, nodes) from None
    except RequestException as error:
        raise _no_catalogs() from error
    except Exception as error:  # its checks raise whatever their libraries do
        raise UserError(f"SkyPilot refuses the resources: {_one_line(error)}") from error
    return found


def _dag(resources: Mapping[str, object], nodes: int) -> Any:  # noqa: ANN401 - sky has no types
    import sky

    dag = sky.Dag()
    dag.add(sky.Task.from_yaml_config({"resources": dict(resources), "num_nodes": nodes}))
    return dag


def _offer(choice: Any) -> Offer:  # noqa: ANN401 - sky has no types
    accelerators = choice.get_accelerators_str()
    return Offer(
        infra=choice.copy(zone=None).infra.to_str(),
        instance="" if choice.cloud.canonical_name() in OWN else choice.instance_type,
        accelerators="" if accelerators == "-" else accelerators,
        spot=choice.use_spot,
        hourly=choice.get_cost(_HOUR),
    )


def _unavailable(said: str, resources: Mapping[str, object], nodes: int) -> Exception:
    """Find out why nothing would do: SkyPilot's own error says no more than that nothing does."""
    from sky import check
    from sky.clouds.cloud import CloudCapability, cloud_in_iterable

    enabled = check.get_cached_enabled_clouds_or_refresh(CloudCapability.COMPUTE)
    options = list(_dag(resources, nodes).tasks[0].resources)
    named = [option.cloud for option in options]
    if None not in named and not any(cloud_in_iterable(each, enabled) for each in named):
        return _NotEnabledError()
    without_cap = _without_cap(resources)
    if without_cap != resources:
        with contextlib.suppress(UserError):
            return _too_dear(_offer(_preferred(without_cap, nodes)[0]))
    asked = dict.fromkeys(name for option in options for name in option.accelerators or ())
    return nothing_would_do(said, list(asked), [each.canonical_name() for each in enabled])


def _too_dear(cheapest: Offer) -> UserError:
    machine = f"{cheapest.instance} in {cheapest.infra}"
    price = f"${cheapest.hourly:.2f} an hour" + (" as spot" if cheapest.spot else "")
    return UserError(
        f"every machine that would do costs more than {_CAP}: the cheapest is {machine} at {price}",
        hint=f"raise {_CAP} or ask for less",
    )


def _no_catalogs() -> UserError:
    return UserError(
        "the price lists that this needs are not on this machine, and SkyPilot cannot fetch them",
        hint="connect once to the network: it keeps them in ~/.sky/catalogs",
    )


def _without_cap(resources: Mapping[str, object]) -> dict[str, object]:
    def stripped(value: object) -> object:
        if isinstance(value, list):
            return [_without_cap(each) if isinstance(each, Mapping) else each for each in value]
        return value

    return {key: stripped(value) for key, value in resources.items() if key != _CAP}


def _own_machines(resources: Mapping[str, object]) -> tuple[Offer, ...]:
    """The offers of resources that name own machines and nothing else; otherwise none."""
    offers: dict[Offer, None] = {}
    for option in _alternatives(resources):
        infra = _infra(option)
        if infra.split("/")[0].lower() not in OWN:
            return ()
        for accelerator in _accelerators(option.get("accelerators")) or [""]:
            offers[Offer(infra, "", accelerator, spot=False, hourly=0.0)] = None
    return tuple(offers)


def _infra(option: Mapping[str, object]) -> str:
    """Where one option is to be: 'aws/us-east-1' also where it says `cloud` and `region`."""
    if option.get("infra"):
        return str(option["infra"]).strip().strip("/")
    if not option.get("cloud"):
        return ""
    parts = [option.get(key) for key in ("cloud", "region", "zone")]
    return "/".join(str(part) for part in parts if part)


def _alternatives(resources: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The resources once for each entry of `any_of` or `ordered`, whose keys replace the rest."""
    for key in ("any_of", "ordered"):
        entries = resources.get(key)
        if isinstance(entries, list) and entries:
            return [{**resources, **each} for each in entries if isinstance(each, Mapping)]
    return [resources]


def _accelerators(value: object) -> list[str]:
    """Each accelerator of one option as 'NAME:COUNT'."""
    if isinstance(value, Mapping):
        value = [f"{name}:{count}" if count else name for name, count in value.items()]
    written = value if isinstance(value, list | set | tuple) else [value] if value else []
    pairs = [str(each).replace(" ", "").partition(":") for each in written]
    return [f"{name}:{count or 1}" for name, _, count in pairs]


@contextlib.contextmanager
def _as_if_enabled(resources: Mapping[str, object]) -> Iterator[None]:
    """Let the optimizer choose among the clouds that have prices here, credentials or not."""
    from sky import check

    options = _alternatives(resources)
    clouds = {_infra(option).split("/")[0].lower() for option in options}
    pairs = [pair for option in options for pair in _accelerators(option.get("accelerators"))]
    names = [pair.partition(":")[0] for pair in pairs]
    priced = clouds_with_prices(names, only=set() if clouds & {"", "*"} else clouds)
    if not priced:
        raise _no_catalogs()
    asks_accounts = check.get_cached_enabled_clouds_or_refresh
    check.get_cached_enabled_clouds_or_refresh = lambda *_, **__: list(priced)
    try:
        yield
    finally:
        check.get_cached_enabled_clouds_or_refresh = asks_accounts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep SkyPilot's spinner and log out of what we print, and our own tracebacks whole.

    It writes both to stdout, and leaves `sys.tracebacklimit` at 0 after each of its errors.
    """
    disabled, limit = logging.root.manager.disable, getattr(sys, "tracebacklimit", None)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        if limit is not None:
            sys.tracebacklimit = limit
        elif hasattr(sys, "tracebacklimit"):
            del sys.tracebacklimit


def _one_line(error: BaseException) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    plain = re.sub(r"'\^.*\$'", "what it knows", plain)  # a pattern of all clouds
    line = " ".join(plain.split()) or type(error).__name__
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
