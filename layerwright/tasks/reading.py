"""Turn the records of a file or data set into examples, strictly.

A file is read whole or not at all, unless faulty rows are to be skipped, and then they are counted and named. Labels are looked
up in the classes in order, so that the same word is the same class in every split.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from layerwright.errors import DataError, nearest
from layerwright.tasks.conll import fault_of, in_order, is_iob2, sentences, tagged
from layerwright.tasks.examples import Choice, Examples, ExampleT, Kind, OnBadRow, Row, Span, Tagged
from layerwright.tasks.records import Faults, Record, checked, existing, is_text, jsonl_records, suffix_of, tsv_records
from layerwright.tasks.squad import questions, span

Columns = Mapping[str, tuple[str, ...]]

COLUMNS: Columns = {
    "first": ("sentence1", "sentence", "text", "text_a"),
    "second": ("sentence2", "text_b"),
    "label": ("label",),
    "key": ("idx", "id"),
}
UNLABELLED: Columns = {part: names for part, names in COLUMNS.items() if part != "label"}
LABELS = ("label", "answers", "is_impossible", "tags", "ner_tags")
LISTED = ("options", "choices", "endings")  # what a list of options is called
CONLL = (".conll", ".bio", ".iob", ".iob2", ".annotated")

_NUMBERED = re.compile(r"(?:option|choice|ending)_?([0-9]+)")  # options in columns of their own
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_T = TypeVar("_T")
_Numbered = Iterator[tuple[int, _T]]  # examples with their rows


class Wanted(NamedTuple):
    """What the rows of a source have to be; without kind and labels, what they look like.

    aliases: other spellings of labels.  between: the least and greatest number a regression has.  labelled: False where labels
    may be missing from all rows.  pairs: there must be a column of second texts.
    """

    kind: Kind | None = None
    labels: Sequence[str] | None = None
    columns: Columns = COLUMNS
    aliases: Mapping[str, str] = {}
    between: tuple[float, float] | None = None
    labelled: bool = True
    pairs: bool = False


class _Draft(NamedTuple):
    """A row whose label is still as it was written."""

    row: int
    key: str
    first: str
    second: str
    options: tuple[str, ...]
    label: str
    group: str


def read_file(
    path: str | Path,
    kind: Kind | None = None,
    labels: Sequence[str] | None = None,
    *,
    on_bad_row: OnBadRow = "stop",
    labelled: bool = True,
    tag: int = -1,
) -> Examples[Any]:
    """Read anyone's own file of a task; each may be gzipped, as `.tsv.gz`.

    .tsv (split on tabs, with a header) and .jsonl: columns sentence1[, sentence2], label; with columns choice1, choice2, ... or
    a list `options` they are choices, the label being the place of the right one from 0. Ids in a column `idx` or `id` name the
    rows. Other columns are ignored, unless one looks like a misspelt name that is missing. Texts are pairs if any row has a
    second one. Without a kind, labels are numbers to predict if any is written with a point or an exponent, as 5.000; else
    classes. Without labels, the classes are those found, sorted: as integers if all are, else as text.
    .json: questions in the form of SQuAD. .conll, .bio, .iob, or any other with kind="tags": a word and its tag a line, with
    tabs or blanks between, and an empty line after each sentence; `tag` is the column of the tag, the last one unless said.

    labelled: False where labels may be missing from all rows.
    Raises: DataError naming the file and the rows at fault.
    """
    checked(on_bad_row)
    path, wanted = Path(path), Wanted(kind, labels, labelled=labelled)
    suffix = suffix_of(path)
    if suffix in CONLL or (kind == "tags" and suffix != ".jsonl"):
        return read_words(existing(path), wanted, on_bad_row, tag=tag)
    if suffix == ".json":
        return read_questions(existing(path), wanted, on_bad_row)
    if suffix not in (".tsv", ".jsonl"):
        raise DataError(f"{path} is not a table: known are .tsv and .jsonl files, .json as of SQuAD, and .conll")
    faults = Faults(str(existing(path)))
    check = partial(check_columns, wanted, faults)
    records = tsv_records(path, faults, check) if suffix == ".tsv" else jsonl_records(path, faults)
    return assemble(records, wanted, faults, on_bad_row)


def read_words(path: Path, wanted: Wanted, on_bad_row: OnBadRow = "stop", *, tag: int = -1) -> Examples[Tagged]:
    """Read a CoNLL-style file.

    Raises: DataError naming the lines at fault.
    """
    faults = Faults(str(path), "line")
    _same_kind(faults, wanted.kind, "tags")
    return _tags(sentences(path, faults, tag=tag), wanted, faults, on_bad_row)


def read_questions(path: Path, wanted: Wanted, on_bad_row: OnBadRow = "stop") -> Examples[Span]:
    """Read a file in the form of SQuAD.

    Raises: DataError naming the questions at fault.
    """
    faults = Faults(str(path), "question")
    _same_kind(faults, wanted.kind, "spans")
    return _settled("spans", (), questions(path, faults, labelled=wanted.labelled), faults, on_bad_row)


def check_columns(wanted: Wanted, faults: Faults, columns: Sequence[str]) -> None:
    """Refuse a source whose rows have their columns in common, and not the ones that are needed.

    Raises: DataError naming the columns, as faults of row 1.
    """
    kind = wanted.kind or kind_of(dict.fromkeys(columns))
    if kind not in ("spans", "tags") and (wrong := _places(tuple(columns), _names(wanted, kind))[1]):
        for fault in wrong:
            faults.add(1, fault)
        raise faults.error()


def assemble(records: Iterator[Record], wanted: Wanted, faults: Faults, on_bad_row: OnBadRow) -> Examples[Any]:
    """Turn records into examples of the wanted kind, or of that which the fields of the first one tell.

    Raises: DataError naming the rows at fault.
    """
    head = next(records, None)
    records = records if head is None else chain([head], records)
    kind = wanted.kind or (kind_of(head.fields) if head else None)
    if kind == "spans":
        return _settled(kind, (), _each(records, partial(span, labelled=wanted.labelled), faults), faults, on_bad_row)
    if kind == "tags":
        return _tags(_each(records, tagged, faults), wanted, faults, on_bad_row)
    drafts = [draft for _, draft in _each(records, partial(_draft, names=_names(wanted, kind)), faults)]
    if kind == "choices":
        return _settled(kind, (), _choices(drafts, wanted, faults), faults, on_bad_row)
    written = {draft.label for draft in drafts if draft.label}
    kind = kind or ("classification" if wanted.labels or not any(map(_is_fraction, written)) else "regression")
    classes = () if kind == "regression" else tuple(wanted.labels or _in_order(written))
    examples = _settled(kind, classes, _rows(drafts, classes, wanted, faults), faults, on_bad_row)
    if kind == "classification" and len(classes) < 2 and wanted.labelled:
        raise DataError(f"{faults.source}: every label is {classes[0]!r}, and a classification needs two")
    return examples


def unlabelled(
    records: Iterable[Record], wanted: Wanted, faults: Faults, *, single: bool = False
) -> Iterator[tuple[int, Row | Choice | Span | Tagged]]:
    """Yield what to predict for, as it is read, with its row; what labels, answers or tags there are is not looked at.

    wanted: of kind `spans` needs question and context, `tags` a list of words or a sentence with blanks between them, `choices` a
    text and its options, and any other a text or two; a second text that is empty is none, unless there are to be pairs.
    single: there may be no second text.
    """
    kind, names = wanted.kind, _names(wanted, wanted.kind)

    def bare(record: Record) -> Row | Choice | Span | Tagged:
        record = record._replace(fields={name: value for name, value in record.fields.items() if name not in LABELS})
        if kind == "spans":
            return span(record, labelled=False)
        if kind == "tags" and record.fields.keys() & {"words", "tokens"}:
            return tagged(record)
        draft = _draft(record, names)
        if kind == "choices":
            return Choice(draft.key, draft.first, draft.options, None)
        if kind == "tags":
            return Tagged(draft.key, tuple(f"{draft.first} {draft.second}".split()), None)
        if single and draft.second:
            raise ValueError("has two texts, and the model has learned from one")
        return Row(draft.key, draft.first, draft.second if wanted.pairs else draft.second or None, None)

    return _each(records, bare, faults)


def kind_of(fields: Mapping[str, Any]) -> Kind | None:
    """Tell the kind of a table by its columns, but for classes and numbers, which only the labels tell apart."""
    if {"context", "question", "answers"} <= fields.keys():
        return "spans"
    if fields.keys() & {"words", "tokens"} and fields.keys() & {"tags", "ner_tags"}:
        return "tags"
    listed = any(isinstance(fields.get(name), list) for name in LISTED)
    return "choices" if listed or any(map(_NUMBERED.fullmatch, fields)) else None


def _same_kind(faults: Faults, wanted: Kind | None, kind: Kind) -> None:
    if wanted not in (None, kind):
        raise DataError(f"{faults.source} holds {kind}, and the task is of kind {wanted}")


def _each(records: Iterable[Record], make: Callable[[Record], _T], faults: Faults) -> _Numbered[_T]:
    for record in records:
        try:
            yield record.row, make(record)
        except ValueError as error:
            faults.add(record.row, str(error))


def _settled(
    kind: Kind, labels: tuple[str, ...], numbered: _Numbered[ExampleT], faults: Faults, on_bad_row: OnBadRow
) -> Examples[ExampleT]:
    """Return the examples that have an id of their own, once it is known that the rest may be skipped."""
    rows: dict[str, tuple[int, ExampleT]] = {}
    for row, example in numbered:
        if example.key in rows:
            faults.add(row, f"has the id {example.key!r} of {faults.unit} {rows[example.key][0]}")
        else:
            rows[example.key] = row, example
    skipped = faults.settle(on_bad_row)
    if not rows:
        raise DataError(f"{faults.source} holds no rows" + (f": all {len(skipped):,} were skipped" if skipped else ""))
    return Examples(faults.source, kind, labels, tuple(example for _, example in rows.values()), skipped)


def _tags(numbered: _Numbered[Tagged], wanted: Wanted, faults: Faults, on_bad_row: OnBadRow) -> Examples[Tagged]:
    """Check tags against the scheme and the known ones; lines are counted from that where the sentence begins."""
    found = list(numbered)
    tags = {tag for _, sentence in found for tag in sentence.tags or ()}
    unlabelled = not wanted.labelled and not tags
    scheme = None if is_iob2(tags) else tuple(tags)

    def sound() -> _Numbered[Tagged]:
        for row, sentence in found:
            if sentence.tags is None and not unlabelled:
                faults.add(row, "has no tags")
            elif fault := fault_of(sentence.tags or (), wanted.labels or scheme):
                faults.add(row + fault[0] if faults.unit == "line" else row, fault[1])
            else:
                yield row, sentence

    kept = list(sound())
    labels = tuple(wanted.labels or in_order(tag for _, sentence in kept for tag in sentence.tags or ()))
    examples = _settled("tags", labels, iter(kept), faults, on_bad_row)
    if len(labels) < 2 and wanted.labelled:
        raise DataError(f"{faults.source}: every tag is {labels[0]!r}, and there is nothing to learn")
    return examples


class _Names(NamedTuple):
    """What the columns are called, which of them must be there, and whether to look for options."""

    columns: tuple[tuple[str, tuple[str, ...]], ...]
    needed: tuple[str, ...]
    options: bool


def _names(wanted: Wanted, kind: Kind | None) -> _Names:
    needed = {"first": True, "second": wanted.pairs, "label": wanted.labelled}
    return _Names(tuple(wanted.columns.items()), tuple(part for part, must in needed.items() if must), kind == "choices")


@lru_cache(maxsize=64)
def _places(fields: tuple[str, ...], names: _Names) -> tuple[dict[str, str], list[str]]:
    """Find which field holds what, and what is wrong with them."""
    aliases = dict(names.columns)
    known = {name: part for part, called in names.columns for name in called}
    found: dict[str, str] = {}
    wrong = []
    for name in fields:
        part = known.get(name)
        if part in found:
            wrong.append(f"has both a column {found[part]!r} and a column {name!r}")
        elif part is not None:
            found[part] = name
    others = [name for name in fields if name not in known]
    wrong += [
        f"has no column {aliases[part][0]!r}{nearest(aliases[part][0], others)}" for part in names.needed if part not in found
    ]
    if (
        "second" in aliases and "second" not in found and "second" not in names.needed
    ):  # it may be left out, but not be left out unseen
        name = aliases["second"][0]
        wrong += [f"has a column {other!r}; did you mean {name!r}?" for other in get_close_matches(name, others, 1, 0.85)]
    return found, wrong


def _draft(record: Record, names: _Names) -> _Draft:
    """Return the cells of a row if they are texts and a label (JSON has values of other types).

    Raises: ValueError saying what is wrong with it.
    """
    places, wrong = _places(tuple(record.fields), names)
    if wrong:
        raise ValueError(" and ".join(wrong))
    cells = {part: record.fields[name] for part, name in places.items()}
    first, second, label = cells.get("first"), cells.get("second"), cells.get("label")
    second = "" if second is None else second
    if label is None:
        label = ""
    elif isinstance(label, bool | int | float):
        label = json.dumps(label)
    if not (isinstance(first, str) and isinstance(second, str) and isinstance(label, str)):
        raise ValueError("needs text for sentences, and text or a number for the label")
    key, options = cells.get("key"), _options(record.fields) if names.options else ()
    key = str(record.place) if key is None or key == "" else key
    if not isinstance(key, str | int):
        raise ValueError("has an id that is neither text nor an integer")
    group = str(cells.get("group", ""))
    if not is_text("".join((str(key), first, second, label, group, *options))):
        raise ValueError("holds a NUL or half of a surrogate pair")
    if not (first + second).strip():
        raise ValueError("has no sentence")
    if options and second:
        raise ValueError("has a second text beside its options: put both before them, into one")
    return _Draft(record.row, str(key), first, second, options, label.strip(), group)


def _options(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of a row, from a list or from columns of their own, in order of their numbers."""
    given = next((fields[name] for name in LISTED if name in fields), None)
    if given is None:
        numbered = sorted((int(match[1]), name) for name in fields if (match := _NUMBERED.fullmatch(name)))
        given = [fields[name] for _, name in numbered]
    if not isinstance(given, list) or len(given) < 2:
        raise ValueError("needs two options or more: a list 'options', or columns 'choice1', 'choice2', ...")
    if not all(isinstance(option, str) and option.strip() for option in given):
        raise ValueError("has an option without text")
    return tuple(given)


