"""Search what layers compute by the priority of operations: those of good candidates, and those seldom tried, come more often.

This is OP-NAS of AutoBERT-Zero (Gao et al. 2022, Algorithm 1), whose code and settings were not released.  How scores are
made comparable, what an operation that was never tried has, and every default are ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from .architecture import Architecture
from .formula_space import FormulaSpace
from .formulas import Formula
from .operations import OPERATIONS
from .registry import Domain
from .space import Space, domains

Unit = Literal["formula", "candidate"]
AVERAGE = 0.5  # what a candidate is worth that beats as many others as beat it
# Where shapes ask for a transpose nothing else would do, and elsewhere the canonical form mostly moves one away that was drawn.
# Rarely seen however often it comes, it would have the highest bound for ever; so it has none, and comes as the average does.
TRANSPOSE = "t"


class Scored(Protocol):
    """A candidate and its score: a trial of a search, among others."""

    @property
    def number(self) -> int:
        """Its place in the history."""

    @property
    def arch(self) -> Architecture:
        """What was scored."""

    @property
    def score(self) -> float:
        """Higher is better; -inf for what was not finite."""


class Priority(NamedTuple):
    """What is known of an operation: the mean worth of what contains it, how many formulas do, and its upper bound."""

    mean: float
    formulas: int
    bound: float


def worths(scores: Sequence[float]) -> list[float]:
    """Return for each score the share of the others that it beats, a tie being half a win; of a single one, one half.

    So accuracies and negated losses, however they are spread, are worth the same as long as they order candidates alike; and
    those that are not finite are worth least.
    """
    if len(scores) < 2:
        return [AVERAGE] * len(scores)
    ordered = sorted(scores)
    beaten = ((bisect_left(ordered, score), bisect_right(ordered, score)) for score in scores)
    return [(low + (high - low - 1) / 2) / (len(scores) - 1) for low, high in beaten]


def operations_at(space: Space, arch: Architecture) -> dict[int, tuple[frozenset[str], ...]]:
    """Return the operations of each formula that a space leaves open, for each slot where there is one.

    Raises:
        ValueError: the architecture is not in this space.
    """
    found: dict[int, tuple[frozenset[str], ...]] = {}
    for slot, (taken, run) in enumerate(space.parts(arch)):
        for layer, pattern in zip(run, space.slots[slot][taken], strict=True):
            for key, domain in domains(pattern):
                if isinstance(domain, FormulaSpace):
                    found[slot] = (*found.get(slot, ()), _operations(domain, str(dict(layer.options)[key])))
    return found


def priorities(
    space: Space, history: Sequence[Scored], alpha: float, *, slot: int | None = None, unit: Unit = "formula"
) -> dict[str, Priority]:
    """Return the priority of every operation but the transpose after some trials: u_i = mean_i + alpha * sqrt(2 ln N / N_i).

    N: formulas that the space leaves open, of all trials, at a slot or at any; N_i: those that contain operation i, and
    mean_i: the mean worth of their candidates.  unit: "candidate" counts one once, however many of its formulas contain i.
    An operation that none contains, whose bound would be infinite, counts as seen once, in candidates as good as those of
    the best operation: no bound is higher than its.
    """
    counts = {name: 0 for name in OPERATIONS if name != TRANSPOSE}
    sums = dict.fromkeys(counts, 0.0)
    total = 0
    for trial, value in zip(history, worths([trial.score for trial in history]), strict=True):
        placed = _placed(space, trial.arch)
        formulas = [one for at, several in placed.items() if slot in (None, at) for one in several]
        if unit == "candidate" and formulas:
            formulas = [frozenset().union(*formulas)]
        total += len(formulas)
        for name in (name for one in formulas for name in one if name in counts):
            sums[name] += value
            counts[name] += 1
    best = max((sums[name] / count for name, count in counts.items() if count), default=AVERAGE)
    found = {}
    for name, count in counts.items():
        mean = sums[name] / count if count else best
        found[name] = Priority(mean, count, mean + alpha * math.sqrt(2 * math.log(max(total, 1)) / max(count, 1)))
    return found


def chances(known: Mapping[str, Priority], temperature: float) -> dict[str, float]:
    """Return how likely each operation is drawn, where all would fit: the softmax of the bounds over a temperature."""
    highest = max(one.bound for one in known.values())
    powers = {name: math.exp((one.bound - highest) / temperature) for name, one in known.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


class OperationPriority(BaseModel):
    """Mutate the best candidates, between layers and then inside them, with new operations drawn by priority.

    The first `population` trials are random. Then each of the best `parents` of all before has one child, in turn: with
    probability `turn` another alternative stands at one of its slots; then one formula changes, or the one that came with the
    turn is drawn. Operations come with probabilities softmax(u / `temperature`), u_i = mean_i + `alpha` * sqrt(2 ln N / N_i),
    where mean_i is the share of other candidates that those beat whose formulas contain the operation. unit: "candidate" counts
    one once, however many of its formulas contain it. positions: statistics of each slot alone. priority: without it,
    operations that fit come alike.

    The loop and the bound are the paper's; the defaults, and the share in place of the score itself, are ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(50, ge=1)
    parents: int = Field(5, ge=1)
    turn: float = Field(0.5, ge=0, le=1)
    alpha: float = Field(0.1, ge=0)
    temperature: float = Field(0.05, gt=0)
    unit: Unit = "formula"
    positions: bool = False
    priority: bool = True

    def __call__(self, space: Space, history: Sequence[Scored], rng: Random) -> Architecture:
        """Propose the next child; in a space without formulas left open, a child that differs at one slot."""
        born = len(history) - self.population
        if born < 0:
            return space.sample(rng)
        before = history[: self.population + born // self.parents * self.parents]
        best = sorted(before, key=lambda trial: (-trial.score, trial.number))[: self.parents]
        child = best[born % self.parents % len(best)].arch
        turns = [slot for slot in space.open_slots if len(space.slots[slot]) > 1]
        fresh = None
        if turns and (not space.varying(child) or rng.random() < self.turn):
            fresh = rng.choice(turns)
            child = space.turn(child, fresh, rng)
        varying = space.varying(child)
        if not varying:
            return child
        slot = fresh if fresh in varying else rng.choice(varying)
        formula = slot in operations_at(space, child)
        weights = self._weights(space, before, slot) if self.priority and formula else None

        def change(domain: Domain, value: Any, rng: Random) -> Any:
            if not isinstance(domain, FormulaSpace):
                return domain.mutate(value, rng)
            return domain.sample(rng, weights) if slot == fresh else domain.mutate(value, rng, weights)

        return space.vary(child, slot, rng, change)

    def _weights(self, space: Space, before: Sequence[Scored], slot: int) -> dict[str, float]:
        known = priorities(space, before, self.alpha, slot=slot if self.positions else None, unit=self.unit)
        return {TRANSPOSE: 1 / len(known), **chances(known, self.temperature)}


@lru_cache(maxsize=1 << 14)
def _operations(domain: FormulaSpace, text: str) -> frozenset[str]:
    formula: Formula = domain.read(text)
    return frozenset(formula.operations)


@lru_cache(maxsize=1 << 14)
def _placed(space: Space, arch: Architecture) -> dict[int, tuple[frozenset[str], ...]]:
    return operations_at(space, arch)
