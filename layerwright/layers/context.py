"""What a layer is told besides its input: which tokens are real, and which belong together."""

from collections.abc import MutableSequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Context(NamedTuple):
    """What the layers of one forward pass share.

    mask: bool [B, L], true at real tokens; None where all are real.  documents: integers [B, L]; tokens of different
    documents do not see each other.  dropout: probability of dropping an attention probability; 0 in evaluation.  maps:
    where a layer that attends leaves its probabilities [B, H, L, L] (query, key), before dropout; None: not wanted.
    """

    mask: Tensor | None = None
    documents: Tensor | None = None
    dropout: float = 0.0
    maps: MutableSequence[Tensor] | None = None

    def visible(self) -> Tensor | None:
        """Return which token sees which, bool [B, 1, L or 1, L] (query, key); None where all see all."""
        keys = None if self.mask is None else self.mask[:, None, None, :]
        if self.documents is None:
            return keys
        together = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return together if keys is None else together & keys

    def neighbours(self, kernel: int) -> Tensor | None:
        """Return whether the token at each tap of a centred kernel is of the same document, bool [B, L, K].

        None where there is one document a row.  Padding needs no entry: a convolution sets it to zero in its input,
        like the outside of the sequence.
        """
        if self.documents is None:
            return None
        half = kernel // 2
        return F.pad(self.documents, (half, half), value=-1).unfold(1, kernel, 1) == self.documents[..., None]
