"""When a sweep may stop before the end of a text: what a job says under `stop`."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from kldcloud.spec.fields import SpecModel, Whole, but_not, refused, share

DEFAULT_LEAST: Final = 20
_FEWEST: Final = 8  # a variance of fewer chunks says nothing
_MOST: Final = (1 << 31) - 1


def _half_width(value: object) -> float:
    found = share(value)
    if found is None or not 0 < found < 1:
        raise refused(
            "must be a share of the mean such as 2% or 0.02, "
            f"more than 0 and less than 100%{but_not(value)}"
        )
    return float(found)


def _confidence(value: object) -> float:
    found = share(value)
    if found is None or not 0.5 <= found <= 0.9999:  # noqa: PLR2004 - as the sentence says
        raise refused(f"must be such as 95% or 0.95, from 50% to 99.99%{but_not(value)}")
    return float(found)


class StopSpec(SpecModel):
    """When to stop; each text is judged by itself, at checkpoints that its length decides.

    Attributes:
        when: `ranked`, once all candidates' order is settled; `precise`, once every candidate's
            mean KL divergence is known to `half_width`.
        half_width: of the interval of each mean, as a share of that mean.
        confidence: of the whole order together, or of each mean's interval.
        least: chunks before the first decision.
    """

    when: Literal["ranked", "precise"]
    half_width: Annotated[float, PlainValidator(_half_width)] | None = None
    confidence: Annotated[float, PlainValidator(_confidence)] = 0.95
    least: Annotated[Whole, Field(ge=_FEWEST, le=_MOST)] = DEFAULT_LEAST

    @model_validator(mode="after")
    def _precise_has_a_width(self) -> Self:
        if self.when == "precise" and self.half_width is None:
            raise refused("'precise' needs a 'half_width' such as 2%")
        if self.when == "ranked" and self.half_width is not None:
            raise refused("is only for 'when: precise'", "half_width")
        return self
