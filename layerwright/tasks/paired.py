"""Tell whether two models differ: paired differences over seeds and over rows, their intervals and permutation tests.

Two ideas. What is compared is paired, seed with seed and row with row, so what both find hard cancels out. And if the models did
not differ, the two results of a pair could as well stand the other way round: the p value is the share of all such exchanges
that leave a difference at least as large, counted exactly where there are few (Fisher 1935; of rows, Noreen 1989).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from layerwright.tasks.answers import judged, some_impossible
from layerwright.tasks.entities import entities
from layerwright.tasks.examples import Examples
from layerwright.tasks.metrics import RESAMPLES

Floats = NDArray[np.float64]
AT_ONCE = 1 << 22  # numbers of a block of exchanges or resamples

_SLACK = 1e-12  # sums that are equal but for rounding count as equal


class Paired(NamedTuple):
    """Differences of pairs, the second less the first: their middle and spread, and the p value, two-sided.

    low, high: the 95 % bootstrap interval of the mean.  exact: whether p was counted over all exchanges rather than over 10,000
    random ones.  least: the smallest p that so many pairs can have.
    """

    median: float
    mean: float
    std: float
    low: float
    high: float
    p: float
    exact: bool
    least: float


class OverRows(NamedTuple):
    """The difference of a score, mean over seeds, and what it owes to the rows: interval and p value as in `Paired`.

    units: how many rows, or groups of rows judged together.
    """

    difference: float
    low: float
    high: float
    p: float
    exact: bool
    units: int


class Tally(NamedTuple):
    """A score as a function of sums over units: the rows, or groups of rows.

    parts: what each unit adds, [units, K].  score: turns sums [..., K] into scores [...].
    """

    parts: Floats
    score: Callable[[Floats], Floats]


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare the scores of two models, seed by seed: the test exchanges the models within seeds, which flips signs.

    Raises: ValueError if there are not as many of the one as of the other.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} scores cannot be paired with {len(second)}")
    change = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    seeds = len(change)
    drawn = np.random.default_rng(0).choice(change, (RESAMPLES, seeds)).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    p, exact = _share_as_large(seeds, float(change.mean()), lambda swaps: ((1 - 2 * swaps) @ change) / seeds)
    std = float(change.std(ddof=1)) if seeds > 1 else 0.0
    least = 2.0 ** (1 - seeds) if exact else 1 / (RESAMPLES + 1)
    return Paired(float(np.median(change)), float(change.mean()), std, float(low), float(high), p, exact, least)


def over_rows(first: Sequence[Tally], second: Sequence[Tally]) -> OverRows:
    """Compare the predictions of two models, a tally for each seed of either: the test exchanges them within units, in all seeds.

    Raises: ValueError for tallies that are not of the same units.
    """
    shapes = {tally.parts.shape for tally in (*first, *second)}
    if len(first) != len(second) or len(shapes) != 1:
        raise ValueError(f"tallies of {len(first)} and {len(second)} seeds, over {sorted(shapes)}, cannot be paired")
    ((units, width),) = shapes
    seeds, score = len(first), first[0].score
    one, other = (np.hstack([tally.parts for tally in tallies]) for tallies in (first, second))
    moved = other - one

    def scores(sums: Floats) -> Floats:
        return np.asarray(score(sums.reshape(-1, seeds, width)).mean(axis=1), np.float64)

    def exchanged(swaps: Floats) -> Floats:
        change = swaps @ moved
        return scores(other.sum(0) - change) - scores(one.sum(0) + change)

    difference = float(exchanged(np.zeros((1, units)))[0])
    p, exact = _share_as_large(units, difference, exchanged)
    drawn = [scores(times @ other) - scores(times @ one) for times in _resampled(units)]
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return OverRows(difference, float(low), float(high), p, exact, units)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values raised for being several, so that a false alarm among all of them is as rare as said (Holm 1979)."""
    raised, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        raised[place] = largest
    return raised


def tally(metric: str, examples: Examples[Any], predictions: Sequence[Any] | Mapping[str, str]) -> Tally:
    """Split a score of predictions into what each row adds to it; both are as for `metrics.score`.

    `spearman` is the Pearson correlation of ranks, which resampling leaves as they are in the whole.
    Raises: ValueError for a score that is no function of sums over rows.
    """
    if examples.kind == "spans" and isinstance(predictions, Mapping):
        return _of_answers(metric, examples, predictions)
    assert not isinstance(predictions, Mapping)
    if examples.kind == "tags":
        return _of_tags(metric, examples, predictions)
    truth = np.asarray([row.label for row in examples.rows], np.float64)
    predicted = np.asarray(predictions, np.float64)
    if metric in ("pearson", "spearman"):
        return Tally(_moments(truth, predicted, ranked=metric == "spearman"), _correlation)
    if metric == "accuracy":
        return Tally(np.stack([truth == predicted, np.ones(len(truth))], axis=1, dtype=np.float64), _share)
    groups = [row.group for row in examples.rows] if examples.kind == "classification" else []
    if metric == "exact_match" and any(groups):
        wrong = _by_group(groups, (truth != predicted)[:, None].astype(np.float64)) > 0
        return Tally(np.hstack([~wrong, np.ones_like(wrong)]).astype(np.float64), _share)
    if metric not in _OF_COUNTS:
        raise ValueError(f"the score {metric!r} cannot be split into rows")
    classes = len(examples.labels)
    parts = np.eye(classes * classes)[(truth * classes + predicted).astype(int)]
    return Tally(_by_group(groups, parts) if any(groups) else parts, _OF_COUNTS[metric])


