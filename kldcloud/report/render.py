"""One summary in several forms: what `kldcloud report --format` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from kldcloud.errors import UserError
from kldcloud.report.csv_table import render_csv
from kldcloud.report.escaping import printable
from kldcloud.report.hf_card import render_hf_card
from kldcloud.report.html import FIGURE_FORMATS, render_html
from kldcloud.report.llama_text import render_llama
from kldcloud.report.markdown import render_markdown
from kldcloud.report.reddit import render_reddit
from kldcloud.report.summary_file import dump_summary
from kldcloud.report.summary_shape import Summary


def render(summary: Summary, format: str) -> str:  # noqa: A002 -- the word that people type
    """Render a summary in one of `FORMATS`; the text ends in a newline.

    Raises:
        UserError: an unknown format, or one that needs what the run does not have: `llama` its
            statistics, `hf-card` any result.
    """
    if format not in FORMATS:
        raise UserError(
            f'no report format "{printable(format, limit=40)}"',
            hint=f"choose one of {', '.join((*FORMATS, *FIGURE_FORMATS))}",
        )
    return FORMATS[format](summary)


def _render_json(summary: Summary) -> str:
    return dump_summary(summary.to_json_dict()).decode()


FORMATS: Final[Mapping[str, Callable[[Summary], str]]] = MappingProxyType(
    {
        "md": render_markdown,
        "json": _render_json,
        "csv": render_csv,
        "llama": render_llama,
        "reddit": render_reddit,
        "hf-card": render_hf_card,
        "html": render_html,
    }
)
