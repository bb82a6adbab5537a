"""The console: what a pipe gets, what a terminal gets, and that only the main process speaks."""

import io
import re

import pytest
from rich.console import Console

from layerwright import console

ARCHITECTURE = "768: 12x(conv[kernel=9] [bold]ffn[inner=3072]) " + "attn " * 60


def test_lines_keep_their_brackets_and_are_never_folded(capsys):
    console.say(ARCHITECTURE)
    console.warn(ARCHITECTURE)
    out, err = capsys.readouterr()
    assert out == err == ARCHITECTURE + "\n"


def test_a_table_keeps_its_brackets_and_aligns_numbers(capsys):
    console.table("Top [3]", ["arch[x]", "score", "parameters"], [[ARCHITECTURE, 0.123456, 1234567], ["ffn", 12.0, None]])
    out = capsys.readouterr().out
    assert "Top [3]" in out
    assert "arch[x]" in out
    assert ARCHITECTURE.strip() in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows == [[ARCHITECTURE.strip(), "0.1235", "1,234,567"], ["ffn", "12", "-"]]
    assert re.search(r"│ +12 │ +- │", out)


def test_progress_elsewhere_than_a_terminal_is_lines_and_always_a_last_one(capsys, monkeypatch):
    with console.track("quick", 3) as advance:
        for _ in range(3):
            advance(loss=2.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "quick  3/3  loss 2.5  in 0:00\n"

    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with console.track("steps", 1003, done=1000) as advance:
        for loss in (3, 2, 1):
            advance(loss=loss, arch="conv[kernel=9]")
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit("  ", 1)[0] for line in lines] == [
        f"steps  {1000 + i:,}/1,003  loss {4 - i} arch conv[kernel=9]" for i in (1, 2, 3)
    ]
    assert [line.split()[-1] for line in lines[:-1]] == ["left", "left"]
    assert lines[-1].endswith("in 0:00")


def test_time_left_counts_only_this_process(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.track("steps", 1004, done=1000) as advance:
        advance()
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "steps  1,001/1,004  0:30 left",
        "steps  1,002/1,004  0:20 left",
        "steps  1,002/1,004  stopped after 0:30",
    ]


def test_progress_that_fails_says_where_it_stopped(capsys):
    def fail():
        with console.track("steps", 10) as advance:
            advance()
            advance(1 // 0)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capsys.readouterr().err == "steps  1/10  stopped after 0:00\n"


def test_progress_without_a_known_end_counts(capsys):
    with console.track("documents", None) as advance:
        advance(5)
        advance(7)
    assert capsys.readouterr().err == "documents  12  in 0:00\n"


def test_a_terminal_shows_nested_bars_and_is_left_clean(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "_stderr", Console(file=screen, force_terminal=True, width=100, markup=False, color_system=None))
    with console.track("search [outer]", 2) as outer:
        with console.track("inner", 5, done=1) as inner:
            inner(4, loss=0.25, arch="conv[kernel=9]")
        outer()
    shown = screen.getvalue()
    for part in ("search [outer]", "1/2", "inner", "5/5", "loss 0.25 arch conv[kernel=9]"):
        assert part in shown
    assert console._shown is None
    with console.track("again", 1) as advance:
        advance()
    assert "again" in screen.getvalue()


def test_only_the_main_process_speaks(capsys, monkeypatch):
    for rank, spoken in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        console.say("a")
        console.warn("b")
        console.table("c", ["d"], [["e"]])
        with console.track("f", 1) as advance:
            advance(loss=1)
        out, err = capsys.readouterr()
        assert bool(out) is bool(err) is spoken


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01"), (-1, "0:00")]
)
def test_clock(seconds, text):
    assert console._clock(seconds) == text
