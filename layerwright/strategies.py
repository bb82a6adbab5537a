"""Propose the next architecture of a search.

A strategy is a function of the space, the trials so far and a random generator, and keeps nothing between calls. So a
search is its history: to resume is to read it, and the same history always leads to the same proposal.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from random import Random
from typing import NamedTuple, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .architecture import Architecture
from .errors import nearest
from .grammar import fold
from .priorities import OperationPriority
from .space import Space

DRAWS = 30
RANDOM_DRAWS = 10_000


class Trial(NamedTuple):
    """Hold an architecture that was evaluated; a higher score is better, and one that was not finite is -inf."""

    number: int
    arch: Architecture
    score: float


Strategy = Callable[[Space, Sequence[Trial], Random], Architecture]


def at_random(space: Space, history: Sequence[Trial], rng: Random) -> Architecture:
    """Draw uniformly over the paths of the space: what every other strategy has to beat."""
    return space.sample(rng)


class Evolution(BaseModel):
    """Breed each generation from the best architectures seen before it.

    Every `population` trials are a generation; the first is random. Of a later one the share `crossover` takes each slot from
    one of two of the best `parents`, the share `mutation` changes one of them at each open slot with probability `rate`, and the
    rest is random. The defaults are our choice, after Guo et al. 2020 (single path one-shot), since LV-BERT names none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(50, ge=1)
    parents: int = Field(10, ge=1)
    crossover: float = Field(0.5, ge=0, le=1)
    mutation: float = Field(0.5, ge=0, le=1)
    rate: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crossover + self.mutation > 1 + 1e-9:
            raise ValueError(f"the shares crossover={self.crossover} and mutation={self.mutation} are more than 1 together")
        return self

    def __call__(self, space: Space, history: Sequence[Trial], rng: Random) -> Architecture:
        """Propose the next child of the generation that is under way."""
        generation, place = divmod(len(history), self.population)
        if not generation:
            return space.sample(rng)
        before = history[: generation * self.population]
        best = sorted(before, key=lambda trial: (-trial.score, trial.number))[: self.parents]
        if place < round(self.crossover * self.population) and len(best) > 1:
            first, second = rng.sample(best, 2)
            return space.cross(first.arch, second.arch, rng)
        if place < round((self.crossover + self.mutation) * self.population):
            return space.mutate(rng.choice(best).arch, rng, self.rate)
        return space.sample(rng)


