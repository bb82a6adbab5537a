"""A supernet: every alternative of a space, sharing weights between the architectures that use it."""

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .backbone import Embedding, Residual, initialise, last_norm
from .layers import Context
from .space import Space


class Supernet(nn.Module):
    """A backbone that takes the architecture to run as an argument: it keeps no current one.

    Its weights are `slots.<slot>.<alternative>.<place>.*` beside a backbone's `embed.*` and `norm.*`.
    """

    def __init__(self, space: Space, dropout: float = 0.1):
        super().__init__()
        self.space = space
        self.arch = arch = space.largest
        self.dropout = dropout
        self.embed = Embedding(arch, dropout)
        self.slots = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(Residual(layer, arch, dropout) for layer in run) for run in slot) for slot in space.slots
        )
        self.norm = last_norm(arch)
        initialise(self)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        documents: Tensor | None = None,
        *,
        arch: Architecture,
    ) -> Tensor:
        """Run one architecture of the space: ids [B, L] -> [B, L, D].

        Raises:
            ValueError: the architecture is not in the space.
        """
        context = Context(mask, documents, self.dropout if self.training else 0.0)
        x = self.embed(ids, segments)
        for slot, taken in enumerate(self.space.path(arch)):
            x = self.follow(x, slot, taken, context)
        return torch.as_tensor(self.norm(x))

    def follow(self, x: Tensor, slot: int, taken: int, context: Context) -> Tensor:
        """Run an alternative of a slot: [B, L, D] -> [B, L, D]."""
        for layer in self.slots[slot][taken]:  # type: ignore[index]
            x = layer(x, context)
        return x

    def weights_of(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the weights of `Backbone(arch)`: the same tensors under a backbone's names."""
        named = self.state_dict()
        found = {key: value for key, value in named.items() if not key.startswith("slots.")}
        to = 0
        for slot, taken in enumerate(self.space.path(arch)):
            for place in range(len(self.space.slots[slot][taken])):
                old = f"slots.{slot}.{taken}.{place}."
                found |= {f"layers.{to}.{key[len(old) :]}": value for key, value in named.items() if key.startswith(old)}
                to += 1
        return found
