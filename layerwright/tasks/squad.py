"""Read questions about contexts, in the form of SQuAD v1.1 and v2.0 and from records of any file.

An answer is kept with the place of its characters, and a file whose answers are not where it says they are is refused: what would
be learned from it is noise.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layerwright.errors import DataError
from layerwright.tasks.examples import Answer, Span
from layerwright.tasks.records import Faults, Record, count, is_text, whole


def questions(path: Path, faults: Faults, *, labelled: bool = True) -> Iterator[tuple[int, Span]]:
    """Yield the questions of a .json file with their numbers, the first being 1.

    Raises: DataError for a file that is not JSON in the form of SQuAD.
    """
    try:
        content = json.loads(whole(path))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DataError) else DataError(f"{path} is not JSON: {error}") from None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise DataError(f"{path} is not in the form of SQuAD: it has no list 'data' of articles")
    empty = str(content.get("version", "")).lower().startswith(("v2", "2"))  # there an empty list of answers says it all
    number = 0
    for place, paragraph, context in _paragraphs(path, articles):
        asked = paragraph.get("qas")
        if not isinstance(asked, list):
            raise DataError(f"{path} is not in the form of SQuAD: {place} has no list 'qas' of questions")
        for question in asked:
            number += 1
            try:
                if not isinstance(question, dict):
                    raise ValueError(f"of {place} is not an object {{...}}")
                fields = {"context": context} | question
                if labelled and not (empty or question.get("answers") or question.get("is_impossible")):
                    raise ValueError("has no answer, and no is_impossible that says so")
                yield number, span(Record(number, number - 1, fields), labelled=labelled)
            except ValueError as error:
                named = f"(id {question['id']!r}) " if isinstance(question, dict) and "id" in question else ""
                faults.add(number, f"{named}{error}")


def span(record: Record, *, labelled: bool = True) -> Span:
    """Turn a record with id, question, context and answers into a question.

    answers: a list of {text, answer_start}, or as data sets of the hub have it {text: [...], answer_start: [...]}; none, or
    is_impossible, where it cannot be answered.
    Raises: ValueError saying what is wrong with it.
    """
    fields = record.fields
    texts = {name: _need(fields, name) for name in ("question", "context")}
    given = fields.get("answers")
    if given is None:
        if labelled:
            raise ValueError("has no list of answers")
        given = []
    answers = tuple(_answer(one, texts["context"]) for one in _listed(given))
    if answers and fields.get("is_impossible"):
        raise ValueError(f"is said to be impossible and has {count(len(answers), 'answer')}")
    key = fields.get("id", record.place)
    if not isinstance(key, str | int) or not is_text(str(key)):
        raise ValueError("has an id that is no text")
    return Span(str(key), texts["question"], texts["context"], answers)


def _paragraphs(path: Path, articles: list[Any]) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Yield what a paragraph is called in messages, the paragraph, and its context."""
    for at, article in enumerate(articles, 1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list) or not all(isinstance(one, dict) for one in paragraphs):
            raise DataError(f"{path} is not in the form of SQuAD: article {at} has no list 'paragraphs' of objects")
        for number, paragraph in enumerate(paragraphs, 1):
            yield f"article {at}, paragraph {number}", paragraph, paragraph.get("context")


def _need(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"has no {name}")
    if not is_text(value):
        raise ValueError(f"holds a NUL or half of a surrogate pair in its {name}")
    return value


def _listed(given: object) -> list[Any]:
    """Return answers as a list, whichever way they are given."""
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    elif isinstance(given, list):
        return given
    raise ValueError("needs a list of answers, each with text and answer_start")


def _answer(given: object, context: str) -> Answer:
    """Check that an answer is where it is said to be."""
    text, start = (given.get("text"), given.get("answer_start")) if isinstance(given, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError("has an answer without text or answer_start")
    if not text.strip():
        raise ValueError("has an empty answer")
    if start >= 0 and context.startswith(text, start):
        return Answer(start, text)
    places = [place for place in range(len(context)) if context.startswith(text, place)]
    if not places:
        raise ValueError(f"has the answer {text[:80]!r}, which is not in its context")
    near = min(places, key=lambda place: abs(place - start))
    raise ValueError(f"has the answer {text[:80]!r} at {start}, where its context has another text; the nearest is at {near}")