def _share_as_large(pairs: int, seen: float, exchanged: Callable[[Floats], Floats]) -> tuple[float, bool]:
    """Return the share of exchanges of pairs whose difference is at least the one seen, and whether all were counted.

    Of random ones, that which leaves all as it was counts as one more, so that p is never 0.
    """
    exact = 2**pairs <= RESAMPLES
    blocks = _all_exchanges(pairs) if exact else _random_exchanges(pairs)
    as_large = sum(int((np.abs(exchanged(swaps)) >= abs(seen) - _SLACK).sum()) for swaps in blocks)
    return (as_large / 2**pairs if exact else (as_large + 1) / (RESAMPLES + 1)), exact


def _all_exchanges(pairs: int) -> Iterator[Floats]:
    yield (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1).astype(np.float64)


def _random_exchanges(pairs: int) -> Iterator[Floats]:
    chance = np.random.default_rng(0)
    for count in _blocks(pairs):
        yield chance.integers(0, 2, (count, pairs), dtype=np.int8).astype(np.float64)


def _resampled(units: int) -> Iterator[Floats]:
    """Yield how often each unit occurs in bootstrap resamples, a block [resamples, units] at a time."""
    chance = np.random.default_rng(0)
    for count in _blocks(units):
        drawn = chance.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)


def _blocks(width: int) -> Iterator[int]:
    size = max(1, AT_ONCE // width)
    for begin in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - begin)


def _by_group(groups: Sequence[str], parts: Floats) -> Floats:
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    summed = np.zeros((len(places), parts.shape[1]))
    np.add.at(summed, [places[group] for group in groups], parts)
    return summed


def _moments(truth: Floats, predicted: Floats, *, ranked: bool) -> Floats:
    if ranked:
        truth, predicted = stats.rankdata(truth), stats.rankdata(predicted)
    # Correlations do not change with place and scale, and sums of squares of large numbers lose digits.
    x, y = ((values - values.mean()) / (values.std() or 1.0) for values in (truth, predicted))
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _divided(over: Floats, under: Floats) -> Floats:
    return np.divide(over, under, out=np.zeros_like(over), where=np.abs(under) > _SLACK)


def _share(sums: Floats) -> Floats:
    return _divided(sums[..., 0], sums[..., 1])


def _correlation(sums: Floats) -> Floats:
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0)
    return _divided(count * xy - x * y, np.sqrt(spread))


def _counts(sums: Floats) -> Floats:
    """Return sums as counts [..., truth, prediction]."""
    classes = round(sums.shape[-1] ** 0.5)
    return sums.reshape(*sums.shape[:-1], classes, classes)


def _matthews(sums: Floats) -> Floats:
    """Return the correlation of classes (Gorodkin 2004), that of Matthews where there are two."""
    counts = _counts(sums)
    right, whole = np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1))
    truth, predicted = counts.sum(-1), counts.sum(-2)
    spread = (whole**2 - (predicted**2).sum(-1)) * (whole**2 - (truth**2).sum(-1))
    return _divided(right * whole - (truth * predicted).sum(-1), np.sqrt(np.maximum(spread, 0)))


def _class_f1(sums: Floats) -> tuple[Floats, Floats]:
    """Return the F1 of each class and how often it is expected or predicted."""
    counts = _counts(sums)
    occurs = counts.sum(-1) + counts.sum(-2)
    return _divided(2 * np.diagonal(counts, axis1=-2, axis2=-1), occurs), occurs


def _f1(sums: Floats) -> Floats:
    return _class_f1(sums)[0][..., 1]


def _macro_f1(sums: Floats) -> Floats:
    scores, occurs = _class_f1(sums)
    return _divided(scores.sum(-1), (occurs > 0).sum(-1).astype(np.float64))


_OF_COUNTS = {"matthews": _matthews, "f1": _f1, "macro_f1": _macro_f1}


def _of_answers(metric: str, examples: Examples[Any], answers: Mapping[str, str]) -> Tally:
    some_empty = some_impossible(examples.rows)
    column = ("exact_match", "answer_f1").index(metric)
    found = [judged(question, answers[question.key], some_empty)[column] for question in examples.rows]
    return Tally(np.stack([found, np.ones(len(found))], axis=1, dtype=np.float64), _share)


def _of_tags(metric: str, examples: Examples[Any], predictions: Sequence[Any]) -> Tally:
    """Return the tally of right, expected and found entities, or of right tags and words, of each sentence."""
    pairs = list(zip((row.tags for row in examples.rows), predictions, strict=True))
    if metric == "accuracy":
        parts = [[sum(map(str.__eq__, one, other)), len(one)] for one, other in pairs]
        return Tally(np.asarray(parts, np.float64), _share)
    found = [(set(entities(one)), set(entities(other))) for one, other in pairs]
    sums = np.asarray([[len(one & other), len(one), len(other)] for one, other in found], np.float64)
    right, expected, guessed = sums.T
    over, under = {
        "entity_f1": (2 * right, expected + guessed),
        "entity_precision": (right, guessed),
        "entity_recall": (right, expected),
    }[metric]
    return Tally(np.stack([over, under], axis=1), _share)
