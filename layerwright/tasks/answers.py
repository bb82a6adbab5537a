"""Score answers to questions as the official scorers of SQuAD do.

Both compare after lower-casing and dropping punctuation, articles and superfluous blanks, and give each question the best over
its gold answers: exact match, and F1 of the words in common. They differ in what they make of an answer of which nothing is left
then: v1.1 never gives it any F1; v2.0 leaves such gold answers out, and where none remains the empty answer is right.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from layerwright.tasks.examples import Span

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalised(answer: str) -> str:
    """Return an answer as it is compared: lower case, without punctuation, articles and superfluous blanks."""
    return " ".join(_ARTICLE.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def answer_scores(questions: Sequence[Span], answers: Mapping[str, str]) -> dict[str, float]:
    """Return `exact_match` and `answer_f1`, means over all questions from 0 to 1.

    answers: by key of the question, empty where none is given. The definition is v2.0's if any question has no gold answer, else
    v1.1's.
    """
    some_empty = some_impossible(questions)
    exact, shared = (
        sum(scores) for scores in zip(*(judged(one, answers[one.key], some_empty) for one in questions), strict=True)
    )
    return {"exact_match": exact / len(questions), "answer_f1": shared / len(questions)}


def some_impossible(questions: Sequence[Span]) -> bool:
    """Tell whether any question has no gold answer, so that v2.0's definition holds."""
    return any(not question.answers for question in questions)


def judged(question: Span, answer: str, impossible: bool) -> tuple[float, float]:
    """Return the exact match and the F1 of an answer to a question; `impossible` tells whether some of the data set are."""
    given = normalised(answer)
    golds = {normalised(gold.text) for gold in question.answers}
    if impossible:
        golds = {gold for gold in golds if gold} or {""}
    overlaps = (_overlap(given.split(), gold.split(), empty=float(impossible)) for gold in golds)
    return float(given in golds), max(overlaps)


def _overlap(given: list[str], gold: list[str], *, empty: float) -> float:
    """Return the F1 of the words two answers have in common; `empty` if neither has any."""
    if not given and not gold:
        return empty
    return 2 * (Counter(given) & Counter(gold)).total() / (len(given) + len(gold))
