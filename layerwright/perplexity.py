"""Measure how well a model of masked tokens predicts a text: how many masked tokens it gets right, and how surprised it is.

Two measures.  For the accuracy a share of the tokens of every row is masked together, as in pre-training.  For the
pseudo-perplexity (Salazar et al. 2020, section 2.3) each token is masked alone, which costs a row a token, and so a sample of
the tokens is taken.  What is masked depends on the seed and the text alone.
"""

import math
import statistics
from array import array
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from .console import track
from .errors import DataError
from .inference import BATCH, Opened, windows
from .likelihood import WINDOW, Question, answer, check_scoring
from .tasks.records import Faults, existing, lines

LINES = 1_000  # turned into tokens at a time


class TextResults(BaseModel):
    """How well a model predicts a text.

    rows: lines, or parts of those that are longer than `length` tokens.  tokens: all but special ones.  accuracy, nats: of
    the `masked` tokens.  pseudo_nats: the mean of the `sampled` tokens, each masked alone, with its standard error, 0 where
    these are all; pseudo_perplexity is its exponential.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    arch: str
    text: str
    rows: int
    tokens: int
    length: int
    seed: int
    share: float
    masked: int
    accuracy: float
    nats: float
    sampled: int
    pseudo_nats: float
    standard_error: float
    pseudo_perplexity: float


class _Row(NamedTuple):
    ids: "array[int]"
    first: int  # of the tokens that are not special
    tokens: int


def measure_text(
    opened: Opened,
    text: Path,
    *,
    length: int = 128,
    share: float = 0.15,
    sample: int | None = 2_000,
    seed: int = 0,
    batch: int = BATCH,
) -> TextResults:
    """Measure how well a model of masked tokens predicts a text of UTF-8, each line by itself; blank lines are passed over.

    length: most tokens of a row.  share: of the tokens of a row that are masked together, at least one.  sample: how many
    tokens to mask alone; None: all.

    Raises:
        ValueError: a model without `mlm` head, or settings out of range.
        DataError: the text cannot be used.
    """
    check_scoring(opened, "original")
    if opened.head != "mlm":
        raise ValueError(f"to predict masked tokens takes a model with the head 'mlm', and {opened.folder} has '{opened.head}'")
    if not 0 < share <= 1 or (sample is not None and sample < 1):
        raise ValueError(f"share={share} and sample={sample}: a share is above 0 and at most 1, a sample at least 1")
    if not 3 <= length <= opened.positions:
        raise ValueError(f"length={length}, and {opened.folder} reads rows of 3 to {opened.positions} tokens")
    rows = _rows(opened, text, length)
    ends = list(accumulate(row.tokens for row in rows))
    nats, right = _together(opened, rows, share, seed, batch)
    chosen = sorted(Random(seed).sample(range(ends[-1]), min(sample or ends[-1], ends[-1])))
    alone = _alone(opened, rows, ends, chosen, batch)
    mean = statistics.fmean(alone)
    return TextResults(
        model=str(opened.folder),
        arch=str(opened.model.config.arch),
        text=str(text),
        rows=len(rows),
        tokens=ends[-1],
        length=length,
        seed=seed,
        share=share,
        masked=len(nats),
        accuracy=statistics.fmean(right),
        nats=statistics.fmean(nats),
        sampled=len(alone),
        pseudo_nats=mean,
        standard_error=statistics.stdev(alone) / math.sqrt(len(alone)) if 1 < len(alone) < ends[-1] else 0.0,
        pseudo_perplexity=math.exp(mean),
    )


def _rows(opened: Opened, text: Path, length: int) -> list[_Row]:
    """Return the lines of a text as rows of tokens, special ones around them."""
    faults = Faults(str(text), "line")
    written = (line for _, line in lines(existing(text), faults, blank=True) if line.strip())
    rows = []
    for some in windows(written, LINES):
        for one in opened.encode(some, length):
            for part in (one, *one.overflowing):
                tokens = len(part.ids) - sum(part.special_tokens_mask)
                if tokens:
                    rows.append(_Row(array("q", part.ids), part.special_tokens_mask.index(0), tokens))
    faults.settle("stop")
    if not rows:
        raise DataError(f"{text} holds no text")
    return rows


def _together(opened: Opened, rows: list[_Row], share: float, seed: int, batch: int) -> tuple[list[float], list[bool]]:
    """Return the nats of tokens masked with others of their row, and whether each was the likeliest."""

    def asked(number: int, row: _Row) -> Iterator[Question]:
        chosen = Random(f"{seed}/{number}").sample(range(row.tokens), max(1, round(share * row.tokens)))
        yield from _masked(opened, row, [row.first + place for place in chosen])

    nats: list[float] = []
    right: list[bool] = []
    with track("masked tokens", len(rows)) as advance:
        for window in windows(enumerate(rows), WINDOW, lambda one: len(one[1].ids)):
            found = answer(opened, [question for number, row in window for question in asked(number, row)], batch)
            nats += found.nats
            right += found.right
            advance(len(window))
    return nats, right


def _alone(opened: Opened, rows: list[_Row], ends: list[int], chosen: list[int], batch: int) -> list[float]:
    """Return the nats of chosen tokens of the text, each masked alone."""

    def asked(token: int) -> Question:
        row = rows[number := bisect(ends, token)]
        return next(_masked(opened, row, [row.first + token - (ends[number] - row.tokens)]))

    nats: list[float] = []
    with track("single tokens", len(chosen)) as advance:
        for window in windows(map(asked, chosen), WINDOW, lambda question: len(question.row) // 8):
            nats += answer(opened, window, batch).nats
            advance(len(window))
    return nats


def _masked(opened: Opened, row: _Row, places: list[int]) -> Iterator[Question]:
    """Yield a question for each of some places that are masked together."""
    ids = np.array(row.ids)
    hidden = ids.copy()
    hidden[places] = opened.special["mask"]
    for place in places:
        yield Question(hidden.tobytes(), place, int(ids[place]))
