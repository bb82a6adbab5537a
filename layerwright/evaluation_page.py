"""Draw an evaluation over a suite as one HTML page that needs nothing else.

A dot is a seed, so that one sees at once what a median hides: how far seeds lie apart, and which of them did not learn.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

from . import scoreboard
from .drawings import Axis, kinds, spread, strip_of
from .page import copyable, details, page, section, tiles
from .scoreboard import MARK, MEANS, Evaluation, TaskScores, average_rows, interval, marked, percent


def page_of(done: Evaluation) -> str:
    """Return the page of an evaluation."""
    seeds = sorted({len(one.seeds) for one in done.tasks})
    facts = [
        f"model {done.model}",
        f"protocol {done.protocol}",
        f"{len(done.tasks)} tasks",
        f"{' or '.join(map(str, seeds))} seeds each",
        f"rows from {done.source}",
    ]
    return page(
        "evaluation",
        f"Scores on {done.suite}",
        facts,
        section("The model", strip_of(done.arch), kinds([done.arch]), copyable(done.arch), tiles(_key_numbers(done))),
        section("Scores on dev", _read(done), _scores(done), _listed(done.notes())),
        section("Averages", _averages(done), _definitions(done)),
        section("Scores on other splits", _table(scoreboard.OTHERS, others)) if (others := scoreboard.other_rows(done)) else "",
        section("Not run", _listed(f"{task}: {reason}" for task, reason in done.skipped.items())) if done.skipped else "",
        section("Files for the server", _listed(f"{file}: {note}" for file, note in done.submission.items()))
        if done.submission
        else "",
        section("How each task was learned", *(details(one.task, one.settings) for one in done.tasks)),
    )


def _key_numbers(done: Evaluation) -> list[tuple[str, str, str]]:
    """Return the averages that are there, and how many runs learned."""
    numbers = [
        (one.name, percent(one.summary["median"]), f"{interval(one.summary)} at 95 %") for one in done.averages if one.summary
    ]
    runs, lost = sum(len(one.seeds) for one in done.tasks), sum(len(one.lost) for one in done.tasks)
    numbers.append(("runs", f"{runs:,}", f"{lost:,} did not learn" if lost else "all of them learned"))
    return numbers


def _read(done: Evaluation) -> str:
    said = (
        "In hundredths, after the last epoch. A dot is a seed, on a scale up to 100; the interval is that of the median, at "
        f"95 %, by bootstrap over seeds. {MARK} marks seeds that predict the same for every row."
    )
    return f'<p class="read">{escape(said)}</p>'


def _scores(done: Evaluation) -> str:
    heads = ("task", "metric", "median", "mean", "std", "95 % of the median", "seeds", "rows learned / scored")
    lowest = min(seed.scores[metric] for one in done.tasks for seed in one.seeds for metric in one.metrics)
    axis = Axis("score", min(0.0, lowest), 1.0)
    rows = "".join(_row(one, metric, axis) for one in done.tasks for metric in one.metrics)
    return _framed(heads, rows)


def _row(one: TaskScores, metric: str, axis: Axis) -> str:
    first, parts = metric == one.metrics[0], one.summary[metric]
    name = f"<b>{escape(marked(one))}</b>" if first else ""
    values = [seed.scores[metric] for seed in one.seeds]
    tip = "\n".join(
        f"seed {seed.seed}: {percent(seed.scores[metric])}{'' if seed.learned else ', did not learn'}" for seed in one.seeds
    )
    cells = [
        name,
        escape(metric.replace("_", " ")),
        f"<b>{percent(parts['median'])}</b>" if first else percent(parts["median"]),
        percent(parts["mean"]),
        *scoreboard.spread(parts, len(one.seeds)),
        spread([value for value in values if math.isfinite(value)], axis, tip),
        f"{one.rows['train']:,} / {one.rows['dev']:,}" if first else "",
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _averages(done: Evaluation) -> str:
    """Return the averages; what they are over is told below them."""
    rows = [[*row[:3], row[-1]] for row in average_rows(done)]
    return _table((*MEANS[:3], MEANS[-1]), rows)


def _definitions(done: Evaluation) -> str:
    over = [row[3] for row in average_rows(done)]
    return _listed(
        f"{one.name}: {one.aggregation}, split {one.split}: {tasks}. {one.source[:1].upper()}{one.source[1:]}."
        for one, tasks in zip(done.averages, over, strict=True)
    )


def _listed(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="soft">{items}</ul>' if items else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _framed(heads, "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows))


def _framed(heads: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
