"""Every score equals its definition, computed here by hand."""

import math
from statistics import mean, median, stdev

import numpy as np
import pytest

from layerwright.tasks.metrics import SCORES, measure, summary

TRUTH = [1, 1, 1, 0, 0, 1, 0, 1, 0, 0]
GUESS = [1, 0, 1, 0, 1, 1, 0, 1, 0, 1]


def counts(truth, guess, positive):
    pairs = [(t == positive, g == positive) for t, g in zip(truth, guess, strict=True)]
    return pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False)), pairs.count((False, False))


def f1(truth, guess, positive):
    hit, false, missed, _ = counts(truth, guess, positive)
    return 2 * hit / (2 * hit + false + missed)


def correlation(x, y):
    dx, dy = [a - mean(x) for a in x], [b - mean(y) for b in y]
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / math.sqrt(sum(a * a for a in dx) * sum(b * b for b in dy))


def ranks(values):
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def test_two_classes():
    scores, learned = measure("classification", TRUTH, GUESS, labels=2)
    hit, false, missed, rest = counts(TRUTH, GUESS, 1)
    assert scores["accuracy"] == pytest.approx((hit + rest) / 10)
    assert scores["f1"] == pytest.approx(f1(TRUTH, GUESS, 1))
    assert scores["macro_f1"] == pytest.approx((f1(TRUTH, GUESS, 0) + f1(TRUTH, GUESS, 1)) / 2)
    sides = (hit + false) * (hit + missed) * (rest + false) * (rest + missed)
    assert scores["matthews"] == pytest.approx((hit * rest - false * missed) / math.sqrt(sides))
    assert learned
    assert tuple(scores) == SCORES["classification"]


def test_three_classes():
    truth, guess = [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 2, 1, 1, 0]
    scores, _ = measure("classification", truth, guess, labels=3)
    assert "f1" not in scores
    assert scores["macro_f1"] == pytest.approx(mean(f1(truth, guess, label) for label in range(3)))
    indicator = [[[float(value == label) for label in range(3)] for value in values] for values in (truth, guess)]
    t, g = (np.array(one) - np.mean(one, axis=0) for one in indicator)
    assert scores["matthews"] == pytest.approx((t * g).sum() / math.sqrt((t * t).sum() * (g * g).sum()))


def test_correlations():
    truth, guess = [1.0, 2.0, 2.0, 4.0, 5.0, 0.5], [1.5, 1.0, 2.5, 3.0, 9.0, 1.0]
    scores, learned = measure("regression", truth, guess)
    assert scores["pearson"] == pytest.approx(correlation(truth, guess))
    assert scores["spearman"] == pytest.approx(correlation(ranks(truth), ranks(guess)))
    assert learned
    assert tuple(scores) == SCORES["regression"]


@pytest.mark.parametrize("constant", [0, 1])
def test_one_class_for_all_is_not_learning(constant):
    scores, learned = measure("classification", TRUTH, [constant] * 10, labels=2)
    assert not learned
    assert scores["accuracy"] == 0.5
    assert scores["matthews"] == 0


def test_one_number_for_all_is_not_learning():
    for guess in ([2.0] * 4, [2.0, 2.0 + 1e-7, 2.0, 2.0 - 1e-7]):
        assert measure("regression", [1.0, 2.0, 3.0, 4.0], guess) == ({"spearman": 0.0, "pearson": 0.0}, False)
    scores, learned = measure("regression", [1.0, 1.0], [1.0, 2.0])
    assert learned
    assert scores["pearson"] == 0


def test_small_numbers_may_still_be_learned():
    scores, learned = measure("regression", [1e-8, 2e-8, 3e-8], [1e-9, 2e-9, 3e-9])
    assert learned
    assert scores["pearson"] == pytest.approx(1)


def test_summary_against_its_definition():
    values = [0.8, 0.7, 0.9, 0.75, 0.72]
    got = summary(values)
    assert (got.median, got.mean, got.std) == pytest.approx((median(values), mean(values), stdev(values)))
    assert min(values) <= got.low < got.median < got.high <= max(values)
    assert summary(values) == got
    assert summary(values[::-1])[:3] == pytest.approx(got[:3])


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = [low <= 0 <= high for *_, low, high in (summary(list(rng.normal(size=25))) for _ in range(200))]
    assert 0.88 <= mean(inside) <= 0.99


def test_one_run_has_no_spread():
    assert summary([0.5]) == (0.5, 0.5, 0.0, 0.5, 0.5)
