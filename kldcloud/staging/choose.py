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


@dataclass(frozen=True, slots=True)
class BaseShape:
    """What the choice depends on.

    Attributes:
        vocabulary: V.
        head: ggml type of the output head; empty if there is an obstacle.
        width: d, of the states that enter it; 0 if there is an obstacle.
        obstacle: why hidden states cannot stand for this base's logits; None if they can.
        on_gpu: whether logits are made where products cost next to nothing.
    """

    vocabulary: int
    head: str
    width: int
    obstacle: str | None
    on_gpu: bool = False

    @classmethod
    def of(cls, header: GgufHeader) -> BaseShape:
        """The shape of a model that is at hand."""
        obstacle, tensor = why_not_hidden(header), head_tensor(header)
        if obstacle is not None or tensor is None:
            return cls(header.vocabulary_size, "", 0, obstacle)
        return cls(header.vocabulary_size, tensor.type_name, tensor.shape[0], None)

    @property
    def state_bytes(self) -> int:
        """Bytes of one hidden state as it is staged."""
        return bytes_per_state(self.head, self.width)


def encoding_costs(shape: BaseShape, *, remote: bool) -> dict[str, EncodingCost]:
    """Costs a row of the encodings that this base can have."""
    bandwidth = S3_BYTES_A_SECOND if remote else LOCAL_BYTES_A_SECOND
    vocabulary = shape.vocabulary
    staged = 2 * vocabulary / COMPRESSION
    costs = {
        "logits": EncodingCost(staged, staged / bandwidth + 2 * vocabulary / DECODE_BYTES_A_SECOND)
    }
    if shape.obstacle is None:
        state = shape.state_bytes
        rebuild = 2 * vocabulary * shape.width / REBUILD_FLOPS_A_SECOND
        costs["hidden"] = EncodingCost(state, state / bandwidth + rebuild)
    return costs


def choose_encoding(wanted: str, shape: BaseShape, *, remote: bool) -> EncodingChoice:
    """The encoding of a base stage.

    Args:
        wanted: auto, hidden or logits.
        shape: the base's.
        remote: whether the store is reached over a network.
    """
    if wanted == "logits":
        return EncodingChoice("logits", "as the job says")
    if shape.obstacle is not None:
        reason = f"hidden states cannot stand for this base: {shape.obstacle}"
        return EncodingChoice("logits", reason)
    if wanted == "hidden":
        return EncodingChoice("hidden", "as the job says")
    if shape.on_gpu:
        return EncodingChoice("hidden", "logits are rebuilt on the GPU, beside the candidate's")
    costs = encoding_costs(shape, remote=remote)
    best = min(costs, key=lambda name: costs[name].seconds)
    parts = [
        f"{name} {cost.seconds * 1e3:.2g} ms and {cost.staged / 1e3:.3g} KB"
        for name, cost in sorted(costs.items(), key=lambda item: item[1].seconds)
    ]
    return EncodingChoice(best, f"estimated a row: {', '.join(parts)}")
