"""A backbone: embeddings, then each layer inside its residual (Devlin et al. 2019, section 3).

The names of its weights are a contract: `embed.*`, `layers.<i>.body.*`, `layers.<i>.norm.*`, and `norm.*` where norms
come first.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .architecture import Architecture, Layer
from .dense import packed
from .fused import add_norm
from .kernels import drop, lower
from .layers import Context
from .registry import KINDS


class Backbone(nn.Module):
    """Token ids [B, L] -> hidden states [B, L, D], freshly initialised.

    dropout: of embeddings, of every layer's output, and of attention probabilities.
    """

    def __init__(self, arch: Architecture, dropout: float = 0.1):
        super().__init__()
        self.arch = arch
        self.dropout = dropout
        self.embed = Embedding(arch, dropout)
        self.layers = nn.ModuleList(Residual(layer, arch, dropout) for layer in arch.layers)
        self.norm = last_norm(arch)
        initialise(self)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Run every layer.  mask: bool [B, L], None where every token is real; documents: integers [B, L]."""
        context = Context(mask, documents, self.dropout if self.training else 0.0)
        dense = packed(mask) if documents is None else None
        if dense is None:
            return run(self.layers, self.norm, self.embed(ids, segments), context)
        x = self.embed(*dense.inputs(ids, segments))
        return dense.scatter(run(self.layers, self.norm, x, dense.context(context)))


def run(layers: Iterable[nn.Module], norm: nn.Module, x: Tensor, context: Context, states: list[Tensor] | None = None) -> Tensor:
    """Send x [B, L, D] through layers and the last norm; `states` collects what enters each layer, and the result."""
    for layer in layers:
        if states is not None:
            states.append(x)
        x = layer(x, context)
    x = norm(x)
    if states is not None:
        states.append(x)
    return x


class Embedding(nn.Module):
    """Sum of token, position and segment embeddings, normed, then widened if `embed` differs from the width."""

    def __init__(self, arch: Architecture, dropout: float):
        super().__init__()
        self.token = nn.Embedding(arch.vocab, arch.embed)
        self.position = nn.Embedding(arch.offset + arch.positions, arch.embed)
        self.segment = nn.Embedding(arch.segments, arch.embed) if arch.segments else None
        self.offset = arch.offset
        self.norm = nn.LayerNorm(arch.embed, eps=arch.eps)
        self.dropout = nn.Dropout(dropout)
        self.widen = nn.Linear(arch.embed, arch.width) if arch.embed != arch.width else nn.Identity()

    def forward(self, ids: Tensor, segments: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """Map ids (or, in their place, token vectors [B, L, embed]) and segments [B, L] to [B, L, D].

        places: which position each token has, [B or 1, L]; without it, they count from 0.

        Raises:
            ValueError: more tokens in a row than positions, or a second segment where the architecture has none.
        """
        end, positions = self.offset + ids.shape[1], self.position.num_embeddings - self.offset
        if places is None and ids.shape[1] > positions:
            raise ValueError(f"a row of {ids.shape[1]} tokens, and the architecture has {positions} positions")
        position = self.position.weight[self.offset : end] if places is None else self.position(places + self.offset)
        x = (ids if ids.is_floating_point() else self.token(ids)) + position
        if self.segment is not None:
            x = x + (self.segment.weight[0] if segments is None else self.segment(segments))
        elif segments is not None and not torch.compiler.is_compiling() and segments.any():
            raise ValueError("a second segment, and the architecture has segments=0")
        return torch.as_tensor(self.widen(drop(self.norm(x), rate(self.dropout))))


class Residual(nn.Module):
    """A layer with its norm and skip connection: post norm(x + f(x)), or pre x + f(norm(x))."""

    def __init__(self, layer: Layer, arch: Architecture, dropout: float):
        super().__init__()
        self.body = KINDS[layer.kind].module(arch.width, **dict(layer.options))
        self.norm = nn.LayerNorm(arch.width, eps=arch.eps)
        self.dropout = nn.Dropout(dropout)
        self.pre = arch.norm == "pre"

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        if self.pre:
            return x + drop(self.body(lower(self.norm(x)), context), rate(self.dropout))
        x = lower(x)
        return add_norm(x, self.body(x, context), self.norm, rate(self.dropout))


def rate(dropout: nn.Dropout) -> float:
    """Return the probability with which a dropout drops now."""
    return dropout.p if dropout.training else 0.0


def last_norm(arch: Architecture) -> nn.Module:
    """Return what follows the last layer: a norm where norms come first, else nothing."""
    return nn.LayerNorm(arch.width, eps=arch.eps) if arch.norm == "pre" else nn.Identity()


def initialise(root: nn.Module) -> None:
    """Draw the weights of a module and all inside it afresh."""
    root.apply(set_weights)


def set_weights(module: nn.Module) -> None:
    """Set a module's own weights: matrices to N(0, 0.02), biases to zero, norms to one (Devlin et al. 2019).

    A layer that has a method `initialise` then sets what it wants otherwise; the modules inside it come before it.
    """
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    own = getattr(module, "initialise", None)
    if callable(own):
        own()
