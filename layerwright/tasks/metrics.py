"""Score predictions, and sum up the scores of several seeds.

One fine-tuning run says little: on small tasks two seeds differ by more than two architectures do. So scores are
summed up by their median and a bootstrap interval, and a run that predicts one thing for every row is marked as not having
learned, however good its accuracy looks.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics

from layerwright.errors import nearest
from layerwright.tasks.answers import answer_scores
from layerwright.tasks.conll import is_iob2
from layerwright.tasks.entities import entity_scores
from layerwright.tasks.examples import Examples, Kind

SCORES: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "matthews", "f1", "macro_f1"),
    "regression": ("spearman", "pearson"),
    "choices": ("accuracy",),
    "spans": ("exact_match", "answer_f1"),
    "tags": ("entity_f1", "entity_precision", "entity_recall", "accuracy"),
}
RESAMPLES = 10_000


class Measured(NamedTuple):
    """The scores of one run by name; `learned` is False if every row was given the same prediction."""

    scores: dict[str, float]
    learned: bool


class Summary(NamedTuple):
    """The middle and spread of several runs; the interval is that of the median, at 95 %."""

    median: float
    mean: float
    std: float
    low: float
    high: float


def metric_names(examples: Examples[Any]) -> tuple[str, ...]:
    """Name the metrics that can be had for examples; the first decides if no task says otherwise.

    `f1` is for two classes, `exact_match` of classes for rows judged in groups, and those of entities for tags of entities.
    """
    names = SCORES[examples.kind]
    if examples.kind == "classification":
        grouped = ("exact_match",) if any(row.group for row in examples.rows) else ()
        return tuple(name for name in names if name != "f1" or len(examples.labels) == 2) + grouped
    if examples.kind == "tags" and not is_iob2(examples.labels):
        return ("accuracy",)
    return names


def score(
    kind: Kind, names: Sequence[str], examples: Examples[Any], predictions: Sequence[Any] | Mapping[str, str] | ArrayLike
) -> Measured:
    """Score predictions for labelled examples by the metrics of the official scorers; all lie between -1 and 1.

    predictions: in the order of the rows the numbers of classes or options, numbers, or sequences of tags; of questions the
    answers by key, the empty text where none is given.

    `f1` is that of class 1 and only for two classes; `macro_f1` is the mean over classes that occur. A correlation with a
    constant is 0. `exact_match` of rows in groups is the share of groups that are right throughout (MultiRC); of answers, like
    `answer_f1`, it is that of the SQuAD scorers (see `answers`). Of entities, see `entities`.
    Raises: ValueError for a metric that these examples do not have, or predictions that do not fit the rows.
    """
    known = metric_names(examples)
    for name in names:
        if name not in known:
            raise ValueError(f"no score {name!r} for this {kind}{nearest(name, known)}")
    if not examples.labelled:
        raise ValueError(f"{examples.source} has no labels to score by")
    measured = _KINDS[kind](examples, predictions)
    return Measured({name: measured.scores[name] for name in names}, measured.learned)


def measure(kind: Kind, truth: ArrayLike, predicted: ArrayLike, labels: int = 0) -> Measured:
    """Score the predictions of a task: class numbers below `labels`, or real numbers.

    `f1` is that of class 1 and only for two classes; `macro_f1` is the mean over classes that occur. A correlation with
    a constant is 0.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if kind == "regression":
        learned = not _constant(predicted)
        related = learned and not _constant(truth)
        return Measured(
            {
                "spearman": float(stats.spearmanr(truth, predicted).statistic) if related else 0.0,
                "pearson": float(stats.pearsonr(truth, predicted).statistic) if related else 0.0,
            },
            learned,
        )
    scores = {
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "matthews": float(metrics.matthews_corrcoef(truth, predicted)) if np.ptp(truth) and np.ptp(predicted) else 0.0,
    }
    if labels == 2:
        scores["f1"] = float(metrics.f1_score(truth, predicted, zero_division=0))
    scores["macro_f1"] = float(metrics.f1_score(truth, predicted, average="macro", zero_division=0))
    return Measured(scores, bool((predicted != predicted[0]).any()))


def summary(values: Sequence[float]) -> Summary:
    """Sum up the scores of several runs; of a single one, the spread is 0 and the interval a point.

    The interval is the percentile bootstrap over 10,000 resamples, always the same ones. From few runs it is coarse: of
    five it rarely leaves out any.
    """
    scores = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).choice(scores, (RESAMPLES, len(scores)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    std = float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    return Summary(float(np.median(scores)), float(scores.mean()), std, float(low), float(high))


def _constant(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> bool:
    """Tell whether values are equal but for rounding, where a correlation would measure noise."""
    return bool(np.ptp(values) <= 1e-6 * np.abs(values).max())


def _fitting(examples: Examples[Any], predictions: Any) -> Any:
    if len(predictions) != len(examples.rows):
        raise ValueError(f"{examples.source} has {len(examples.rows):,} rows, and there are {len(predictions):,} predictions")
    return predictions


def _score_numbers(examples: Examples[Any], predictions: Any) -> Measured:
    predicted = np.asarray(_fitting(examples, predictions))
    if not np.isfinite(predicted).all():
        raise ValueError(f"predictions for {examples.source} are not finite")
    measured = measure(examples.kind, [row.label for row in examples.rows], predicted, len(examples.labels))
    if not any(row.group for row in examples.rows if examples.kind == "classification"):
        return measured
    right: dict[str, bool] = {}
    for row, number in zip(examples.rows, predicted, strict=True):
        right[row.group] = right.get(row.group, True) and bool(row.label == number)
    return measured._replace(scores=measured.scores | {"exact_match": sum(right.values()) / len(right)})


def _score_choices(examples: Examples[Any], predictions: Any) -> Measured:
    predicted = np.asarray(_fitting(examples, predictions))
    accuracy = float(metrics.accuracy_score([row.label for row in examples.rows], predicted))
    return Measured({"accuracy": accuracy}, bool((predicted != predicted[0]).any()))


def _score_spans(examples: Examples[Any], predictions: Any) -> Measured:
    keys = {row.key for row in examples.rows}
    if strange := sorted(keys ^ set(predictions)):
        what = "is no answer to" if strange[0] in keys else "are answers, but no"
        raise ValueError(f"{examples.source}: there {what} question {strange[0]!r}, one of {len(strange):,}")
    return Measured(answer_scores(examples.rows, predictions), len({predictions[key] for key in keys}) > 1)


def _score_tags(examples: Examples[Any], predictions: Any) -> Measured:
    truth = [row.tags for row in examples.rows]
    for row, tags in zip(examples.rows, _fitting(examples, predictions), strict=True):
        if len(tags) != len(row.words):
            raise ValueError(f"{examples.source}: sentence {row.key} has {len(row.words):,} words and {len(tags):,} predictions")
    pairs = Counter(
        (right, tag) for one, other in zip(truth, predictions, strict=True) for right, tag in zip(one, other, strict=True)
    )
    scores = {"accuracy": sum(number for (right, tag), number in pairs.items() if right == tag) / pairs.total()}
    if is_iob2(examples.labels):
        scores |= entity_scores(truth, predictions)
    return Measured(scores, len({tag for _, tag in pairs}) > 1)


_KINDS: dict[Kind, Callable[[Examples[Any], Any], Measured]] = {
    "classification": _score_numbers,
    "regression": _score_numbers,
    "choices": _score_choices,
    "spans": _score_spans,
    "tags": _score_tags,
}
