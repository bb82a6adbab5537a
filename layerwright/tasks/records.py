"""Read files of tasks line by line, and keep account of what is wrong with them.

A row is a line of the file: nothing quotes, escapes or joins, so a stray `"` is text and no two rows can merge. Every line
becomes a record or a fault with its number; none is lost.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from layerwright.errors import DataError, nearest
from layerwright.tasks.examples import OnBadRow

LONGEST_ROW = 1 << 24  # bytes; a longer line is not a row of sentences, and must not fill the memory
LARGEST_FILE = 1 << 31  # bytes, unpacked, of a file that is read whole
FAULTS_SHOWN = 10

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


class Record(NamedTuple):
    """The fields of a row by name; `row` is its line, the first being 1, and `place` that among the rows, from 0."""

    row: int
    place: int
    fields: Mapping[str, Any]


@dataclass
class Faults:
    """What is wrong with the rows of a source; `unit` is what its rows are called."""

    source: str
    unit: str = "row"
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, reason: str) -> None:
        """Note that a row cannot be used."""
        self.found.append((row, reason))

    def stop(self, row: int, reason: str) -> DataError:
        """Return the error of a fault that leaves no row to use, such as a header that lacks a column."""
        self.add(row, reason)
        return self.error()

    def error(self) -> DataError:
        """Return all faults as one error, in order, the first ten in full."""
        lines = self.reasons()
        more = [f"  and {len(lines) - FAULTS_SHOWN:,} more"] if len(lines) > FAULTS_SHOWN else []
        shown = [f"  {line}" for line in lines[:FAULTS_SHOWN]]
        return DataError("\n".join([f"{self.source} cannot be read: {count(len(lines), 'fault')}", *shown, *more]))

    def settle(self, on_bad_row: OnBadRow) -> tuple[str, ...]:
        """Return why rows are left out, or raise the error that stops at them."""
        if self.found and on_bad_row == "stop":
            raise self.error()
        return self.reasons()

    def reasons(self) -> tuple[str, ...]:
        """Return the faults in order of their rows, as `row 3 has no label`."""
        return tuple(f"{self.unit} {row} {reason}" for row, reason in sorted(self.found))


def checked(on_bad_row: str) -> OnBadRow:
    """Check that faulty rows are to `stop` the reading or be skipped."""
    if on_bad_row not in ("stop", "skip"):
        raise ValueError(f"no way {on_bad_row!r} to meet a bad row{nearest(on_bad_row, ('stop', 'skip'))}")
    return cast(OnBadRow, on_bad_row)


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there.

    Raises: DataError if it is not.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    return path


def suffix_of(path: Path) -> str:
    """Return the suffix of a file, looking through `.gz`."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix


def lines(path: Path, faults: Faults, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line; those that are not text become faults, and blank ones unless asked for."""
    with _open(path) as stream:
        number, begun = 1, False
        while line := _read(stream, path, LONGEST_ROW + 1):
            if begun or len(line) > LONGEST_ROW:
                if not begun:
                    faults.add(number, f"is longer than {LONGEST_ROW:,} bytes")
                begun = not line.endswith(b"\n")
            elif (text := _text(number, line, faults)) is not None:
                if text.strip() or blank:
                    yield number, text
                else:
                    faults.add(number, "is blank")
            number += not begun


def tsv_records(
    path: Path,
    faults: Faults,
    check: Callable[[Sequence[str]], None],
    *,
    names: Sequence[str] = (),
    known: Sequence[str] = (),
) -> Iterator[Record]:
    """Yield the rows of a file split on tabs and on nothing else, under the names of its header, once `check` has seen these.

    names: what the columns are called where the first line is no header, because it holds none of the `known` names.
    Raises: DataError for a header that is not text or names a column twice.
    """
    rows = lines(path, faults)
    number, header = next(rows, (1, None))
    if faults.found and (header is None or number != 1):
        raise faults.error()
    if header is None:
        return
    columns = tuple(header.split("\t"))
    headless = bool(names) and not set(columns) & set(known)
    if headless:
        columns, rows = tuple(names), chain([(1, header)], rows)
    if twice := {name for name in columns if columns.count(name) > 1}:
        raise faults.stop(1, f"names a column {min(twice)!r} twice")
    check(columns)
    for number, line in rows:
        fields = line.split("\t")
        if len(fields) == len(columns):
            yield Record(number, number - (1 if headless else 2), dict(zip(columns, fields, strict=True)))
        else:
            faults.add(number, f"has {count(len(fields), 'field')}, and the {'task' if headless else 'header'} {len(columns)}")


def jsonl_records(path: Path, faults: Faults) -> Iterator[Record]:
    """Yield the objects of a file that has one a line."""
    for number, line in lines(path, faults):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.add(number, f"is not JSON: {error}")
            continue
        if isinstance(fields, dict):
            yield Record(number, number - 1, fields)
        else:
            faults.add(number, "is not an object {...}")


def whole(path: Path) -> str:
    """Return the text of a file that can only be read whole, without the mark some systems begin it with.

    Raises: DataError if it is not UTF-8, too large or torn.
    """
    with _open(path) as stream:
        parts, size = [], 0
        while part := _read(stream, path, None):
            parts.append(part)
            size += len(part)
            if size > LARGEST_FILE:
                raise DataError(f"{path} is larger than {LARGEST_FILE:,} bytes")
    content = b"".join(parts)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} cannot be read: line {row} is not UTF-8 (0x{content[error.start]:02x})") from None


def is_text(text: str) -> bool:
    """Tell whether a string is free of NUL and of halves of surrogate pairs."""
    return not _NOT_TEXT.search(text)


def count(number: int, noun: str) -> str:
    """Write a number of things, as `1 row` and `2 rows`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _read(stream: BinaryIO, path: Path, most: int | None) -> bytes:
    """Read a line of at most so many bytes, or without a limit some bytes."""
    try:
        return stream.read(1 << 20) if most is None else stream.readline(most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from None


def _text(number: int, line: bytes, faults: Faults) -> str | None:
    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        faults.add(number, f"is not UTF-8 at byte {error.start + 1} (0x{line[error.start]:02x})")
        return None
    if "\0" in text:
        faults.add(number, "holds a NUL character")
        return None
    return text
