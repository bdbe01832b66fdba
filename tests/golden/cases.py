"""The golden cases: what each was made from, and where its files lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent
TEXT = GOLDEN / "text.txt"


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One run of llama-perplexity over a tiny pair.

    Attributes:
        vocabulary: entries; an odd number leaves an unused code in each row.
        bos: whether the models ask for BOS.
        n_ctx: tokens in a chunk.
        chunks: how many were scored.
    """

    vocabulary: int
    bos: bool
    n_ctx: int
    chunks: int

    @property
    def name(self) -> str:
        """Of the case's folder, such as ``v321-bos-ctx128``."""
        return f"v{self.vocabulary}-{'bos' if self.bos else 'nobos'}-ctx{self.n_ctx}"

    @property
    def block(self) -> str:
        """The statistics that the tool printed, three tables of text."""
        return (GOLDEN / self.name / "block.txt").read_text(encoding="utf-8")

    @property
    def made_from(self) -> dict[str, Any]:
        """Tool version and digests of models, text and base file: the content of made_from.json."""
        content: dict[str, Any] = json.loads((GOLDEN / self.name / "made_from.json").read_text())
        return content


CASES = tuple(
    GoldenCase(vocabulary, bos, n_ctx, chunks)
    for vocabulary in (320, 321)
    for bos in (True, False)
    for n_ctx, chunks in ((128, 8), (512, 4))
)
