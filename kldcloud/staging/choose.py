"""`encoding: auto`: hidden states or codes, whichever costs a candidate less time to read."""

from __future__ import annotations

from dataclasses import dataclass

from kldcloud.models.gguf_header import GgufHeader
from kldcloud.staging.head import head_tensor, why_not_hidden
from kldcloud.staging.states import bytes_per_state

# Measured on one AVX-512 server core at V = 49,152, d = 576 (benchmarks/sweep.py prints both):
# good to a factor of two, which is all that this choice needs.
DECODE_BYTES_A_SECOND = 0.8e9
REBUILD_FLOPS_A_SECOND = 60e9

COMPRESSION = 2.7
"""zstd on code rows; 2.7 to 3.8 on models with V = 49K, up to 19 at V = 262K."""

LOCAL_BYTES_A_SECOND = 1e9
S3_BYTES_A_SECOND = 0.2e9


@dataclass(frozen=True, slots=True)
class EncodingCost:
    """What one scored row costs in an encoding.

    Attributes:
        staged: bytes in the store.
        seconds: to read and decode it, on one core.
    """

    staged: float
    seconds: float


@dataclass(frozen=True, slots=True)
class EncodingChoice:
    """An encoding and why it was taken, in words for a person."""

    encoding: str
    reason: str


def encoding_costs(header: GgufHeader, *, remote: bool) -> dict[str, EncodingCost]:
    """Costs a row of the encodings that this base can have."""
    bandwidth = S3_BYTES_A_SECOND if remote else LOCAL_BYTES_A_SECOND
    vocabulary = header.vocabulary_size
    staged = 2 * vocabulary / COMPRESSION
    costs = {
        "logits": EncodingCost(staged, staged / bandwidth + 2 * vocabulary / DECODE_BYTES_A_SECOND)
    }
    tensor = head_tensor(header)
    if tensor is not None and why_not_hidden(header) is None:
        width = tensor.shape[0]
        state = bytes_per_state(tensor.type_name, width)
        rebuild = 2 * vocabulary * width / REBUILD_FLOPS_A_SECOND
        costs["hidden"] = EncodingCost(state, state / bandwidth + rebuild)
    return costs


def choose_encoding(wanted: str, header: GgufHeader, *, remote: bool) -> EncodingChoice:
    """The encoding of a base stage.

    Args:
        wanted: auto, hidden or logits.
        header: the base model's.
        remote: whether the store is reached over a network.
    """
    obstacle = why_not_hidden(header)
    if wanted == "logits":
        return EncodingChoice("logits", "as the job says")
    if obstacle is not None:
        return EncodingChoice("logits", f"hidden states cannot stand for this base: {obstacle}")
    if wanted == "hidden":
        return EncodingChoice("hidden", "as the job says")
    costs = encoding_costs(header, remote=remote)
    best = min(costs, key=lambda name: costs[name].seconds)
    parts = [
        f"{name} {cost.seconds * 1e3:.2g} ms and {cost.staged / 1e3:.3g} KB"
        for name, cost in sorted(costs.items(), key=lambda item: item[1].seconds)
    ]
    return EncodingChoice(best, f"estimated a row: {', '.join(parts)}")
