"""Name the architectures that a search may propose, and those to train from scratch when it is over."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from . import cost, presets
from .architecture import Architecture, Layer
from .errors import nearest
from .space import Space
from .strategies import Trial, at_random, propose

Entry = TypeVar("Entry")

BASELINES: Mapping[str, Callable[[Architecture], Architecture]] = {
    "interleaved": presets.interleaved,
    "sandwich": presets.sandwich,
}


class Limits(BaseModel):
    """Bound what a candidate may cost; FLOPs are those of one forward pass of one sequence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int | None = Field(None, ge=1)
    flops: int | None = Field(None, ge=1)


class Chosen(NamedTuple):
    """An architecture to train from scratch, and with how many seeds."""

    name: str
    arch: Architecture
    seeds: int


class Candidates:
    """The architectures of a space within limits, and the baselines to train beside them.

    baselines: interleaved, sandwich, random (one of the space), presets or texts. length: tokens of a sequence, for FLOPs.

    Raises:
        ValueError: nothing is left open, no architecture meets a limit, or an unknown baseline.
    """

    def __init__(self, space: Space, limits: Limits, baselines: Sequence[str] = (), length: int = 128) -> None:
        if space.size == 1:
            raise ValueError(f"there is nothing to search in '{space}': leave choices open, as in 8x{{conv|attn|ffn}}")
        self.space, self.baselines = space, {name: _baseline(name, space.largest) for name in baselines}
        self.limits: dict[str, int] = limits.model_dump(exclude_none=True)
        self._measures: dict[str, cost.Measure] = {
            "parameters": cost.parameters,
            "flops": lambda arch: cost.flops(arch, length),
        }
        for name, limit in self.limits.items():
            measure = self._measures[name]
            least = cost.smallest(space, measure)
            if measure(least) > limit and not space.values_open:
                had = f"the smallest, '{least}', has {measure(least):,}"
                raise ValueError(f"no architecture of the space has at most {limit:,} {name}: {had}")
        self._prices = {name: _priced(space, self._measures[name]) for name in self.limits}

    def costs(self, arch: Architecture) -> dict[str, int]:
        """Return the parameters and FLOPs of any architecture."""
        return {name: measure(arch) for name, measure in self._measures.items()}

    def allowed(self, arch: Architecture) -> bool:
        """Return whether an architecture of the space is within the limits."""
        return all(self._prices[name](arch) <= limit for name, limit in self.limits.items())

    def choose(
        self, found: Sequence[Trial], control: Sequence[Trial], *, top: int, spread: int, seeds: int, seed: int
    ) -> list[Chosen]:
        """Choose what to train from scratch.

        That is the best `top` of what the strategy found and the baselines, with so many seeds each; and with one seed `spread`
        others, evenly over the ranking of all that was scored, chance's control included.
        """
        chosen = [Chosen(f"top-{rank}", trial.arch, seeds) for rank, trial in enumerate(ranked(found)[:top], 1)]
        for name, arch in self.baselines.items():
            arch = arch or propose(at_random, self.space, (), seed=f"{seed}/baseline", allowed=self.allowed)
            if arch is not None:
                chosen.append(Chosen("random-1" if name == "random" else name, arch, seeds))
        taken = {one.arch for one in chosen}
        others = [(rank, trial.arch) for rank, trial in enumerate(ranked([*found, *control]), 1) if trial.arch not in taken]
        return chosen + [Chosen(f"rank-{rank}", arch, 1) for rank, arch in evenly(others, spread)]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials with a finite score, best first, each architecture once."""
    first: dict[Architecture, Trial] = {}
    for trial in sorted(trials, key=lambda trial: -trial.score):
        if math.isfinite(trial.score):
            first.setdefault(trial.arch, trial)
    return list(first.values())


def evenly(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Return so many entries spread evenly, both ends among them; of one, the middle."""
    last = len(entries) - 1
    if count > last:
        return list(entries)
    return [entries[round(i * last / (count - 1)) if count > 1 else last // 2] for i in range(count)]


def _baseline(name: str, like: Architecture) -> Architecture | None:
    """Return what a baseline's name or text stands for; None where chance will tell."""
    if name == "random":
        return None
    if name in BASELINES:
        return BASELINES[name](like)
    if name.replace("-", "").isalnum() and name not in presets.PRESETS:
        raise ValueError(f"baselines: no '{name}'{nearest(name, [*BASELINES, 'random', *presets.PRESETS])}")
    return presets.architecture(name)


def _priced(space: Space, measure: cost.Measure) -> Callable[[Architecture], int]:
    """Return a measure that is a sum over a table, for the architectures of a space: what thousands of proposals can afford."""
    whole = space.largest

    @lru_cache(maxsize=1 << 14)
    def share(layer: Layer) -> int:
        return measure(whole.with_layers([layer] * 2)) - measure(whole.with_layers([layer]))

    first = whole.layers[0]
    rest = measure(whole.with_layers([first])) - share(first)
    return lambda arch: rest + sum(map(share, arch.layers))
