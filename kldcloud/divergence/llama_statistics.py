"""What ``llama-perplexity --kl-divergence`` prints, in that tool's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np

from kldcloud.divergence.records import Floats, Singles, TokenRecords
from kldcloud.errors import FormatError

# Names as reports use them, and the fractions at which the tool interpolates.
KLD_QUANTILES: Mapping[str, float] = {
    "minimum": 0.0,
    "p0.1": 0.001,
    "p1": 0.01,
    "p5": 0.05,
    "p10": 0.1,
    "median": 0.5,
    "p90": 0.9,
    "p95": 0.95,
    "p99": 0.99,
    "p99.9": 0.999,
    "maximum": 1.0,
}
CHANGE_QUANTILES: Mapping[str, float] = dict(
    sorted({**KLD_QUANTILES, "p25": 0.25, "p75": 0.75}.items(), key=lambda item: item[1])
)

# The tool prints no statistics of fewer positions.
FEWEST_POSITIONS = 100
# It has no uncertainty of a mean, or no covariance, of so few.
_NO_UNCERTAINTY_UP_TO = 10
_FEWEST_FOR_COVARIANCE = 10


@dataclass(frozen=True, slots=True)
class LlamaSums:
    """The tool's running sums: float32 products, added in float64. They add chunk by chunk."""

    count: int = 0
    same_top: int = 0
    nll: float = 0.0
    nll2: float = 0.0
    nll_base: float = 0.0
    nll_base2: float = 0.0
    nll_nll_base: float = 0.0
    kld: float = 0.0
    kld2: float = 0.0
    change: float = 0.0
    change2: float = 0.0
    change4: float = 0.0

    @classmethod
    def from_records(cls, records: TokenRecords) -> Self:
        """Sums over the records of one chunk."""
        nll, base, kld = records.llama_nll, records.llama_nll_base, records.llama_kld
        change = records.llama_probability_change
        change2 = (change * change).astype(np.float64)
        return cls(
            count=len(records),
            same_top=int(records.llama_same_top.sum()),
            nll=_sum(nll),
            nll2=_sum(nll * nll),
            nll_base=_sum(base),
            nll_base2=_sum(base * base),
            nll_nll_base=_sum(nll * base),
            kld=_sum(kld),
            kld2=_sum(kld * kld),
            change=_sum(change),
            change2=_sum(change2),
            change4=_sum(change2 * change2),
        )

    def __add__(self, other: LlamaSums) -> LlamaSums:
        return LlamaSums(
            self.count + other.count,
            self.same_top + other.same_top,
            *(a + b for a, b in zip(astuple(self)[2:], astuple(other)[2:], strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A value with the +- that the tool prints after it."""

    value: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class LlamaStatistics:
    """The tool's statistics, named after its labels.

    Divergences in nats, probabilities and their changes (the tool's delta p) as fractions where
    the tool prints percent. ``count`` is the number of scored positions.
    """

    count: int
    mean_ppl_q: Uncertain
    mean_ppl_base: Uncertain
    correlation: float
    mean_ln_ppl_ratio: Uncertain
    mean_ppl_ratio: Uncertain
    mean_ppl_difference: Uncertain
    mean_kld: Uncertain
    kld: Mapping[str, float]
    mean_dp: Uncertain
    dp: Mapping[str, float]
    rms_dp: Uncertain
    same_top: Uncertain

    @classmethod
    def from_sums(cls, sums: LlamaSums, kld: Singles, dp: Singles) -> Self:
        """The statistics of all positions.

        Args:
            sums: over all chunks, added in chunk order.
            kld: float32 ``[sums.count]``, the records' ``llama_kld`` rounded, in any order.
            dp: float32 ``[sums.count]``, the records' ``llama_probability_change``.
        """
        n = sums.count
        with np.errstate(all="ignore"):
            q = _mean(sums.nll, sums.nll2, n)
            base = _mean(sums.nll_base, sums.nll_base2, n)
            covariance = _covariance(sums)
            ppl_q, ppl_base = _exponential(q), _exponential(base)
            ln_ratio = Uncertain(
                q.value - base.value,
                _spread(q.uncertainty, base.uncertainty, covariance),
            )
            ppl_covariance = ppl_q.value * ppl_base.value * covariance
            difference = Uncertain(
                ppl_q.value - ppl_base.value,
                _spread(ppl_q.uncertainty, ppl_base.uncertainty, ppl_covariance),
            )
            mean_square = _mean(sums.change2, sums.change4, n)
            rms = _root(mean_square.value)
            share = _divide(sums.same_top, n)
            return cls(
                count=n,
                mean_ppl_q=ppl_q,
                mean_ppl_base=ppl_base,
                correlation=_divide(covariance, q.uncertainty * base.uncertainty),
                mean_ln_ppl_ratio=ln_ratio,
                mean_ppl_ratio=_exponential(ln_ratio),
                mean_ppl_difference=difference,
                mean_kld=_mean(sums.kld, sums.kld2, n),
                kld=_quantiles(kld, KLD_QUANTILES),
                mean_dp=_mean(sums.change, sums.change2, n),
                dp=_quantiles(dp, CHANGE_QUANTILES),
                rms_dp=Uncertain(rms, _divide(0.5, rms) * mean_square.uncertainty),
                same_top=Uncertain(share, _root(_divide(share * (1.0 - share), n - 1))),
            )

    def to_json_dict(self) -> dict[str, object]:
        """Plain lists and numbers; NaN and infinity become None."""
        return {
            "ppl_q": _pair(self.mean_ppl_q),
            "ppl_base": _pair(self.mean_ppl_base),
            "ln_ppl_correlation": _finite(self.correlation),
            "ln_ppl_ratio": _pair(self.mean_ln_ppl_ratio),
            "ppl_ratio": _pair(self.mean_ppl_ratio),
            "ppl_difference": _pair(self.mean_ppl_difference),
            "kld_mean": _pair(self.mean_kld),
            "kld": {name: _finite(value) for name, value in self.kld.items()},
            "dp_mean": _pair(self.mean_dp),
            "dp": {name: _finite(value) for name, value in self.dp.items()},
            "dp_rms": _pair(self.rms_dp),
            "same_top": _pair(self.same_top),
        }

    @classmethod
    def from_json_dict(cls, values: Mapping[str, object], *, count: int) -> Self:
        """Rebuild from ``to_json_dict`` and the number of positions; None becomes NaN.

        Raises:
            FormatError: a field is missing or is not what it should be.
        """
        return cls(
            count=count,
            mean_ppl_q=_read_pair(values, "ppl_q"),
            mean_ppl_base=_read_pair(values, "ppl_base"),
            correlation=_read_number(values.get("ln_ppl_correlation", ()), "ln_ppl_correlation"),
            mean_ln_ppl_ratio=_read_pair(values, "ln_ppl_ratio"),
            mean_ppl_ratio=_read_pair(values, "ppl_ratio"),
            mean_ppl_difference=_read_pair(values, "ppl_difference"),
            mean_kld=_read_pair(values, "kld_mean"),
            kld=_read_quantiles(values, "kld", KLD_QUANTILES),
            mean_dp=_read_pair(values, "dp_mean"),
            dp=_read_quantiles(values, "dp", CHANGE_QUANTILES),
            rms_dp=_read_pair(values, "dp_rms"),
            same_top=_read_pair(values, "same_top"),
        )


def render_block(statistics: LlamaStatistics) -> str:
    """The tool's closing block, line for line, or the reason why it prints none.

    A NaN is printed as ``-nan``: every invalid operation on x86-64 yields a NaN with its sign bit
    set, and glibc shows the sign. The usual one is the uncertainty of a model against itself, the
    root of a difference that rounding left below zero.
    """
    s = statistics
    if s.count < FEWEST_POSITIONS:
        return (
            f"llama-perplexity prints no statistics of fewer than {FEWEST_POSITIONS} positions; "
            f"these are {s.count}.\n"
        )
    lines = [
        "====== Perplexity statistics ======",
        f"Mean PPL(Q)                   : {_nats(s.mean_ppl_q)}",
        f"Mean PPL(base)                : {_nats(s.mean_ppl_base)}",
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {_printf(100.0 * s.correlation, 6, 2)}%",
        f"Mean ln(PPL(Q)/PPL(base))     : {_nats(s.mean_ln_ppl_ratio)}",
        f"Mean PPL(Q)/PPL(base)         : {_nats(s.mean_ppl_ratio)}",
        f"Mean PPL(Q)-PPL(base)         : {_nats(s.mean_ppl_difference)}",
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {_nats(s.mean_kld)}",
        *(
            f"{_label(name)} KLD: {_printf(s.kld[name], 10, 6)}"
            for name in reversed(list(KLD_QUANTILES))
        ),
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {_percent(s.mean_dp)}",
        *(
            f"{_label(name)} Δp: {_printf(100.0 * s.dp[name], 6, 3)}%"
            for name in reversed(list(CHANGE_QUANTILES))
        ),
        f"RMS Δp    : {_percent(s.rms_dp)}",
        f"Same top p: {_percent(s.same_top)}",
    ]
    return "\n".join(lines) + "\n"


def _sum(terms: Singles | Floats) -> float:
    return float(np.sum(terms, dtype=np.float64))


def _mean(total: float, total_of_squares: float, count: int) -> Uncertain:
    if count < 1:
        return Uncertain(0.0, 0.0)
    mean = total / count
    spread = total_of_squares / count - mean * mean
    if spread > 0 and count > _NO_UNCERTAINTY_UP_TO:
        return Uncertain(mean, math.sqrt(spread / (count - 1)))
    return Uncertain(mean, 0.0)


def _covariance(sums: LlamaSums) -> float:
    n = sums.count
    if n < _FEWEST_FOR_COVARIANCE:
        return 0.0
    return (sums.nll_nll_base / n - (sums.nll / n) * (sums.nll_base / n)) / (n - 1)


def _exponential(logarithm: Uncertain) -> Uncertain:
    try:
        value = math.exp(logarithm.value)
    except OverflowError:
        value = math.inf
    return Uncertain(value, value * logarithm.uncertainty)


def _spread(a: float, b: float, covariance: float) -> float:
    """Uncertainty of a difference; NaN where rounding leaves the square below zero."""
    return _root(a * a + b * b - 2.0 * covariance)


def _root(square: float) -> float:
    return float(np.sqrt(square))


def _divide(a: float, b: float) -> float:
    # As C divides: 0/0 is NaN and 1/0 is infinite.
    return float(np.float64(a) / np.float64(b))


def _quantiles(values: Singles, names: Mapping[str, float]) -> Mapping[str, float]:
    ordered = np.sort(values)
    return {name: _percentile(ordered, fraction) for name, fraction in names.items()}


def _percentile(ordered: Singles, fraction: float) -> float:
    """Interpolation in float32 throughout, rank included; the median is a plain middle."""
    size = ordered.size
    if size == 0:
        return math.nan
    if fraction in {0.0, 1.0}:
        return float(ordered[-1 if fraction else 0])
    if fraction == KLD_QUANTILES["median"]:
        if size % 2:
            return float(ordered[size // 2])
        return float(np.float32(0.5) * (ordered[size // 2] + ordered[size // 2 - 1]))
    rank = np.float32(fraction) * np.float32(size - 1)
    below = int(rank)
    part = rank - np.float32(below)
    upper = ordered[min(below + 1, size - 1)]
    return float((np.float32(1.0) - part) * ordered[below] + part * upper)


def _label(name: str) -> str:
    if name.startswith("p"):
        return f"{float(name[1:]):4.1f}%  "
    return f"{name.capitalize():7}"


def _printf(value: float, width: int, digits: int) -> str:
    return f"{'-nan':>{width}}" if math.isnan(value) else f"{value:{width}.{digits}f}"


def _nats(measured: Uncertain) -> str:
    return f"{_printf(measured.value, 10, 6)} ± {_printf(measured.uncertainty, 10, 6)}"


def _percent(measured: Uncertain) -> str:
    value, uncertainty = 100.0 * measured.value, 100.0 * measured.uncertainty
    return f"{_printf(value, 6, 3)} ± {_printf(uncertainty, 5, 3)} %"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(measured: Uncertain) -> list[float | None]:
    return [_finite(measured.value), _finite(measured.uncertainty)]


def _read_number(value: object, field: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise FormatError(f"llama statistics: field {field} is not a number")


def _read_pair(values: Mapping[str, object], field: str) -> Uncertain:
    pair = values.get(field)
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:  # noqa: PLR2004 -- a pair is two
        raise FormatError(f"llama statistics: field {field} is not a value and an uncertainty")
    return Uncertain(*(_read_number(number, field) for number in pair))


def _read_quantiles(
    values: Mapping[str, object], field: str, names: Mapping[str, float]
) -> Mapping[str, float]:
    found = values.get(field)
    if not isinstance(found, Mapping) or set(found) != set(names):
        raise FormatError(f"llama statistics: field {field} does not hold the quantiles")
    return {name: _read_number(found[name], f"{field}.{name}") for name in names}
