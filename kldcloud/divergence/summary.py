"""The reduction of partials to a candidate's summary: estimates, intervals and quantiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kldcloud.divergence.estimates import Estimate, Means, exp, exponential, finite
from kldcloud.divergence.histogram import LogHistogram
from kldcloud.divergence.llama_statistics import (
    CHANGE_QUANTILES,
    KLD_QUANTILES,
    LlamaStatistics,
    LlamaSums,
)
from kldcloud.divergence.moments import INDEX, Moments, merge_in_order
from kldcloud.divergence.partial import Partial
from kldcloud.divergence.records import Floats
from kldcloud.errors import FormatError

# Two float64 and two float32 columns are kept: 2.4 GB of them at this number of tokens.
EXACT_QUANTILE_TOKENS = 100_000_000

QuantileSource = Literal["exact", "histogram"]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles by name, and whether they come from the values or are within 0.1 % of them."""

    values: Mapping[str, float]
    source: QuantileSource

    def to_json_dict(self) -> dict[str, object]:
        return {
            **{name: finite(value) for name, value in self.values.items()},
            "quantiles": self.source,
        }


@dataclass(frozen=True, slots=True)
class PerplexitySummary:
    """Perplexities, exp of mean negative log-likelihoods; ``correlation`` is of the latter."""

    candidate: Estimate
    base: Estimate
    ratio: Estimate
    log_ratio: Estimate
    difference: Estimate
    correlation: float

    def to_json_dict(self) -> dict[str, object]:
        return {
            "candidate": self.candidate.to_json_dict(),
            "base": self.base.to_json_dict(),
            "ratio": self.ratio.to_json_dict(),
            "log_ratio": self.log_ratio.to_json_dict(),
            "difference": self.difference.to_json_dict(),
            "correlation": finite(self.correlation),
        }


