"""A supernet: every alternative of a space, sharing weights between the architectures that use it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .architecture import Architecture, Layer
from .backbone import Embedding, Residual, initialise, last_norm
from .bare import bare
from .layers import Context
from .registry import KINDS
from .space import Part, Space, domains

_BODY = "body."


class Supernet(nn.Module):
    """A backbone that takes the architecture to run as an argument: it keeps no current one.

    Its weights are `slots.<slot>.<branch>.<place>.*` beside a backbone's `embed.*` and `norm.*`.  A branch is an alternative, or
    several that differ in what their kinds can share (`registry.layer`): it holds the weights of all of them once.  The largest
    kernel and its middle, and one set of maps for all formulas, is how AutoBERT-Zero shares them (Gao et al. 2022); that a
    branch has one norm too is our choice.

    Raises:
        ValueError: a value is left open of a kind that does not say how its layers share weights.
    """

    def __init__(self, space: Space, dropout: float = 0.1):
        super().__init__()
        for layer in (layer for slot in space.branches for branch in slot for layer in branch.layers):
            for key, _ in domains(layer):
                raise ValueError(f"a supernet cannot leave {layer.kind}[{key}] open: the kind does not say how its layers share")
        self.space = space
        self.arch = arch = space.largest
        self.dropout = dropout
        self.embed = Embedding(arch, dropout)
        self.slots = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(Residual(layer, arch, dropout) for layer in branch.layers) for branch in slot)
            for slot in space.branches
        )
        self.norm = last_norm(arch)
        self._branch = [{taken: at for at, branch in enumerate(slot) for taken in branch.alternatives} for slot in space.branches]
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
        for slot, part in enumerate(self.space.parts(arch)):
            x = self.follow(x, slot, part, context)
        return torch.as_tensor(self.norm(x))

    def follow(self, x: Tensor, slot: int, part: Part, context: Context) -> Tensor:
        """Run what an architecture has at a slot (`Space.parts`): [B, L, D] -> [B, L, D]."""
        taken, run = part
        branch = self._branch[slot][taken]
        wholes = self.space.branches[slot][branch].layers
        for held, whole, layer in zip(self.slots[slot][branch], wholes, run, strict=True):  # type: ignore[index]
            if layer == whole:
                x = held(x, context)
            else:
                template = _template(layer, self.space.settings, self.dropout).train(self.training)
                named = {**dict(held.named_parameters()), **dict(held.named_buffers())}
                x = functional_call(template, _parts(layer, named), (x, context))
        return x

    def weights_of(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the weights of `Backbone(arch)`: the same tensors, or parts of them, under a backbone's names."""
        named = self.state_dict()
        found = {key: value for key, value in named.items() if not key.startswith("slots.")}
        to = 0
        for slot, (taken, run) in enumerate(self.space.parts(arch)):
            branch = self._branch[slot][taken]
            for place, (layer, whole) in enumerate(zip(run, self.space.branches[slot][branch].layers, strict=True)):
                old = f"slots.{slot}.{branch}.{place}."
                held = {key[len(old) :]: value for key, value in named.items() if key.startswith(old)}
                had = held if layer == whole else _parts(layer, held)
                found |= {f"layers.{to}.{key}": value for key, value in had.items()}
                to += 1
        return found


def _parts(layer: Layer, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a layer in its residual from those of the one that has the weights of all."""
    whole = {name.removeprefix(_BODY): tensor for name, tensor in named.items() if name.startswith(_BODY)}
    kind, options = KINDS[layer.kind], dict(layer.options)
    part = kind.part(whole, **{key: options[key] for key in kind.shared})
    rest = {name: tensor for name, tensor in named.items() if not name.startswith(_BODY)}
    return {f"{_BODY}{name}": tensor for name, tensor in part.items()} | rest


@lru_cache(maxsize=1024)
def _template(layer: Layer, settings: tuple[tuple[str, Any], ...], dropout: float) -> Residual:
    """Return a layer in its residual without weights of its own, for calls that bring them."""
    with bare():
        return Residual(layer, Architecture(**dict(settings), layers=(layer,)), dropout)
