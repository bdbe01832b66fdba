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
from kldcloud.errors import FormatError


@torch.no_grad()
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
    base, candidate = base.checked("base", vocabulary), candidate.checked("candidate", vocabulary)
    refuse_misfits(base.rows, base.vocabulary, candidate.rows, candidate.vocabulary, tokens)
    device = base.weight.device
    if candidate.weight.device != device:
        raise FormatError(f"base is on {device}, candidate on {candidate.weight.device}")
    engine = engine or _usual_engine(device)
    if llama_compat and engine == "fused":
        # The second pass needs logits that round as the first's did.
        engine = "tiles"
    if engine == "fused" and not (base.of_one_half and candidate.of_one_half):
        raise FormatError("the fused kernel takes states and heads of one half-precision dtype")
    following = torch.from_numpy(np.array(tokens, np.int32)).to(device)
    parts, broken = [], []
    with exact_products():
        for start in range(0, max(base.rows, 1), ROWS[device.type]):
            rows = slice(start, start + ROWS[device.type])
            sides = base.select(rows), candidate.select(rows)
            if engine != "fused":
                sides = sides[0].ready(), sides[1].ready()
            plan = Plan.of(*sides, engine, tile_bytes or TILE_BYTES[device.type])
            part, not_finite = _portion(*sides, following[rows], plan, llama=llama_compat)
            parts.append(part)
            broken.append(not_finite)
    not_finite = np.concatenate(broken, axis=1)
    refuse_broken("candidate", not_finite[CANDIDATE], first_row)
    refuse_broken("base", not_finite[BASE], first_row)
    return join_statistics(parts)


def _usual_engine(device: torch.device) -> Engine:
    return "tiles" if device.type == "cuda" and find_spec("triton") else "torch"


def _portion(
    base: LinearSide, candidate: LinearSide, tokens: Tensor, plan: Plan, *, llama: bool
) -> tuple[TokenStatistics, npt.NDArray[np.bool_]]:
    """Statistics of some rows, and which of base's and candidate's have a logit not finite."""
    whole, picked = first_pass(base, candidate, tokens, plan)
    exact = torch.stack([whole.kld, whole.reverse_kld, whole.entropy])[..., 0].cpu().numpy()
    nll = (whole.log_mass[..., 0] - picked.double()).cpu().numpy()
    top = whole.top[..., 0].cpu().numpy()
    llama_kld, llama_top = np.full(len(tokens), np.nan), np.full(len(tokens), NO_TOKEN, np.int32)
    llama_nll = np.full((2, len(tokens)), np.nan, np.float32)
    if llama:
        encoding = Encoding.of(whole)
        sums = second_pass(base, candidate, plan, encoding)
        llama_kld, llama_top = sums.kld[:, 0].cpu().numpy(), sums.top[:, 0].cpu().numpy()
        llama_nll[BASE] = -encoding.log_probability(picked[BASE]).cpu().numpy()
        llama_nll[CANDIDATE] = (encoding.log_mass - picked[CANDIDATE]).cpu().numpy()
    statistics = TokenStatistics(
        kld=exact[0],
        reverse_kld=exact[1],
        nll=nll[CANDIDATE],
        nll_base=nll[BASE],
        entropy_base=exact[2],
        top=top[CANDIDATE],
        top_base=top[BASE],
        llama_kld=llama_kld,
        llama_nll=llama_nll[CANDIDATE],
        llama_nll_base=llama_nll[BASE],
        llama_top_base=llama_top,
    )
    return statistics, ~whole.high[..., 0].isfinite().cpu().numpy()
