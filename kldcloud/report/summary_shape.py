"""The shape of a run's summary, as frozen models that refuse what they do not know.

Units: KL divergence and entropy in nats, probabilities and shares as fractions of one, sizes in
bytes. Any number may be null: a statistic that does not exist (the error of one chunk) or is not
finite, since JSON has no NaN.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

Name = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = float | None
QuantileSource = Literal["exact", "histogram"]
# JSON has lists alone, so a tuple is the one type that is not taken strictly.
ValueAndError = Annotated[tuple[Number, Number], Field(strict=False)]


class Part(BaseModel):
    """A part of a file: frozen, and with no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Estimate(Part):
    """A value, llama.cpp's error (tokens independent), the cluster-robust one, a 95 % interval."""

    value: Number
    error_naive: Number
    error: Number
    interval95: ValueAndError | None


class KldQuantiles(Part):
    minimum: Number
    p0_1: Number = Field(alias="p0.1")
    p1: Number
    p5: Number
    p10: Number
    median: Number
    p90: Number
    p95: Number
    p99: Number
    p99_9: Number = Field(alias="p99.9")
    maximum: Number


class ChangeQuantiles(Part):
    minimum: Number
    p0_1: Number = Field(alias="p0.1")
    p1: Number
    p5: Number
    p10: Number
    p25: Number
    median: Number
    p75: Number
    p90: Number
    p95: Number
    p99: Number
    p99_9: Number = Field(alias="p99.9")
    maximum: Number


class MeanOnly(Part):
    mean: Estimate


# The last base class declares the first keys of the file.
class Divergence(KldQuantiles, MeanOnly):
    quantiles: QuantileSource


class Perplexity(Part):
    candidate: Estimate
    base: Estimate
    ratio: Estimate
    log_ratio: Estimate
    difference: Estimate
    correlation: Number


class MeanAndRms(MeanOnly):
    rms: Estimate


class ProbabilityChange(ChangeQuantiles, MeanAndRms):
    quantiles: QuantileSource


class LlamaBlock(Part):
    """The numbers that `llama-perplexity --kl-divergence` prints, each with its naive error."""

    ppl_q: ValueAndError
    ppl_base: ValueAndError
    ln_ppl_correlation: Number
    ln_ppl_ratio: ValueAndError
    ppl_ratio: ValueAndError
    ppl_difference: ValueAndError
    kld_mean: ValueAndError
    kld: KldQuantiles
    dp_mean: ValueAndError
    dp: ChangeQuantiles
    dp_rms: ValueAndError
    same_top: ValueAndError


class Result(Part):
    """What one candidate scored on one corpus; `tokens` counts scored positions."""

    chunks: Count
    tokens: Count
    kld: Divergence
    reverse_kld: MeanOnly
    entropy_base: MeanOnly
    perplexity: Perplexity
    probability_change: ProbabilityChange
    same_top: Estimate
    llama: LlamaBlock | None


class Measurement(Part):
    candidate: Name
    corpus: Name
    status: Literal["complete", "failed"]
    error: str | None
    result: Result | None


class Base(Part):
    name: Name
    sha256: str | None
    bytes: Count | None
    parameters: Count | None
    bits_per_weight: Number


class Candidate(Part):
    name: Name
    file: str | None
    sha256: str | None
    bytes: Count | None
    parameters: Count | None
    bits_per_weight: Number


class Corpus(Part):
    """A text. `format` is what its job calls it; files of earlier versions do not say."""

    name: Name
    sha256: str | None
    tokens: Count
    context: Count
    chunks: Count
    scored: Count
    format: Literal["text", "chat"] = "text"


class Rank(Part):
    """Where a candidate may stand among all: 1 is the smallest mean KL divergence."""

    candidate: Name
    low: Count
    high: Count


class Pair(Part):
    """Two candidates on the same tokens: mean KL divergence of `worse` less that of `better`.

    The interval is of this pair alone; `p_holm` takes all pairs of the comparison into account,
    and `distinguishable` is whether it is 5 % or less.
    """

    better: Name
    worse: Name
    difference: Number
    error: Number
    interval95: ValueAndError | None
    p: Number
    p_holm: Number
    distinguishable: bool


class Comparison(Part):
    """The candidates that were measured on one corpus, ranked; neighbours' pairs among `pairs`."""

    corpus: Name
    ranks: Annotated[tuple[Rank, ...], Field(strict=False), FailFast()]
    pairs_tested: Count
    pairs: Annotated[tuple[Pair, ...], Field(strict=False), FailFast()]


class NoiseFloor(Part):
    """The base measured against itself: nothing below it says anything about a candidate."""

    corpus: Name
    error: str | None
    tokens: Count
    mean: Estimate | None
    p99_9: Number = Field(alias="p99.9")
    maximum: Number
    same_top: Estimate | None


class StoppedMean(Part):
    """A candidate's mean KL divergence; the interval holds whenever one stops."""

    candidate: Name
    value: Number
    interval: ValueAndError | None


class Stop(Part):
    """How far a run that may stop early went on one corpus, and what that settles.

    `undecided` are the pairs that `confidence` does not tell apart, the smaller mean first. The
    corpus's own comparison then holds whenever one stops, as well.
    """

    corpus: Name
    when: Literal["ranked", "precise"]
    half_width: Number
    confidence: float
    least: Count
    settled: bool
    checkpoint: Count
    checkpoints: Count
    chunks: Count
    of: Count
    saved: float
    means: Annotated[tuple[StoppedMean, ...], Field(strict=False), FailFast()]
    order: Annotated[tuple[Name, ...], Field(strict=False), FailFast()]
    undecided: Annotated[
        tuple[Annotated[tuple[Name, Name], Field(strict=False)], ...],
        Field(strict=False),
        FailFast(),
    ]


class Summary(Part):
    """One run: what was measured, with what, and every result.

    A list stops at its first bad element: a hostile one costs one error, not one an element.
    """

    schema_id: Literal["kldcloud.summary/1", "kldcloud.summary/2"] = Field(alias="schema")
    run: Name
    name: Name
    status: Literal["complete", "partial"]
    kldcloud: str
    engine: dict[str, str]
    # What differs in the engine of candidates that another one runs, or otherwise, by name.
    engines: dict[Name, dict[str, str]] = {}
    encoding: str
    llama_compat: bool
    base: Base
    corpora: Annotated[tuple[Corpus, ...], Field(strict=False), FailFast()]
    candidates: Annotated[tuple[Candidate, ...], Field(strict=False), FailFast()]
    results: Annotated[tuple[Measurement, ...], Field(strict=False), FailFast()]
    # Since kldcloud.summary/2.
    comparisons: Annotated[tuple[Comparison, ...], Field(strict=False), FailFast()] = ()
    noise_floor: Annotated[tuple[NoiseFloor, ...], Field(strict=False), FailFast()] = ()
    stops: Annotated[tuple[Stop, ...], Field(strict=False), FailFast()] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """The summary as plain JSON values, keys in declared order."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
