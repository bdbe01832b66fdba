"""Workers, hours and money of a plan, for machines that nobody has started yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kldcloud.errors import UserError
from kldcloud.pipeline.machines import NodeFacts
from kldcloud.pipeline.workers import seats_for
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.engine import EngineOptions
from kldcloud.staging.choose import S3_BYTES_A_SECOND

if TYPE_CHECKING:
    from kldcloud.clusters.prices import Offer

_HOUR: Final = 3600.0
START_SECONDS: Final = 600
"""Assumed from a request for machines to their first chunk, downloads aside."""


@dataclass(frozen=True, slots=True)
class Price:
    """What the machines cost.

    Attributes:
        offer: the machine that SkyPilot would take; None for this machine, or if nothing says.
        runner_up: where it would go next.
        catalog_date: the day of the price lists; empty for machines without a price.
        hourly: USD an hour for all machines; 0.0 for one's own, None if unknown.
        unknown: why it is unknown; empty if it is not.
        enabled: whether this account may rent the machine.
    """

    offer: Offer | None
    runner_up: Offer | None
    catalog_date: str
    hourly: float | None
    unknown: str = ""
    enabled: bool = True


class Rented(Protocol):
    """What is to be told of a plan's machines and money, whatever they are for."""

    @property
    def name(self) -> str:
        """The job's."""
        ...

    @property
    def cluster(self) -> str:
        """What the job or --cluster calls it."""
        ...

    @property
    def provider(self) -> str:
        """Local or skypilot."""
        ...

    @property
    def nodes(self) -> int: ...

    @property
    def price(self) -> Price: ...

    @property
    def machine(self) -> str:
        """In words; empty where nothing is known."""
        ...

    @property
    def hourly(self) -> float | None:
        """USD an hour for all machines; None if unknown."""
        ...

    @property
    def max_seconds(self) -> int | None:
        """After which the cluster ends the job; None for this machine."""
        ...

    @property
    def cost_estimate(self) -> float | None:
        """USD for the whole job; None if the price or the time is unknown."""
        ...

    @property
    def cost_at_most(self) -> float | None:
        """USD until the cluster ends the job; None if unknown."""
        ...

    @property
    def says_how_fast(self) -> str:
        """What a person can write for the time to be known."""
        ...

    def to_text(self) -> str:
        """The plan for a person, a subject a line or two."""
        ...


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of a cluster.

    Attributes:
        workers: on all machines.
        threads: CPU threads of one; None where the machine is not known.
        source: where the number comes from.
    """

    workers: int
    threads: int | None
    source: str


def price_of(cluster: ClusterSpec) -> Price:
    """Ask SkyPilot for prices; this machine has none, and SkyPilot is left alone."""
    if not cluster.remote:
        return Price(None, None, "", 0.0)
    from kldcloud.clusters.prices import quote

    try:
        found = quote(cluster.resources, cluster.nodes)
    except UserError as error:
        return Price(None, None, "", None, unknown=str(error))
    chosen, runner_up = (*found.offers, None, None)[:2]
    if chosen is None:
        return Price(None, None, "", None, unknown="SkyPilot names no machine")
    hourly = chosen.hourly * cluster.nodes
    return Price(chosen, runner_up, found.catalog_date, hourly, enabled=found.enabled)


def assumed_crew(
    cluster: ClusterSpec,
    engine: EngineOptions,
    accelerators: object,
    chunks: int,
    *,
    on_gpu: bool,
) -> Crew:
    """The workers of machines that nobody has seen: as many as GPUs are asked for, else one each.

    Args:
        cluster: the cluster.
        engine: the job's options.
        accelerators: of one machine, in any form that SkyPilot takes.
        chunks: more workers than that would idle.
        on_gpu: whether models run on GPUs.
    """
    gpus = gpu_count(accelerators)
    node = NodeFacts(name="", host="", cores=1, memory=0, gpus=gpus, engine={})
    seats = seats_for(cluster, engine, [node] * cluster.nodes, 0, 0, chunks, on_gpu=on_gpu)
    if isinstance(cluster.workers, int):
        source = "as the cluster says"
    elif seats[0].gpus:
        share = "each GPU" if seats[0].gpus == 1 else f"every {seats[0].gpus} GPUs"
        source = f"assumed: one for {share}"
    else:
        source = "assumed: one for each machine"
    threads = cluster.engine_for(engine).threads or cluster.threads_per_worker
    return Crew(len(seats), threads, source)


def gpu_count(accelerators: object) -> int:
    """GPUs of a machine by SkyPilot's `accelerators`; of several alternatives the fewest."""
    if isinstance(accelerators, Mapping):
        accelerators = [f"{name}:{count or 1}" for name, count in accelerators.items()]
    if isinstance(accelerators, list | tuple | set):
        return min((gpu_count(each) for each in accelerators), default=0)
    name, _, count = str(accelerators or "").partition(":")
    try:
        return int(float(count or 1)) if name else 0
    except ValueError:
        return 1


def asked_accelerators(resources: Mapping[str, object]) -> object:
    """The `accelerators` of resources, or of the first alternative that names some."""
    if resources.get("accelerators"):
        return resources["accelerators"]
    for key in ("any_of", "ordered"):
        entries = resources.get(key)
        for entry in entries if isinstance(entries, list | tuple) else ():
            if isinstance(entry, Mapping) and entry.get("accelerators"):
                return entry["accelerators"]
    return None


def cost_of(hourly: float | None, seconds: float | None) -> float | None:
    """USD of a time; None if either is unknown."""
    if hourly == 0.0:
        return 0.0
    if hourly is None or seconds is None:
        return None
    return seconds / _HOUR * hourly


def start_seconds(cluster: ClusterSpec, models: int) -> float:
    """Assumed seconds before the first chunk: start, set-up, and each machine's models."""
    return START_SECONDS + models / S3_BYTES_A_SECOND if cluster.remote else 0.0