def _rows(drafts: Sequence[_Draft], classes: tuple[str, ...], wanted: Wanted, faults: Faults) -> _Numbered[Row]:
    """Yield rows of classes, or without classes of numbers."""
    pairs = wanted.pairs or any(draft.second for draft in drafts)
    places = {name: place for place, name in enumerate(classes)}
    unlabelled = not wanted.labelled and not any(draft.label for draft in drafts)
    for draft in drafts:
        label: float | None = None
        try:
            if not unlabelled:
                label = _place(draft.label, places, wanted) if places else _number(draft.label, wanted)
            yield draft.row, Row(draft.key, draft.first, draft.second if pairs else None, label, draft.group)
        except ValueError as error:
            faults.add(draft.row, str(error))


def _choices(drafts: Sequence[_Draft], wanted: Wanted, faults: Faults) -> _Numbered[Choice]:
    """Yield choices, all between as many options as the first."""
    unlabelled = not wanted.labelled and not any(draft.label for draft in drafts)
    for draft in drafts:
        most, number = len(drafts[0].options), len(draft.options)
        label = wanted.aliases.get(draft.label, draft.label)
        if number != most:
            faults.add(draft.row, f"has {number} options, and row {drafts[0].row} {most}")
        elif unlabelled:
            yield draft.row, Choice(draft.key, draft.first, draft.options, None)
        elif not label:
            faults.add(draft.row, "has no label")
        elif not label.isascii() or not label.isdigit() or int(label) >= number:
            faults.add(draft.row, f"has the label {draft.label!r}, where the places of options are 0 to {number - 1}")
        else:
            yield draft.row, Choice(draft.key, draft.first, draft.options, int(label))


def _place(label: str, places: Mapping[str, int], wanted: Wanted) -> int:
    if not label:
        raise ValueError("has no label")
    name = wanted.aliases.get(label, label)
    if name not in places:
        raise ValueError(f"has the unknown label {label!r}{nearest(label, places)}")
    return places[name]


def _number(label: str, wanted: Wanted) -> float:
    if not label:
        raise ValueError("has no label")
    if not _NUMBER.fullmatch(label) or not math.isfinite(float(label)):
        raise ValueError(f"has the label {label!r}, where a regression needs a number")
    if wanted.between and not wanted.between[0] <= float(label) <= wanted.between[1]:
        raise ValueError(f"has the label {label!r}, where the task has {wanted.between[0]:g} to {wanted.between[1]:g}")
    return float(label)


def _is_fraction(label: str) -> bool:
    return bool(_NUMBER.fullmatch(label)) and not _INTEGER.fullmatch(label)


def _in_order(labels: Iterable[str]) -> list[str]:
    ordered = sorted(labels)
    return sorted(ordered, key=float) if all(map(_INTEGER.fullmatch, ordered)) else ordered
