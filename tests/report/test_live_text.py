"""The table below a launch's bar: it fits, it says what matters, and names steer nothing."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from kldcloud.report.live_text import live_lines
from kldcloud.status.live import LiveStatus
from kldcloud.status.progress import ResultStatus


def row(candidate: str, done: int, corpus: str = "wiki") -> ResultStatus:
    if not done:
        return ResultStatus(corpus, candidate, 0, 580, None, None)
    return ResultStatus(corpus, candidate, done, 580, 0.057459, 0.002242, 0.8645, 0.0067)


def lines(*rows: ResultStatus, width: int = 80, height: int = 24) -> list[str]:
    return live_lines(LiveStatus(rows, 1234.6, 3700.0), width=width, height=height)


def test_a_line_a_candidate_and_the_pace_below() -> None:
    assert lines(row("Q8_0", 580), row("Q4_K_M", 12), row("Q2_K", 0)) == [
        "candidate      chunks             mean KLD    same top %",
        "Q8_0       580 of 580  0.057459 ± 0.002242  86.45 ± 0.67",
        "Q4_K_M      12 of 580  0.057459 ± 0.002242  86.45 ± 0.67",
        "Q2_K         0 of 580                    -             -",
        "1,235 tokens/s, about 1 h 01 min left",
    ]


def test_without_a_pace_there_is_no_line_for_it() -> None:
    status = LiveStatus((row("Q8_0", 580),), None, None)
    assert len(live_lines(status, width=80, height=24)) == 2
    status = LiveStatus((row("Q8_0", 580),), 1e6, None)
    assert live_lines(status, width=80, height=24)[-1] == "1,000,000 tokens/s"
    assert live_lines(LiveStatus((), None, None), width=80, height=24) == []


def test_a_run_that_may_stop_says_how_long_it_takes_at_most() -> None:
    status = LiveStatus((row("Q8_0", 12),), 1234.6, 3700.0, may_stop=True)
    last = live_lines(status, width=80, height=24)[-1]
    assert last == "1,235 tokens/s, at most 1 h 01 min left"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    shown = lines(
        row("a" * 300, 123, "c" * 300),
        row("量子化" * 40, 580, "c" * 300),
        row("b", 0, "文" * 100),
        width=width,
    )
    assert max(map(cell_len, shown)) <= width
    heading, *rest = (line for line in shown if not line.startswith("on "))
    assert len({cell_len(line) for line in (heading, *rest[:3])}) == 1


def test_several_corpora_have_a_line_each_above_their_candidates() -> None:
    shown = lines(row("Q8_0", 580), row("Q4_K_M", 1), row("Q8_0", 0, "code"))
    assert [line.split()[0] for line in shown[:-1]] == [
        *("candidate", "on", "Q8_0", "Q4_K_M"),
        *("on", "Q8_0"),
    ]
    assert (shown[1], shown[4]) == ("on wiki", "on code")


@pytest.mark.parametrize("height", [6, 10, 22])
def test_too_many_candidates_leave_those_under_way(height: int) -> None:
    rows = [row(f"done{at:02}", 580) for at in range(10)]
    rows += [row(f"now{at}", 5) for at in range(2)] + [row(f"later{at:02}", 0) for at in range(30)]
    shown = lines(*rows, height=height)
    assert len(shown) == height
    assert {"now0", "now1"} < {line.split()[0] for line in shown}
    hidden = 42 - (height - 3)
    assert shown[-2] == f"and {hidden} more"
    names = [line.split()[0] for line in shown[1:-2]]
    assert names == sorted(names, key=[each.candidate for each in rows].index)


def test_a_hostile_name_steers_no_terminal() -> None:
    shown = lines(row("\x1b]0;owned\x07\n[bold]x", 12, "\x1b[2J"), row("b", 1, "code"))
    assert all(line.isprintable() for line in shown)
    assert shown[2].startswith("\\x1b]0;owned\\x07\\n[bold]x ")
