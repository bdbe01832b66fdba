"""What is kept of a stretch of the vocabulary, and how stretches become the whole row.

Divergence obeys a chain rule (Cover & Thomas, Elements of Information Theory, theorem 2.5.3). Cut
the vocabulary into stretches t, to which base and candidate give masses w_t and v_t, and within
which they have the conditional distributions p_t and q_t. Then

    KL(p || q) = sum w_t KL(p_t || q_t) + KL(w || v),   H(p) = sum w_t H(p_t) + H(w).

So a stretch is done with, in float32 and from its own maxima, before anything is known of the
others, and stretches merge in float64, in any grouping. No term is negative, so none cancels.

Within a stretch let logits b and c have maxima B and C, p = e^(b-B), q = e^(c-C), P = sum p,
Q = sum q, g = ln(Q/P), u = (c-C) - (b-B) - g and q' = q P/Q = p e^u. Then sum q' = sum p, and

    KL(p_t || q_t) = sum p phi(u) / P,  KL(q_t || p_t) = sum q' phi(-u) / P,  phi(x) = e^x - 1 - x,

which is the divergence of measures of any mass (Csiszar, Annals of Statistics 19, 1991) with the
masses made equal. All terms are positive. Where u is small they come from the series of phi; where
it is not, as q' - p (1 + u), of which no part can overflow, for p and q are at most 1 and P/Q lies
between 1/N and N. What g is off by (1e-7) enters squared. Two equal rows have P = Q to the bit and
u = 0, so their divergence is 0; a constant added to a row changes B or C and nothing else.

Between stretches it is the same formula, of shares instead of masses. There ln(Q/P) counts to first
order; where rows are nearly equal it is better known than P and Q are, as g + ln(1 + e) with
e = sum p (e^u - 1) / P, whose terms are as small as the difference itself.

On the same float32 logits the divergence is within 5e-7 of its value, or within 1e-13 nats where
that is more, against 80-bit arithmetic (V = 8,191 and 49,152, divergences from 5e-13 to 6 nats), at
any offset between the two models. The textbook's sum p (ln p - ln q) subtracts numbers of several
nats: in float32 it is off by 1e-6 nats, and below 0 now and then. The products move the divergence
more than either; `statistics` has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BASE, CANDIDATE = 0, 1

HIGH, LOW, MASS, RATIO, FORWARD, REVERSE, DRIFT, WEIGHTED = 0, 2, 3, 4, 5, 6, 7, 8
"""Planes of `Stretches.sums`; the candidate's maxima come right after the base's."""
PLANES = 9

SERIES_UP_TO = 1.0
"""Of |u|: below, the series, whose rest is at most 5e-8 of the term; above, e^u - 1 - u keeps all
but two bits."""

REFINED_BELOW = 0.01
"""Divergence in nats below which the sums say more about ln(Q/P) than P and Q do."""

PHI = (
    0.5,
    0.1666666716337204,
    0.04166673496365547,
    0.008333339355885983,
    0.001388539676554501,
    0.00019838102161884308,
    2.535851308493875e-05,
    2.806280235745362e-06,
)
"""phi(u) / u^2 as a polynomial for |u| <= 1, lowest power first: interpolated at Chebyshev's nodes.

In float32 phi(u) is within 2e-8 of its value, and u^2 - (1 - u) phi(u), which is e^u phi(-u),
within 5e-8, where the series cut at the same degree would leave 2e-6."""

EVEN = tuple(1 / math.factorial(k) for k in (2, 4, 6, 8, 10))
ODD = tuple(1 / math.factorial(k) for k in (3, 5, 7, 9))
"""phi(u) = u^2 (EVEN(u^2) + u ODD(u^2)), and phi(-u) has a minus between."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretches:
    """Sums over t stretches of n rows, as the tile passes leave them.

    Attributes:
        sums: float32 ``[PLANES, n, t]``: base and candidate maxima (NaN if a logit is not finite),
            base minima, P, g, and the sums of p phi(u), q' phi(-u), p u and p (b - B).
        tops: int32 ``[2, n, t]``, the first column of each maximum.
    """

    sums: Tensor
    tops: Tensor

    @classmethod
    def empty(cls, rows: int, capacity: int, device: torch.device) -> Stretches:
        """Room for so many."""
        return cls(
            torch.empty(PLANES, rows, capacity, dtype=torch.float32, device=device),
            torch.empty(2, rows, capacity, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """t parts of the vocabulary, for n rows, as distributions.

    Attributes:
        log_mass: float64 ``[2, n, t]``, log-sum-exp of base and candidate logits.
        kld: float64 ``[n, t]``, of the conditional distributions, nats.
        reverse_kld: the same from candidate to base.
        entropy: of the base's.
        high: float32 ``[2, n, t]``, the largest logit.
        low: float32 ``[n, t]``, the base's smallest.
        top: int32 ``[2, n, t]``, the first token with the largest.
    """

    log_mass: Tensor
    kld: Tensor
    reverse_kld: Tensor
    entropy: Tensor
    high: Tensor
    low: Tensor
    top: Tensor

    @classmethod
    def of(cls, stretches: Stretches) -> Pieces:
        """Stretches as distributions."""
        high, low = stretches.sums[HIGH:LOW], stretches.sums[LOW]
        sums = stretches.sums.double()
        mass, forward, drift = sums[MASS], sums[FORWARD], sums[DRIFT]
        log_ratio = sums[RATIO] + torch.where(
            forward < REFINED_BELOW * mass, ((forward + drift) / mass).log1p(), 0.0
        )
        log_mass = torch.stack([mass.log(), mass.log() + log_ratio])
        return cls(
            high.double() + log_mass,
            forward / mass,
            sums[REVERSE] / mass,
            log_mass[BASE] - sums[WEIGHTED] / mass,
            high,
            low,
            stretches.tops,
        )

    def merge(self) -> Pieces:
        """All parts as one, t = 1."""
        whole = torch.logsumexp(self.log_mass, -1, keepdim=True)
        log_share = self.log_mass - whole
        w, v = log_share.exp()
        between, reversed_between = bregman_sums(w, v, log_share[CANDIDATE] - log_share[BASE])
        # max() finds the first of equals, and parts are in the vocabulary's order.
        high, at = self.high.max(-1, keepdim=True)
        return Pieces(
            whole,
            (w * self.kld).sum(-1, keepdim=True) + between[..., None],
            (v * self.reverse_kld).sum(-1, keepdim=True) + reversed_between[..., None],
            (w * (self.entropy - log_share[BASE])).sum(-1, keepdim=True),
            high,
            self.low.amin(-1, keepdim=True),
            self.top.gather(-1, at),
        )


def join_pieces(parts: Sequence[Pieces]) -> Pieces:
    """Parts of the same rows side by side."""
    names = Pieces.__slots__
    return Pieces(*(torch.cat([getattr(part, name) for part in parts], -1) for name in names))


def bregman_sums(p: Tensor, q: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the last axis of p phi(u) and q phi(-u), where q = p e^u; each term is >= 0.

    Works in three more tensors of that shape.
    """
    square = u * u
    even, odd = _polynomial(EVEN, square), _polynomial(ODD, square).mul_(u)
    near = u.abs() <= SERIES_UP_TO
    forward, reverse = (even + odd).mul_(square).mul_(p), even.sub_(odd).mul_(square).mul_(q)
    forward = torch.where(near, forward, q - p * (1 + u)).sum(-1)
    return forward, torch.where(near, reverse, p - q * (1 - u)).sum(-1)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    *others, value = coefficients
    total = torch.full_like(x, value)
    for each in reversed(others):
        total.mul_(x).add_(each)
    return total
