"""Attention whose formula is an option, as AutoBERT-Zero searches it (Gao et al. 2022).

The formula is evaluated in each head.  Sums over tokens run over those that can be seen, whatever the formula; softmaxes of
products, which are attention in disguise, run on the same path as `attn`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import TextError
from ..formula_space import ATTENTION, FormulaSpace
from ..formulas import Formula
from ..kernels import drop
from ..operations import OPERATIONS, Shape
from ..registry import Domain, OptionError, layer
from .attention import divide, look, usual_heads
from .context import Context
from .convolution import hide

PROJECTIONS = {"q": "query", "k": "key", "v": "value"}


class Stage(NamedTuple):
    """What is computed for a step of a formula: an operation on steps before it, or plain attention.

    masked: its first argument is a map that may have weight where nothing is seen.  negative, scales: attention, where these
    are not None; the sign of its scores, and by how many roots of E they are divided.
    """

    place: int
    name: str
    arguments: tuple[int, ...]
    shape: Shape
    masked: bool = False
    negative: bool | None = None
    scales: int = 1


@layer("formula", heads=usual_heads, text=str(ATTENTION))
class FormulaAttention(nn.Module):
    """A formula over Q, K and V in each head, then a linear map; with its default text this is `attn`.

    Only what the formula uses has a map.  What AutoBERT-Zero leaves open is our choice: softmax is over what a token sees,
    of a value per token over the channels of a head; `scale` divides by sqrt(E); cosine similarity and Euclidean distance
    are of every token and every other; dropout is of a map where it mixes tokens.  Context.maps gets what softmaxes of
    pairs gave, and nothing from maps without one.
    """

    open: ClassVar[dict[str, Callable[[str], Domain]]] = {"text": FormulaSpace.parse}
    shared: ClassVar[dict[str, Callable[[Sequence[str]], str]]] = {"text": lambda texts: str(ATTENTION)}

    def __init__(self, width: int, heads: int, text: str):
        super().__init__()
        self.heads, self.root = heads, (width // heads) ** 0.5
        formula = Formula.parse(text)
        for name in formula.inputs:
            self.add_module(PROJECTIONS[name], nn.Linear(width, width))
        self.out = nn.Linear(width, width)
        self.inputs, self.last = formula.inputs, len(formula.steps) - 1
        self.stages = plan(formula)
        self.hides = any(stage.shape is Shape.PAIR for stage in self.stages)

    @staticmethod
    def check(width: int, heads: int, text: str) -> dict[str, str]:
        """Return the formula in its canonical text.

        Raises:
            ValueError: the heads do not divide the width, or the formula is none, or one left open.
        """
        divide(width, heads)
        if text.startswith("*"):
            raise OptionError("this leaves a formula open: a space, where one architecture is wanted", "text", 0)
        try:
            return {"text": str(Formula.parse(text))}
        except TextError as error:
            raise OptionError(error.fault, "text", error.place) from None

    @staticmethod
    def part(whole: Mapping[str, Tensor], text: str) -> dict[str, Tensor]:
        """Return the tensors of a layer with another formula: the maps of the inputs that it uses, and the last one."""
        used = FormulaSpace().read(text).inputs  # which remembers: this is asked at every step
        unused = {PROJECTIONS[name] for name in PROJECTIONS.keys() - used}
        return {name: tensor for name, tensor in whole.items() if name.partition(".")[0] not in unused}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        # What padding holds must not become infinite: infinite times a weight of zero is not zero.
        x = hide(x, context) if self.hides else x
        values: dict[int, Tensor] = {}
        for stage in self.stages:
            values[stage.place] = self.stage(stage, [values[place] for place in stage.arguments], x, context)
        return torch.as_tensor(self.out(_together(values[self.last])))

    def stage(self, stage: Stage, given: list[Tensor], x: Tensor, context: Context) -> Tensor:
        """Compute one value: per token [B, H, L, E], its transpose, or per pair of tokens [B, H, L, L]."""
        if not given:
            return self.apart(self.get_submodule(PROJECTIONS[stage.name])(x))
        if stage.negative is not None:
            factor = self.root ** (1 - stage.scales) * (-1 if stage.negative else 1)
            query, key, value = map(_together, given)
            mixed = look(query if factor == 1 else query * factor, key, value, heads=self.heads, context=context)
            return self.apart(mixed)
        if stage.name == "scale":
            return torch.div(given[0], self.root)
        if stage.name == "matmul" and stage.masked:
            given[0] = _seen(given[0], context, 0.0)
        if stage.name == "matmul" and stage.shape is Shape.TOKEN:
            given[0] = drop(given[0], context.dropout)
        if OPERATIONS[stage.name].rows and stage.shape is Shape.PAIR:
            return self.rows(stage, given, context)
        result: Tensor = OPERATIONS[stage.name].tensor(*given)
        return result.to(given[-1].dtype)

    def apart(self, x: Tensor) -> Tensor:
        """[B, L, H*E] -> [B, H, L, E]."""
        return torch.transpose(x.unflatten(-1, (self.heads, -1)), 1, 2)

    def rows(self, stage: Stage, given: list[Tensor], context: Context) -> Tensor:
        """Compute an operation on rows of a map; a token that sees none, such as one of padding, has zeros."""
        wide = [_seen(one.to(torch.promote_types(one.dtype, torch.float32)), context, -torch.inf) for one in given]
        found = torch.as_tensor(OPERATIONS[stage.name].tensor(*wide))
        found = _seen(found, context, 0.0).nan_to_num(0.0).to(given[0].dtype)  # not every operation leaves what it was not shown
        if context.maps is not None:
            context.maps.append(found)
        return found


def plan(formula: Formula) -> tuple[Stage, ...]:
    """Return what to compute, with attention where a softmax of products of tokens is used once, to mix values per token."""
    used = Counter(place for step in formula.steps for place in step.arguments)
    stages = []
    for place, (name, arguments, shape) in enumerate(formula.steps):
        first = formula.steps[arguments[0]] if arguments else None
        mixes = first is not None and name == "matmul" and first.shape is Shape.PAIR
        stage = Stage(place, name, arguments, shape, mixes and first is not None and not OPERATIONS[first.name].rows)
        if mixes and shape is Shape.TOKEN and first is not None and first.name == "softmax" and used[arguments[0]] == 1:
            stage = _attention(formula, stage) or stage
        stages.append(stage)
    needed = {len(stages) - 1}
    for stage in reversed(stages):
        needed.update(stage.arguments if stage.place in needed else ())
    return tuple(stage for stage in stages if stage.place in needed)


def _attention(formula: Formula, stage: Stage) -> Stage | None:
    """Return a product of a softmax with values as attention, if the scores are products of tokens but for sign and scale."""
    soft, value = stage.arguments
    (scores,) = formula.steps[soft].arguments
    negative, scales = formula.steps[scores].name == "neg", 0
    if negative:
        (scores,) = formula.steps[scores].arguments
    while formula.steps[scores].name == "scale":
        (scores,), scales = formula.steps[scores].arguments, scales + 1
    name, arguments, _ = formula.steps[scores]
    if name != "matmul" or formula.steps[arguments[1]].shape is not Shape.TURNED:
        return None
    (key,) = formula.steps[arguments[1]].arguments
    return stage._replace(arguments=(arguments[0], key, value), negative=negative, scales=scales)


def _together(x: Tensor) -> Tensor:
    """[B, H, L, E] -> [B, L, H*E]."""
    return torch.flatten(x.transpose(1, 2), -2)


def _seen(pairs: Tensor, context: Context, instead: float) -> Tensor:
    """Return a map [B, H, L, L] with another number where a token does not see a token."""
    visible = context.visible()
    return pairs if visible is None else pairs.masked_fill(~visible, instead)
