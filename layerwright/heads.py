"""Heads: small modules that turn the states of a backbone into logits, for training here and for models of transformers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import Architecture
from .backbone import initialise
from .layers.feedforward import ACTIVATIONS


class MaskedHead(nn.Module):
    """States -> logits over the vocabulary: linear, activation, norm, then the token embedding as output matrix and a bias."""

    def __init__(self, arch: Architecture, act: str = "gelu"):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.transform = nn.Linear(arch.width, arch.embed)
        self.norm = nn.LayerNorm(arch.embed, eps=arch.eps)
        self.bias = nn.Parameter(torch.zeros(arch.vocab))
        initialise(self)

    def initialise(self) -> None:
        """Set the bias to zero."""
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Map states [..., D], with the token embedding [V, E], to logits [..., V]."""
        return F.linear(self.features(states), embedding, self.bias)

    def features(self, states: Tensor) -> Tensor:
        """Map states [..., D] to what meets the token embedding, [..., E]."""
        return torch.as_tensor(self.norm(self.act(self.transform(states))))

    def resize(self, vocab: int, *, mean: bool) -> None:
        """Cut the bias or lengthen it to this many tokens, whose own is the mean of the others or else zero."""
        old = self.bias.detach()
        new = old.new_full((vocab,), float(old.float().mean()) if mean else 0.0)
        kept = min(vocab, len(old))
        new[:kept] = old[:kept]
        self.bias = nn.Parameter(new, requires_grad=self.bias.requires_grad)


class ReplacedHead(nn.Module):
    """States -> one logit a token, positive where it looks replaced: linear, activation, linear (Clark et al. 2020)."""

    def __init__(self, arch: Architecture, act: str = "gelu"):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.hidden = nn.Linear(arch.width, arch.width)
        self.replaced = nn.Linear(arch.width, 1)
        initialise(self)

    def forward(self, states: Tensor) -> Tensor:
        """Map states [B, L, D] to logits [B, L]."""
        return torch.as_tensor(self.replaced(self.act(self.hidden(states)))[..., 0])


class ClassificationHead(nn.Module):
    """State of the first token -> logits over the classes (one number in a regression): dropout, linear.

    act: before these come a linear map and this activation, as in RoBERTa and ELECTRA.  input_dropout: dropout before
    that map too.
    """

    def __init__(
        self, arch: Architecture, classes: int, dropout: float = 0.1, *, act: str | None = None, input_dropout: bool = False
    ):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = None if act is None else nn.Linear(arch.width, arch.width)
        self.act = None if act is None else ACTIVATIONS[act]
        self.input_dropout = input_dropout
        self.classes = nn.Linear(arch.width, classes)
        initialise(self)

    def forward(self, states: Tensor) -> Tensor:
        """Map states [B, L, D] to logits [B, classes]."""
        x = states[:, 0]
        if self.hidden is not None and self.act is not None:
            x = self.act(self.hidden(self.dropout(x) if self.input_dropout else x))
        return torch.as_tensor(self.classes(self.dropout(x)))


class TokenHead(nn.Module):
    """State of each token -> logits over the classes: dropout, linear."""

    def __init__(self, arch: Architecture, classes: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Linear(arch.width, classes)
        initialise(self)

    def forward(self, states: Tensor) -> Tensor:
        """Map states [B, L, D] to logits [B, L, classes]."""
        return torch.as_tensor(self.classes(self.dropout(states)))
