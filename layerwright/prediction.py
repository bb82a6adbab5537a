"""Predict for rows that come in a stream, in any number, in order: a class, a number, a choice, tags or an answer for each.

Rows are read, turned into tokens and batched as in fine-tuning, so that a prediction here is the one that was scored there.
A window of rows is in memory at a time; what is wrong with a row is said with its number, never passed over
in silence.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batches import Batch
from .console import warn
from .errors import DataError
from .folders import class_names
from .inference import BATCH, Opened, check_choice, windows
from .tasks.choices import ChoiceForm
from .tasks.conll import sentences
from .tasks.examples import Choice, Examples, Kind, OnBadRow, Row, Span, Tagged
from .tasks.reading import CONLL, UNLABELLED, Wanted, check_columns, unlabelled
from .tasks.records import Faults, Record, checked, existing, jsonl_records, lines, suffix_of, tsv_records
from .tasks.rows import Reader, Rows
from .tasks.spans import Found, SpanForm, SpanRows
from .tasks.squad import questions
from .tasks.tags import TagForm

KINDS: dict[str, Kind] = {"classification": "classification", "choices": "choices", "tokens": "tags", "spans": "spans"}  # by head
OF_KIND: dict[str, Kind] = {"conll": "tags", "squad": "spans"}  # forms that hold rows of one kind alone
FORMS = ("lines", "tsv", "jsonl", "conll", "squad")
STDIN = Path("/dev/stdin")
WINDOW = 32  # batches whose rows are read together
DIGITS = 6  # of a number that is written
LINES: dict[Kind, tuple[tuple[str, ...], int, float]] = {  # what the columns of lines hold, and the least and most of them
    "classification": (("sentence1", "sentence2"), 1, 2),
    "choices": (("text", "options"), 3, float("inf")),
    "tags": (("text",), 1, 1),
    "spans": (("question", "context"), 2, 2),
}

Example = Row | Choice | Span | Tagged


class Prediction(NamedTuple):
    """What is predicted for a row: the id it has in its file, or its place from 0, and what is said by name.

    Of a class: label, probability, probabilities.  Of a number: value.  Of a choice: choice, the place of an option from 0, the
    option, probability, probabilities.  Of tags: words, tags, probabilities.  Of a question: answer, probability.
    """

    key: str
    said: dict[str, Any]


class Predictor:
    """Predict with a model that classifies rows, gives them a number, chooses an option, tags words or answers questions.

    length: most tokens of a row, by default as in the fine-tuning, or the positions.  What is longer is cut (a text, or the
    longer one of two) or read in windows (words, contexts); `cut` counts the texts that were cut.

    Raises:
        ValueError: another model, or more tokens than it has positions.
    """

    def __init__(self, opened: Opened, *, length: int | None = None, batch: int = BATCH):
        if opened.head not in KINDS:
            raise ValueError(f"{opened.folder} has the head '{opened.head}', and predictions come from {', '.join(KINDS)}")
        config = opened.model.config
        length = length or min(int(getattr(config, "row_length", opened.positions)), opened.positions)
        if not 8 <= length <= opened.positions:
            raise ValueError(f"length={length}, and {opened.folder} reads rows of 8 to {opened.positions} tokens")
        self.opened, self.batch, self.kind, self.cut = opened, batch, KINDS[opened.head], 0
        self.problem = config.problem_type
        self.labels = class_names(opened.folder, config)
        self.pairs: bool | None = getattr(config, "text_pairs", None)  # None: it does not say
        self.reader = Reader.of(
            opened.tokenizer,
            pad=opened.special.get("pad", 0),
            length=length,
            segments=config.arch.segments > 1,
        )

    def predict(self, examples: Iterable[Example]) -> Iterator[Prediction]:
        """Yield a prediction for each example, in order; a window of them is in memory."""
        for window in windows(examples, self.batch * WINDOW):
            said: dict[int, dict[str, Any]] = {}
            for _, alike in groupby(sorted(enumerate(window), key=_texts), _texts):
                places = [place for place, _ in alike]
                some = Examples("", self.kind, self.labels, tuple(window[place] for place in places))
                said |= zip(places, self._say(some), strict=True)
            yield from (Prediction(one.key, said[place]) for place, one in enumerate(window))

    def _say(self, examples: Examples[Any]) -> Sequence[dict[str, Any]]:
        ways: dict[Kind, Callable[[Examples[Any]], Sequence[dict[str, Any]]]]
        ways = {"spans": self._answers, "tags": self._tags, "choices": self._choices, "classification": self._classes}
        return ways[self.kind](examples)

    def _classes(self, examples: Examples[Row]) -> list[dict[str, Any]]:
        seconds = [row.second or "" for row in examples.rows] if examples.pairs else None
        tokens, shortened = self.reader.rows([row.first for row in examples.rows], seconds)
        self.cut += shortened
        logits = self._run(Rows(tokens, None, self.reader.pad), lambda logits, _: list(logits))
        if self.problem == "regression":
            return [{"value": float(one[0])} for one in logits]
        # As in transformers' pipeline, a lone label and labels that may hold together are probable each by itself.
        apart = self.problem == "multi_label_classification" or len(self.labels) == 1
        said = []
        for one in logits:
            shares = (one.sigmoid() if apart else one.softmax(-1)).tolist()
            best = max(range(len(shares)), key=shares.__getitem__)
            chances = dict(zip(self.labels, shares, strict=True))
            said.append({"label": self.labels[best], "probability": shares[best], "probabilities": chances})
        return said

    def _choices(self, examples: Examples[Choice]) -> list[dict[str, Any]]:
        rows = ChoiceForm(self.reader).rows(examples)
        self.cut += rows.cut
        said = []
        for row, shares in zip(examples.rows, self._run(rows, lambda logits, _: logits.softmax(-1).tolist()), strict=True):
            best = max(range(len(shares)), key=shares.__getitem__)
            said.append({"choice": best, "option": row.options[best], "probability": shares[best], "probabilities": shares})
        return said

    def _tags(self, examples: Examples[Tagged]) -> list[dict[str, Any]]:
        stride = getattr(self.opened.model.config, "tag_stride", TagForm.stride)
        form = TagForm(self.reader, self.labels, stride)
        rows = form.rows(examples)

        def decode(logits: Tensor, places: Sequence[int]) -> list[tuple[list[int], list[float]]]:
            shares = logits.softmax(-1).amax(-1)
            firsts = [list(rows.parts[place].places) for place in places]
            likely = [shares[at, of].tolist() for at, of in enumerate(firsts)]
            return list(zip(form.decode(logits, rows, places), likely, strict=True))

        decoded = self._run(rows, decode)
        tags = form.merge(rows, [numbers for numbers, _ in decoded])
        chances = [[0.0] * len(row.words) for row in examples.rows]  # of a word without a piece nothing is known
        for part, (_, likely) in zip(rows.parts, decoded, strict=True):
            for word, share in zip(part.words, likely, strict=True):
                chances[part.sentence][word] = share
        return [
            {"words": list(row.words), "tags": list(own), "probabilities": likely}
            for row, own, likely in zip(examples.rows, tags, chances, strict=True)
        ]

    def _answers(self, examples: Examples[Span]) -> list[dict[str, Any]]:
        form = SpanForm.of(self.reader, self.opened.model.config)
        rows = form.rows(examples)
        self.cut += rows.cut

        def decode(logits: Tensor, places: Sequence[int]) -> list[tuple[Found, float, float]]:
            found = form.decode(logits, rows, places)
            return [
                (one, *_shares(rows, logits[at], place, one)) for at, (place, one) in enumerate(zip(places, found, strict=True))
            ]

        decoded = self._run(rows, decode)
        best: list[tuple[float, float, float]] = [(-float("inf"), 0.0, 1.0)] * len(examples.rows)
        for window, (one, share, none) in zip(rows.windows, decoded, strict=True):
            score, before, least = best[window.question]
            best[window.question] = (*max((score, before), (one.score, share)), min(least, none))
        answers = form.merge(rows, [one for one, _, _ in decoded])
        return [
            {"answer": answer, "probability": share if answer else none}
            for answer, (_, share, none) in zip(answers, best, strict=True)
        ]

    def _run(self, rows: Rows, decode: Callable[[Tensor, Sequence[int]], Sequence[Any]]) -> list[Any]:
        """Return what is decoded from the logits of each row, in order."""
        found: dict[int, Any] = {}
        for places in rows.in_order(self.batch):
            with self.opened.running():
                logits = self._logits(rows.batch(places).to(self.opened.device), rows.options)
            found |= zip(places, decode(logits.float().cpu(), places), strict=True)
        return [found[place] for place in range(len(rows))]

    def _logits(self, batch: Batch, options: int) -> Tensor:
        """Return logits [B, classes], [B, options], [B, L, classes] or, of first and last token, [B, L, 2]."""
        segments = batch.segments if self.opened.model.config.arch.segments > 1 else None
        given = [batch.ids, batch.mask, segments]
        if self.kind == "choices":
            given = [None if x is None else x.unflatten(0, (-1, options)) for x in given]
        found = self.opened.model(*given)
        return torch.stack([found.start_logits, found.end_logits], -1) if self.kind == "spans" else torch.as_tensor(found.logits)


def read_rows(source: Path, kind: Kind, form: str, faults: Faults, *, pairs: bool | None = None) -> Iterator[tuple[int, Example]]:
    """Yield the rows of a file or a pipe as they are read, each with its number; what cannot be used becomes a fault.

    form: `lines`, a text each, or two with a tab between (question and context), or a text and its options; `tsv` and `jsonl`
    as tables for fine-tuning are, without need of labels; `conll` words, `squad` questions.  pairs: whether rows hold two texts.

    Raises:
        ValueError: an unknown form, or one that does not suit what is predicted.
        DataError: nothing of the file can be used.
    """
    check_choice("form", form, FORMS)
    if OF_KIND.get(form, kind) != kind:
        raise ValueError(f"rows of the form '{form}' are not for predicting {kind}")
    if form == "conll":
        yield from sentences(source, faults)
    elif form == "squad":
        yield from questions(source, faults, labelled=False)
    else:
        wanted = Wanted(kind, columns=UNLABELLED, labelled=False, pairs=bool(pairs))
        yield from unlabelled(_records(source, wanted, form, faults), wanted, faults, single=pairs is False)


def form_of(source: Path) -> str:
    """Return the form that the name of a file tells: that of lines, if none."""
    suffix = suffix_of(source)
    return "conll" if suffix in CONLL else {".tsv": "tsv", ".jsonl": "jsonl", ".json": "squad"}.get(suffix, "lines")


def predict_file(
    predictor: Predictor, source: Path | None, *, form: str | None = None, on_bad_row: OnBadRow = "stop"
) -> Iterator[Prediction]:
    """Yield a prediction for each row of a file, or of standard input; rows before a bad one are predicted before it stops.

    on_bad_row: `stop`, or `skip` to leave bad rows out, each being named on stderr.

    Raises:
        ValueError: an unknown form.
        DataError: a bad row, or no row at all.
    """
    checked(on_bad_row)
    faults = Faults("standard input" if source is None else str(source))
    path = STDIN if source is None else existing(source)
    form = form or form_of(path)
    if form == "conll":
        faults.unit = "line"
    stopped: list[DataError] = []
    count = skipped = 0

    def sound() -> Iterator[Example]:
        nonlocal skipped
        rows = read_rows(path, predictor.kind, form, faults, pairs=predictor.pairs)
        while True:
            try:
                row = next(rows, None)
                if faults.found and on_bad_row == "stop":
                    raise faults.error()
            except DataError as error:
                stopped.append(error)
                return
            for reason in faults.reasons():
                skipped += 1
                warn(f"left out  {reason}")
            faults.found.clear()
            if row is None:
                return
            yield row[1]

    for prediction in predictor.predict(sound()):
        count += 1
        yield prediction
    if stopped:
        raise stopped[0]
    if skipped:
        warn(f"{skipped:,} of {count + skipped:,} rows were left out")
    if not count:
        raise DataError(f"{faults.source} holds no rows" + (f": all {skipped:,} were left out" if skipped else ""))


def as_json(prediction: Prediction) -> str:
    """Write a prediction as an object on one line."""
    return json.dumps({"key": prediction.key} | _rounded(prediction.said), ensure_ascii=False)


def columns(predictor: Predictor) -> list[str]:
    """Return the header of predictions in a table."""
    if predictor.kind == "classification":
        each = [f"p({label})" for label in predictor.labels]
        return ["key", "value"] if predictor.problem == "regression" else ["key", "label", "probability", *each]
    if predictor.kind == "choices":
        return ["key", "choice", "option", "probability", "probabilities"]
    return ["key", "answer", "probability"] if predictor.kind == "spans" else ["key", "words", "tags", "probabilities"]


def as_cells(prediction: Prediction) -> list[str]:
    """Write a prediction as the cells of a row: words, tags and their probabilities with blanks between, no tabs in any."""
    cells = [prediction.key]
    for value in _rounded(prediction.said).values():
        if isinstance(value, dict):
            cells += map(str, value.values())
        else:
            cells.append(" ".join(map(str, value)) if isinstance(value, list) else str(value))
    return [" ".join(cell.split()) for cell in cells]


def _records(source: Path, wanted: Wanted, form: str, faults: Faults) -> Iterator[Record]:
    """Yield the rows of lines, of a table or of objects under the names that fine-tuning knows."""
    if form == "jsonl":
        return jsonl_records(source, faults)
    if form == "tsv":
        return tsv_records(source, faults, partial(check_columns, wanted, faults))
    return _from_lines(source, wanted.kind or "classification", faults)


def _from_lines(source: Path, kind: Kind, faults: Faults) -> Iterator[Record]:
    names, least, most = LINES[kind]
    width = 0
    for number, line in lines(source, faults):
        cells = [line] if kind == "tags" else line.split("\t")
        width = width or len(cells)
        if not least <= len(cells) <= most:
            faults.add(number, f"has {len(cells)} columns, where {' and '.join(names)} go")
        elif len(cells) != width:
            faults.add(number, f"has {len(cells)} columns, and the first row {width}")
        else:
            values = [cells[0], cells[1:]] if kind == "choices" else cells
            yield Record(number, number - 1, dict(zip(names, values, strict=False)))


def _texts(placed: tuple[int, Example]) -> int:
    """Count the texts of an example; texts alone and pairs are framed differently, and may stand in one file."""
    example = placed[1]
    if isinstance(example, Choice):
        return len(example.options)
    return 1 + (isinstance(example, Row) and example.second is not None)


def _shares(rows: SpanRows, logits: Tensor, place: int, found: Found) -> tuple[float, float]:
    """Return the probability of an answer, that of its first token times that of its last, and the same of no answer."""
    window = rows.windows[place]
    chances = logits[: len(rows.tokens[place].ids)].softmax(0)
    first, last = (window.at + token - window.tokens.start for token in (found.first, found.last))
    return float(chances[first, 0] * chances[last, 1]), float(chances[0].prod())


def _rounded(said: Any) -> Any:
    """Return what is said with numbers of six digits."""
    if isinstance(said, dict):
        return {name: _rounded(value) for name, value in said.items()}
    if isinstance(said, list):
        return [_rounded(value) for value in said]
    return float(f"{said:.{DIGITS}g}") if isinstance(said, float) else said
