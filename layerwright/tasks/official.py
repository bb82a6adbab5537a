"""Turn the rows of tasks that are more than one or two texts and a label into texts, and tell splits apart that share a file.

What a model sees of such a row is decided here and nowhere else: how the question of COPA, the word of WiC and the pronoun of WSC
enter the text. A shape is a function from the fields of a record to those of one or more rows: key, first, second, options,
label, group. It raises a ValueError that says what is wrong with the record.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from layerwright.errors import DataError
from layerwright.tasks.records import Faults, Record, lines

Fields = Mapping[str, Any]
Shape = Callable[[Fields], Iterator[dict[str, Any]]]
Part = Callable[[Path, str, Iterator[Record]], Iterator[Record]]

ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def copa(fields: Fields) -> Iterator[dict[str, Any]]:
    """Ask for the cause or the result after the premise; the alternatives are the options."""
    asked = _text(fields, "question")
    if asked not in ASKED:
        raise ValueError(f"asks for {asked!r}, where COPA asks for cause or effect")
    options = [_text(fields, "choice1"), _text(fields, "choice2")]
    yield _row(fields, first=f"{_text(fields, 'premise')} {ASKED[asked]}", options=options)


def wic(fields: Fields) -> Iterator[dict[str, Any]]:
    """Put the word between asterisks in both sentences, at the characters the row gives; its base form is left out."""
    yield _row(fields, **{part: _marked(fields, number) for number, part in enumerate(("first", "second"), 1)})


def wsc(fields: Fields) -> Iterator[dict[str, Any]]:
    """Put the pronoun between asterisks in the text, and give the noun phrase as the second text: is it what is meant?

    The place of a pronoun is that of a word, counted by blanks; where another word stands there, as in one row of the official
    dev split, the nearest place it does stand at is taken.
    """
    spans = fields["target"] if isinstance(fields.get("target"), dict) else fields
    text, pronoun, noun = _text(fields, "text"), _text(spans, "span2_text"), _text(spans, "span1_text")
    place = _number(spans, "span2_index")
    words = [match.start() for match in re.finditer(r"\S+", text)]
    starts = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(pronoun)}(?!\w)", text, re.IGNORECASE)]
    if not starts:
        raise ValueError(f"has the pronoun {pronoun!r}, which is not in its text")
    if place < 0 or place >= len(words):
        raise ValueError(f"has its pronoun at word {place} of {len(words)}")
    start = min(starts, key=lambda at: abs(sum(word <= at for word in words) - 1 - place))
    yield _row(fields, first=_starred(text, start, start + len(pronoun)), second=noun)


def multirc(fields: Fields) -> Iterator[dict[str, Any]]:
    """Make a row of each answer: the passage, then the question with the answer; those of one question are a group.

    Rows are nested in passages, as in the official files, or flat as on the hub.
    """
    if "passage" not in fields:
        places = fields.get("idx")
        if not isinstance(places, dict):
            raise ValueError("has no 'idx' of paragraph, question and answer")
        group = "-".join(str(_number(places, name)) for name in ("paragraph", "question"))
        second = f"{_text(fields, 'question')} {_text(fields, 'answer')}"
        key = f"{group}-{_number(places, 'answer')}"
        yield {"key": key, "first": _text(fields, "paragraph"), "second": second, "label": fields.get("label"), "group": group}
        return
    passage = _object(fields, "passage")
    for question in _objects(passage, "questions"):
        group = f"{_number(fields, 'idx')}-{_number(question, 'idx')}"
        for answer in _objects(question, "answers"):
            second = f"{_text(question, 'question')} {_text(answer, 'text')}"
            key = f"{group}-{_number(answer, 'idx')}"
            yield {"key": key, "first": _text(passage, "text"), "second": second, "label": answer.get("label"), "group": group}


def mrpc_part(path: Path, split: str, records: Iterator[Record]) -> Iterator[Record]:
    """Tell GLUE's train and dev rows apart in the corpus's own training file, by the pairs of ids in GLUE's dev_ids.tsv.

    Raises: DataError if that file is missing, or names pairs that are not there.
    """
    if path.name != "msr_paraphrase_train.txt":
        yield from records
        return
    listed = path.with_name("dev_ids.tsv")
    if not listed.is_file():
        raise DataError(f"{path} holds train and dev rows of MRPC, and {listed}, which tells them apart, is not there")
    faults = Faults(str(listed))
    wanted = {tuple(line.split("\t")) for _, line in lines(listed, faults)}
    faults.settle("stop")
    seen = set()
    for record in records:
        ids = (record.fields.get("#1 ID", ""), record.fields.get("#2 ID", ""))
        seen.add(ids)
        if (ids in wanted) == (split == "dev"):
            yield record
    if lost := wanted - seen:
        raise DataError(f"{listed} names {len(lost):,} pairs that {path} has not, such as {' '.join(min(lost))}")


def sick_part(path: Path, split: str, records: Iterator[Record]) -> Iterator[Record]:
    """Tell the splits apart in SICK.txt, which holds all three.

    Raises: DataError for a row of no split.
    """
    sets = {"TRAIN": "train", "TRIAL": "dev", "TEST": "test"}
    for record in records:
        if path.name == "SICK.txt":
            name = record.fields.get("SemEval_set")
            if name not in sets:
                raise DataError(f"{path}: row {record.row} has the SemEval_set {name!r}, where SICK has {', '.join(sets)}")
            if sets[name] != split:
                continue
        yield record


def _row(fields: Fields, **made: Any) -> dict[str, Any]:
    return {"key": fields.get("idx"), "label": fields.get("label"), **made}


def _marked(fields: Fields, number: int) -> str:
    text, start, end = (_text(fields, f"sentence{number}"), *(_number(fields, f"{name}{number}") for name in ("start", "end")))
    if not 0 <= start < end <= len(text):
        raise ValueError(f"has its word at {start} to {end} of sentence{number}, which has {len(text)} characters")
    return _starred(text, start, end)


def _starred(text: str, start: int, end: int) -> str:
    return f"{text[:start]}*{text[start:end]}*{text[end:]}"


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"has no text {name!r}")
    return value


def _number(fields: Fields, name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"has no integer {name!r}")
    return value


def _object(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"has no object {name!r}")
    return value


def _objects(fields: Fields, name: str) -> list[Fields]:
    value = fields.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"has no list {name!r} of objects")
    return value
