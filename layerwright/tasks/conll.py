"""Read sentences whose words have tags: a word and its tag a line, an empty line after each sentence.

Entities are tagged in the scheme IOB2: B-X begins an X, I-X goes on with it, O is outside. A sequence that breaks the scheme is a
fault, never repaired. Tags of another sort, such as parts of speech, are taken as they are.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from layerwright.errors import nearest
from layerwright.tasks.examples import Tagged
from layerwright.tasks.records import Faults, Record, count, is_text, lines

DOCUMENT = "-DOCSTART-"  # marks a document of CoNLL-2003; it is no word

_IOB2 = re.compile(r"O|[BI]-.+")


def sentences(path: Path, faults: Faults, *, tag: int = -1) -> Iterator[tuple[int, Tagged]]:
    """Yield each sentence with the line it begins at; columns are split on tabs if the first line has one, else on blanks.

    tag: the column of the tag, from 0 or from the end; the word is in the first. Where there are words alone, tags are None.
    A sentence of which any line is faulty is left out, and keeps its number. A document mark ends a sentence.
    """
    words: list[tuple[str, ...]] = []
    begun, key, sound, width, tabs = 1, 0, 0, 0, False  # sound: how many faults there were when the sentence began
    for number, line in chain(lines(path, faults, blank=True), [(0, "")]):
        fields = tuple(line.split("\t")) if tabs or (not width and "\t" in line) else _split(line)
        if line.strip() and fields[0] != DOCUMENT:
            if not width:
                tabs, width = "\t" in line, len(fields)
                if width > 1 and not -width < tag < width:
                    raise faults.stop(number, f"has {count(width, 'column')}, and the tag should be in column {tag}")
            begun = begun if words else number
            words.append(fields)
            _check(number, fields, width, tag, faults)
            continue
        if words and len(faults.found) == sound:
            tags = tuple(fields[tag] for fields in words) if width > 1 else None
            yield begun, Tagged(str(key), tuple(fields[0] for fields in words), tags)
        key += bool(words) or len(faults.found) > sound
        words, sound = [], len(faults.found)


def tagged(record: Record) -> Tagged:
    """Turn a record with lists `words` (or `tokens`) and `tags` (or `ner_tags`) into a sentence.

    Raises: ValueError saying what is wrong with it.
    """
    fields = record.fields
    words = _texts(next((fields[name] for name in ("words", "tokens") if name in fields), None))
    given = next((fields[name] for name in ("tags", "ner_tags") if name in fields), None)
    tags = _texts(given)
    if not words:
        raise ValueError("needs a list of words")
    if given is not None and (tags is None or len(tags) != len(words)):
        raise ValueError(f"has {count(len(words), 'word')}, and not a tag for each")
    key = fields.get("idx", fields.get("id", record.place))
    return Tagged(str(key), words, tags)


def is_iob2(tags: Iterable[str]) -> bool:
    """Tell whether tags are of entities: any of them begins with B- or I-."""
    return any(tag.startswith(("B-", "I-")) for tag in tags)


def in_order(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags in the order of classes: of entities O first, then for each type B- and I-, even if only one is there."""
    found = set(tags)
    if not is_iob2(found):
        return tuple(sorted(found, key=lambda tag: (tag != "O", tag)))
    return ("O", *(f"{part}-{kind}" for kind in sorted({tag[2:] for tag in found if tag != "O"}) for part in "BI"))


def fault_of(tags: Sequence[str], labels: Sequence[str] | None) -> tuple[int, str] | None:
    """Return the place of the first tag that is unknown or illegal, and what is wrong with it; None if all are right.

    labels: the tags there are; None leaves only the scheme to check, of tags of entities.
    """
    before = "O"
    for place, tag in enumerate(tags):
        if labels is not None and tag not in labels:
            return place, f"has the unknown tag {tag!r}{nearest(tag, labels)}"
        if labels is None and not _IOB2.fullmatch(tag):
            return place, f"has the tag {tag!r}, and IOB2 has only O, B-... and I-..."
        if tag.startswith("I-") and before[2:] != tag[2:]:
            return place, f"has {tag!r} after {before!r}: in IOB2 an entity begins with {'B-' + tag[2:]!r}"
        before = tag
    return None


def _split(line: str) -> tuple[str, ...]:
    return tuple(part for part in line.split(" ") if part) or ("",)


def _check(number: int, fields: Sequence[str], width: int, tag: int, faults: Faults) -> None:
    if len(fields) != width:
        faults.add(number, f"has {count(len(fields), 'column')}, and the first line {width}")
    elif not fields[0].strip():
        faults.add(number, "has no word")
    elif width > 1 and not fields[tag].strip():
        faults.add(number, "has no tag")


def _texts(value: object) -> tuple[str, ...] | None:
    """Return a list of words or tags, if it is one."""
    if isinstance(value, list) and value and all(isinstance(one, str) and one.strip() and is_text(one) for one in value):
        return tuple(value)
    return None
