"""The main plot as a picture: an SVG and a PNG that stand alone."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET

import pytest

from kldcloud.errors import UserError
from kldcloud.report.html import render_figure
from tests.report.summaries import as_summary, rename, summary_dict

from .realistic import SIZES, realistic_dict, realistic_summary

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes) -> list[str]:
    """Every line of text; those of a subtitle stand in elements of their own."""
    whole = ET.fromstring(svg)  # noqa: S314
    return [each.text for kind in ("text", "tspan") for each in whole.iter(SVG + kind) if each.text]


def test_the_svg_has_a_title_axes_and_a_name_for_every_point() -> None:
    found = texts(render_figure(realistic_summary(), "svg", corpus="wikitext-2"))
    assert found.count("Qwen3.5-35B-A3B-BF16: mean KLD against file size") == 1
    assert set(SIZES) | {"file size, GiB", "mean KLD, nats a token"} <= set(found)
    assert any(text.startswith("measured with kldcloud 0.1.0 and llama.cpp") for text in found)


def test_several_corpora_stand_below_each_other_each_with_its_own_points() -> None:
    svg = render_figure(realistic_summary(), "svg").decode()
    # The same file on both texts, by its mean on each.
    for mean in ("0.171000", "0.106020"):
        assert svg.count(f'aria-label="Q2_K: 12.90 GiB, {mean} ') == 1
    found = texts(svg.encode())
    assert "on wikitext-2, 15,360 scored positions; bars: 95 % intervals" in found
    assert "on python-code, 15,360 scored positions; bars: 95 % intervals" in found


def test_the_other_axis() -> None:
    found = texts(render_figure(realistic_summary(), "svg", metric="p99_9"))
    assert "99.9 % KLD, nats a token" in found
    assert "on wikitext-2, 15,360 scored positions" in found


def test_a_png_is_twice_as_large() -> None:
    svg = ET.fromstring(render_figure(realistic_summary(), "svg"))  # noqa: S314
    png = render_figure(realistic_summary(), "png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (2 * int(svg.attrib["width"]), 2 * int(svg.attrib["height"]))


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_summary_gives_the_same_bytes(kind: str) -> None:
    first, second = (render_figure(realistic_summary(), kind) for _ in range(2))  # type: ignore[arg-type]
    assert first == second


def test_it_loads_nothing() -> None:
    root = ET.fromstring(render_figure(realistic_summary(), "svg"))  # noqa: S314
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
        "svg",
        "g",
        "path",
        "line",
        "text",
        "tspan",
        "rect",
        "defs",
        "clipPath",
    }
    assert not [name for each in root.iter() for name in each.attrib if name.endswith("href")]


def test_hostile_names_stay_text() -> None:
    shape = summary_dict()
    hostile = "</text><script>alert(1)</script>&\u202e\x00"
    rename(shape, "Q8_0", hostile)
    rename(shape, "pydoc", hostile)
    shape["base"]["name"] = hostile
    svg = render_figure(as_summary(shape), "svg")
    assert b"<script" not in svg
    assert "\u202e" not in svg.decode()
    assert any(text.startswith("</text><script>") for text in texts(svg))
    assert render_figure(as_summary(shape), "png").startswith(b"\x89PNG")


def test_a_corpus_that_the_run_lacks_is_answered_with_those_that_it_has() -> None:
    with pytest.raises(UserError) as caught:
        render_figure(realistic_summary(), "svg", corpus="c4\x1b")
    assert str(caught.value) == ('no corpus "c4\\x1b" in this run; it has: wikitext-2, python-code')


def test_a_run_without_points_has_no_picture() -> None:
    shape = realistic_dict()
    for each in shape["candidates"]:
        each["bytes"] = None
    with pytest.raises(UserError, match="nothing to draw: no candidate has both"):
        render_figure(as_summary(shape), "png")
