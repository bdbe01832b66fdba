"""report.html in a real browser: it draws, sorts, goes dark, prints, fits a phone, asks nobody."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kldcloud.report.html import render_html
from kldcloud.report.profile_shape import Profiles
from kldcloud.report.summary_file import parse_summary
from kldcloud.report.worst_shape import WorstOfRun
from tests.report.summaries import as_summary, candidate, measured, rename, result

from .browser import MISSING, Browser, browser
from .realistic import CORPORA, SIZES, realistic_dict, realistic_profiles, realistic_worst

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

HOSTILE = (
    "</script><img src=x onerror='window.hurt=1'><b>\u202e\u05e9\u05dc\u05d5\u05dd" + "w" * 300
)
CHARTS = 5 * len(CORPORA)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page() -> str:
    summary = as_summary(realistic_dict(failing=True))
    return render_html(summary, realistic_profiles(), realistic_worst())


@pytest.fixture(scope="module")
def hostile() -> str:
    shape = realistic_dict(failing=True)
    profiles, worst = realistic_profiles().to_json_dict(), realistic_worst().to_json_dict()
    for old, new in (("Q8_0", HOSTILE), ("Q2_K", "__proto__"), ("Q5_K_M", "constructor")):
        rename(shape, old, new)
        for each in (*profiles["profiles"], *worst["worst"]):
            each["candidate"] = new if each["candidate"] == old else each["candidate"]
    rename(shape, "wikitext-2", f"text {HOSTILE}")
    for each in (*profiles["profiles"], *worst["worst"]):
        each["corpus"] = f"text {HOSTILE}" if each["corpus"] == "wikitext-2" else each["corpus"]
    for each in worst["worst"][0]["positions"]:
        each["token"] = each["before"][0][0] = each["top"][0][0] = HOSTILE
    shape["name"] = shape["base"]["name"] = shape["engine"]["version"] = HOSTILE
    shape["results"][-1]["error"] = HOSTILE
    return render_html(
        as_summary(shape), Profiles.model_validate(profiles), WorstOfRun.model_validate(worst)
    )


@pytest.fixture(scope="module")
def crowd() -> str:
    """Two hundred candidates, each with a profile."""
    shape, profiles = realistic_dict(), realistic_profiles().to_json_dict()
    model = profiles["profiles"][0]
    shape.update(candidates=[], results=[], comparisons=[], corpora=shape["corpora"][:1])
    profiles["profiles"] = []
    for at in range(200):
        name = f"UD-Q{at % 7 + 2}_variant-{at}"
        kld = 0.001 * 1.025**at * (1 + at % 3)
        shape["candidates"].append(candidate(name, 2**36 - at * 2**27, 8.0))
        shape["results"].append(measured(name, "wikitext-2", result(kld, kld / 40)))
        profiles["profiles"].append({**model, "candidate": name})
    return render_html(as_summary(shape), Profiles.model_validate(profiles))


def names(chromium: Browser, place: int = 0) -> list[str]:
    return chromium.texts(f"#table-{place} tbody tr:not([hidden]) th > bdi")


def heading(place: int, at: int) -> str:
    return f"#table-{place} thead th:nth-child({at})"


# It draws


def test_every_chart_is_drawn_and_nothing_complains(chromium: Browser, page: str) -> None:
    chromium.show(page)
    assert chromium.console() == []
    assert len(chromium.every(".plot svg")) == CHARTS
    assert len(chromium.every("#size-0 .points_marks path")) == len(SIZES)
    assert set(SIZES) <= set(chromium.texts("#size-0 .names_marks text"))
    assert len(chromium.every("#distribution-0 .lines_marks path")) == len(SIZES)


def test_it_asks_for_nothing(chromium: Browser, page: str) -> None:
    chromium.show(page)
    chromium.click("input[value=p99_9]")
    chromium.click("#theme")
    chromium.until(lambda: "99.9 % KLD, nats a token" in chromium.texts("#size-0 text"))
    asked = chromium.requests()
    assert [each for each in asked if not each.startswith(("data:", "blob:"))] == [
        (chromium.folder / "report.html").as_uri()
    ]


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine: its address, and the paths that it has been asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_what_a_stranger_slips_in_is_not_loaded(chromium: Browser, page: str) -> None:
    with listening() as (address, asked):
        slipped = (
            f'<img src="{address}/image"><script src="{address}/script"></script>'
            f'<link rel="stylesheet" href="{address}/style"><iframe src="{address}/frame"></iframe>'
        )
        with_policy = page.replace("<main>", f"<main>{slipped}")
        chromium.show(with_policy)
        assert asked == []
        assert sum("Content Security Policy" in each for each in chromium.console()) >= 4
        # Without the policy the same page would have asked: it is what stops them.
        chromium.show(re.sub("<meta http-equiv[^>]*>", "", with_policy))
        assert sorted(asked) == ["/frame", "/image", "/script", "/style"]
        assert len(chromium.requests()) == 5
        chromium.console()


def test_a_script_that_a_stranger_slips_in_does_not_run(chromium: Browser, page: str) -> None:
    chromium.show(page.replace("<main>", "<main><script>window.hurt = 1</script>"))
    assert chromium.run("return window.hurt") is None
    assert any("Content Security Policy" in each for each in chromium.console())


def test_a_point_tells_its_figures(chromium: Browser, page: str) -> None:
    chromium.show(page)
    point = chromium.one("#size-0 .points_marks path[aria-label^='Q4_K_M:']")
    assert point.get_attribute("aria-label") == (
        "Q4_K_M: 21.20 GiB, 0.021500 \u00b1 0.000667 nats, off the frontier"
    )
    chromium.point_at(point)
    chromium.until(lambda: chromium.every("#vg-tooltip-element.visible"))
    (told,) = chromium.texts("#vg-tooltip-element")
    assert "Q4_K_M" in told
    assert "0.021500 \u00b1 0.000667 nats" in told
    assert chromium.console() == []


def test_without_scripts_the_words_and_the_tables_are_there(chromium: Browser, page: str) -> None:
    chromium.show(page, scripts=False)
    shown = chromium.one("body").text
    assert "are not distinguishable on wikitext-2" in shown
    assert "0.021500 \u00b1 0.000667" in shown
    assert "to draw them takes JavaScript" in shown
    assert not chromium.one("#theme").is_displayed()
    assert not chromium.one("input[value=p99_9]").is_displayed()


# Tables


def test_names_stand_at_the_left_of_every_table(chromium: Browser, page: str) -> None:
    chromium.show(page)
    for table in (".results", ".macro", ".files"):
        for part in ("thead th:first-child", "tbody th[scope=row]"):
            assert chromium.style(f"{table} {part}", "text-align") == "left", (table, part)


def test_a_heading_sorts_its_table_and_says_which_way(chromium: Browser, page: str) -> None:
    chromium.show(page)
    given = [*SIZES, "TQ1_0"]
    assert names(chromium) == given
    chromium.click(f"{heading(0, 5)} button")
    by_mean = sorted(SIZES, key=lambda name: SIZES[name][1])
    # Who failed has no mean and stands last, whichever way the others go.
    assert names(chromium) == [*by_mean, "TQ1_0"]
    assert chromium.one(heading(0, 5)).get_attribute("aria-sort") == "ascending"
    chromium.click(f"{heading(0, 5)} button")
    assert names(chromium) == [*by_mean[::-1], "TQ1_0"]
    assert chromium.one(heading(0, 5)).get_attribute("aria-sort") == "descending"

    chromium.click(f"{heading(0, 3)} button")
    assert names(chromium) == ["TQ1_0", *sorted(SIZES, key=lambda name: SIZES[name][0])]
    sorts = [each.get_attribute("aria-sort") for each in chromium.every("#table-0 thead th")]
    assert sorts == ["none", "none", "ascending", *["none"] * 10]
    assert names(chromium, 1) == given

    chromium.click(f"{heading(0, 1)} button")
    assert names(chromium)[:3] == ["IQ4_XS", "Q2_K", "Q4_K_M"]


def test_sizes_sort_by_what_they_are_whatever_their_unit(chromium: Browser) -> None:
    shape = realistic_dict()
    sizes = [600_000, 1 << 29, 9_000_000, 900, *(1 << 30 for _ in shape["candidates"][4:])]
    for each, size in zip(shape["candidates"], sizes, strict=True):
        each["bytes"] = size
    chromium.show(render_html(as_summary(shape), realistic_profiles(), realistic_worst()))
    chromium.click(f"{heading(0, 3)} button")
    order = [each["name"] for each in shape["candidates"]]
    assert names(chromium)[:4] == [order[at] for at in (3, 0, 2, 1)]


def test_headings_sort_from_the_keyboard(chromium: Browser, page: str) -> None:
    chromium.show(page)
    chromium.one(f"{heading(0, 3)} button").send_keys("\ue007")
    assert names(chromium)[0] == "TQ1_0"


# Charts


def test_the_other_axis_is_a_click_away(chromium: Browser, page: str) -> None:
    chromium.show(page)
    before = chromium.one("#size-0 .points_marks path").get_attribute("aria-label")
    assert "mean KLD, nats a token" in chromium.texts("#size-0 text")
    assert chromium.every("#size-0 .intervals_marks line")
    chromium.click("input[name=metric-0][value=p99_9]")
    chromium.until(lambda: "99.9 % KLD, nats a token" in chromium.texts("#size-0 text"))
    assert chromium.one("#size-0 .points_marks path").get_attribute("aria-label") != before
    assert chromium.every("#size-0 .intervals_marks line") == []
    assert "mean KLD, nats a token" in chromium.texts("#size-1 text")
    chromium.click("input[name=metric-0][value=mean]")
    chromium.until(lambda: "mean KLD, nats a token" in chromium.texts("#size-0 text"))
    assert chromium.one("#size-0 .points_marks path").get_attribute("aria-label") == before


def strokes(chromium: Browser, chart: str) -> dict[str, str]:
    """The colour of each candidate's legend symbol."""
    labels = chromium.texts(f"#{chart} .role-legend-label text")
    code = (
        "return [...document.querySelectorAll(arguments[0])].map(each => each.getAttribute('fill'))"
    )
    fills = chromium.run(code, f"#{chart} .role-legend-symbol path")
    return dict(zip(labels, fills, strict=True))


