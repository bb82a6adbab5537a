"""Name suites of tasks and averages over them: which tasks, which metrics of each, which split, and what is done over seeds.

An average without the names of its tasks cannot be compared with another: ConvBERT-small has 80.1 over eight tasks and 77.6 over
nine. So an average is a declaration here, is there only if all its tasks are, and carries its definition with it.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from pydantic import BaseModel, ConfigDict

from layerwright.errors import nearest
from layerwright.tasks.catalog import TASKS, Task, find
from layerwright.tasks.metrics import RESAMPLES, summary

DIAGNOSTIC = "AX"  # has no rows to learn from, and is answered by the model of MNLI
MISMATCHED = "accuracy_mismatched"  # accuracy of a model of MNLI on dev_mismatched

Scores = Mapping[str, Mapping[str, Sequence[float]]]  # task -> metric -> a score for each seed


@dataclass(frozen=True)
class Average:
    """A mean over tasks; of a task with several metrics their mean counts.  parts: metrics by task.  source: who reports it."""

    name: str
    parts: Mapping[str, tuple[str, ...]]
    source: str

    def missing(self, scores: Scores) -> tuple[str, ...]:
        """Name the tasks, or metrics of tasks, that there are no scores of."""
        found = []
        for task, metrics in self.parts.items():
            if task not in scores:
                found.append(task)
            else:
                found += [f"{task} {metric}" for metric in metrics if metric not in scores[task]]
        return tuple(found)


class AverageResult(BaseModel):
    """What an average came to, with all that defines it; `summary` is None where something is missing.

    summary: median is the mean over tasks of the median over seeds, mean that of the means; std is that of an average of one seed
    of each task; low and high are the 95 % bootstrap interval of the median, seeds being drawn within tasks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: str
    tasks: dict[str, tuple[str, ...]]
    aggregation: str
    source: str
    missing: tuple[str, ...]
    summary: dict[str, float] | None


_BOTH = ("f1", "accuracy")
_PLAIN = dict.fromkeys(("QNLI", "RTE"), ("accuracy",))
AVERAGES = (
    Average(
        "convbert-8",
        {"CoLA": ("matthews",), "SST-2": ("accuracy",), "MRPC": ("accuracy",), "STS-B": ("spearman",)}
        | {"QQP": ("accuracy",), "MNLI": ("accuracy",), **_PLAIN},
        "Jiang et al. 2020 (ConvBERT), Yu et al. 2021 (LV-BERT): MNLI matched, no WNLI",
    ),
    Average(
        "glue-9",
        {"CoLA": ("matthews",), "SST-2": ("accuracy",), "MRPC": _BOTH, "STS-B": ("pearson", "spearman"), "QQP": _BOTH}
        | {"MNLI": ("accuracy", MISMATCHED), **_PLAIN, "WNLI": ("accuracy",)},
        "the GLUE leaderboard: the mean of each task's metrics, MNLI matched and mismatched being one task",
    ),
)
AGGREGATION = "mean over tasks of the median over seeds"

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        suite: tuple(task.name for task in TASKS.values() if suite in ("all", task.suite) and task.name != DIAGNOSTIC)
        for suite in ("glue", "superglue", "all")
    }
)


# Rows of the official train and dev splits, those that the benchmark's own readers can use.
ROWS = {
    "CoLA": (8_551, 1_043),
    "SST-2": (67_349, 872),
    "MRPC": (3_668, 408),
    "STS-B": (5_749, 1_500),
    "QQP": (363_846, 40_430),
    "MNLI": (392_702, 9_815),
    "QNLI": (104_743, 5_463),
    "RTE": (2_490, 277),
    "WNLI": (635, 71),
    "BoolQ": (9_427, 3_270),
    "CB": (250, 56),
    "COPA": (400, 100),
    "MultiRC": (27_243, 4_848),
    "WiC": (5_428, 638),
    "WSC": (554, 104),
    "SQuAD-v1.1": (87_599, 10_570),
    "SQuAD-v2.0": (130_319, 11_873),
}


def rows_note(task: str, rows: Mapping[str, int]) -> list[str]:
    """Say so if a task was learned from, or scored on, other rows than the official ones; a few lost to bad rows do not count."""
    official = dict(zip(("train", "dev"), ROWS.get(task, ()), strict=False))
    other = {split: count for split, count in official.items() if abs(rows[split] - count) > count / 500}
    wrong = [f"{split} {rows[split]:,} of {count:,}" for split, count in other.items()]
    return [f"not the official rows ({', '.join(wrong)}): not comparable with published scores"] if wrong else []


def tasks_of(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a suite, or those named with commas between, each once and in the order of the catalogue.

    Raises: ValueError with the nearest name, or for a task that has nothing to learn from.
    """
    names = SUITES.get(suite.strip().lower()) or tuple(_named(name.strip()) for name in suite.split(",") if name.strip())
    if not names:
        raise ValueError(f"no suite {suite!r}{nearest(suite, SUITES)}")
    return tuple(task for task in TASKS.values() if task.name in names)


def averages_of(scores: Scores, wanted: Sequence[str]) -> list[AverageResult]:
    """Return the averages that the wanted tasks touch, and the mean of what is there under a name that says so.

    The last takes the first metric of each task.
    """
    told = [_result(average, scores) for average in AVERAGES if set(average.parts) & set(wanted)]
    there = {name: (next(iter(scores[name])),) for name in TASKS if name in scores}
    if there:
        told.append(_result(Average(f"mean-of-{len(there)}", there, "the tasks that are there, by the first metric"), scores))
    return told


def _result(average: Average, scores: Scores) -> AverageResult:
    missing = average.missing(scores)
    return AverageResult(
        name=average.name,
        split="dev",
        tasks=dict(average.parts),
        aggregation=AGGREGATION,
        source=average.source,
        missing=missing,
        summary=None if missing else _summary([_of_task(scores[task], names) for task, names in average.parts.items()]),
    )


def _of_task(scores: Mapping[str, Sequence[float]], metrics: Sequence[str]) -> list[float]:
    """Return the score of a task for each seed, the mean of some of its metrics."""
    return [statistics.fmean(values) for values in zip(*(scores[metric] for metric in metrics), strict=True)]


def _summary(tasks: Sequence[Sequence[float]]) -> dict[str, float]:
    each = [summary(values) for values in tasks]
    chance = np.random.default_rng(0)
    drawn = [np.median(chance.choice(values, (RESAMPLES, len(values))), axis=1) for values in tasks]
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return {
        "median": statistics.fmean(one.median for one in each),
        "mean": statistics.fmean(one.mean for one in each),
        "std": math.hypot(*(one.std for one in each)) / len(each),
        "low": float(low),
        "high": float(high),
    }


def _named(name: str) -> str:
    if name.lower() in SUITES:
        raise ValueError(f"{name!r} is a suite, and cannot stand in a list of tasks")
    try:
        task = find(name)
    except ValueError:
        raise ValueError(f"no suite or task {name!r}{nearest(name, (*SUITES, *TASKS))}") from None
    if task.name == DIAGNOSTIC:
        raise ValueError(
            f"{DIAGNOSTIC} has nothing to learn from: it is answered by the model of MNLI, when this is in the suite"
        )
    return task.name
