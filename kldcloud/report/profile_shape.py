"""The shape of `profile.json`: where on the text a candidate's divergence lies.

Units: KL divergence and entropy in nats. Any number may be null where there is none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kldcloud.report.summary_shape import Count, Name, Number, Part, ValueAndError


class Bin(Part):
    """Scored positions of one kind: how many, their mean KL divergence, its robust error.

    Attributes:
        low: least value of what the bin is about (a position in its chunk; the base's entropy).
        high: where the next bin begins; null for the last one.
        tokens: scored positions in it.
        mean: of their KL divergences; null if there are none.
        error: standard error, cluster-robust by chunk; null with fewer than two chunks.
    """

    low: Number
    high: Number
    tokens: Count
    mean: Number
    error: Number


class TokenClass(Part):
    """Scored positions whose next token is of one class; `tokens`, `mean`, `error` as in a bin."""

    name: Name
    tokens: Count
    mean: Number
    error: Number


class Profile(Part):
    """One candidate on one corpus.

    Attributes:
        curve: (share, KL divergence) from the smallest share to the largest: that share of the
            positions has no more than that.
        by_position: bins over the position in the chunk.
        by_confidence: bins over the base's entropy, so the first is where it is surest.
        by_class: by what the token that follows begins with; empty in files of earlier versions.
    """

    candidate: Name
    corpus: Name
    curve: Annotated[tuple[ValueAndError, ...], Field(strict=False, max_length=1000)]
    by_position: Annotated[tuple[Bin, ...], Field(strict=False, max_length=1000)]
    by_confidence: Annotated[tuple[Bin, ...], Field(strict=False, max_length=1000)]
    by_class: Annotated[tuple[TokenClass, ...], Field(strict=False, max_length=100)] = ()


class Profiles(Part):
    """All profiles of a run."""

    schema_id: Literal["kldcloud.profile/1", "kldcloud.profile/2"] = Field(alias="schema")
    run: Name
    profiles: Annotated[tuple[Profile, ...], Field(strict=False)]

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON values, keys in declared order."""
        return self.model_dump(mode="json", by_alias=True)
