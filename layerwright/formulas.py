"""What an attention layer computes, as a value: a formula of operations over queries, keys and values.

    formula = name "(" formula ("," formula)? ")" | "q" | "k" | "v"

A formula is read into one canonical form, in which it is printed, compared and hashed; an expression that stands in it twice
is one step, computed once.  In that form transposes stand where they cannot be moved further, on what two tokens are
compared by; signs and scales of factors stand before their product, signs first; what can be swapped is in the order of
its text.

    >>> attention = Formula.parse("matmul(softmax(matmul(scale(q), t(k))), v)")
    >>> str(attention)
    'matmul(softmax(scale(matmul(q,t(k)))),v)'
    >>> attention.plain()
    'softmax(q kᵀ / √E) v'
    >>> len(attention), attention.inputs
    (5, ('q', 'k', 'v'))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from .errors import TextError, nearest
from .operations import INPUTS, OPERATIONS, Shape

LONGEST, DEEPEST = 4_000, 60  # characters of a formula, and brackets in brackets: beyond lies a slip of the keyboard

Value = TypeVar("Value")
_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[(),]))")


class ShapeError(ValueError):
    """Report an operation that does not fit the shapes of its arguments."""


class Step(NamedTuple):
    """One value of a formula: an input, or an operation on steps before it; and what it has an entry for."""

    name: str
    arguments: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class Formula:
    """A formula in canonical form: its steps, each once, in the order of their first end in the text."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Read a formula.  `Formula.parse(str(f)) == f` for every formula.

        Raises:
            TextError: not well formed, an unknown word, shapes that do not fit; with a caret under the place.
        """
        return _Reader(text).whole()

    @cached_property
    def text(self) -> str:
        """The canonical text."""
        return self.fold(lambda step, parts: f"{step.name}({','.join(parts)})" if parts else step.name)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Formula.parse({self.text!r})"

    def __len__(self) -> int:
        """Count the operations; an expression that is used twice counts once."""
        return len(self.operations)

    @property
    def operations(self) -> tuple[str, ...]:
        """The name of each step that is an operation."""
        return tuple(step.name for step in self.steps if step.arguments)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Which of q, k and v it uses, in this order."""
        used = {step.name for step in self.steps}
        return tuple(name for name in INPUTS if name in used)

    def fold(self, combine: Callable[[Step, list[Value]], Value]) -> Value:
        """Return what comes out when each step, once, is combined with what came out of its arguments."""
        found: list[Value] = []
        for step in self.steps:
            found.append(combine(step, [found[place] for place in step.arguments]))
        return found[-1]

    def plain(self) -> str:
        """Write it as people do: `softmax(q kᵀ / √E) v`."""
        return self._written(latex=False)

    def latex(self) -> str:
        r"""Write it in LaTeX, for a place where mathematics is set: `\operatorname{softmax}(...) V`."""
        return self._written(latex=True)

    def _written(self, *, latex: bool) -> str:
        def combine(step: Step, parts: list[tuple[str, int]]) -> tuple[str, int]:
            if not parts:
                return (step.name.upper() if latex else step.name), 5
            notation = OPERATIONS[step.name].notation
            left, right = (r"\left(", r"\right)") if latex else ("(", ")")
            pairs = zip(parts, notation.needs, strict=False)
            shown = [text if level >= need else f"{left}{text}{right}" for (text, level), need in pairs]
            return (notation.latex if latex else notation.plain).format(*shown), notation.level

        return self.fold(combine)[0]

    def work(self, length: int = 128, size: int = 64) -> float:
        """Estimate what it costs beside softmax(q kᵀ / √E) v: multiply-adds, and one for each entry of another result."""
        entries = {Shape.TOKEN: length * size, Shape.TURNED: 0, Shape.PAIR: length * length}
        plain = 2 * length * length * size + 2 * length * length
        done = 0
        for name, arguments, shape in self.steps:
            given = [self.steps[place].shape for place in arguments]
            single = given.count(shape) == len(given) and name != "matmul"
            inner = 1 if single else length if given[0] is Shape.PAIR else size
            done += entries[shape] * inner if given else 0
        return done / plain

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Formula.parse, (self.text,)


