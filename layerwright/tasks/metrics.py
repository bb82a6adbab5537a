"""Score predictions, and sum up the scores of several seeds.

One fine-tuning run says little: on small tasks two seeds differ by more than two architectures do. So scores are
summed up by their median and a bootstrap interval, and a run that predicts one thing for every row is marked as not having
learned, however good its accuracy looks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics

from layerwright.tasks.tables import Kind

SCORES: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "matthews", "f1", "macro_f1"),
    "regression": ("spearman", "pearson"),
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
        "matthews": float(metrics.matthews_corrcoef(truth, predicted)),
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
