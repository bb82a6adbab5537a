"""Read documents from what people have: text files, JSON lines, Parquet, data sets of the hub, Python's own documentation.

Everything is streamed, and lines and documents have a greatest length, so that memory stays bounded whatever a file holds.
Whatever is wrong with a file is a DataError that names the file and the line.
"""

import glob
import gzip
import hashlib
import importlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from layerwright.console import track
from layerwright.errors import DataError, nearest
from layerwright.python_docs import python_documents

LONGEST_LINE = 64 << 20  # bytes
LONGEST_DOCUMENT = 1 << 20  # characters; what is longer becomes several

Documents = Iterator[tuple[str, int]]


@dataclass(frozen=True)
class Source:
    """Hold where documents come from.

    Equal contents have an equal `digest`, different ones never. `read()` yields each document with the number of bytes,
    out of `size`, that are read by then.
    """

    name: str
    digest: str
    size: int | None
    read: Callable[[], Documents]


def find(names: Sequence[str]) -> list[Source]:
    """Find the sources that names stand for: files, folders, globs, `hf:NAME[:CONFIG]` on the hub, `python` its own docs.

    A folder stands for every file in it, at any depth, that is of a kind we read. A file named twice counts once.
    Raises: DataError for a name that leads nowhere, with the nearest one that does.
    """
    places = {os.path.realpath(place): place for name in names for place in _places(name)}
    if not places:
        raise DataError("no text is named: give files, folders, hf:NAME or python")
    files = [place for place in places.values() if isinstance(place, Path)]
    bar = track("checking the text", sum(path.stat().st_size for path in files)) if files else nullcontext(lambda by: None)
    with bar as advance:
        return [_file(place, advance) if isinstance(place, Path) else _other(place) for place in places.values()]


def _places(name: str) -> Sequence[Path | str]:
    if name == "python" or name.startswith("hf:"):
        return [name]
    path = Path(name)
    if path.is_file():
        if _kind(path) is None:
            raise DataError(f"{path}: not a kind of text that can be read; known: {', '.join(_READERS)}")
        return [path]
    inside = path.rglob("*") if path.is_dir() else map(Path, glob.glob(name, recursive=True))
    if found := sorted(file for file in inside if _kind(file) and file.is_file()):
        return found
    if path.is_dir() or glob.has_magic(name):
        raise DataError(f"{name}: no text there; known kinds: {', '.join(_READERS)}")
    missing = Path(os.path.abspath(path))
    while not missing.parent.exists():
        missing = missing.parent
    close = get_close_matches(missing.name, os.listdir(missing.parent), n=1)
    raise DataError(f"there is no {missing}{nearest(missing.name, close)}")


def _kind(path: Path) -> str | None:
    return next((kind for kind in _READERS if path.name.endswith(kind)), None)


def _file(path: Path, advance: Callable[[int], None]) -> Source:
    kind = _kind(path) or ""
    before = path.stat()
    digest = hashlib.sha256(kind.encode())
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            advance(len(chunk))

    def read() -> Documents:
        documents = 0
        for text, done in _READERS[kind](path):
            for part in _cut(text):
                documents += 1
                yield part, done
        if not documents:
            raise DataError(f"{path}: {'holds no text' if before.st_size else 'is empty'}")
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{path}: was changed while it was read")

    return Source(str(path), digest.hexdigest(), before.st_size, read)


def _other(name: str) -> Source:
    """Open what is not a file."""
    if name != "python":
        return _hub(name)
    texts = [text for _, text in python_documents()]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def read() -> Documents:
        done = 0
        for text in texts:
            done += len(text)
            yield text, done

    return Source(name, digest, sum(map(len, texts)), read)


