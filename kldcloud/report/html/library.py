"""Vega, Vega-Lite and Vega-Embed: the JavaScript that draws charts, from a Python package."""

from __future__ import annotations

from functools import cache
from typing import Final

# The package carries several; a page must not change because another one became its default.
VEGA_LITE: Final = "6.4"
_EXPORT: Final = "window.vegaEmbed = vegaEmbed;"


@cache
def chart_library() -> str:
    """The libraries as one script that sets `vegaEmbed`: about 900 kB, most of a report's bytes.

    Made by vl-convert from its own copies; nothing is downloaded. It takes about a second.
    """
    import vl_convert

    return vl_convert.javascript_bundle(_EXPORT, vl_version=VEGA_LITE)
