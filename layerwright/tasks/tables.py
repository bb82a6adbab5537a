"""Read tables of labelled sentences, TSV or JSONL, strictly.

A row is a line of the file: nothing quotes, escapes or joins, so a stray `"` is text and no two rows can merge. A table is
read whole or not at all: what is wrong with it is reported together, each fault with its row (the line, the header being
row 1).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from layerwright.errors import DataError, nearest

Kind = Literal["classification", "regression"]

COLUMNS = {"first": ("sentence1", "sentence", "text", "text_a"), "second": ("sentence2", "text_b"), "label": ("label",)}
LONGEST_ROW = 1 << 24  # bytes; a longer line is not a row of sentences, and must not fill the memory
FAULTS_SHOWN = 10

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


class Row(NamedTuple):
    """One or two sentences and their label: the place in `Table.labels`, or the number to predict."""

    first: str
    second: str | None
    label: float


@dataclass(frozen=True)
class Table:
    """The rows of a file; `labels` names the classes in order, and is empty for a regression."""

    path: Path
    kind: Kind
    labels: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def pairs(self) -> bool:
        """Tell whether the rows hold two sentences."""
        return self.rows[0].second is not None


class _Cells(NamedTuple):
    row: int
    first: str
    second: str
    label: str


_Faults = list[tuple[int, str]]


def read_table(path: str | Path, kind: Kind | None = None, labels: Sequence[str] | None = None) -> Table:
    """Read a .tsv file (split on tabs, with a header) or a .jsonl file with columns sentence1[, sentence2], label.

    Other columns are ignored, unless one looks like a misspelt name that is missing. Sentences are pairs if any row has a
    second one. Without a kind, labels are numbers to predict if any of them is written with a point or an exponent, as
    5.000; else classes. Without labels, the classes are those found, sorted: as integers if all are, else as text.
    Raises: DataError naming the file and the rows at fault.
    """
    path = Path(path)
    reader = {".tsv": _read_tsv, ".jsonl": _read_jsonl}.get(path.suffix)
    if reader is None:
        raise DataError(f"{path} is not a table: known are .tsv and .jsonl files")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    faults: _Faults = []
    cells = list(reader(path, faults))
    written = {cell.label for cell in cells if cell.label}
    kind = kind or ("classification" if labels or not any(map(_is_fraction, written)) else "regression")
    classes = () if kind == "regression" else tuple(labels or _in_order(written))
    pairs = any(cell.second for cell in cells)
    places = {name: place for place, name in enumerate(classes)}
    rows = tuple(Row(cell.first, cell.second if pairs else None, _label(cell, kind, places, faults)) for cell in cells)
    if faults:
        raise DataError(_report(path, faults))
    if not rows:
        raise DataError(f"{path} holds no rows")
    if kind == "classification" and len(classes) < 2:
        raise DataError(f"{path}: every label is {classes[0]!r}, and a classification needs two")
    return Table(path, kind, classes, rows)


def _read_tsv(path: Path, faults: _Faults) -> Iterator[_Cells]:
    lines = _lines(path, faults)
    number, header = next(lines, (1, None))
    if header is None or number != 1:
        return
    names = tuple(header.split("\t"))
    found, wrong = _columns(names)
    faults += [(1, fault) for fault in wrong]
    if wrong:
        return
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            faults.append((number, f"has {_count(len(fields), 'field')}, and the header {len(names)}"))
            continue
        yield from _checked(number, {part: fields[names.index(name)] for part, name in found.items()}, faults)


def _read_jsonl(path: Path, faults: _Faults) -> Iterator[_Cells]:
    for number, line in _lines(path, faults):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append((number, f"is not JSON: {error}"))
            continue
        if not isinstance(fields, dict):
            faults.append((number, "is not an object {...}"))
            continue
        found, wrong = _columns(tuple(fields))
        faults += [(number, fault) for fault in wrong]
        if not wrong:
            yield from _checked(number, {part: fields[name] for part, name in found.items()}, faults)


def _lines(path: Path, faults: _Faults) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line, leaving out and reporting those that are not text."""
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_ROW + 1), b""), 1):
            if len(line) > LONGEST_ROW:
                faults.append((number, f"is longer than {LONGEST_ROW:,} bytes; nothing after it was read"))
                return
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                faults.append((number, f"is not UTF-8 at byte {error.start + 1} (0x{line[error.start]:02x})"))
                continue
            if "\0" in text:
                faults.append((number, "holds a NUL character"))
            elif not text.strip():
                faults.append((number, "is blank"))
            else:
                yield number, text


@lru_cache(maxsize=64)
def _columns(names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Find which column holds what, and what is wrong with them."""
    known = {name: part for part, aliases in COLUMNS.items() for name in aliases}
    found: dict[str, str] = {}
    wrong = []
    for name in names:
        part = known.get(name)
        if part in found:
            wrong.append(f"has both a column {found[part]!r} and a column {name!r}")
        elif part is not None:
            found[part] = name
    others = [name for name in names if name not in known]
    wrong += [
        f"has no column {COLUMNS[part][0]!r}{nearest(COLUMNS[part][0], others)}"
        for part in ("first", "label")
        if part not in found
    ]
    if "second" not in found:  # it may be left out, but not be left out unseen
        wrong += [f"has a column {name!r}; did you mean 'sentence2'?" for name in get_close_matches("sentence2", others, 1, 0.85)]
    return found, wrong


def _checked(row: int, values: dict[str, object], faults: _Faults) -> Iterator[_Cells]:
    """Yield the cells if they are sentences and a label (JSON has values of other types)."""
    first, second, label = values["first"], values.get("second"), values["label"]
    second = "" if second is None else second
    if label is None:
        label = ""
    elif isinstance(label, bool | int | float):
        label = json.dumps(label)
    if not (isinstance(first, str) and isinstance(second, str) and isinstance(label, str)):
        faults.append((row, "needs text for sentences, and text or a number for the label"))
    elif _NOT_TEXT.search(first + second + label):
        faults.append((row, "holds a NUL or half of a surrogate pair"))
    elif not (first + second).strip():
        faults.append((row, "has no sentence"))
    else:
        yield _Cells(row, first, second, label.strip())


def _label(cell: _Cells, kind: Kind, places: dict[str, int], faults: _Faults) -> float:
    if not cell.label:
        faults.append((cell.row, "has no label"))
    elif kind == "classification":
        if cell.label in places:
            return places[cell.label]
        faults.append((cell.row, f"has the unknown label {cell.label!r}{nearest(cell.label, places)}"))
    elif _NUMBER.fullmatch(cell.label) and math.isfinite(float(cell.label)):
        return float(cell.label)
    else:
        faults.append((cell.row, f"has the label {cell.label!r}, where a regression needs a number"))
    return 0


def _is_fraction(label: str) -> bool:
    return bool(_NUMBER.fullmatch(label)) and not _INTEGER.fullmatch(label)


def _in_order(labels: Iterable[str]) -> list[str]:
    ordered = sorted(labels)
    return sorted(ordered, key=float) if all(map(_INTEGER.fullmatch, ordered)) else ordered


def _report(path: Path, faults: _Faults) -> str:
    lines = [f"  row {row} {fault}" for row, fault in sorted(faults)]
    more = [f"  and {len(lines) - FAULTS_SHOWN:,} more"] if len(lines) > FAULTS_SHOWN else []
    return "\n".join([f"{path} cannot be read: {_count(len(lines), 'fault')}", *lines[:FAULTS_SHOWN], *more])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)