def _hub(name: str) -> Source:
    datasets, hub = _extra("datasets"), _extra("huggingface_hub")
    path, _, config = name.removeprefix("hf:").partition(":")
    try:
        # Contents are known by their commit, and read at that commit.
        revision = hub.HfApi().dataset_info(path).sha
    except Exception as error:  # noqa: BLE001 - the hub's client raises its own, its transport's and the system's
        raise DataError(f"{name}: cannot be found on the hub ({error})") from None

    def read() -> Documents:
        row = 0
        try:
            rows = datasets.load_dataset(path, config or None, split="train", streaming=True, revision=revision)
            for row, record in enumerate(rows, start=1):
                for part in _cut(_text(record, f"{name}, row {row}")):
                    yield part, 0
        except (OSError, ValueError) as error:
            raise error if isinstance(error, DataError) else DataError(f"{name}: {error}") from None
        if not row:
            raise DataError(f"{name}: holds no text")

    return Source(name, f"{path}:{config}@{revision}", None, read)


def _paragraphs(path: Path) -> Documents:
    """Read documents that stand between blank lines."""
    paragraphs: list[str] = []
    length = done = 0
    for _, line, done in _lines(path):
        if paragraph := line.strip():
            paragraphs.append(paragraph)
            length += len(paragraph) + 1
        if paragraphs and (not paragraph or length > LONGEST_DOCUMENT):
            yield "\n".join(paragraphs), done
            paragraphs, length = [], 0
    if paragraphs:
        yield "\n".join(paragraphs), done


def _records(path: Path) -> Documents:
    """Read the field `text` of a JSON object a line."""
    for number, line, done in _lines(path):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON that can be read ({error})") from None
        yield _text(record, place), done


def _rows(path: Path) -> Documents:
    """Read the column `text` of a Parquet file."""
    arrow, parquet = _extra("pyarrow"), _extra("pyarrow.parquet")
    row, size = 0, path.stat().st_size
    try:
        # Without these two, a group of rows is read as a whole, and it may be the whole file.
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
            if "text" not in table.schema_arrow.names:
                raise DataError(f"{path}: lacks a column 'text'; it has {', '.join(table.schema_arrow.names)}")
            for batch in table.iter_batches(batch_size=64, columns=["text"], use_threads=False):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _text({"text": text}, f"{path}, row {row}"), size * row // table.metadata.num_rows
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged or not Parquet, after row {row} ({error})") from None


_READERS = {".txt": _paragraphs, ".txt.gz": _paragraphs, ".jsonl": _records, ".jsonl.gz": _records, ".parquet": _rows}


def _lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield (number, line, bytes of the file read by then)."""
    number = 0
    with open(path, "rb") as raw:
        stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        try:
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes")
                if b"\0" in line:
                    raise DataError(f"{path}, line {number}: byte {line.index(0) + 1} is NUL")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8"), raw.tell()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x})") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: cut short or not gzip, after line {number} ({error})") from None


def _text(record: Any, place: str) -> str:
    """Take the text out of a record."""
    if not isinstance(record, dict):
        raise DataError(f"{place}: {type(record).__name__} where an object with a field 'text' is expected")
    if "text" not in record:
        raise DataError(f"{place}: lacks 'text'; it has {', '.join(map(repr, record)) or 'nothing'}")
    text = record["text"]
    if not isinstance(text, str):
        raise DataError(f"{place}: 'text' is {type(text).__name__}, not a string")
    if "\0" in text:
        raise DataError(f"{place}: character {text.index(chr(0)) + 1} of 'text' is NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: character {error.start + 1} of 'text' is half a surrogate pair") from None
    return text


def _cut(text: str) -> Iterator[str]:
    """Cut a text at blanks into documents of bounded length; blank ones are none."""
    start = 0
    while start < len(text):
        end = start + LONGEST_DOCUMENT
        if end < len(text):
            end = max(text.rfind(blank, start, end) for blank in "\n ") + 1 or end
        if part := text[start:end].strip():
            yield part
        start = end


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(f"this kind of text needs {error.name}: pip install 'layerwright[data]'") from None
