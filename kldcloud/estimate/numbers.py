"""A plan in numbers: what follows from sizes, rate and price, and its form for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from kldcloud.divergence.forecast import Forecast
from kldcloud.estimate.cost import Crew, Price, cost_of
from kldcloud.estimate.files import PlannedBase, PlannedCorpus, PlannedModel
from kldcloud.estimate.sizes import StageSize, Volumes
from kldcloud.estimate.text import machine_words, to_text
from kldcloud.spec.stop import StopSpec

if TYPE_CHECKING:
    from kldcloud.clusters.prices import Offer

SCHEMA: Final = "kldcloud.plan/1"


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast one worker is.

    Attributes:
        tokens: a second; None if nothing says.
        source: where that comes from.
    """

    tokens: float | None
    source: str


@dataclass(frozen=True, slots=True)
class SweepEstimate:
    """A plan in numbers.

    Attributes:
        name: the job's.
        cluster: what the job or --cluster calls it.
        provider: local or skypilot.
        nodes: machines.
        store: where results would go.
        base: the base.
        candidates: what is measured against it.
        floor: whether the base is measured against itself as well.
        corpora: on what.
        imatrices: what importance matrices are computed from, before anything is measured.
        stages: base stages by encoding, the chosen one first; empty if nothing says how large.
        reason: why that encoding.
        kld_bytes: what llama.cpp's base files would take for the same rows; None if unknown.
        volumes: what travels.
        crew: workers.
        rate: of one worker.
        start_seconds: assumed before the first chunk on machines that have to be found.
        max_seconds: after which the cluster ends the job; None for this machine.
        price: of all machines.
        stop: when the job may stop before the end of a text; None if it does not.
        forecasts: how much of each text a pilot lets expect, by name; empty without one.
    """

    name: str
    cluster: str
    provider: str
    nodes: int
    store: str
    base: PlannedBase
    candidates: tuple[PlannedModel, ...]
    floor: bool
    corpora: tuple[PlannedCorpus, ...]
    stages: tuple[StageSize, ...]
    reason: str
    kld_bytes: int | None
    volumes: Volumes
    crew: Crew
    rate: Rate
    start_seconds: float
    max_seconds: int | None
    price: Price
    stop: StopSpec | None = None
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    imatrices: tuple[PlannedCorpus, ...] = ()

    @property
    def chunks(self) -> int:
        """Of all texts."""
        return sum(each.chunks for each in self.corpora)

    @property
    def rows(self) -> int:
        """Scored positions of all texts."""
        return sum(each.rows for each in self.corpora)

    @property
    def runs(self) -> int:
        """Passes of models over the texts: candidates, the base if it is one, the noise floor."""
        return len(self.candidates) + (not self.base.kld) + self.floor

    @property
    def evaluated_tokens(self) -> int:
        """Tokens that models will evaluate in all."""
        return self.runs * sum(each.chunks * each.context for each in self.corpora)

    @property
    def imatrix_tokens(self) -> int:
        """Tokens that the base will evaluate for importance matrices."""
        return sum(each.chunks * each.context for each in self.imatrices)

    @property
    def seconds(self) -> float | None:
        """For all evaluations on all workers; None if no rate is known."""
        if self.rate.tokens is None:
            return None
        # Importance matrices are made by one machine while the others wait.
        tokens = self.evaluated_tokens + self.imatrix_tokens * self.nodes
        return tokens / (self.rate.tokens * self.crew.workers)

    @property
    def total_seconds(self) -> float | None:
        """From asking for machines to the end; None if no rate is known."""
        return None if self.seconds is None else self.start_seconds + self.seconds

    @property
    def offer(self) -> Offer | None:
        """The machine that would be taken; None for this one, or if no price is known."""
        return self.price.offer

    @property
    def machine(self) -> str:
        """That machine in words; empty where there is none."""
        return machine_words(self.price.offer) if self.price.offer else ""

    @property
    def hourly(self) -> float | None:
        """USD an hour for all machines; None if unknown."""
        return self.price.hourly

    @property
    def cost_estimate(self) -> float | None:
        """USD for the whole job; None if the price or the time is unknown."""
        return cost_of(self.hourly, self.total_seconds)

    @property
    def cost_at_most(self) -> float | None:
        """USD until the cluster ends the job, whatever it is doing; None if unknown."""
        return cost_of(self.hourly, self.max_seconds)

    @property
    def says_how_fast(self) -> str:
        """What a person can write for the time to be known."""
        return f"state rates: {{{self.cluster}: tokens a second}} in the job"

    def to_json(self) -> str:
        """The plan for scripts: one object of schema `kldcloud.plan/1`.

        Sizes are bytes, times seconds, money USD; what is unknown is null, and the reason stands
        beside it (`rate_source`, `price_unknown`, `volumes.unknown`, `reason`).
        """
        price = self.price
        facts = {
            "schema": SCHEMA,
            "name": self.name,
            "cluster": self.cluster,
            "provider": self.provider,
            "nodes": self.nodes,
            "store": self.store,
            "base": {"name": self.base.file.name, "bytes": self.base.file.size},
            "vocabulary": self.base.vocabulary,
            "candidates": [{"name": each.name, "bytes": each.size} for each in self.candidates],
            "stop": self.stop and self.stop.model_dump(mode="json"),
            "forecasts": {name: asdict(found) for name, found in self.forecasts.items()},
            "corpora": [
                {
                    "name": each.name,
                    "tokens": each.tokens,
                    "tokens_source": each.source,
                    "chunks": each.chunks,
                    "context": each.context,
                    "rows": each.rows,
                }
                for each in self.corpora
            ],
            "chunks": self.chunks,
            "rows": self.rows,
            "evaluations": self.runs * self.chunks,
            "evaluated_tokens": self.evaluated_tokens,
            "imatrix_tokens": self.imatrix_tokens,
            "encoding": self.stages[0].encoding if self.stages else None,
            "reason": self.reason,
            "staged_bytes": {each.encoding: each.bytes for each in self.stages},
            "kld_bytes": self.kld_bytes,
            "volumes": asdict(self.volumes),
            "workers": self.crew.workers,
            "workers_source": self.crew.source,
            "threads": self.crew.threads,
            "tokens_a_second": self.rate.tokens,
            "rate_source": self.rate.source,
            "seconds": self.seconds,
            "start_seconds": self.start_seconds,
            "total_seconds": self.total_seconds,
            "max_seconds": self.max_seconds,
            "offer": asdict(price.offer) if price.offer else None,
            "runner_up": asdict(price.runner_up) if price.runner_up else None,
            "catalog_date": price.catalog_date or None,
            "enabled": price.enabled,
            "hourly": price.hourly,
            "price_unknown": price.unknown or None,
            "cost_estimate": self.cost_estimate,
            "cost_at_most": self.cost_at_most,
        }
        return json.dumps(facts, indent=2)

    def to_text(self) -> str:
        """A few lines for the person who pays."""
        return to_text(self)
