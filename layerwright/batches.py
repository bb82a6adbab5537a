"""Batches of a packed corpus: a pure function of the seed, the step and the rank.

So a run resumes from its step number alone, and any number of processes sees the same global batches.  Chance that
training needs per token travels with the batch, as dice, for the same reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import count
from operator import itemgetter
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .architecture import Architecture
from .corpus import Corpus
from .errors import DataError
from .space import Space

SINGLE = 0.1  # share of rows of one segment (Clark et al. 2020, released code)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, and what a model must know to learn from them.

    ids, segments: int64 [B, L]; segments None: all 0.  mask: bool [B, L], None where every token is real.  labels: of
    the tokens or rows.  documents: int64 [B, L], equal where tokens see each other; None: all of a row do.  dice: float32
    [B, L, 3], uniform in [0, 1): is a token chosen, how is it corrupted, what is put in its place.  arch: the sub-network to
    run, when the model is a supernet.
    """

    ids: Tensor
    mask: Tensor | None = None
    segments: Tensor | None = None
    labels: Tensor | None = None
    documents: Tensor | None = None
    dice: Tensor | None = None
    arch: Architecture | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, pieces: int) -> list[Batch]:
        """Cut the rows into pieces of one size, for gradient accumulation.

        Raises:
            ValueError: the pieces do not divide the rows.
        """
        rows = len(self.ids)
        if rows % pieces:
            raise ValueError(f"{rows} rows on a process cannot be accumulated in {pieces} equal pieces")
        size = rows // pieces
        return [self._each(itemgetter(slice(at, at + size))) for at in range(0, rows, size)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Batch(**values)


def batches(
    corpus: Corpus,
    *,
    shape: tuple[int, int],
    seed: int,
    start: int = 0,
    split: str = "train",
    share: tuple[int, int] = (0, 1),
    apart: bool = False,
) -> Iterator[Batch]:
    """Yield batches for ever, from step `start` on: rows "[CLS] a [SEP] b [SEP]", a tenth "[CLS] a [SEP]".

    Rows are consecutive windows of the tokens, in a new order and from a new offset every epoch.  A row is cut in two
    where a document begins, else anywhere; that costs its last token.  shape: rows of the global batch and their length.
    share: rank and number of processes.  apart: number the documents of each row, so that they do not see each other;
    [CLS] is of the first, and a [SEP] of the one before it.

    Raises:
        DataError: the split is shorter than one row.
        ValueError: the processes do not divide the rows.
    """
    (size, length), (rank, world) = shape, share
    if size % world:
        raise ValueError(f"{world} processes cannot share a batch of {size} rows equally")
    rows = _Rows(corpus, split, length, seed, apart)
    mine = slice(rank * size // world, (rank + 1) * size // world)
    return (rows.batch(step, size, mine) for step in count(start))


def along(stream: Iterator[Batch], space: Space, seed: int, start: int = 0, usual: float = 0.0) -> Iterator[Batch]:
    """Name a random architecture of the space on every batch: this is all that supernet training adds.

    The same on every process: it depends on the seed and the step only.  usual: the probability with which a value left open
    is the usual one.
    """
    for step, batch in enumerate(stream, start):
        yield replace(batch, arch=space.sample(Random(f"{seed}/{step}"), usual))


class Prefetched:
    """Make a batch while the one before it is learned from; count the seconds waited for them all the same, and padding."""

    def __init__(self, stream: Iterator[Batch]) -> None:
        self.seconds, self.tokens, self.real = 0.0, 0, 0
        self._stream, self._thread = stream, ThreadPoolExecutor(1)
        self._coming: Future[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._stream) if self._coming is None else self._coming.result()
        self.seconds += time.perf_counter() - began
        self._coming = self._thread.submit(next, self._stream)
        self.tokens += batch.ids.numel()
        self.real += batch.ids.numel() if batch.mask is None else int(batch.mask.sum())
        return batch

    @property
    def padding(self) -> float:
        """The share of padding among the tokens."""
        return 1 - self.real / self.tokens if self.tokens else 0.0


class _Rows:
    """The rows of a split: number -> tokens."""

    def __init__(self, corpus: Corpus, split: str, length: int, seed: int, apart: bool):
        self.tokens, self.starts, self.special = corpus.tokens(split), corpus.starts(split), corpus.special
        self.length, self.seed, self.apart = length, seed, apart
        self.window = length - 2
        self.count = (len(self.tokens) - self.window) // self.window if self.window > 1 else 0
        if self.count < 1:
            raise DataError(f"the {split} split has {len(self.tokens):,} tokens: too few for rows of {length}")

    def batch(self, step: int, size: int, mine: slice) -> Batch:
        """Return some rows of the global batch of a step; chance is drawn for all, so that it does not depend on which."""
        chance = np.random.default_rng((self.seed, step))
        dice = chance.random((size, self.length, 3), dtype=np.float32)[mine]
        cuts = chance.random((size, 2))[mine]
        ids, segments, documents = map(torch.from_numpy, self._read(np.arange(step * size, (step + 1) * size)[mine], cuts))
        several = documents if self.apart and documents.any() else None
        return Batch(ids, segments=segments, documents=several, dice=torch.from_numpy(dice))

    def _read(self, numbers: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, segments and documents [B, L] of rows by their running number; cuts [B, 2]: chance of each."""
        ids = np.full((len(numbers), self.length), self.special.sep, np.int64)
        segments, documents = np.zeros_like(ids), np.zeros_like(ids)
        ids[:, 0] = self.special.cls
        for row, (number, (single, where)) in enumerate(zip(numbers.tolist(), cuts.tolist(), strict=True)):
            at = self._start(number)
            words = self.tokens[at : at + self.window]
            if single < SINGLE:
                ids[row, 1:-1] = words
                cut = self.window  # no token comes later because of a [SEP] before it
            else:
                cut = self._cut(at, where)
                ids[row, 1 : cut + 1] = words[:cut]
                ids[row, cut + 2 : -1] = words[cut:-1]
                segments[row, cut + 2 :] = 1
            for begins in self._beginnings(at) if self.apart else ():
                documents[row, begins + 1 + (begins >= cut) :] += 1
        documents[:, -1] = documents[:, -2]  # the token that a cut costs may begin one
        return ids, segments, documents

    def _beginnings(self, at: int) -> list[int]:
        """Return where documents begin within a window, but for its first token."""
        first, last = np.searchsorted(self.starts, [at + 1, at + self.window])
        return [int(start) - at for start in self.starts[first:last]]

    def _start(self, number: int) -> int:
        """Return where the window of a row starts in the tokens."""
        epoch, place = divmod(number, self.count)
        return _offset(self.seed, epoch, self.window) + int(_order(self.seed, epoch, self.count)[place]) * self.window

    def _cut(self, at: int, where: float) -> int:
        """Return where to cut a window in two: at the first document that begins inside, else anywhere."""
        beginning = int(np.searchsorted(self.starts, at, side="right"))
        if beginning < len(self.starts) and self.starts[beginning] - at < self.window - 1:
            return int(self.starts[beginning] - at)
        return 1 + int(where * (self.window - 2))


# Two: a batch may begin in one epoch and end in the next, and the order of a large corpus is large.
@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 1)).permutation(count)


@lru_cache(maxsize=2)
def _offset(seed: int, epoch: int, window: int) -> int:
    return int(np.random.default_rng((seed, epoch, 2)).integers(window))