class Builder:
    """Makes formulas bottom up: each expression becomes a number, equal ones the same, all in canonical form."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._texts: list[str] = []
        self._known: dict[tuple[str, tuple[int, ...]], int] = {}

    def put(self, name: str, *arguments: int) -> int:
        """Return the number of an input, or of an operation on expressions that have one.

        Raises:
            ShapeError: the arguments do not fit the operation, in number or shape; or the text of it is too long.
        """
        if not arguments:
            return self._keep(name, (), Shape.TOKEN)
        takes, shapes = OPERATIONS[name].takes, tuple(self.steps[place].shape for place in arguments)
        if name == "t":
            return self._turn(arguments[0])
        if name == "matmul" and len(arguments) == 2:
            return self._multiply(*arguments)
        if Shape.TURNED in shapes and len(set(shapes)) == 1 and takes.get((Shape.TOKEN,) * len(shapes)) is Shape.TOKEN:
            return self.put("t", self.put(name, *map(self._turn, arguments)))
        if shapes not in takes:
            raise ShapeError(self._misfit(name, shapes))
        if name == "neg" and self.steps[arguments[0]].name == "neg":
            return self.steps[arguments[0]].arguments[0]
        if name == "scale" and self.steps[arguments[0]].name == "neg":
            return self.put("neg", self.put("scale", *self.steps[arguments[0]].arguments))
        if OPERATIONS[name].commutes and shapes in takes and takes[shapes] is shapes[0]:
            arguments = tuple(sorted(arguments, key=lambda place: self._texts[place]))
        return self._keep(name, arguments, takes[shapes])

    def shape(self, place: int) -> Shape:
        """Return what an expression has an entry for."""
        return self.steps[place].shape

    def copy(self, formula: Formula, place: int = -1, edit: Callable[[Step, list[int]], int] | None = None) -> list[int]:
        """Put all of a formula here and return the number of each step; the step at a place becomes what `edit` makes of it.

        edit: takes the step and the numbers of its arguments.
        """
        numbers: list[int] = []
        for at, step in enumerate(formula.steps):
            arguments = [numbers[one] for one in step.arguments]
            numbers.append(edit(step, arguments) if edit and at == place else self.put(step.name, *arguments))
        return numbers

    def formula(self, root: int) -> Formula:
        """Return the formula that ends in an expression.

        Raises:
            ShapeError: it is not a value per token.
        """
        if self.shape(root) is not Shape.TOKEN:
            raise ShapeError(f"a formula is a value per token, and this is {self.shape(root).value}")
        order: dict[int, int] = {}
        steps: list[Step] = []

        def visit(place: int) -> None:
            if place not in order:
                step = self.steps[place]
                for argument in step.arguments:
                    visit(argument)
                order[place] = len(steps)
                steps.append(Step(step.name, tuple(order[one] for one in step.arguments), step.shape))

        visit(root)
        return Formula(tuple(steps))

    def _keep(self, name: str, arguments: tuple[int, ...], shape: Shape) -> int:
        key = (name, arguments)
        if key not in self._known:
            inside = ",".join(self._texts[place] for place in arguments)
            if len(inside) > LONGEST - len(name) - 2:
                raise ShapeError(f"a formula of more than {LONGEST:,} characters")
            self._texts.append(f"{name}({inside})" if arguments else name)
            self._known[key] = len(self.steps)
            self.steps.append(Step(name, arguments, shape))
        return self._known[key]

    def _turn(self, place: int) -> int:
        """Transpose, moving the transpose as far in as it goes; (a b)ᵀ = bᵀ aᵀ."""
        name, arguments, shape = self.steps[place]
        if name == "t":
            return arguments[0]
        if shape is Shape.TOKEN:
            return self._keep("t", (place,), Shape.TURNED)
        if name == "matmul":
            return self.put("matmul", *(self._turn(one) for one in reversed(arguments)))
        if self.steps[arguments[0]].shape is Shape.TOKEN:  # tokens are compared
            if OPERATIONS[name].commutes:
                return self._keep(name, arguments[::-1], shape)
        elif not OPERATIONS[name].rows:
            return self.put(name, *map(self._turn, arguments))
        return self._keep("t", (place,), shape)

    def _multiply(self, one: int, other: int) -> int:
        """Multiply, with the signs and scales of both factors before the product."""
        shapes = self.shape(one), self.shape(other)
        if shapes == (Shape.TURNED, Shape.PAIR):
            return self._turn(self._multiply(self._turn(other), self._turn(one)))
        result = Shape.PAIR if shapes == (Shape.TOKEN, Shape.TURNED) else OPERATIONS["matmul"].takes.get(shapes)
        if result is None:
            raise ShapeError(self._misfit("matmul", shapes))
        (bare, negative, scales), turned = self._stripped(one), shapes[1] is Shape.TURNED
        bare_other, also_negative, more = self._stripped(self._turn(other) if turned else other)
        product = self._keep("matmul", (bare, self._turn(bare_other) if turned else bare_other), result)
        for _ in range(scales + more):
            product = self._keep("scale", (product,), result)
        return product if negative == also_negative else self._keep("neg", (product,), result)

    def _stripped(self, place: int) -> tuple[int, bool, int]:
        """Return an expression without its sign and scales, whether it has a sign, and how many scales."""
        negative = self.steps[place].name == "neg"
        scales = 0
        place = self.steps[place].arguments[0] if negative else place
        while self.steps[place].name == "scale":
            place, scales = self.steps[place].arguments[0], scales + 1
        return place, negative, scales

    def _misfit(self, name: str, shapes: Sequence[Shape]) -> str:
        wanted = len(next(iter(OPERATIONS[name].takes)))
        if len(shapes) != wanted:
            return f"{name} takes {'one argument' if wanted == 1 else 'two arguments'}, not {len(shapes)}"
        given = " and ".join(shape.value for shape in shapes)
        hint = ""
        if name == "matmul" and shapes == (Shape.TOKEN, Shape.TOKEN):
            hint = "; transpose the second with t(...)"
        if name == "matmul" and shapes == (Shape.TURNED, Shape.TOKEN):
            hint = "; that would be a sum over tokens, such as matmul(q,matmul(t(k),v)): write matmul(matmul(q,t(k)),v)"
        return f"{name} cannot take {given}{hint}"


class _Reader:
    """Recursive descent over the tokens of a formula."""

    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0
        self.builder = Builder()

    def whole(self) -> Formula:
        if len(self.text) > LONGEST:
            raise TextError(f"a formula of more than {LONGEST:,} characters", self.text, LONGEST)
        start = self.place()
        root = self.expression()
        if self.place() < len(self.text):
            raise TextError("expected the end of the formula", self.text, self.place())
        try:
            return self.builder.formula(root)
        except ShapeError as error:
            raise TextError(str(error), self.text, start) from None

    def place(self) -> int:
        """Return where the next token begins."""
        rest = self.text[self.at :]
        return self.at + len(rest) - len(rest.lstrip())

    def take(self, what: str) -> tuple[str, int]:
        place = self.place()
        found = _TOKEN.match(self.text, self.at)
        if not found:
            raise TextError(
                f"expected {what}, found {repr(self.text[place]) if place < len(self.text) else 'the end of the formula'}",
                self.text,
                place,
            )
        self.at = found.end()
        return found["name"] or found["mark"], place

    def expression(self) -> int:
        name, place = self.take("an operation or an input")
        if name in "(),":
            raise TextError(f"expected an operation or an input, found '{name}'", self.text, place)
        opens = self.text[self.place() : self.place() + 1] == "("
        if name in INPUTS and not opens:
            return self.builder.put(name)
        if name not in OPERATIONS or not opens:
            raise TextError(self.unknown(name, opens), self.text, place)
        arguments = self.arguments(place)
        try:
            return self.builder.put(name, *arguments)
        except ShapeError as error:
            raise TextError(str(error), self.text, place) from None

    def arguments(self, place: int) -> list[int]:
        self.depth += 1
        if self.depth > DEEPEST:
            raise TextError(f"brackets more than {DEEPEST} deep", self.text, place)
        mark, arguments = self.take("'('")[0], []
        while mark != ")":
            arguments.append(self.expression())
            mark, at = self.take("',' or ')'")
            if mark not in (",", ")"):
                raise TextError(f"expected ',' or ')', found '{mark}'", self.text, at)
        self.depth -= 1
        return arguments

    def unknown(self, name: str, opens: bool) -> str:
        if opens:
            return f"no operation '{name}'{nearest(name, OPERATIONS)}"
        if name in OPERATIONS:
            return f"the operation '{name}' has no arguments"
        return f"no input '{name}'{nearest(name, INPUTS)}"
