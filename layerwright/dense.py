"""Run a batch of padded rows as fewer rows almost without padding, the tokens of each a document of its own.

Layers keep documents apart as they keep rows apart, so what comes out at real tokens is the same but for rounding and for
which values dropout takes.  What comes out at padding means nothing, so only who reads nothing there may allow it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from .layers.context import Context

LONG = 8000  # tokens: how much longer rows may be so as to be fuller.  2000 is quicker, by 5 % on SQuAD, where it pads 2 % more
STEPS = 24  # rows become longer by a 48th to a 24th: for each of few sizes products are prepared, and memory is cut
PAYS = 0.95  # the share of a batch that may be left: to put tokens in order costs, too

_packing: ContextVar[bool] = ContextVar("packing", default=False)


@contextmanager
def packing(allowed: bool = True) -> Iterator[None]:
    """Let batches be packed inside, or not."""
    token = _packing.set(allowed)
    try:
        yield
    finally:
        _packing.reset(token)


class Packed(NamedTuple):
    """Where tokens of a batch [B, L] stand in rows [R, L'] that hold several of its rows one after another.

    taken: which token of the batch, counted over all rows, stands at each place; any, where none does.  documents: [R, L'],
    the row of the batch that each is of, -1 where none is.  back: [B, L], at which place each real token stands.
    """

    taken: Tensor
    documents: Tensor
    back: Tensor

    def inputs(self, ids: Tensor, segments: Tensor | None = None, places: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Return ids, segments and places [B or 1, L] of a batch as those of the rows; places count from 0 without any."""
        places = torch.arange(ids.shape[1], device=ids.device)[None] if places is None else places
        given = (ids, segments, places.expand(ids.shape))
        return tuple(None if x is None else x.flatten()[self.taken] for x in given)

    def context(self, context: Context) -> Context:
        """Return what layers are told of the rows instead of what they are told of the batch."""
        return replace(context, mask=self.documents >= 0, documents=self.documents)

    def scatter(self, states: Tensor) -> Tensor:
        """Put states back: [R, L', D] -> [B, L, D], anything at padding."""
        # An index of one dimension has a gradient that is quick to add up.
        return torch.index_select(states.flatten(0, 1), 0, self.back.flatten()).view(*self.back.shape, -1)


def packed(mask: Tensor | None) -> Packed | None:
    """Return how to pack the rows of a batch, of which `mask` [B, L] says what is real; None where it is not worth it.

    It is inside `packing`, where enough is padding, and that at the ends of rows; not in what is compiled.
    """
    if mask is None or not _packing.get() or torch.compiler.is_compiling():
        return None
    lengths = mask.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    sizes = lengths.tolist()
    found = _paying(sizes, mask.numel())
    if found is None or not torch.equal(mask, places < lengths[:, None]):
        return None
    begins, rows, width = found
    back = (torch.tensor(begins, device=mask.device)[:, None] + places) * mask
    numbers = torch.arange(len(mask), device=mask.device)[:, None]
    documents = torch.full((rows * width,), -1, device=mask.device)
    documents[back[mask]] = numbers.expand_as(mask)[mask]
    taken = torch.zeros_like(documents)
    taken[back[mask]] = (numbers * mask.shape[1] + places)[mask]
    return Packed(taken.view(rows, width), documents.view(rows, width), back)


def filled(sizes: Sequence[int]) -> tuple[list[int], int, int]:
    """Return where rows of these lengths begin in fewer rows laid end to end, how many those are, and how long.

    Longer rows have less padding, and attention in them costs more: of a few lengths it is the one of least cost.

    >>> filled([3, 5, 2, 4, 4])
    ([13, 0, 16, 5, 9], 1, 20)
    """
    order = sorted(range(len(sizes)), key=lambda one: -sizes[one])
    found = (_filled(sizes, order, width) for width in _widths(max(1, *sizes), sum(sizes)))
    return min(found, key=lambda one: one[1] * one[2] * (1 + one[2] / LONG))


def _widths(longest: int, total: int) -> Iterator[int]:
    """Return how long rows may become, from the longest of a batch to all of it in one, in whole steps."""
    while True:
        step = max(4, 1 << (longest // STEPS).bit_length() >> 1)
        width = ceil(longest / step) * step
        yield width
        if width >= total:
            return
        longest = width + 1


def _filled(sizes: Sequence[int], order: Sequence[int], width: int) -> tuple[list[int], int, int]:
    """Put rows, the longest of them first, each into the first row of that width that has room."""
    begins, room = [0] * len(sizes), list[int]()
    for one in order:
        row = next((row for row, left in enumerate(room) if left >= sizes[one]), len(room))
        if row == len(room):
            room.append(width)
        begins[one] = (row + 1) * width - room[row]
        room[row] -= sizes[one]
    return begins, len(room), width


def computed(sizes: Sequence[int]) -> int:
    """Return how many tokens are computed for a batch of rows of these lengths inside `packing`."""
    padded = max(sizes) * len(sizes)
    found = _paying(sizes, padded)
    return padded if found is None else found[1] * found[2]


def _paying(sizes: Sequence[int], padded: int) -> tuple[list[int], int, int] | None:
    """Return what `filled` does, or None where that leaves nearly as many tokens as padding does, or none at all."""
    if not 0 < sum(sizes) <= PAYS * padded:
        return None
    found = filled(sizes)
    return found if found[1] * found[2] <= PAYS * padded else None
