"""Judge a model by minimal pairs: sentences that differ in one thing, which makes one of them good and the other bad.

A pair is right if the good sentence is the likelier one; equal scores are a tie, and a tie is wrong.  In BLiMP (Warstadt et
al. 2020) a paradigm is a file of 1,000 pairs, and paradigms belong to fields, such as syntax.
"""

import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from .console import track
from .errors import DataError, nearest
from .inference import BATCH, Opened, windows
from .likelihood import WINDOW, Score, Variant, check_length, check_scoring, rows_cost, score_encoded
from .tasks.examples import OnBadRow
from .tasks.records import Faults, Record, checked, is_text, jsonl_records, suffix_of

GOOD, BAD, FIELD = "sentence_good", "sentence_bad", "field"
PARADIGM = ("UID", "paradigm")


class Pair(NamedTuple):
    """Two sentences, and where they stand: field and paradigm, the place of the file in the list of files, and the row."""

    good: str
    bad: str
    field: str
    paradigm: str
    where: str


class Pairs(NamedTuple):
    """The pairs of a file or folder; skipped: the reasons why others were left out."""

    source: str
    pairs: tuple[Pair, ...]
    skipped: tuple[str, ...]


class ParadigmResult(BaseModel):
    """What a model made of the pairs of a paradigm; a tie is not right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    pairs: int
    right: int
    ties: int
    accuracy: float


class PairResults(BaseModel):
    """What a model made of minimal pairs.

    accuracy: share of all pairs.  mean: of the accuracies of the paradigms.  fields: the same mean for the paradigms of each
    field.  mean_of_fields: of these.  variant: of the pseudo-log-likelihood; None for a discriminator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    arch: str
    head: str
    variant: Variant | None
    source: str
    pairs: int
    right: int
    ties: int
    accuracy: float
    mean: float
    mean_of_fields: float
    fields: dict[str, float]
    paradigms: dict[str, ParadigmResult]
    skipped: tuple[str, ...]
    seconds: float


def read_pairs(source: Path, *, on_bad_row: OnBadRow = "stop") -> Pairs:
    """Read a file of minimal pairs, .jsonl or .jsonl.gz, or every such file of a folder.

    An object has sentence_good and sentence_bad, and may have a field and a paradigm, which BLiMP calls UID; without one, the
    name of the file is the paradigm.  A field `syntax/semantics` is `syntax_semantics`: BLiMP spells it both ways.

    Raises:
        DataError: no such files, or rows that are no pairs; with their numbers.
    """
    checked(on_bad_row)
    files = sorted(path for path in source.iterdir() if suffix_of(path) == ".jsonl") if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source} holds no .jsonl or .jsonl.gz file")
    pairs: list[Pair] = []
    skipped: list[str] = []
    fields: dict[str, str] = {}
    for path in files:
        if not path.is_file():
            raise DataError(f"there is no file {path}")
        faults = Faults(str(path))
        for record in jsonl_records(path, faults):
            try:
                pair = _pair(record, path)
                if fields.setdefault(pair.paradigm, pair.field) != pair.field:
                    raise ValueError(f"is of the field {pair.field!r}, and its paradigm of {fields[pair.paradigm]!r}")
                pairs.append(pair)
            except ValueError as error:
                faults.add(record.row, str(error))
        skipped += [f"{path.name} {reason}" for reason in faults.settle(on_bad_row)]
    if not pairs:
        raise DataError(f"{source} holds no pairs" + (f": all {len(skipped):,} rows were skipped" if skipped else ""))
    return Pairs(str(source), tuple(pairs), tuple(skipped))


def score_pairs(
    opened: Opened, pairs: Iterable[Pair], *, variant: Variant = "original", batch: int = BATCH
) -> Iterator[tuple[Pair, Score, Score]]:
    """Yield each pair with the scores of its good and its bad sentence, in order.

    Raises:
        ValueError: an unknown variant, or a model that does not score sentences.
        DataError: a sentence has no tokens or more than the model has positions; with the row.
    """
    check_scoring(opened, variant)
    # The sentences of a pair stay together, so that what they share runs once.
    for window in windows(pairs, WINDOW, lambda pair: rows_cost(pair.good) + rows_cost(pair.bad)):
        texts = [text for pair in window for text in (pair.good, pair.bad)]
        encoded = opened.encode(texts)
        for place, (text, one) in enumerate(zip(texts, encoded, strict=True)):
            check_length(opened, text, one, window[place // 2].where)
        scores = score_encoded(opened, encoded, variant, batch)
        yield from zip(window, scores[::2], scores[1::2], strict=True)


def judge_pairs(opened: Opened, pairs: Pairs, *, variant: Variant = "original", batch: int = BATCH) -> PairResults:
    """Score pairs and sum up how often the good sentence is the likelier one.

    Raises: as `score_pairs`.
    """
    began = time.monotonic()
    counts: dict[str, list[int]] = {}
    fields = {pair.paradigm: pair.field for pair in pairs.pairs}
    with track("scoring", len(pairs.pairs)) as advance:
        for pair, good, bad in score_pairs(opened, pairs.pairs, variant=variant, batch=batch):
            count = counts.setdefault(pair.paradigm, [0, 0, 0])
            count[0] += 1
            count[1] += good.total > bad.total
            count[2] += good.total == bad.total
            advance()
    paradigms = {
        name: ParadigmResult(field=fields[name], pairs=number, right=right, ties=ties, accuracy=right / number)
        for name, (number, right, ties) in sorted(counts.items())
    }
    by_field: dict[str, list[float]] = {}
    for result in paradigms.values():
        by_field.setdefault(result.field, []).append(result.accuracy)
    means = {name: statistics.fmean(values) for name, values in sorted(by_field.items())}
    right = sum(result.right for result in paradigms.values())
    return PairResults(
        model=str(opened.folder),
        arch=str(opened.model.config.arch),
        head=opened.head,
        variant=variant if opened.head == "mlm" else None,
        source=pairs.source,
        pairs=len(pairs.pairs),
        right=right,
        ties=sum(result.ties for result in paradigms.values()),
        accuracy=right / len(pairs.pairs),
        mean=statistics.fmean(result.accuracy for result in paradigms.values()),
        mean_of_fields=statistics.fmean(means.values()),
        fields=means,
        paradigms=paradigms,
        skipped=pairs.skipped,
        seconds=time.monotonic() - began,
    )


def _pair(record: Record, path: Path) -> Pair:
    """Return the pair of a row.

    Raises:
        ValueError: it is none.
    """
    fields = record.fields
    good, bad = (_text(fields, name) for name in (GOOD, BAD))
    paradigm = next((fields[name] for name in PARADIGM if name in fields), path.name.partition(".")[0])
    field = fields.get(FIELD, "")
    if not isinstance(paradigm, str) or not isinstance(field, str):
        raise ValueError("has a field or paradigm that is no text")
    return Pair(good, bad, field.replace("/", "_"), paradigm, f"{path.name} row {record.row}")


def _text(fields: Any, name: str) -> str:
    value = fields.get(name)
    if name not in fields:
        raise ValueError(f"has no {name}{nearest(name, fields)}")
    if not isinstance(value, str) or not value.strip() or not is_text(value):
        raise ValueError(f"has a {name} that is no text")
    return value
