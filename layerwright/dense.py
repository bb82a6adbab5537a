"""Run a batch of padded rows as fewer rows without padding, the tokens of each a document of its own.

Layers keep documents apart as they keep rows apart, so what comes out at real tokens is the same but for rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels import fast

PAYS = 0.85  # the share of tokens that may be left at most: what to put in order costs, too

_packing: ContextVar[bool] = ContextVar("packing", default=False)


@contextmanager
def packing() -> Iterator[None]:
    """Let batches be packed inside: whoever reads nothing at padding may allow it."""
    token = _packing.set(True)
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

    @property
    def real(self) -> Tensor:
        """Which places hold a token, bool [R, L']."""
        return self.documents >= 0

    def gather(self, x: Tensor) -> Tensor:
        """Put what a batch holds into the rows: [B, L, ...] -> [R, L', ...]."""
        return x.flatten(0, 1)[self.taken]

    def scatter(self, states: Tensor) -> Tensor:
        """Put states back: [R, L', D] -> [B, L, D], anything at padding."""
        return states.flatten(0, 1)[self.back]


def packed(mask: Tensor | None, weight: Tensor) -> Packed | None:
    """Return how to pack the rows of a batch, of which `mask` [B, L] says what is real; None where it is not worth it.

    That is inside `packing`, where nothing but a forward pass is wanted, by weights on a CPU, where it costs what it holds;
    and there is much padding, all at the ends.  The rows become as long as the longest, and each goes into the first that has
    room for it.
    """
    if mask is None or not _packing.get() or torch.is_grad_enabled() or not fast(weight):
        return None
    lengths = mask.sum(1)
    longest = int(lengths.max()) if len(mask) > 1 else 0
    places = torch.arange(mask.shape[1], device=mask.device)
    if int(lengths.sum()) > PAYS * mask.numel() or longest == 0 or not torch.equal(mask, places < lengths[:, None]):
        return None
    room: list[int] = []  # that is left in each row
    begins = [0] * len(mask)
    sizes = lengths.tolist()
    for one in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        row = next((row for row, left in enumerate(room) if left >= sizes[one]), len(room))
        if row == len(room):
            room.append(longest)
        begins[one] = (row + 1) * longest - room[row]
        room[row] -= sizes[one]
    if len(room) * longest > PAYS * mask.numel():
        return None
    back = (torch.tensor(begins, device=mask.device)[:, None] + places) * mask
    numbers = torch.arange(len(mask), device=mask.device)[:, None]
    documents = torch.full((len(room) * longest,), -1, device=mask.device)
    documents[back[mask]] = numbers.expand_as(mask)[mask]
    taken = torch.zeros_like(documents)
    taken[back[mask]] = (numbers * mask.shape[1] + places)[mask]
    return Packed(taken.view(len(room), longest), documents.view(len(room), longest), back)
