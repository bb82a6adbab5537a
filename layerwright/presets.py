"""Names for known texts: published encoders, and a small one for trying things out.

Sizes: Turc et al. 2019 (bert-tiny to bert-medium), Devlin et al. 2019 (bert-base, bert-large), Clark et al. 2020
(electra-*), Jiang et al. 2020 (convbert-*), and LV-BERT's published sequence (its repository, pretrain.sh).

The networks that AutoBERT-Zero found are known from a figure of the paper (Gao et al. 2022, figure 7).  A name with "read"
is that figure as we read it: its box "sqrt" is `scale`, since a root of a negative number is none, and the chain neg,
logsigmoid, transpose, neg is written as it stands.  A name with "ours" is our arrangement of its parts, each layer twice, for
the paper's variants with attention or convolution alone, of which no figure is known.  The small size is ELECTRA's.
"""

import re

from .architecture import Architecture, Layer
from .errors import nearest
from .space import Space

_KERNELS = (65, 9, 3, 7, 7, 3)
_FORMULAS = (
    "matmul(softmax(scale(matmul(q,neg(t(logsigmoid(neg(k))))))),add(q,k))",
    "matmul(softmax(scale(matmul(q,neg(t(logsigmoid(add(logsigmoid(q),add(q,k)))))))),q)",
    "matmul(softmax(scale(matmul(q,neg(t(logsigmoid(k)))))),q)",
    "matmul(softmax(scale(matmul(q,neg(t(logsigmoid(k)))))),q)",
    "matmul(softmax(scale(matmul(q,t(add(scale(k),add(softsign(scale(softsign(k))),v)))))),v)",
    "matmul(softmax(scale(matmul(q,t(add(scale(k),v))))),v)",
)
_CONVOLVED = [f"lightconv[kernel={kernel}] ffn" for kernel in _KERNELS]
_ATTENDED = [f"formula[text={formula}] ffn" for formula in _FORMULAS]
_FOUND = " ".join(f"{one} {other}" for one, other in zip(_CONVOLVED, _ATTENDED, strict=True))
_ATTENTION_ONLY = " ".join(f"2x({one})" for one in _ATTENDED)
_CONVOLUTION_ONLY = " ".join(f"2x({one})" for one in _CONVOLVED)

PRESETS = {
    "debug": "32 embed=16 vocab=1024 positions=128: conv attn ffn attn ffn",
    "bert-tiny": "128: 2x(attn ffn)",
    "bert-mini": "256: 4x(attn ffn)",
    "bert-small": "512: 4x(attn ffn)",
    "bert-medium": "512: 8x(attn ffn)",
    "bert-base": "768: 12x(attn ffn)",
    "bert-large": "1024: 24x(attn ffn)",
    "electra-small": "256 embed=128: 12x(attn ffn)",
    "electra-base": "768: 12x(attn ffn)",
    "convbert-small": "256 embed=128: 12x(mixed ffn)",
    "convbert-medium-small": "384 embed=128: 12x(mixed[heads=8] ffn[groups=2])",
    "convbert-base": "768: 12x(mixed ffn)",
    "lv-bert-small": "256 embed=128: 2xconv attn 2xffn attn conv 2xffn attn 2xconv attn ffn conv ffn attn conv ffn conv "
    "2xattn ffn attn",
    "autobert-zero-read": f"768: {_FOUND}",
    "autobert-zero-read-small": f"256 embed=128: {_FOUND}",
    "autobert-zero-ours-att": f"768: {_ATTENTION_ONLY}",
    "autobert-zero-ours-att-small": f"256 embed=128: {_ATTENTION_ONLY}",
    "autobert-zero-ours-conv": f"768: {_CONVOLUTION_ONLY}",
    "autobert-zero-ours-conv-small": f"256 embed=128: {_CONVOLUTION_ONLY}",
}

# Width of the generator, as a share of the encoder's, where it is not a quarter (Clark et al. 2020, Jiang et al. 2020).
GENERATORS = {"electra-base": "1/3", "convbert-base": "1/3"}


def architecture(text: str) -> Architecture:
    """Read an architecture: the name of a preset, or a text.

    Raises:
        ValueError: neither; with the nearest preset, or a caret under the place.
    """
    return Architecture.parse(_known(text))


def space(text: str) -> Space:
    """Read a space: a text, or the name of a preset (a space of one).

    Raises:
        ValueError: neither; with the nearest preset, or a caret under the place.
    """
    return Space.parse(_known(text))


def _known(text: str) -> str:
    name = text.strip()
    if name in PRESETS:
        return PRESETS[name]
    if re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise ValueError(f"no preset '{name}'{nearest(name, PRESETS)}")
    return text


def interleaved(like: Architecture) -> Architecture:
    """Return the ordinary BERT backbone of the same settings and depth: attention and feed-forward in turn."""
    return like.with_layers([Layer("ffn" if place % 2 else "attn") for place in range(len(like))])


def sandwich(like: Architecture) -> Architecture:
    """Return the sandwich of the same settings and depth (Press et al. 2020, section 5).

    Of n pairs, the first k attention layers come first and the last k feed-forward layers last.  k = n // 2 is our
    choice; an odd last layer is a feed-forward layer.
    """
    pairs = len(like) // 2
    moved = pairs // 2
    kinds = ["attn"] * moved + ["attn", "ffn"] * (pairs - moved) + ["ffn"] * (moved + len(like) % 2)
    return like.with_layers(Layer(kind) for kind in kinds)