def test_candidates_come_and_go_and_the_others_keep_their_colours(
    chromium: Browser, page: str
) -> None:
    chromium.show(page)
    before = strokes(chromium, "position-0")
    assert list(before) == list(SIZES)
    assert len(set(before.values())) == len(SIZES)
    chromium.click(".choice summary")
    chromium.click(".choice label:nth-of-type(2) input")
    for chart in ("distribution-0", "position-0", "confidence-0"):
        chromium.until(
            lambda chart=chart: len(chromium.every(f"#{chart} .role-legend-label text")) == 7
        )
    after = strokes(chromium, "position-0")
    assert after == {name: colour for name, colour in before.items() if name != "UD-Q6_K_XL"}
    assert list(strokes(chromium, "position-1")) == list(SIZES)
    heard = chromium.one("#position-0 svg > g").get_dom_attribute("aria-label") or ""
    spoken = chromium.one("#position-0 [role=graphics-document]").get_dom_attribute("aria-label")
    assert f"{spoken}{heard}".startswith("KLD by position in the chunk: Q8_0, Q5_K_M, UD-Q4_K_XL")
    assert chromium.console() == []


def test_the_last_curve_stays(chromium: Browser, page: str) -> None:
    chromium.show(page)
    chromium.click(".choice summary")
    boxes = chromium.every(".choice input[data-shows='0']")
    for box in boxes[1:]:
        box.click()
    chromium.until(lambda: list(strokes(chromium, "position-0")) == ["Q8_0"])
    assert not boxes[0].is_enabled()
    boxes[3].click()
    chromium.until(lambda: list(strokes(chromium, "position-0")) == ["Q8_0", "UD-Q4_K_XL"])
    assert boxes[0].is_enabled()
    assert chromium.console() == []


