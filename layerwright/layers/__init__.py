"""The layer kinds, and the contract they obey.

A layer maps x [B, L, D] and a `Context` to [B, L, D], keeping shape and dtype.  Its output at real tokens depends
neither on what padding holds nor on how much there is; documents of a packed row do not see each other; rows are
independent; every parameter gets a gradient; evaluation is deterministic.  It has no residual, norm or output
dropout (the backbone adds them) and does not know its own index.  `layerwright.testing` checks all of this.

B batch, L length, D width, H heads, E size of a head, K kernel, V vocabulary.
"""

from .attention import SelfAttention
from .context import Context
from .convolution import DynamicConvolution, MixedAttention, SpanConvolution
from .feedforward import FeedForward
from .formula import FormulaAttention
from .lightweight import LightweightConvolution

__all__ = [
    "Context",
    "DynamicConvolution",
    "FeedForward",
    "FormulaAttention",
    "LightweightConvolution",
    "MixedAttention",
    "SelfAttention",
    "SpanConvolution",
]
