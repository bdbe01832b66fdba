"""Names and messages from outside, made safe for a terminal, a Markdown page or a spreadsheet."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Controls, format characters (bidirectional overrides hide what a name says), surrogates, private
# and unassigned code points, line and paragraph separators.
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Spreadsheets evaluate cells that start so; some also accept the full-width forms.
_FORMULA_STARTS: Final = frozenset("=+-@|%\uff1d\uff0b\uff0d\uff20")
_ELLIPSIS: Final = "..."
# What old Reddit's renderer lets a backslash disarm, less what needs that at the start of a line
# only. Slashes, for r/all and u/somebody are links; colons, for addresses are.
_REDDIT_MARKS: Final = frozenset("`*_{}[]()#!&<>/^~:")
# And what it does not: its tables split at an escaped pipe too. A backslash that ends a cell would
# escape the new renderer's next pipe.
_REDDIT_ENTITIES: Final = {"|": "&#124;", "@": "&#64;", "$": "&#36;", "\\": "&#92;"}


def printable(text: str, *, limit: int | None = None) -> str:
    r"""Write every invisible character as an escape, so that the result is one honest line.

    Args:
        text: any string.
        limit: longest result in characters; the middle of a longer one becomes ``...``.

    Returns:
        Text without control or format characters: ESC is written ``\x1b``, a newline ``\n``.
    """
    shown = text if text.isascii() and text.isprintable() else "".join(map(_visible, text))
    if limit is None or len(shown) <= limit:
        return shown
    kept = max(limit - len(_ELLIPSIS), 2)
    head = (kept + 1) // 2
    return shown[:head] + _ELLIPSIS + shown[-(kept - head) :]


def markdown_code(text: str, *, limit: int | None = None) -> str:
    """Wrap text as a Markdown code span, in which mentions, links and HTML stay inert.

    The fence is one backtick longer than the longest run inside, as CommonMark asks.
    """
    shown = printable(text, limit=limit)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    # CommonMark strips one space at each end, so text that begins or ends so gets one more.
    padded = shown.startswith(("`", " ")) or shown.endswith(("`", " "))
    pad = " " if padded and shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def markdown_code_cell(text: str, *, limit: int | None = None) -> str:
    """Write a code span for a table cell: GitHub's tables split at a pipe even inside one."""
    return markdown_code(text, limit=limit).replace("|", "\\|")


def reddit_text(text: str, *, limit: int | None = None) -> str:
    """Write text for a Reddit post, in a table or a sentence: no emphasis, links or mentions."""
    marked = "".join(map(_for_reddit, printable(text, limit=limit)))
    return re.sub(r"(?i)www\.", lambda found: f"{found[0][:-1]}\\.", marked)


def csv_text(text: str) -> str:
    """Write text for a CSV cell: one line, and never a formula (a leading quote disarms it)."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip()[:1] in _FORMULA_STARTS and shown.strip() else shown


def _for_reddit(char: str) -> str:
    return f"\\{char}" if char in _REDDIT_MARKS else _REDDIT_ENTITIES.get(char, char)


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _HIDDEN_CATEGORIES:
        return char
    return char.encode("unicode_escape").decode()
