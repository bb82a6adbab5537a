"""What an evaluation over a suite came to, and how it is told: tables for the terminal, a spreadsheet and a model card.

Nothing is left out of a table: runs that did not learn stand in it with a mark, tasks that could not be run with the reason, and
an average that lacks a task with the name of what is missing. All numbers are a function of the finished runs, times are not
among them, so that two evaluations of one thing leave the same bytes.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from . import console
from .handover import markdown_table
from .tasks.examples import Kind
from .tasks.suites import AverageResult

MARK = "†"


class SeedScores(BaseModel):
    """The scores of a seed; learned: False if it predicts the same for every row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    scores: dict[str, float]
    learned: bool


class TaskScores(BaseModel):
    """What a task came to.

    metrics: those of its official scorer, the first of which decides.  rows: how many were learned from and scored on.  summary:
    median, mean, std, low and high of each metric over seeds.  others: the same for other splits that have labels.
    settings: every number it was learned with.  notes: what one should know before comparing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    suite: str
    kind: Kind
    metrics: tuple[str, ...]
    rows: dict[str, int]
    seeds: tuple[SeedScores, ...]
    median_seed: int
    summary: dict[str, dict[str, float]]
    others: dict[str, dict[str, dict[str, float]]] = {}
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def lost(self) -> list[int]:
        """List the seeds that did not learn."""
        return [one.seed for one in self.seeds if not one.learned]


class Evaluation(BaseModel):
    """What an evaluation came to, as in its results.json.

    skipped: why, for each task that was not run.  submission: for each file of the benchmark's server, what is to be said of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    arch: str
    suite: str
    source: str
    protocol: str
    tasks: tuple[TaskScores, ...]
    skipped: dict[str, str]
    averages: tuple[AverageResult, ...]
    submission: dict[str, str] = {}

    def notes(self) -> list[str]:
        """Say what one must know to read the tables: runs that did not learn, and what is particular to a task."""
        lost = [
            f"{MARK} {one.task}: {len(one.lost)} of {len(one.seeds)} seeds did not learn, they predict the same for every row "
            f"(seed {', '.join(map(str, one.lost))})"
            for one in self.tasks
            if one.lost
        ]
        return lost + [f"{one.task}: {note}" for one in self.tasks for note in one.notes]