@dataclass(frozen=True, slots=True)
class ResultSummary:
    """One candidate on one corpus. Divergences and entropy in nats, probabilities as fractions."""

    chunks: int
    tokens: int
    kld_mean: Estimate
    kld_quantiles: Quantiles
    reverse_kld_mean: Estimate
    entropy_base_mean: Estimate
    perplexity: PerplexitySummary
    probability_change_mean: Estimate
    probability_change_rms: Estimate
    probability_change_quantiles: Quantiles
    same_top: Estimate
    llama: LlamaStatistics | None

    def to_json_dict(self) -> dict[str, object]:
        """Plain dictionaries, lists and numbers; NaN and infinity become None."""
        return {
            "chunks": self.chunks,
            "tokens": self.tokens,
            "kld": {"mean": self.kld_mean.to_json_dict(), **self.kld_quantiles.to_json_dict()},
            "reverse_kld": {"mean": self.reverse_kld_mean.to_json_dict()},
            "entropy_base": {"mean": self.entropy_base_mean.to_json_dict()},
            "perplexity": self.perplexity.to_json_dict(),
            "probability_change": {
                "mean": self.probability_change_mean.to_json_dict(),
                "rms": self.probability_change_rms.to_json_dict(),
                **self.probability_change_quantiles.to_json_dict(),
            },
            "same_top": self.same_top.to_json_dict(),
            "llama": self.llama and self.llama.to_json_dict(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class ChunkMeans:
    """One variable, chunk by chunk.

    Attributes:
        sizes: scored positions of each chunk.
        means: ``[chunks]`` float64.
    """

    sizes: tuple[int, ...]
    means: Floats


class Reduction:
    """Adds one candidate's partials in shard order and keeps what its summary needs.

    The result depends on the records and chunks alone, to the last bit: moments and sums are
    merged chunk by chunk, so shard sizes leave no trace.

    Args:
        chunk_count: chunks that the corpus has; None takes what comes.
        exact_quantile_tokens: above so many, values are dropped for a histogram, and
            llama-perplexity's statistics, which need them all, are left out.
    """

    def __init__(
        self,
        chunk_count: int | None = None,
        *,
        exact_quantile_tokens: int = EXACT_QUANTILE_TOKENS,
    ) -> None:
        self._chunk_count = chunk_count
        self._limit = exact_quantile_tokens
        self._whose: tuple[str, str, str] | None = None
        self._total = Moments.of_nothing()
        self._chunk_sizes: list[int] = []
        self._chunk_means: list[Floats] = []
        self._llama_sums: LlamaSums | None = LlamaSums()
        self._kld_histogram = LogHistogram()
        self._change_histogram = LogHistogram()
        self._values: _Values | None = _Values()

    @property
    def next_chunk(self) -> int:
        """First chunk of the partial that must come next."""
        return len(self._chunk_sizes)

    def chunk_means(self, name: str) -> ChunkMeans:
        """The mean of one of `moments.VARIABLES` in each chunk that was added."""
        means = np.array([mean[INDEX[name]] for mean in self._chunk_means])
        return ChunkMeans(tuple(self._chunk_sizes), means)

    def kld_curve(self, shares: Sequence[float]) -> tuple[float, ...]:
        """The KL divergence, in nats, that each of these shares of the positions stays within."""
        names = {str(share): share for share in shares}
        values = self._values
        found = _quantiles(values.kld if values else None, self._kld_histogram, names)
        return tuple(found.values.values())

    def add(self, partial: Partial) -> None:
        """Add the next shard's partial.

        Raises:
            FormatError: another run, candidate or corpus, chunks that do not follow the last one,
                or llama.cpp's numbers in some partials only. Nothing was added.
        """
        self._check(partial)
        identity = partial.identity
        self._whose = (identity.run, identity.candidate, identity.corpus)
        self._total = merge_in_order(partial.moments, self._total)
        self._chunk_sizes.extend(item.count for item in partial.moments)
        self._chunk_means.extend(item.mean for item in partial.moments)
        if self._llama_sums is not None and partial.llama_sums:
            for sums in partial.llama_sums:
                self._llama_sums += sums
        else:
            self._llama_sums = None
        self._kld_histogram = self._kld_histogram.merge(partial.kld_histogram)
        records = partial.records
        self._change_histogram.add(records.probability_change)
        if self._values is not None:
            self._values.kld.append(records.kld)
            self._values.change.append(records.probability_change)
            if self._llama_sums is not None:
                self._values.llama_kld.append(records.llama_kld.astype(np.float32))
                self._values.llama_change.append(records.llama_probability_change)
        if self._total.count > self._limit:
            self._values = self._llama_sums = None

    def result(self, *, level: float | None = None) -> ResultSummary:
        """Summarise what was added.

        Args:
            level: of intervals of a run that may stop early, `sequential.Decision.level`; see
                `estimates.Means`.

        Raises:
            FormatError: nothing was added, or chunks are still missing at the end.
        """
        if self.next_chunk == 0 or self.next_chunk != (self._chunk_count or self.next_chunk):
            raise FormatError(
                f"{self._name()}: {self.next_chunk} of {self._chunk_count or 'its'} chunks are here"
            )
        means = Means(self._total, self._chunk_sizes, self._chunk_means, level=level)
        values = self._values
        llama = None
        if self._llama_sums is not None and values is not None:
            llama = LlamaStatistics.from_sums(
                self._llama_sums,
                np.concatenate(values.llama_kld),
                np.concatenate(values.llama_change),
            )
        return ResultSummary(
            chunks=self.next_chunk,
            tokens=self._total.count,
            kld_mean=means.mean("kld", low=0.0),
            kld_quantiles=_quantiles(
                values.kld if values else None, self._kld_histogram, KLD_QUANTILES
            ),
            reverse_kld_mean=means.mean("reverse_kld", low=0.0),
            entropy_base_mean=means.mean("entropy_base", low=0.0),
            perplexity=_perplexity(means),
            probability_change_mean=means.mean("probability_change", low=-1.0, high=1.0),
            probability_change_rms=_rms(means),
            probability_change_quantiles=_quantiles(
                values.change if values else None, self._change_histogram, CHANGE_QUANTILES
            ),
            same_top=means.share("same_top"),
            llama=llama,
        )

    def _check(self, partial: Partial) -> None:
        identity = partial.identity
        if self._whose not in {None, (identity.run, identity.candidate, identity.corpus)}:
            raise FormatError(f"{identity}: does not belong to {self._name()}")
        end = identity.first_chunk + identity.chunk_count
        if identity.first_chunk != self.next_chunk or end > (self._chunk_count or end):
            raise FormatError(
                f"{identity}: {self._name()} goes on at chunk {self.next_chunk}"
                + (f" of {self._chunk_count}" if self._chunk_count else "")
            )
        mixed = (self._llama_sums is None) != (not partial.llama_sums)
        if mixed and self._values is not None and self.next_chunk:
            raise FormatError(f"{identity}: llama.cpp's numbers are in some partials only")

    def _name(self) -> str:
        if self._whose is None:
            return "the reduction"
        run, candidate, corpus = self._whose
        return f"the reduction of {candidate} on {corpus} in run {run}"


class _Values:
    """Every token's values, one array a shard."""

    def __init__(self) -> None:
        self.kld: list[Floats] = []
        self.change: list[Floats] = []
        self.llama_kld: list[npt.NDArray[np.float32]] = []
        self.llama_change: list[npt.NDArray[np.float32]] = []


def _perplexity(means: Means) -> PerplexitySummary:
    nll, base = means["nll"], means["nll_base"]
    candidate_ppl, base_ppl = exp(nll), exp(base)
    log_ratio = means.estimate(nll - base, {"nll": 1.0, "nll_base": -1.0})
    i, j = INDEX["nll"], INDEX["nll_base"]
    scale = math.sqrt(means.comoment[i, i] * means.comoment[j, j])
    return PerplexitySummary(
        candidate=exponential(means.mean("nll")),
        base=exponential(means.mean("nll_base")),
        ratio=exponential(log_ratio),
        log_ratio=log_ratio,
        difference=means.estimate(
            candidate_ppl - base_ppl, {"nll": candidate_ppl, "nll_base": -base_ppl}
        ),
        correlation=float(means.comoment[i, j]) / scale if scale else math.nan,
    )


def _rms(means: Means) -> Estimate:
    rms = math.sqrt(means["probability_change_squared"])
    # Nothing varies about an rms of zero, so its error is zero and not 0/0.
    slope = 0.5 / rms if rms else 0.0
    return means.estimate(rms, {"probability_change_squared": slope}, low=0.0, high=1.0)


def _quantiles(
    parts: list[Floats] | None, histogram: LogHistogram, names: Mapping[str, float]
) -> Quantiles:
    if parts is None:
        return Quantiles({key: histogram.quantile(q) for key, q in names.items()}, "histogram")
    found = np.quantile(np.concatenate(parts), list(names.values()), method="linear")
    return Quantiles(dict(zip(names, found.tolist(), strict=True)), "exact")
