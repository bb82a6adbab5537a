"""Every metric equals its reference on random predictions: scikit-learn, scipy, seqeval, and SQuAD's definitions written out."""

import collections
import re
import string
import warnings
from random import Random

import numpy as np
import pytest
from scipy import stats
from seqeval import metrics as seqeval
from sklearn import metrics

from layerwright.tasks.conll import fault_of
from layerwright.tasks.examples import Answer, Choice, Examples, Row, Span, Tagged
from layerwright.tasks.metrics import metric_names, score

LABELS = {2: ("no", "yes"), 3: ("a", "b", "c")}


def classified(truth: list[int], labels: tuple[str, ...], groups: list[str] | None = None) -> Examples[Row]:
    groups = groups or [""] * len(truth)
    rows = [Row(str(place), "x", None, label, groups[place]) for place, label in enumerate(truth)]
    return Examples("made", "classification", labels, tuple(rows))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_classes_equal_scikit_learn(classes, seed):
    chance = Random(seed)
    truth = [chance.randrange(classes if seed else 1) for _ in range(chance.choice([1, 2, 30]))]
    guess = [chance.randrange(1 if seed == 1 else classes) for _ in truth]
    examples = classified(truth, LABELS[classes])
    names = metric_names(examples)
    scores, learned = score("classification", names, examples, guess)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": metrics.accuracy_score(truth, guess),
            "matthews": metrics.matthews_corrcoef(truth, guess),
            "macro_f1": metrics.f1_score(truth, guess, average="macro"),
        }
        if classes == 2:
            expected["f1"] = metrics.f1_score(truth, guess)
    assert scores == pytest.approx(expected)
    assert set(names) == set(expected)
    assert learned == (len(set(guess)) > 1)


@pytest.mark.parametrize(
    ("truth", "guess"), [([0] * 4, [0] * 4), ([1] * 4, [1] * 4), ([1] * 3, [0] * 3), ([0, 1], [1, 0]), ([1], [1])]
)
def test_one_class_alone_is_scored_as_scikit_learn_scores_it(truth, guess):
    names = ("accuracy", "matthews", "f1", "macro_f1")
    scores, _ = score("classification", names, classified(truth, LABELS[2]), guess)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (metrics.accuracy_score, metrics.matthews_corrcoef, metrics.f1_score)
        assert list(scores.values())[:3] == pytest.approx([one(truth, guess) for one in expected])
        assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))


@pytest.mark.parametrize("seed", range(6))
def test_numbers_equal_scipy_ties_included(seed):
    chance = Random(seed)
    truth = [float(chance.randrange(6)) for _ in range(40)]
    guess = [round(value + chance.gauss(0, 2)) if seed % 2 else value + chance.gauss(0, 1) for value in truth]
    rows = tuple(Row(str(place), "x", "y", label) for place, label in enumerate(truth))
    scores, learned = score("regression", ("pearson", "spearman"), Examples("made", "regression", (), rows), guess)
    assert list(scores) == ["pearson", "spearman"]
    assert scores["pearson"] == pytest.approx(stats.pearsonr(truth, guess).statistic)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(truth, guess).statistic)
    assert learned
    assert score("regression", ("pearson",), Examples("made", "regression", (), rows), [1.5] * 40) == ({"pearson": 0.0}, False)


def test_groups_are_right_when_all_their_rows_are():
    chance = Random(3)
    groups = [str(chance.randrange(12)) for _ in range(40)]
    truth = [chance.randrange(2) for _ in groups]
    guess = [label if chance.random() < 0.8 else 1 - label for label in truth]
    examples = classified(truth, LABELS[2], groups)
    scores, _ = score("classification", ("f1", "exact_match"), examples, guess)
    right = [all(truth[n] == guess[n] for n in range(40) if groups[n] == group) for group in sorted(set(groups))]
    assert scores == pytest.approx({"f1": metrics.f1_score(truth, guess), "exact_match": np.mean(right)})
    assert 0 < scores["exact_match"] < scores["f1"]


@pytest.mark.parametrize("options", [2, 5])
def test_choices_equal_scikit_learn(options):
    chance = Random(options)
    truth = [chance.randrange(options) for _ in range(40)]
    guess = [label if chance.random() < 0.5 else chance.randrange(options) for label in truth]
    rows = tuple(Choice(str(n), "x", tuple("abcde"[:options]), label) for n, label in enumerate(truth))
    scores, learned = score("choices", ("accuracy",), Examples("made", "choices", (), rows), guess)
    assert (scores, learned) == ({"accuracy": pytest.approx(metrics.accuracy_score(truth, guess))}, True)


def test_choices():
    rows = tuple(Choice(str(n), "x", ("a", "b"), n % 2) for n in range(4))
    examples = Examples("made", "choices", (), rows)
    assert score("choices", ("accuracy",), examples, [0, 1, 1, 1]) == ({"accuracy": 0.75}, True)
    assert score("choices", ("accuracy",), examples, [1, 1, 1, 1]) == ({"accuracy": 0.5}, False)