def test_pictures_and_data_can_be_kept(chromium: Browser, page: str) -> None:
    chromium.show(page)
    chromium.click("button[data-draws=size-0][value=svg]")
    svg = chromium.downloaded("size-0.svg").decode()
    assert "Qwen3.5-35B-A3B-BF16: mean KLD against file size" in svg
    chromium.click("button[data-draws=position-1][value=png]")
    assert chromium.downloaded("position-1.png").startswith(b"\x89PNG")
    chromium.click("button[data-saves=summary]")
    kept = parse_summary(chromium.downloaded("summary.json"))
    assert kept == as_summary(realistic_dict(failing=True))
    assert chromium.console() == []


# Colours


def luminance(colour: str) -> float:
    """Relative luminance of an opaque colour (WCAG 2.2)."""
    channels = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


TEXTS = {
    "body": "color",
    ".size": "color",
    "figcaption": "color",
    "caption": "color",
    "thead button": "color",
    ".undecided": "color",
    ".failed .instead": "color",
    ".corpora a": "color",
    "#size-0 .names_marks text": "fill",
    "#size-0 .role-axis-label text": "fill",
    "#size-0 .role-axis-title text": "fill",
    "#position-0 .role-legend-label text": "fill",
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_stand_out_from_their_paper(chromium: Browser, page: str, *, dark: bool) -> None:
    chromium.show(page, dark=dark)
    paper = chromium.style("body", "background-color")
    assert (luminance(paper) < 0.05) is dark
    assert chromium.style("#size-0 svg", "background-color") == "rgba(0, 0, 0, 0)"
    for selector, name in TEXTS.items():
        assert contrast(chromium.style(selector, name), paper) >= 4.5, selector
    marks = {
        chromium.run("return getComputedStyle(arguments[0]).fill", each)
        for each in chromium.every("#size-0 .points_marks path")
    }
    assert len(marks) == 2
    assert all(contrast(each, paper) >= 3 for each in marks)
    # Bars of the frontier's points are half transparent: they need more.
    bars = chromium.run(
        "return [...document.querySelectorAll('#size-0 .intervals_marks line')]"
        ".map(each => getComputedStyle(each).stroke)"
    )
    assert bars
    assert max(contrast(each, paper) for each in bars) >= 5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_button_turns_the_colours_over_and_back(
    chromium: Browser, page: str, *, dark: bool
) -> None:
    chromium.show(page, dark=dark)
    was = chromium.style("body", "background-color")
    assert chromium.one("#theme").text == ("Light" if dark else "Dark")
    chromium.click("#theme")
    assert (luminance(chromium.style("body", "background-color")) < 0.05) is not dark
    assert chromium.one("#theme").text == ("Dark" if dark else "Light")
    chromium.click("#theme")
    assert chromium.style("body", "background-color") == was


# Paper


def test_it_prints_in_light_colours_without_buttons(chromium: Browser, page: str) -> None:
    chromium.show(page, dark=True)
    chromium.click("#theme")
    chromium.click("#theme")
    chromium.media("print", dark=True)
    assert luminance(chromium.style("body", "color")) < 0.05
    assert contrast(chromium.style("#size-0 .names_marks text", "fill"), "rgb(255,255,255)") > 4.5
    assert not chromium.one("#theme").is_displayed()
    assert not chromium.one(".saves").is_displayed()
    printed = chromium.pdf()
    assert printed.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 3 <= pages <= 12


def test_paper_is_as_wide_as_its_tables(chromium: Browser) -> None:
    shape = realistic_dict(failing=True)
    for name in SIZES:
        rename(shape, name, f"Model-135M-Instruct-somebody-dynamic-2.0-with-a-long-name-{name}")
    paper = 703  # of a sheet of A4 without its margins
    chromium.show(render_html(as_summary(shape), None, None), width=paper)
    chromium.media("print", dark=False)
    assert chromium.run("return document.documentElement.scrollWidth") == paper


# A phone


@pytest.mark.parametrize("name", ["page", "hostile", "crowd"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_hangs_over_the_edge(
    chromium: Browser, request: pytest.FixtureRequest, name: str, width: int
) -> None:
    chromium.show(request.getfixturevalue(name), width=width)
    assert chromium.run("return document.documentElement.scrollWidth") == width
    for plot in chromium.every(".plot svg"):
        place = plot.rect
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= width


def test_on_a_phone_charts_have_letters_that_can_be_read(chromium: Browser, page: str) -> None:
    code = """
        const text = document.querySelector(arguments[0]);
        return Number.parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a;
    """
    for width in (360, 1280):
        chromium.show(page, width=width)
        for chart in ("size-0", "distribution-0", "position-0"):
            assert chromium.run(code, f"#{chart} .role-axis-label text") >= 9


def test_a_turned_phone_gets_the_other_layout(chromium: Browser, page: str) -> None:
    chromium.show(page, width=360)
    narrow = chromium.one("#size-0 svg").get_dom_attribute("viewBox")
    chromium.command(
        "Emulation.setDeviceMetricsOverride",
        width=800,
        height=360,
        deviceScaleFactor=1,
        mobile=True,
    )
    chromium.until(lambda: chromium.one("#size-0 svg").get_dom_attribute("viewBox") != narrow)


# Strangers and crowds


def test_hostile_names_neither_run_nor_break_out(chromium: Browser, hostile: str) -> None:
    chromium.show(hostile)
    assert chromium.console() == []
    assert len(chromium.every(".plot svg")) == CHARTS
    assert chromium.run("return window.hurt") is None
    assert chromium.every("img, main b, main script") == []
    # The fifth of a curve: the first of the distribution lies below the plot.
    for chart, point in (("size-0", 1), ("distribution-0", 5), ("position-1", 1)):
        chromium.point_at(chromium.one(f"#{chart} .points_marks path:nth-child({point})"))
        chromium.until(lambda: chromium.every("#vg-tooltip-element.visible"))
        assert "</script><img s" in chromium.texts("#vg-tooltip-element")[0]
        assert chromium.every("#vg-tooltip-element img, #vg-tooltip-element b") == []
    chromium.click(f"{heading(0, 1)} button")
    assert chromium.run("return window.hurt") is None
    # The two that JavaScript has a use for itself have their curves like everybody else.
    shown = strokes(chromium, "position-1")
    assert len(shown) == len(SIZES)
    assert {"__proto__ #8", "constructor #3"} <= set(shown)


def test_two_hundred_candidates_stay_usable(chromium: Browser, crowd: str) -> None:
    chromium.show(crowd)
    assert chromium.console() == []
    assert len(names(chromium)) == 200
    assert len(chromium.every("#size-0 .points_marks path")) == 200
    assert len(chromium.every("#position-0 .role-legend-label text")) == 8
    height = chromium.run("return document.querySelector('#table-0').parentNode.clientHeight")
    assert height < 700
    chromium.one("input[type=search]").send_keys("VARIANT-19")
    assert names(chromium) == [f"UD-Q{at % 7 + 2}_variant-{at}" for at in (19, *range(190, 200))]
    assert chromium.texts("[data-counts]") == ["11 of 200"]
    chromium.click(f"{heading(0, 2)} button")
    assert names(chromium)[0] == f"UD-Q{199 % 7 + 2}_variant-199"


def test_of_many_candidates_a_reader_chooses_eight(chromium: Browser, crowd: str) -> None:
    chromium.show(crowd)
    chromium.click(".choice summary")
    checked = chromium.every(".choice input:checked")
    assert len(checked) == 8
    before = strokes(chromium, "position-0")
    free = chromium.one(".choice input:not(:checked)")
    assert not free.is_enabled()
    gone = checked[0]
    gone.click()
    assert free.is_enabled()
    chromium.run("arguments[0].scrollIntoView({block: 'center'})", free)
    free.click()
    newcomer = chromium.texts(".choice label:has(input:checked)")
    chromium.until(lambda: set(strokes(chromium, "position-0")) == set(newcomer))
    after = strokes(chromium, "position-0")
    assert len(set(after.values())) == 8
    kept = set(before) & set(after)
    assert len(kept) == 7
    assert all(before[name] == after[name] for name in kept)


def test_data_of_the_crowd_is_whole(chromium: Browser, crowd: str) -> None:
    chromium.show(crowd)
    held: Any = json.loads(chromium.texts("#profiles")[0])
    assert len(held["profiles"]) == 200


# Worst positions


def test_the_worst_positions_of_the_chosen_candidate_are_listed(
    chromium: Browser, page: str
) -> None:
    chromium.show(page)
    told = realistic_worst().worst
    at = {(each.candidate, each.corpus): place for place, each in enumerate(told)}
    assert len(chromium.every("#worst-0 > li")) == 10
    first = told[0].positions
    assert chromium.texts("#worst-0 mark") == [each.token for each in first[:10]]
    assert f"KLD {first[0].kld:.3f} nats" in chromium.texts("#worst-0 .facts")[0]
    assert chromium.texts("#worst-0 li:first-child .guesses td")[:2] == [" word0", "75.0\u00a0%"]
    assert chromium.texts("#worst-0 li:first-child .right")[0].startswith(" word0")

    for more in range(2, 6):
        chromium.click("button[data-more='0']")
        assert len(chromium.every("#worst-0 > li")) == 10 * more
    # The file has sixty; fifty stand in the page.
    assert not chromium.one("button[data-more='0']").is_displayed()

    other = at["Q2_K", "wikitext-2"]
    chromium.run(
        "const box = document.querySelector('select[data-worst]'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('change'))",
        str(other),
    )
    assert len(chromium.every("#worst-0 > li")) == 10
    assert f"KLD {told[other].positions[0].kld:.3f} nats" in chromium.texts("#worst-0 .facts")[0]
    assert chromium.one("button[data-more='0']").is_displayed()
    assert chromium.console() == []


def test_tokens_have_the_colour_of_their_divergence_and_hide_nothing(
    chromium: Browser, page: str
) -> None:
    chromium.show(page)
    levels = (0.01, 0.1, 0.5, 1.0, 3.0)
    for entry, position in zip(
        chromium.every("#worst-0 > li"), realistic_worst().worst[0].positions, strict=False
    ):
        spans = chromium.run(
            "return [...arguments[0].querySelectorAll('.text > span')]"
            ".map(each => [each.className, each.textContent])",
            entry,
        )
        around = (*position.before, *position.after)
        wanted = [
            sum(kld >= level for level in levels) if kld is not None else 0 for _, kld in around
        ]
        assert [name for name, _ in spans] == [f"heat-{level}" if level else "" for level in wanted]
        assert not any("\n" in shown or "\u202e" in shown for _, shown in spans)
    shades = [chromium.style(f".legend .heat-{level}", "backgroundColor") for level in range(1, 6)]
    assert len(set(shades)) == 5
    whole = "".join(chromium.texts("#worst-0 .text"))
    assert "\u23ce" in whole
    assert "\\u202e" in whole


def test_strange_tokens_stay_text(chromium: Browser, hostile: str) -> None:
    chromium.show(hostile)
    assert chromium.run("return window.hurt === undefined")
    assert chromium.texts("#worst-0 mark")[0].startswith("</script><img src=x")
    assert "\u202e" not in "".join(chromium.texts("#worst-0"))
    assert chromium.every("#worst-0 img") == []
    assert chromium.console() == []


def test_a_phone_shows_the_worst_positions_without_scrolling_sideways(
    chromium: Browser, page: str
) -> None:
    chromium.show(page, width=360)
    wide = chromium.run("return document.documentElement.scrollWidth")
    assert wide <= 360
    assert len(chromium.every("#worst-1 > li")) == 10
