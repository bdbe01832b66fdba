"""The shape of `worst.json`: the positions where candidates are furthest from the base.

Units: KL divergence and entropy in nats, probabilities as fractions of one. Texts are as the
vocabulary has them; they come from outside, and may hold anything.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kldcloud.report.summary_shape import Count, Name, Number, Part

# The longest token of a vocabulary may be a line of spaces.
Text = Annotated[str, Field(max_length=1 << 16)]
# A text and a number, as a list of two.
Guess = Annotated[tuple[Text, float], Field(strict=False)]
Told = Annotated[tuple[Text, Number], Field(strict=False)]


class WorstPosition(Part):
    """One position, as both models saw it.

    Attributes:
        chunk: as in tokens.parquet.
        position: index in the chunk of the position whose prediction is scored.
        kld: KL divergence there.
        entropy_base: of the base's distribution.
        token: the token that follows in the text.
        probability_base: what the base gave it.
        probability: what the candidate gave it.
        before: tokens up to the position, each with the KL divergence at which it was predicted;
            null for those that are not scored.
        after: tokens after `token`, likewise.
        top_base: the base's most probable tokens and their probabilities; none if not kept.
        top: the candidate's.
    """

    chunk: Count
    position: Count
    kld: float
    entropy_base: float
    token: Text
    probability_base: float
    probability: float
    before: Annotated[tuple[Told, ...], Field(strict=False, max_length=256)]
    after: Annotated[tuple[Told, ...], Field(strict=False, max_length=256)]
    top_base: Annotated[tuple[Guess, ...], Field(strict=False, max_length=16)]
    top: Annotated[tuple[Guess, ...], Field(strict=False, max_length=16)]


class Worst(Part):
    """One candidate on one corpus, its worst position first."""

    candidate: Name
    corpus: Name
    positions: Annotated[tuple[WorstPosition, ...], Field(strict=False, max_length=1000)]


class WorstOfRun(Part):
    """All candidates of a run, on all corpora."""

    schema_id: Literal["kldcloud.worst/1"] = Field(alias="schema")
    run: Name
    worst: Annotated[tuple[Worst, ...], Field(strict=False)]

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON values, keys in declared order."""
        return self.model_dump(mode="json", by_alias=True)
