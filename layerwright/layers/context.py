"""What a layer is told besides its input: which tokens are real, and which belong together."""

from collections.abc import MutableSequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What the layers of one forward pass share.

    mask: bool [B, L], true at real tokens; None where all are real.  documents: integers [B, L]; tokens of different
    documents do not see each other.  dropout: probability of dropping an attention probability; 0 in evaluation.  maps:
    where a layer that attends leaves its probabilities [B, H, L, L] (query, key), before dropout; None: not wanted.

    What follows from documents is worked out when the first layer asks, and kept for the others.
    """

    mask: Tensor | None = None
    documents: Tensor | None = None
    dropout: float = 0.0
    maps: MutableSequence[Tensor] | None = None
    # By kernel, and at 0 which token sees which.
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Context":
        """Return the same for a device; accelerate calls this before a layer that lies on another one than the last."""
        if all(x is None or x.device == torch.device(device) for x in (self.mask, self.documents)):
            return self
        mask, documents = (None if x is None else x.to(device, non_blocking=non_blocking) for x in (self.mask, self.documents))
        return replace(self, mask=mask, documents=documents)

    def visible(self) -> Tensor | None:
        """Return which token sees which, bool [B, 1, L or 1, L] (query, key); None where all see all."""
        keys = None if self.mask is None else self.mask[:, None, None, :]
        if self.documents is None:
            return keys
        if 0 not in self._kept:
            together = self.documents[:, None, :, None] == self.documents[:, None, None, :]
            self._kept[0] = together if keys is None else together & keys
        return self._kept[0]

    def neighbours(self, kernel: int) -> Tensor | None:
        """Return whether the token at each tap of a centred kernel is of the same document, bool [B, L, K].

        None where there is one document a row.  Padding needs no entry: a convolution sets it to zero in its input,
        like the outside of the sequence.
        """
        if self.documents is None:
            return None
        if kernel not in self._kept:
            half = kernel // 2
            around = F.pad(self.documents, (half, half), value=-1).unfold(1, kernel, 1)
            self._kept[kernel] = around == self.documents[..., None]
        return self._kept[kernel]