class AgingEvolution(BaseModel):
    """Mutate one slot of the best of a random few of the youngest trials (Real et al. 2019, Algorithm 1).

    The first `population` trials are random, and only the last `population` can become parents. The defaults are our choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(50, ge=1)
    tournament: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tournament > self.population:
            raise ValueError(f"a tournament of {self.tournament} does not fit into a population of {self.population}")
        return self

    def __call__(self, space: Space, history: Sequence[Trial], rng: Random) -> Architecture:
        """Propose a mutant of the winner of one tournament."""
        if len(history) < self.population:
            return space.sample(rng)
        few = rng.sample(history[-self.population :], self.tournament)
        return space.mutate(max(few, key=lambda trial: trial.score).arch, rng)


class OptunaSampler:
    """Ask a sampler of Optuna, which sees an architecture as one categorical parameter per open slot.

    Samplers keep state, so for each proposal a new one is seeded from the generator and shown a study made of the history.
    """

    def __init__(self, name: str, **options: object) -> None:
        """Take the name of a class in `optuna.samplers`, and arguments of its constructor.

        Raises: ValueError for a sampler that does not exist or cannot search choices, or an argument it cannot take.
        """
        if name in UNSUITED:
            raise ValueError(f"optuna:{name} {UNSUITED[name]}")
        if name not in samplers():
            raise ValueError(f"optuna.samplers has no '{name}'{nearest(name, samplers())}")
        self._kind: type[BaseSampler] = getattr(optuna.samplers, name)
        takes = [key for key in inspect.signature(self._kind).parameters if key != "seed"]
        for key in options:
            if key not in takes:
                raise ValueError(f"optuna:{name} has no option '{key}'{nearest(key, takes)}")
        self._options = options
        try:
            self._sampler(0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"optuna:{name}: {error}") from error

    def __call__(self, space: Space, history: Sequence[Trial], rng: Random) -> Architecture:
        """Propose what the sampler suggests after these trials.

        Raises: ValueError for a space that leaves values open, which a sampler would not see.
        """
        if space.values_open:
            raise ValueError(
                f"samplers of Optuna cannot search values left open, and operation-priority or evolution can: {space}"
            )
        sampler = self._sampler(rng.getrandbits(32))
        with quiet_optuna():
            study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, direction="maximize")
            study.add_trials(self._remembered(space, history, sampler))
            return at_parameters(space, study.ask(dict(distributions(space))).params)

    def _sampler(self, seed: int) -> BaseSampler:
        with quiet_optuna():
            return self._kind(seed=seed, **self._options)  # type: ignore[call-arg]

    def _remembered(self, space: Space, history: Sequence[Trial], sampler: BaseSampler) -> list[FrozenTrial]:
        """Turn the history into trials of Optuna, with the generations that genetic samplers write into theirs."""
        choices: dict[str, BaseDistribution] = dict(distributions(space))
        remembered, complete = [], 0
        for trial in history:
            finite = math.isfinite(trial.score)
            marks = {}
            if isinstance(sampler, BaseGASampler) and finite:
                marks[sampler._get_generation_key()] = complete // (sampler.population_size or 1)
            remembered.append(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE if finite else TrialState.FAIL,
                    value=trial.score if finite else None,
                    params=parameters(space, trial.arch),
                    distributions=choices,
                    system_attrs=marks,
                )
            )
            complete += finite
        return remembered


_INDEPENDENT = "draws choices at random, because it searches numbers only; use 'random', or optuna:TPESampler"
UNSUITED = {
    "CmaEsSampler": _INDEPENDENT,
    "QMCSampler": _INDEPENDENT,
    "GridSampler": "needs a grid; optuna:BruteForceSampler goes through all architectures",
    "PartialFixedSampler": "needs another sampler; close the slots in the text of the space instead",
}


def samplers() -> list[str]:
    """List the samplers of Optuna that can search a space."""
    found = {name: getattr(optuna.samplers, name) for name in optuna.samplers.__all__ if name not in UNSUITED}
    return sorted(
        name
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, BaseSampler) and not inspect.isabstract(kind)
    )


class StrategySettings(BaseModel):
    """Name a strategy and set its parameters.

    name: random, evolution, aging, operation-priority, or a sampler of Optuna such as optuna:TPESampler; `sampler`: arguments of
    such a one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "evolution"
    evolution: Evolution = Evolution()
    aging: AgingEvolution = AgingEvolution()
    operation_priority: OperationPriority = OperationPriority()
    sampler: dict[str, bool | int | float | str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.strategy()
        return self

    def strategy(self) -> Strategy:
        """Make the strategy.

        Raises: ValueError when there is none of this name, with the nearest one that there is.
        """
        if self.name.startswith("optuna:"):
            return OptunaSampler(self.name.removeprefix("optuna:"), **self.sampler)
        if self.sampler:
            raise ValueError(f"sampler.{next(iter(self.sampler))} is for a sampler of Optuna, and the strategy is {self.name!r}")
        named: dict[str, Strategy] = {
            "random": at_random,
            "evolution": self.evolution,
            "aging": self.aging,
            "operation-priority": self.operation_priority,
        }
        if self.name not in named:
            known = [*named, *(f"optuna:{name}" for name in samplers())]
            raise ValueError(f"no strategy '{self.name}'{nearest(self.name, known)}")
        return named[self.name]


def propose(
    strategy: Strategy,
    space: Space,
    history: Sequence[Trial],
    *,
    seed: int | str = 0,
    allowed: Callable[[Architecture], bool] = lambda arch: True,
) -> Architecture | None:
    """Propose an allowed architecture that is not in the history, nor computes what one there does; None if none was found.

    A function of its arguments: attempt k at trial n draws from Random("seed/n/k"). After `DRAWS` attempts of the strategy
    come `RANDOM_DRAWS` uniform ones, because a strategy that has converged proposes what it knows.
    """
    known = {_key(space, trial.arch) for trial in history}
    for attempt in range(DRAWS + RANDOM_DRAWS):
        rng = Random(f"{seed}/{len(history)}/{attempt}")
        arch = strategy(space, history, rng) if attempt < DRAWS else space.sample(rng)
        if _key(space, arch) not in known and allowed(arch):
            return arch
    return None


@lru_cache(maxsize=1 << 16)
def _key(space: Space, arch: Architecture) -> Hashable:
    # Every proposal asks for those of the whole history.
    return space.key(arch)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from announcing each study, and from warning of a sampler that the user named."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@lru_cache(maxsize=16)
def distributions(space: Space) -> Mapping[str, CategoricalDistribution]:
    """Describe the open slots of a space as Optuna's categorical parameters; the choices are texts."""
    width = space.largest.width
    choices = {
        place: [fold([layer.short(width) for layer in run]) or "nothing" for run in space.slots[place]]
        for place in space.open_slots
    }
    return {f"slot {place:02}": CategoricalDistribution(texts) for place, texts in choices.items()}


def parameters(space: Space, arch: Architecture) -> dict[str, str]:
    """Write an architecture of a space as values of those parameters."""
    path = space.path(arch)
    choices = distributions(space).items()
    return {name: str(kind.choices[path[place]]) for place, (name, kind) in zip(space.open_slots, choices, strict=True)}


def at_parameters(space: Space, values: Mapping[str, str]) -> Architecture:
    """Return the architecture that such values spell."""
    path = [0] * len(space.slots)
    for place, (name, kind) in zip(space.open_slots, distributions(space).items(), strict=True):
        path[place] = kind.choices.index(values[name])
    return space.at(tuple(path))