def percent(value: float | None) -> str:
    """Write a score in hundredths, as the literature does; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"


def marked(done: TaskScores) -> str:
    """Name a task, with a mark if some of its runs did not learn."""
    return f"{done.task} {MARK}" if done.lost else done.task


def score_rows(done: Evaluation) -> list[list[str]]:
    """Return a row for each metric of each task: task, metric, median, mean, std, interval, seeds, rows."""
    return [
        [
            marked(one) if metric == one.metrics[0] else "",
            metric.replace("_", " "),
            *(percent(one.summary[metric][part]) for part in ("median", "mean")),
            *spread(one.summary[metric], len(one.seeds)),
            ", ".join(percent(seed.scores[metric]) + MARK * (not seed.learned) for seed in one.seeds),
            f"{one.rows['train']:,} / {one.rows['dev']:,}",
        ]
        for one in done.tasks
        for metric in one.metrics
    ]


def other_rows(done: Evaluation) -> list[list[str]]:
    """Return a row for each metric of the scorer on each other split with labels: task, split, metric, median, std, interval."""
    return [
        [marked(one), split, metric.replace("_", " "), percent(parts["median"]), *spread(parts, len(one.seeds))]
        for one in done.tasks
        for split, metrics in one.others.items()
        for metric, parts in metrics.items()
        if metric in one.metrics
    ]


def average_rows(done: Evaluation) -> list[list[str]]:
    """Return a row for each average: name, median, interval, and what it is over or lacks."""
    lost = {one.task for one in done.tasks if one.lost}
    return [
        [
            f"{one.name} {MARK}" if one.summary and lost & set(one.tasks) else one.name,
            percent(one.summary["median"] if one.summary else None),
            interval(one.summary) if one.summary else "-",
            "; ".join(f"{task} {' and '.join(names)}" for task, names in one.tasks.items()).replace("_", " "),
            ", ".join(one.missing).replace("_", " ") or "nothing",
        ]
        for one in done.averages
    ]


def spread(summary: dict[str, float], seeds: int) -> tuple[str, str]:
    """Write the standard deviation and the interval of a summary, of which a single seed has none."""
    return (percent(summary["std"]), interval(summary)) if seeds > 1 else ("-", "-")


def interval(summary: dict[str, float]) -> str:
    """Write the interval of a summary."""
    return f"{percent(summary['low'])} to {percent(summary['high'])}"


SCORES = ("task", "metric", "median", "mean", "std", "95 % of the median", "every seed", "rows learned / scored")
OTHERS = ("task", "split", "metric", "median", "std", "95 % of the median")
MEANS = ("average", "median", "95 %", "over", "missing")


def show(done: Evaluation) -> None:
    """Print what an evaluation came to."""
    console.table(f"{done.suite}: scores on dev, in hundredths, protocol {done.protocol}", SCORES, score_rows(done))
    if others := other_rows(done):
        console.table("Scores on other splits", OTHERS, others)
    console.table("Averages on dev: mean over tasks of the median over seeds", MEANS, average_rows(done))
    for line in done.notes():
        console.warn(line)
    for task, reason in done.skipped.items():
        console.warn(f"skipped {task}: {reason}")
    for file, note in done.submission.items():
        console.warn(f"{file}: {note}")


def markdown(done: Evaluation) -> str:
    """Return the tables in Markdown, for a model card."""
    first = "Fine-tuned on the train and scored on the dev split of each task, after the last epoch, in hundredths. "
    lines = [
        *(f"## Scores: {done.suite}", "", f"{first}Protocol `{done.protocol}`, model `{done.arch}`.", ""),
        *markdown_table(SCORES, score_rows(done)),
        *(("", "On other splits:", "", *markdown_table(OTHERS, others)) if (others := other_rows(done)) else ()),
        *("", "Averages, each the mean over tasks of the median over seeds:", ""),
        *markdown_table(MEANS, average_rows(done)),
    ]
    for heading, notes in (
        ("Notes", done.notes()),
        ("Not run", [f"{task}: {reason}" for task, reason in done.skipped.items()]),
        ("Submission files", [f"{file}: {note}" for file, note in done.submission.items()]),
    ):
        if notes:
            lines += ["", f"{heading}:", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def spreadsheet(done: Evaluation) -> str:
    """Return every number as CSV: a row for each metric of each task and average, and for each task not run."""
    counts = ("train_rows", "dev_rows", "seeds", "not_learned")
    rows: list[Sequence[object]] = [("what", "name", "metric", "decides", "split", *counts, *_PARTS, "every_seed", "note")]
    for one in done.tasks:
        for metric, summary in one.summary.items():
            values = json.dumps({seed.seed: seed.scores[metric] for seed in one.seeds})
            numbers = (one.rows["train"], one.rows["dev"], len(one.seeds), len(one.lost), *_parts(summary))
            name = ("task", one.task, metric, int(metric == one.metrics[0]), "dev")
            rows.append((*name, *numbers, values, "; ".join(one.notes)))
        for split, metrics in one.others.items():
            for metric, summary in metrics.items():
                name = ("task", one.task, metric, int(metric == one.metrics[0]), split)
                rows.append((*name, one.rows["train"], "", len(one.seeds), len(one.lost), *_parts(summary), "", ""))
    for mean in done.averages:
        note = f"missing: {', '.join(mean.missing)}" if mean.missing else f"{mean.aggregation}: {json.dumps(mean.tasks)}"
        rows.append(("average", mean.name, "", "", mean.split, "", "", "", "", *_parts(mean.summary), "", note))
    rows += [("skipped", task, *[""] * 13, reason) for task, reason in done.skipped.items()]
    return _written(rows)


_PARTS = ("median", "mean", "std", "low", "high")


def _parts(summary: dict[str, float] | None) -> Iterable[object]:
    return [summary[part] for part in _PARTS] if summary else [""] * len(_PARTS)


def _written(rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
