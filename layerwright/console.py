"""Speak to the person at the terminal: lines, tables and progress.

Results go to stdout, progress and warnings to stderr. Only the main process of a distributed run speaks. Text is never
read as markup, because architectures are full of square brackets.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0

_stdout = Console(markup=False, highlight=False)
_stderr = Console(markup=False, highlight=False, stderr=True)
_shown: Progress | None = None
_whole: tuple[Callable[..., None], float] | None = None


def say(text: str) -> None:
    """Print a line of the result."""
    if _is_main():
        _stdout.print(Text(text), soft_wrap=True)


def warn(text: str, *, everywhere: bool = False) -> None:
    """Print a line that should be seen but is not part of the result; `everywhere`: from every process of several."""
    if everywhere or _is_main():
        _stderr.print(Text(text), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers are aligned to the right, None is a dash."""
    if not _is_main():
        return
    cells = [list(row) for row in rows]
    drawn = Table(title=Text(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = all(row[index] is None or isinstance(row[index], int | float) for row in cells)
        drawn.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(_written(cell)) for cell in row))
    # A pipe or a file has no edge to fold long architectures at.
    (_stdout if _stdout.is_terminal else Console(width=100_000)).print(drawn)


@contextmanager
def track(label: str, total: int | None, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show the progress of a loop: a bar on a terminal, else a line now and then and always a last one.

    Yields `advance(by=1, **fields)`, whose fields (loss=2.5) are shown beside the count. `done` is what an earlier
    process did, which must not count towards the speed.
    """
    if not _is_main():
        yield lambda by=1, **fields: None
    elif _whole is not None and total:
        with _bar(label, total, done) if _stderr.is_terminal else nullcontext() as advance:
            yield _told_twice(advance, total, *_whole)
    else:
        with _bar(label, total, done) if _stderr.is_terminal else _lines(label, total, done) as advance:
            yield advance


@contextmanager
def part(advance: Callable[..., None], work: float) -> Iterator[None]:
    """Let a loop tracked within the block move a greater one, whose `advance` this is, by `work` from its beginning to its end.

    Where there is no terminal to draw a bar for each, only the greater one speaks, with the fields of the other.
    """
    global _whole
    outer, _whole = _whole, (advance, work)
    try:
        yield
    finally:
        _whole = outer


def _told_twice(inner: Callable[..., None] | None, total: int, outer: Callable[..., None], work: float) -> Callable[..., None]:
    def advance(by: int = 1, **fields: object) -> None:
        if inner is not None:
            inner(by, **fields)
        outer(work * by / total, **fields)

    return advance


@contextmanager
def _bar(label: str, total: int | None, done: int) -> Iterator[Callable[..., None]]:
    global _shown
    outer = _shown
    bars = outer or Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_stderr,
        redirect_stdout=sys.stdout.isatty(),
    )
    task = bars.add_task(label, total=total, completed=done, note="")

    def advance(by: float = 1, **fields: object) -> None:
        if fields:
            bars.update(task, advance=by, note=_note(fields))
        else:
            bars.update(task, advance=by)

    if outer is None:
        bars.start()
    _shown = bars
    try:
        yield advance
    finally:
        _shown = outer
        if outer is None:
            bars.stop()


@contextmanager
def _lines(label: str, total: int | None, done: int) -> Iterator[Callable[..., None]]:
    began = spoke = time.monotonic()
    now, note = float(done), ""

    def line(ending: str) -> None:
        count = f"{now:,.0f}" if total is None else f"{now:,.0f}/{total:,}"
        warn("  ".join(part for part in (label, count, note, ending) if part))

    def advance(by: float = 1, **fields: object) -> None:
        nonlocal now, note, spoke
        now += by
        note = _note(fields) if fields else note
        clock = time.monotonic()
        if clock - spoke >= SECONDS_BETWEEN_LINES and round(now) != total:
            spoke = clock
            speed = (now - done) / (clock - began)
            line(f"{_clock((total - now) / speed)} left" if total is not None and speed > 0 else "")

    try:
        yield advance
    finally:
        line(f"{'in' if total in (None, round(now)) else 'stopped after'} {_clock(time.monotonic() - began)}")


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _note(fields: dict[str, object]) -> str:
    return " ".join(f"{name} {_written(value)}" for name, value in fields.items())


def about(number: int) -> str:
    """Write a number with two digits, however large.

    >>> about(4_200_000), about(10**400)
    ('about 4.2e+06', 'about 1.0e+400')
    """
    try:
        return f"about {number:.1e}"
    except OverflowError:  # beyond what a float holds
        power = int(math.log10(number))
        return f"about {number // 10 ** (power - 1) / 10:.1f}e+{power}"


def _written(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(max(seconds, 0)), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
