"""Turn texts into batches of rows of tokens, in an order drawn to learn from, and as they come where nothing is learned.

The batches of an epoch are a pure function of the seed and the epoch.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from layerwright.batches import Batch
from layerwright.dense import computed
from layerwright.errors import DataError

AT_ONCE = 4096  # texts; the tokenizer's own notes on them take far more memory than their tokens
T = TypeVar("T")


class Tokens(NamedTuple):
    """A row as tokens, [CLS] a [SEP] or [CLS] a [SEP] b [SEP]; `second` is where the segment of b begins."""

    ids: "array[int]"
    second: int


class Frame(NamedTuple):
    """What a tokenizer puts before, between and after texts; segment: the second one is a segment of its own."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segment: bool


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, `options` to an example, and what to predict for examples.

    targets: class numbers int64 [N], numbers float32 [N], or places [N, 2]; None where they are not known.  cut: how many texts
    or pairs lost tokens because they were too long.
    """

    tokens: Sequence[Tokens]
    targets: Tensor | None
    pad: int
    options: int = 1
    cut: int = 0

    def __len__(self) -> int:
        return len(self.tokens) // self.options

    def length(self, place: int) -> int:
        """Return the tokens of an example, of its longest row if it has several."""
        return max(len(row.ids) for row in self.of(place))

    def of(self, place: int) -> Sequence[Tokens]:
        """Return the rows of an example."""
        return self.tokens[place * self.options : (place + 1) * self.options]

    def batch(self, places: Sequence[int]) -> Batch:
        """Return some examples as a batch, padded to the longest row of them."""
        chosen = [row for place in places for row in self.of(place)]
        ids = np.full((len(chosen), max(len(row.ids) for row in chosen)), self.pad)
        mask, segments = np.zeros(ids.shape, bool), np.zeros_like(ids)
        for at, row in enumerate(chosen):
            end = len(row.ids)
            ids[at, :end], mask[at, :end], segments[at, row.second : end] = row.ids, True, 1
        padded = None if mask.all() else torch.from_numpy(mask)
        return Batch(torch.from_numpy(ids), padded, torch.from_numpy(segments), self.labels(places, ids.shape[1]))

    def labels(self, places: Sequence[int], length: int) -> Tensor | None:
        """Return what to predict for some examples, whose rows are padded to `length`."""
        return None if self.targets is None else self.targets[list(places)]

    def shuffled(self, size: int, seed: int, epoch: int) -> list[Sequence[int]]:
        """Return the batches of an epoch, as places of examples, each once in an order drawn.

        Not by length: batches of short or of long texts alone have labels in other shares than the task has them.
        """
        count = len(self)
        return cut(Random(f"{seed}/{epoch}").sample(range(count), count), size)

    def in_order(self, size: int) -> list[Sequence[int]]:
        """Return all examples in batches, as they come: packed, rows of many lengths leave less padding than of about one."""
        return cut(range(len(self)), size)

    def padding(self, batches: Sequence[Sequence[int]]) -> float:
        """Return the share of padding among the tokens that are computed for some batches, packed where that pays."""
        lengths = [[len(row.ids) for place in batch for row in self.of(place)] for batch in batches]
        return 1 - sum(map(sum, lengths)) / sum(map(computed, lengths))


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and what rows a model takes: at most `length` tokens, `segments` telling whether it knows a second one."""

    tokenizer: Tokenizer
    pad: int
    length: int
    segments: bool
    single: Frame
    pair: Frame

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, pad: int, length: int, segments: bool) -> "Reader":
        """Return the reader of a tokenizer, which says itself what it puts around texts.

        Raises: DataError if it puts nothing before a text, for a model to sum it up in.
        """
        tokenizer.encode_special_tokens = True  # a "[SEP]" in a text is text
        frames = (_frame(tokenizer, pair=False), _frame(tokenizer, pair=True))
        if not all(frame.before for frame in frames):
            raise DataError("the tokenizer puts no token such as [CLS] before a text, by which rows are classified")
        return cls(tokenizer, pad, length, segments, *frames)

    def encode(self, texts: Sequence[str]) -> Iterator[Encoding]:
        """Turn texts into tokens and their places in the texts, without special tokens; only some texts at once."""
        for part in cut(texts, AT_ONCE):
            yield from self.tokenizer.encode_batch(part, add_special_tokens=False)

    def ids(self, texts: Sequence[str]) -> "list[array[int]]":
        """Turn texts into tokens, without special ones."""
        fast = self.tokenizer.encode_batch_fast
        return [array("I", one.ids) for part in cut(texts, AT_ONCE) for one in fast(part, add_special_tokens=False)]

    def rows(self, firsts: Sequence[str], seconds: Sequence[str] | None) -> tuple[list[Tokens], int]:
        """Return rows of texts or pairs, the longer text being cut first, and how many of them were cut."""
        if seconds is None:
            room = self.room(self.single)
            singles = self.ids(firsts)
            return [self.row(ids[:room]) for ids in singles], sum(len(ids) > room for ids in singles)
        rows, shortened, room = [], 0, self.room(self.pair)
        for first, second in zip(self.ids(firsts), self.ids(seconds), strict=True):
            # Of an odd room the longer one has the odd token, and of two as long the second, as in the library tokenizers.
            half = room // 2 if len(first) > len(second) else room - room // 2
            kept = min(len(second), max(room - len(first), half))
            rows.append(self.row(first[: room - kept], second[:kept]))
            shortened += len(first) + len(second) > room
        return rows, shortened

    def row(self, first: Sequence[int], second: Sequence[int] | None = None) -> Tokens:
        """Put special tokens around one or two texts."""
        frame = self.single if second is None else self.pair
        start = [*frame.before, *first]
        if second is None:
            return Tokens(array("I", [*start, *frame.after]), len(start) + len(frame.after))
        start += frame.between
        whole = array("I", [*start, *second, *frame.after])
        return Tokens(whole, len(start) if frame.segment and self.segments else len(whole))

    def room(self, frame: Frame) -> int:
        """Return how many tokens of texts a row has room for."""
        return self.length - len(frame.before) - len(frame.between) - len(frame.after)


def windows(count: int, room: int, stride: int) -> list[range]:
    """Cover `count` places with windows of at most `room`, each beginning `stride` after the one before.

    No two begin more than half the room apart, so that whatever is not longer than half of it lies whole in one of them.

    >>> windows(10, 6, 2)
    [range(0, 6), range(2, 8), range(4, 10)]
    >>> windows(3, 6, 2)
    [range(0, 3)]
    """
    step = max(1, min(stride, room // 2))
    begins = range(0, max(1, count - room + step), step)
    return [range(begin, min(begin + room, count)) for begin in begins]


def cut(whole: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a sequence into pieces of one size, the last of which may be smaller."""
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def _frame(tokenizer: Tokenizer, *, pair: bool) -> Frame:
    """Look at what a tokenizer makes of two letters."""
    framed = tokenizer.encode("a", "b" if pair else None)
    ids, parts = framed.ids, framed.sequence_ids
    if 0 not in parts or (pair and 1 not in parts):
        raise DataError("the tokenizer makes no tokens of the letters a and b")
    end = len(parts) - parts[::-1].index(0)
    if not pair:
        return Frame(tuple(ids[: parts.index(0)]), (), tuple(ids[end:]), False)
    begin = parts.index(1)
    rest = len(parts) - parts[::-1].index(1)
    return Frame(tuple(ids[: parts.index(0)]), tuple(ids[end:begin]), tuple(ids[rest:]), framed.type_ids[begin] == 1)
