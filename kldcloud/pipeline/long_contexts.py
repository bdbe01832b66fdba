"""Chunks that are longer than what a model was trained on: no error, but said before any work."""

from __future__ import annotations

from collections.abc import Mapping

from kldcloud.pipeline.progress import Progress


def warn_of_long_contexts(
    contexts: Mapping[str, int], trained: Mapping[str, int | None], progress: Progress
) -> None:
    """Tell of texts whose chunks go beyond what models were trained for.

    Args:
        contexts: tokens a chunk, by corpus.
        trained: the longest context that each model was trained for, by name; None where nothing
            says. See `models.trained_context`.
        progress: told, once for a text and a length.
    """
    for corpus, context in contexts.items():
        beyond: dict[int, list[str]] = {}
        for name, most in trained.items():
            if most is not None and most < context:
                beyond.setdefault(most, []).append(name)
        for most, names in sorted(beyond.items()):
            progress.warn(
                f"corpus {corpus} has chunks of {context:,} tokens, and by what their files say "
                f"{most:,} is the most that these were trained for: {', '.join(names)}; beyond "
                "it, figures tell of positions that they never saw as well"
            )
