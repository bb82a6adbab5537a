"""Turn a table into batches: rows of tokens, those of a batch of about one length, so that little of it is padding.

The batches of an epoch are a pure function of the seed and the epoch.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from layerwright import vocabulary
from layerwright.batches import Batch
from layerwright.tasks.tables import Table

AT_ONCE = 4096  # rows; the tokenizer's own notes on them take far more memory than their tokens
T = TypeVar("T")


class Tokens(NamedTuple):
    """A row as tokens, [CLS] a [SEP] or [CLS] a [SEP] b [SEP]; `second` is where b begins."""

    ids: "array[int]"
    second: int


@dataclass(frozen=True)
class Rows:
    """The rows of a table as tokens, and what to predict for them: class numbers int64 [N], or float32 [N]."""

    tokens: Sequence[Tokens]
    targets: Tensor
    pad: int

    def batch(self, places: Sequence[int]) -> Batch:
        """Return some rows as a batch, padded to the longest of them."""
        chosen = [self.tokens[place] for place in places]
        ids = np.full((len(chosen), max(len(row.ids) for row in chosen)), self.pad)
        mask, segments = np.zeros(ids.shape, bool), np.zeros_like(ids)
        for at, row in enumerate(chosen):
            end = len(row.ids)
            ids[at, :end], mask[at, :end], segments[at, row.second : end] = row.ids, True, 1
        padded = None if mask.all() else torch.from_numpy(mask)
        return Batch(torch.from_numpy(ids), padded, torch.from_numpy(segments), self.targets[list(places)])

    def grouped(self, size: int, seed: int, epoch: int) -> list[Sequence[int]]:
        """Return the batches of an epoch, as places of rows: every row once, those of a batch of about one length.

        Rows are shuffled, sorted by length within windows of up to 50 batches (smaller ones where rows are few, so that
        epochs differ), cut into batches, and these are shuffled.
        """
        chance = Random(f"{seed}/{epoch}")
        count = len(self.tokens)
        order = chance.sample(range(count), count)
        window = size * min(50, max(1, count // (4 * size)))
        batches = [batch for places in _cut(order, window) for batch in self.by_length(size, places)]
        chance.shuffle(batches)
        return batches

    def by_length(self, size: int, places: Sequence[int]) -> list[Sequence[int]]:
        """Return some rows in batches, the shortest first."""
        return _cut(sorted(places, key=lambda place: len(self.tokens[place].ids)), size)

    def padding(self, batches: Sequence[Sequence[int]]) -> float:
        """Return the share of padding among the tokens of some batches."""
        lengths = [[len(self.tokens[place].ids) for place in batch] for batch in batches]
        return 1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths)


def tokenize(table: Table, tokenizer: Tokenizer, length: int) -> list[Tokens]:
    """Turn each row into at most `length` tokens; where they are more, the longer sentence is cut first."""
    special = vocabulary.special(tokenizer)
    tokenizer.encode_special_tokens = True  # a "[SEP]" in a sentence is text

    def ids(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    tokens = []
    room = length - (3 if table.pairs else 2)
    for rows in _cut(table.rows, AT_ONCE):
        firsts, seconds = ids([row.first for row in rows]), ids([row.second or "" for row in rows])
        for first, second in zip(firsts, seconds, strict=True):
            kept = min(len(second), max(room - len(first), room // 2))
            start = [special.cls, *first[: room - kept], special.sep]
            end = [*second[:kept], special.sep] if table.pairs else []
            tokens.append(Tokens(array("I", start + end), len(start)))
    return tokens


def _cut(whole: Sequence[T], size: int) -> list[Sequence[T]]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]