def as_squad(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def overlap(gold: list[str], given: list[str]) -> float:
    common = sum((collections.Counter(gold) & collections.Counter(given)).values())
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def v1(golds: list[str], given: str) -> tuple[float, float]:
    return max(as_squad(gold) == as_squad(given) for gold in golds), max(
        overlap(as_squad(gold), as_squad(given)) for gold in golds
    )


def v2(golds: list[str], given: str) -> tuple[float, float]:
    exact, shared = [], []
    for gold in [gold for gold in golds if as_squad(gold)] or [""]:
        one, other = as_squad(gold), as_squad(given)
        exact.append(one == other)
        shared.append(overlap(one, other) if one and other else float(one == other))
    return max(exact), max(shared)


PIECES = ["the", "The", "a", "an", "red", "Red,", "red-hot", "...", "café", "“yes”", "U.S.", "theme", "  ", "7%", ""]


@pytest.mark.parametrize("reference", [v1, v2])
@pytest.mark.parametrize("seed", range(5))
def test_answers_equal_the_definitions_of_squad(reference, seed):
    chance = Random(seed)

    def text() -> str:
        return " ".join(chance.choices(PIECES, k=chance.randint(0, 4)))

    golds = [[text() for _ in range(chance.randint(1, 3))] for _ in range(200)]
    if reference is v2:
        golds[::3] = [[] for _ in golds[::3]]
    rows = tuple(Span(str(n), "q", "c", tuple(Answer(0, gold) for gold in some)) for n, some in enumerate(golds))
    given = {row.key: chance.choice([text(), *(answer.text.upper() for answer in row.answers)]) for row in rows}
    expected = np.mean([reference(some, given[str(n)]) for n, some in enumerate(golds)], axis=0)
    scores, learned = score("spans", ("exact_match", "answer_f1"), Examples("made", "spans", (), rows), given)
    assert list(scores.values()) == pytest.approx(list(expected))
    assert all(0.05 < value < 0.95 for value in scores.values())
    assert learned


def test_no_answer_to_any_question_is_not_learning():
    rows = (Span("x", "q", "c", ()), Span("y", "q", "c", (Answer(0, "c"),)))
    scores, learned = score("spans", ("exact_match",), Examples("made", "spans", (), rows), {"x": "", "y": ""})
    assert (scores, learned) == ({"exact_match": 0.5}, False)


TAGS = ("O", "B-a", "I-a", "B-b", "I-b")


def tagged(truth: list[list[str]], labels: tuple[str, ...] = TAGS) -> Examples[Tagged]:
    return Examples("made", "tags", labels, tuple(Tagged(str(n), tuple(tags), tuple(tags)) for n, tags in enumerate(truth)))


HYPHENED = ("O", "B-work", "I-work", "B-creative-work", "I-creative-work")


def legal(tags: list[str]) -> list[str]:
    """The same with a B- wherever an entity must begin."""
    return [
        tag if not tag.startswith("I-") or before[2:] == tag[2:] else f"B-{tag[2:]}"
        for before, tag in zip(["O", *tags], tags, strict=False)
    ]


@pytest.mark.parametrize("names", [TAGS, HYPHENED])
@pytest.mark.parametrize("seed", range(10))
def test_entities_equal_seqeval_legal_or_not(seed, names):
    chance = Random(seed)
    truth = [chance.choices(names, k=chance.randint(1, 9)) for _ in range(60)]
    if seed % 2:
        truth = [legal(tags) for tags in truth]
        assert all(fault_of(tags, names) is None for tags in truth)
    guess = [[tag if chance.random() < 0.7 else chance.choice(names) for tag in tags] for tags in truth]
    assert any(fault_of(tags, names) for tags in guess)
    if seed == 0:
        guess = [["O"] * len(tags) for tags in truth]
    if seed == 1:
        truth = [["O"] * len(tags) for tags in truth]
    examples = tagged(truth, names)
    scores, learned = score("tags", metric_names(examples), examples, guess)
    expected = {
        "entity_f1": seqeval.f1_score(truth, guess, zero_division=0),
        "entity_precision": seqeval.precision_score(truth, guess, zero_division=0),
        "entity_recall": seqeval.recall_score(truth, guess, zero_division=0),
        "accuracy": seqeval.accuracy_score(truth, guess),
    }
    assert scores == pytest.approx(expected)
    assert learned == (seed != 0)


def test_tags_of_another_sort_have_an_accuracy_alone():
    examples = tagged([["NN", "VB"], ["NN"]], ("NN", "VB"))
    assert metric_names(examples) == ("accuracy",)
    assert score("tags", ("accuracy",), examples, [["NN", "NN"], ["NN"]]) == ({"accuracy": pytest.approx(2 / 3)}, False)


def test_what_does_not_fit_is_refused():
    examples = classified([0, 1, 2], LABELS[3])
    with pytest.raises(ValueError, match="no score 'f1' for this classification"):
        score("classification", ("f1",), examples, [0, 1, 2])
    with pytest.raises(ValueError, match=r"no score 'macrof1' .*did you mean 'macro_f1'"):
        score("classification", ("macrof1",), examples, [0, 1, 2])
    with pytest.raises(ValueError, match="3 rows, and there are 2 predictions"):
        score("classification", ("accuracy",), examples, [0, 1])
    with pytest.raises(ValueError, match="not finite"):
        score("regression", ("pearson",), examples._replace(kind="regression", labels=()), [0.0, float("nan"), 1.0])
    with pytest.raises(ValueError, match="sentence 0 has 2 words and 1 predictions"):
        score("tags", ("accuracy",), tagged([["O", "B-a"]]), [["O"]])
    spans = Examples("made", "spans", (), (Span("x", "q", "c", (Answer(0, "c"),)),))
    for given, reason in (
        ({}, "there is no answer to question 'x'"),
        ({"x": "c", "y": "c"}, "there are answers, but no question 'y'"),
    ):
        with pytest.raises(ValueError, match=reason):
            score("spans", ("exact_match",), spans, given)
    unlabelled = Examples("made", "classification", LABELS[2], (Row("0", "x", None, None),))
    with pytest.raises(ValueError, match="no labels to score by"):
        score("classification", ("accuracy",), unlabelled, [0])
