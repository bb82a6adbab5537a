"""A space of formulas: those of so many operations at most that are no more costly than a bound and not degenerate.

Formulas are drawn, mutated and crossed by type, so that shapes fit from the start; what is degenerate is found by trying
it, and never leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random
from typing import NamedTuple

from .fingerprints import judge
from .formulas import Builder, Formula, ShapeError, Step
from .operations import INPUTS, OPERATIONS, Shape

USUAL = 12  # operations, if a text says none: as many as the largest formula that AutoBERT-Zero found has, and one more
MOST = 40
ATTENTION = Formula.parse("matmul(softmax(scale(matmul(q,t(k)))),v)")
TRIES = 1_000

Weights = Mapping[str, float]


class Rule(NamedTuple):
    """One way to make a value of a shape: an operation, and the shapes it takes."""

    name: str
    takes: tuple[Shape, ...]
    gives: Shape


@dataclass(frozen=True)
class FormulaSpace:
    """The formulas of at most so many operations, which use q, cost at most `work` times plain attention, and do something."""

    operations: int = USUAL
    work: float = 3.0

    @classmethod
    def parse(cls, text: str) -> FormulaSpace:
        """Read `*`, or `*8`: at most 8 operations.

        Raises:
            ValueError: something else, or a bound that leaves plain attention out, or above `MOST`.
        """
        if not re.fullmatch(r"\*[0-9]{0,4}", text):
            raise ValueError(f"formulas left open are written * or *8, not {text}")
        space = cls(int(text[1:] or USUAL))
        if not len(ATTENTION) <= space.operations <= MOST:
            raise ValueError(f"formulas of at most {space.operations} operations: from {len(ATTENTION)} to {MOST} would do")
        return space

    def __str__(self) -> str:
        return f"*{self.operations}"

    def read(self, text: str) -> Formula:
        """Read a formula."""
        return _read(text)

    @property
    def usual(self) -> Formula:
        """Plain attention, which is in every space."""
        return ATTENTION

    def key(self, formula: Formula) -> str:
        """Return the fingerprint: the same for formulas that compute the same."""
        return judge(formula).mark

    def fault(self, formula: Formula) -> str:
        """Say why a formula is not in this space; nothing where it is."""
        if len(formula) > self.operations:
            return f"{len(formula)} operations, and the space has at most {self.operations}"
        if formula.inputs[0] != "q":
            return "it does not use q"
        if formula.work() > self.work:
            return f"it costs {formula.work():.1f} times what attention does, and the space has at most {self.work:g}"
        return judge(formula).fault

    def __contains__(self, formula: Formula) -> bool:
        return not self.fault(formula)

    def sample(self, rng: Random, weights: Weights | None = None) -> Formula:
        """Draw a formula: how many operations uniformly, then each among those that fit, by weight if there are any."""
        least = _least()[Shape.TOKEN, True]
        for _ in range(TRIES):
            growth = _Growth(Builder(), rng, weights)
            try:
                formula = growth.builder.formula(growth.grow(Shape.TOKEN, rng.randint(least, self.operations), mixes=True))
            except ShapeError:  # too long a text
                continue
            if formula in self:
                return formula
        raise ValueError(f"no formula of at most {self.operations} operations was found in {TRIES:,} tries")

    def mutate(self, formula: Formula, rng: Random, weights: Weights | None = None) -> Formula:
        """Change one step by type: another operation or input, one more, one less, or all of it grown anew."""
        for _ in range(TRIES):
            builder = Builder()
            edit = _Edit(builder, rng, weights, self.operations - len(formula))
            changed = _rewritten(builder, formula, rng.randrange(len(formula.steps)), edit)
            if changed is not None and changed != formula and changed in self:
                return changed
        return self.sample(rng, weights)

    def cross(self, first: Formula, second: Formula, rng: Random) -> Formula:
        """Put a step of the second, with all it is made of, in the place of one of the first that has its shape."""
        for _ in range(30):
            builder = Builder()
            place = rng.randrange(len(first.steps))
            made = builder.copy(second)
            donors = [one for one, step in zip(made, second.steps, strict=True) if step.shape is first.steps[place].shape]
            if donors:
                donor = rng.choice(donors)
                child = _rewritten(builder, first, place, partial(_instead, donor))
                if child is not None and child not in (first, second) and child in self:
                    return child
        return rng.choice((first, second))

    @property
    def size(self) -> int:
        """Count the texts of well-formed formulas of so many operations, each written out wherever it stands.

        An estimate of the formulas: of those texts many compute the same or are degenerate, and formulas that are short only
        because they use a step twice are not among them.
        """
        return sum(_trees(self.operations)[Shape.TOKEN][: self.operations + 1])


@lru_cache(maxsize=1 << 14)
def _read(text: str) -> Formula:
    return Formula.parse(text)


def _rewritten(builder: Builder, formula: Formula, place: int, edit: Callable[[Step, list[int]], int]) -> Formula | None:
    """Return a formula with one step edited; None where what comes out does not fit."""
    try:
        return builder.formula(builder.copy(formula, place, edit)[-1])
    except ShapeError:
        return None


def _instead(donor: int, step: Step, parts: list[int]) -> int:
    return donor


@dataclass
class _Growth:
    """Grows expressions top down, of a shape and so many operations.  The first input drawn is q: names are arbitrary."""

    builder: Builder
    rng: Random
    weights: Weights | None
    begun: bool = False

    def grow(self, shape: Shape, budget: int, *, mixes: bool = False) -> int:
        """Return an expression of so many operations; mixes: one in which tokens see each other."""
        if shape is Shape.TOKEN and budget < 1:
            name = self.rng.choice(INPUTS) if self.begun else INPUTS[0]
            self.begun = True
            return self.builder.put(name)
        rule = self.choose([rule for rule, least in _ways(shape, mixes) if least <= budget])
        least = _least()
        mixing = mixes and rule.takes != (Shape.PAIR, Shape.TOKEN)
        carrier = self.rng.randrange(len(rule.takes)) if mixing else -1
        if mixing and 1 + sum(least[one, place == carrier] for place, one in enumerate(rule.takes)) > budget:
            carrier = min(
                range(len(rule.takes)), key=lambda place: least[rule.takes[place], True] - least[rule.takes[place], False]
            )
        parts = [least[one, place == carrier] for place, one in enumerate(rule.takes)]
        spare = budget - 1 - sum(parts)
        if len(parts) == 2:
            first = self.rng.randint(0, spare)
            parts = [parts[0] + first, parts[1] + spare - first]
        else:
            parts = [parts[0] + spare]
        made = [self.grow(one, parts[place], mixes=place == carrier) for place, one in enumerate(rule.takes)]
        return self.builder.put(rule.name, *made)

    def choose(self, rules: list[Rule]) -> Rule:
        if self.weights is None:
            return rules[int(self.rng.random() * len(rules))]
        return self.rng.choices(rules, [self.weights.get(rule.name, 0.0) + 1e-12 for rule in rules])[0]


@dataclass
class _Edit:
    """One mutation of a step; `spare` operations may come in addition."""

    builder: Builder
    rng: Random
    weights: Weights | None
    spare: int

    def __call__(self, step: Step, parts: list[int]) -> int:
        growth = _Growth(self.builder, self.rng, self.weights, begun=True)
        move = self.rng.randrange(4)
        takes = tuple(self.builder.shape(one) for one in parts)
        if move == 0:
            if not parts:
                return self.builder.put(self.rng.choice(INPUTS))
            rules = [rule for rule in _rules() if rule.takes == takes and rule.gives is step.shape]
            return self.builder.put(growth.choose(rules).name, *parts) if rules else self._same(step, parts)
        if move == 1:
            inside = [one for one in parts if self.builder.shape(one) is step.shape]
            return self.rng.choice(inside) if inside else self._same(step, parts)
        if move == 2:
            return self._over(step, self._same(step, parts), growth)
        least = _least()[step.shape, False]
        return growth.grow(step.shape, self.rng.randint(least, max(least, min(4, self.spare + 1))))

    def _over(self, step: Step, made: int, growth: _Growth) -> int:
        """Put one more operation over a step; where it takes two values, the other one is new and small."""
        rules = [rule for rule in _rules() if rule.gives is step.shape and step.shape in rule.takes]
        if not rules:
            return made
        rule = growth.choose(rules)
        place = self.rng.choice([at for at, shape in enumerate(rule.takes) if shape is step.shape])
        least = _least()
        return self.builder.put(
            rule.name, *(made if at == place else growth.grow(one, least[one, False]) for at, one in enumerate(rule.takes))
        )

    def _same(self, step: Step, parts: list[int]) -> int:
        return self.builder.put(step.name, *parts)


def _rules() -> tuple[Rule, ...]:
    return _rules_of(tuple(OPERATIONS))


@lru_cache(maxsize=4)
def _rules_of(names: tuple[str, ...]) -> tuple[Rule, ...]:
    """List the ways to make values; transposed ones only of a value per token: a formula needs no others."""
    declared = [Rule(name, takes, gives) for name in names for takes, gives in OPERATIONS[name].takes.items()]
    return (
        *declared,
        Rule("t", (Shape.TOKEN,), Shape.TURNED),
        Rule("matmul", (Shape.TOKEN, Shape.TURNED), Shape.PAIR),
    )


def _least() -> dict[tuple[Shape, bool], int]:
    return _least_of(tuple(OPERATIONS))


@lru_cache(maxsize=4)
def _least_of(names: tuple[str, ...]) -> dict[tuple[Shape, bool], int]:
    """Return how many operations a value of a shape needs, alone and with tokens that see each other in it."""
    least = {(shape, mixes): MOST for shape in Shape for mixes in (False, True)}
    least[Shape.TOKEN, False] = 0
    for _ in range(len(least)):
        for _, takes, gives in _rules_of(names):
            alone = [least[one, False] for one in takes]
            least[gives, False] = min(least[gives, False], 1 + sum(alone))
            mixed = 0 if takes == (Shape.PAIR, Shape.TOKEN) else min(least[one, True] - least[one, False] for one in takes)
            least[gives, True] = min(least[gives, True], 1 + sum(alone) + mixed)
    return least


def _ways(shape: Shape, mixes: bool) -> tuple[tuple[Rule, int], ...]:
    return _ways_of(tuple(OPERATIONS), shape, mixes)


@lru_cache(maxsize=32)
def _ways_of(names: tuple[str, ...], shape: Shape, mixes: bool) -> tuple[tuple[Rule, int], ...]:
    """List the rules that give a shape, each with the operations it needs at least."""
    least = _least_of(names)
    found = []
    for rule in _rules_of(names):
        if rule.gives is shape:
            extra = mixes and rule.takes != (Shape.PAIR, Shape.TOKEN)
            more = min(least[one, True] - least[one, False] for one in rule.takes) if extra else 0
            found.append((rule, 1 + sum(least[one, False] for one in rule.takes) + more))
    return tuple(found)


@lru_cache(maxsize=16)
def _trees(most: int) -> dict[Shape, list[int]]:
    """Count expressions of each shape with exactly 0, 1, ... operations."""
    counts = {shape: [len(INPUTS) if shape is Shape.TOKEN else 0] for shape in Shape}
    for size in range(1, most + 1):
        fresh = dict.fromkeys(Shape, 0)
        for _, takes, gives in _rules():
            if len(takes) == 1:
                fresh[gives] += counts[takes[0]][size - 1]
            else:
                one, other = (counts[shape] for shape in takes)
                fresh[gives] += sum(one[at] * other[size - 1 - at] for at in range(size))
        for shape in Shape:
            counts[shape].append(fresh[shape])
    return counts
