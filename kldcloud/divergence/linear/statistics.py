"""The kernel where base and candidate are hidden states and output heads: no row of logits exists.

Logits are made a tile of the vocabulary at a time, summed up and forgotten. `stretches` has the
formulas, `passes` the ways to run them.

What moves the numbers is the products: in float32 a logit of 10 nats is off by 1e-6, this way or
that as the order of its sum has it. Largest error of a row's divergence, in nats, against products
and sums in float64 (CPU, 17 rows of logits 3 nats wide, V = 32,001 and 151,936, d = 63 and 1024):

    dtype of states and head   at a KLD of 0.5   at 0.001
    float32                    3.3e-6            6e-8
    bfloat16                   1.9e-6            5e-8
    float16                    1.1e-6            4e-8

NLL and entropy are within 5e-6. Half precision is no worse, since its products are exact before
they are added; the rounding of the states is the model's own. llama.cpp's columns follow its
float32 operations, but a log-sum-exp may round to the neighbouring float, which moves that row's
NLL by a step and its divergence by some 2e-6 (1 + KLD).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kldcloud.divergence.kernel import (
    NO_TOKEN,
    TokenStatistics,
    join_statistics,
    refuse_broken,
    refuse_misfits,
)
from kldcloud.divergence.linear.encoding import Encoding
from kldcloud.divergence.linear.passes import (
    ROWS,
    TILE_BYTES,
    Engine,
    Plan,
    first_pass,
    second_pass,
)
from kldcloud.divergence.linear.side import LinearSide, exact_products
from kldcloud.divergence.linear.stretches import BASE, CANDIDATE
from kldcloud.divergence.linear.to_host import OnTheWay
from kldcloud.errors import FormatError


def linear_statistics(
    base: LinearSide,
    candidate: LinearSide,
    tokens: npt.NDArray[np.int32],
    *,
    llama_compat: bool,
    vocabulary: int | None = None,
    first_row: int = 0,
    engine: Engine | None = None,
    tile_bytes: int | None = None,
) -> TokenStatistics:
    """What `kernel.token_statistics` says of the logits of both sides, without those logits.

    Args:
        base: n rows.
        candidate: the same n rows; its width, dtype and head may be others.
        tokens: int32 [n], the token that follows each position.
        llama_compat: also follow llama.cpp's arithmetic, from base logits encoded on the fly. That
            takes a second pass, so twice the time.
        vocabulary: V, where heads are padded beyond it; by default as many tokens as heads have.
        first_row: of these in their chunk, for messages.
        engine: by default "tiles" on GPUs where Triton is, else "torch".
        tile_bytes: by default `TILE_BYTES`.

    Raises:
        FormatError: if base and candidate disagree in rows or vocabulary, a side in itself, or a
            token is none.
        EngineError: if a logit is NaN or infinite.
    """
    begun = begin_statistics(
        base,
        candidate,
        tokens,
        llama_compat=llama_compat,
        vocabulary=vocabulary,
        engine=engine,
        tile_bytes=tile_bytes,
    )
    return begun.result(first_row)


@torch.no_grad()
def begin_statistics(
    base: LinearSide,
    candidate: LinearSide,
    tokens: npt.NDArray[np.int32],
    *,
    llama_compat: bool,
    vocabulary: int | None = None,
    engine: Engine | None = None,
    tile_bytes: int | None = None,
) -> Begun:
    """Give a GPU all the work of `linear_statistics`, and do not wait for it.

    Raises:
        FormatError: as there.
    """
    base, candidate = base.checked("base", vocabulary), candidate.checked("candidate", vocabulary)
    refuse_misfits(base.rows, base.vocabulary, candidate.rows, candidate.vocabulary, tokens)
    device = base.weight.device
    if candidate.weight.device != device:
        raise FormatError(f"base is on {device}, candidate on {candidate.weight.device}")
    engine = engine or _usual_engine(device)
    following = torch.from_numpy(np.array(tokens, np.int32)).to(device)
    parts = []
    with exact_products():
        for start in range(0, max(base.rows, 1), ROWS[device.type]):
            rows = slice(start, start + ROWS[device.type])
            sides = base.select(rows).ready(), candidate.select(rows).ready()
            plan = Plan.of(*sides, engine, tile_bytes or TILE_BYTES[device.type])
            parts.append(_portion(*sides, following[rows], plan, llama=llama_compat))
    kld = torch.cat([numbers[_KLD] for (numbers, *_), _ in parts])
    log_mass = torch.cat([each for _, each in parts], -1)
    return Begun(kld, log_mass, tuple(tuple(map(OnTheWay, numbers)) for numbers, _ in parts))


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """Statistics of n rows that a GPU may still be at.

    Attributes:
        kld: float64 [n], on the device.
        log_mass: float64 [2, n], log-sum-exp of the base's and the candidate's logits, likewise.
        parts: what is coming of each portion of rows.
    """

    kld: Tensor
    log_mass: Tensor
    parts: tuple[tuple[OnTheWay, ...], ...]

    def result(self, first_row: int = 0) -> TokenStatistics:
        """Wait for them.

        Args:
            first_row: of these rows in their chunk, for messages.

        Raises:
            EngineError: if a logit is NaN or infinite.
        """
        found = [_unpacked(*(each.array() for each in part)) for part in self.parts]
        not_finite = np.concatenate([broken for _, broken in found], axis=1)
        refuse_broken("candidate", not_finite[CANDIDATE], first_row)
        refuse_broken("base", not_finite[BASE], first_row)
        return join_statistics([statistics for statistics, _ in found])


_KLD, _REVERSE, _ENTROPY, _NLL_BASE, _NLL, _LLAMA_KLD = range(6)
"""Rows of the float64 numbers of a portion."""


def _usual_engine(device: torch.device) -> Engine:
    return "tiles" if device.type == "cuda" and find_spec("triton") else "torch"


def _portion(
    base: LinearSide, candidate: LinearSide, tokens: Tensor, plan: Plan, *, llama: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Numbers of n rows, still on their device.

    Returns:
        Three tensors, and log-sum-exps, float64 ``[2, n]``. The three are float64 ``[6, n]``, in
        the order above; float32 ``[4, n]``, the tool's NLL of base and candidate and both largest
        logits, NaN where one is not finite; int32 ``[3, n]``, top tokens of base, candidate, and
        the base's codes.
    """
    whole, picked = first_pass(base, candidate, tokens, plan)
    log_mass = whole.log_mass[..., 0]
    nll = log_mass - picked.double()
    high, top = whole.high[..., 0], whole.top[..., 0]
    if llama:
        encoding = Encoding.of(whole)
        sums = second_pass(base, candidate, plan, encoding)
        llama_kld, llama_top = sums.kld[:, 0], sums.top[:, 0]
        llama_nll = -encoding.log_probability(picked[BASE]), encoding.log_mass - picked[CANDIDATE]
    else:
        llama_kld, llama_top = (
            torch.full_like(nll[BASE], torch.nan),
            torch.full_like(top[BASE], NO_TOKEN),
        )
        llama_nll = torch.full_like(high[BASE], torch.nan), torch.full_like(high[BASE], torch.nan)
    exact = [each[..., 0] for each in (whole.kld, whole.reverse_kld, whole.entropy)]
    numbers = (
        torch.stack([*exact, nll[BASE], nll[CANDIDATE], llama_kld]),
        torch.stack([*llama_nll, high[BASE], high[CANDIDATE]]),
        torch.stack([top[BASE], top[CANDIDATE], llama_top]),
    )
    return numbers, log_mass


def _unpacked(
    doubles: npt.NDArray[np.float64], singles: npt.NDArray[np.float32], tops: npt.NDArray[np.int32]
) -> tuple[TokenStatistics, npt.NDArray[np.bool_]]:
    """Statistics of some rows, and which of base's and candidate's have a logit not finite."""
    statistics = TokenStatistics(
        kld=doubles[_KLD],
        reverse_kld=doubles[_REVERSE],
        nll=doubles[_NLL],
        nll_base=doubles[_NLL_BASE],
        entropy_base=doubles[_ENTROPY],
        top=tops[CANDIDATE],
        top_base=tops[BASE],
        llama_kld=doubles[_LLAMA_KLD],
        llama_nll=singles[CANDIDATE],
        llama_nll_base=singles[BASE],
        llama_top_base=tops[2],
    )
    return statistics, ~np.isfinite(singles[2:])
