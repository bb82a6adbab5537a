"""The primitive operations of formulas, each declared once: what it takes and gives, computes, and how it is written.

A value is per token [L, E] or per pair of tokens [L, L], query by key; L tokens, E channels of one head.  An operation is
given twice where one expression does not serve: for NumPy's arrays, by which searches try formulas, and for tensors.
"""

import re
from collections.abc import Callable
from contextlib import nullcontext
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INPUTS = ("q", "k", "v")
EPSILON = 1e-6  # under square roots, whose slope at zero is infinite

Compute = Callable[..., Any]


class Shape(Enum):
    """What a value has an entry for."""

    TOKEN = "a value per token"
    TURNED = "a value per token, transposed"
    PAIR = "a value per pair of tokens"

    __hash__ = object.__hash__  # what tables of shapes are asked for most


Signature = tuple[Shape, ...]


class Notation(NamedTuple):
    """How an operation is written: in LaTeX and plainly, with places for its arguments, and how tightly it binds.

    level: of the result; needs: what each argument must have at least, or else get brackets.  Sums have 1, negation 2,
    products 3, a transpose 4, what needs no brackets 5.
    """

    latex: str
    plain: str
    level: int = 5
    needs: tuple[int, ...] = (0, 0)


class Operation(NamedTuple):
    """One primitive operation, as declared by `operation`."""

    name: str
    takes: dict[Signature, Shape]
    array: Compute
    tensor: Compute
    notation: Notation
    commutes: bool
    rows: bool
    arity: int


OPERATIONS: dict[str, Operation] = {}

EACH: dict[Signature, Shape] = {(Shape.TOKEN,): Shape.TOKEN, (Shape.PAIR,): Shape.PAIR}
BOTH: dict[Signature, Shape] = {(Shape.TOKEN, Shape.TOKEN): Shape.TOKEN, (Shape.PAIR, Shape.PAIR): Shape.PAIR}
COMPARES: dict[Signature, Shape] = {(Shape.TOKEN, Shape.TOKEN): Shape.PAIR}


def operation(
    name: str,
    takes: dict[Signature, Shape],
    array: Compute,
    *,
    tensor: Compute | None = None,
    notation: Notation | None = None,
    commutes: bool = False,
    rows: bool = False,
) -> Operation:
    """Declare an operation: from then on it is a word of formulas, searched and drawn like every other.

    takes: the shapes of the arguments it can have, and of the result: `EACH` value, `BOTH` of one shape entry by entry, or
    two values per token that it `COMPARES` by pairs.  array, tensor: what it computes, with any dimensions in front; one
    function will do where it has no use for the names of NumPy or torch.  commutes: the order of its two arguments is
    nothing; of two that are compared, nothing but a transpose.  rows: it looks at rows as a whole; of a tensor per pair, what
    a token cannot see arrives there as -inf.

    Raises:
        TypeError: no text can spell the name, or the numbers of arguments differ or are neither 1 nor 2.
        ValueError: the name is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise TypeError(f"'{name}' is not a word that a formula can hold")
    if name in OPERATIONS or name in INPUTS:
        raise ValueError(f"'{name}' is already a word of formulas")
    arities = {len(signature) for signature in takes}
    if len(arities) != 1 or not arities <= {1, 2}:
        raise TypeError(f"the operation '{name}' takes one argument or two, everywhere as many")
    (arity,) = arities
    if notation is None:
        places = "({0})" if arity == 1 else "({0}, {1})"
        notation = Notation(r"\operatorname{{" + name.replace("_", r"\_") + "}}" + places, name + places)
    OPERATIONS[name] = Operation(name, takes, array, tensor or array, notation, commutes, rows, arity)
    return OPERATIONS[name]


def _softmax(x: Any) -> Any:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _cosine(a: Any, b: Any) -> Any:
    products = a @ b.swapaxes(-1, -2)
    one, other = ((x * x).sum(-1) + EPSILON for x in (a, b))
    return products / np.sqrt(one[..., :, None] * other[..., None, :])


def _cosine_of_tensors(a: Tensor, b: Tensor) -> Tensor:
    one, other = (x * (x.square().sum(-1, keepdim=True) + EPSILON).rsqrt() for x in (_wide(a), _wide(b)))
    return one.to(a.dtype) @ other.to(a.dtype).transpose(-1, -2)


def _euclidean(a: Any, b: Any) -> Any:
    squares = ((a[..., :, None, :] - b[..., None, :, :]) ** 2).sum(-1)
    return np.sqrt(np.maximum(squares, EPSILON))


def _euclidean_of_tensors(a: Tensor, b: Tensor) -> Tensor:
    """Squares of lengths less twice the products: in float32, for what is left of large numbers may be small."""
    one, other = _wide(a), _wide(b)
    kind = a.device.type
    mixed = kind != "meta" and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if mixed else nullcontext():
        products = one @ other.transpose(-1, -2)
    squares = one.square().sum(-1, keepdim=True) + other.square().sum(-1)[..., None, :] - 2 * products
    return squares.clamp(min=EPSILON).sqrt().to(a.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# What `t` and `matmul` take transposed, `formulas` adds; what `scale` divides by, the root of E, its caller knows.
operation("neg", EACH, lambda x: -x, notation=Notation("-{0}", "-{0}", 2, (3,)))
operation("t", {(Shape.PAIR,): Shape.PAIR}, lambda x: x.swapaxes(-1, -2), notation=Notation(r"{0}^\top", "{0}ᵀ", 4, (5,)))
operation("scale", EACH, lambda x, root: x / root, notation=Notation(r"\frac{{{0}}}{{\sqrt{{E}}}}", "{0} / √E", 3, (3,)))
operation("softmax", EACH, _softmax, tensor=lambda x: _wide(x).softmax(-1), rows=True)
operation(
    "logsigmoid",
    EACH,
    lambda x: -np.logaddexp(0, -x),
    tensor=F.logsigmoid,
    notation=Notation(r"\log\sigma({0})", "logsigmoid({0})"),
)
operation("softsign", EACH, lambda x: x / (1 + abs(x)), tensor=F.softsign)
operation("add", BOTH, lambda a, b: a + b, commutes=True, notation=Notation("{0} + {1}", "{0} + {1}", 1, (1, 2)))
operation(
    "matmul",
    {(Shape.PAIR, Shape.TOKEN): Shape.TOKEN, (Shape.PAIR, Shape.PAIR): Shape.PAIR},
    lambda a, b: a @ b,
    notation=Notation("{0} {1}", "{0} {1}", 3, (3, 4)),
)
operation(
    "cosine",
    COMPARES,
    _cosine,
    tensor=_cosine_of_tensors,
    notation=Notation(r"\cos({0}, {1})", "cosine({0}, {1})"),
    commutes=True,
)
operation(
    "euclidean",
    COMPARES,
    _euclidean,
    tensor=_euclidean_of_tensors,
    notation=Notation(r"\lVert {0} - {1} \rVert", "euclidean({0}, {1})", 5, (1, 2)),
    commutes=True,
)
