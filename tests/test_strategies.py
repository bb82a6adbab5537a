import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import layerwright.layers  # noqa: F401
from layerwright import cost
from layerwright.architecture import Architecture
from layerwright.space import Space
from layerwright.strategies import (
    AgingEvolution,
    Evolution,
    OptunaSampler,
    Strategy,
    StrategySettings,
    Trial,
    at_parameters,
    at_random,
    distributions,
    parameters,
    propose,
    samplers,
)

LARGE = Space.parse("64 vocab=50: 24x{conv|attn|ffn}")
DEEP = Space.parse("64 vocab=50: attn 3x{conv|attn ffn|} 2x{ffn[inner=32|64]|ffn attn}")
SMALL = Space.parse("64 vocab=50: 2x{conv|attn|ffn}")

STRATEGIES: dict[str, Strategy] = {
    "random": at_random,
    "evolution": Evolution(population=8, parents=3, crossover=0.4, mutation=0.4),
    "aging": AgingEvolution(population=8, tournament=3),
    "TPESampler": OptunaSampler("TPESampler", n_startup_trials=5),
    "multivariate": OptunaSampler("TPESampler", n_startup_trials=5, multivariate=True),
    "NSGAIISampler": OptunaSampler("NSGAIISampler", population_size=8),
    "NSGAIIISampler": OptunaSampler("NSGAIIISampler", population_size=8),
    "BruteForceSampler": OptunaSampler("BruteForceSampler"),
    "RandomSampler": OptunaSampler("RandomSampler"),
}


def landscape(arch: Architecture) -> float:
    """A layer is worth what its place says, and some more where a convolution comes before attention."""
    kinds = [layer.kind for layer in arch.layers]
    alone = sum(Random(f"{place}/{kind}").random() for place, kind in enumerate(kinds))
    return alone + 0.5 * sum(pair == ("conv", "attn") for pair in pairwise(kinds))


def run(strategy: Strategy, space: Space, trials: int, history: list[Trial] | None = None, seed: int = 0) -> list[Trial]:
    history = list(history or [])
    while len(history) < trials and (arch := propose(strategy, space, history, seed=seed)) is not None:
        history.append(Trial(len(history), arch, landscape(arch)))
    return history


@pytest.mark.parametrize("space", [LARGE, DEEP], ids=["large", "deep"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_whole_is_a_part_and_the_rest(name: str, space: Space) -> None:
    whole = run(STRATEGIES[name], space, 20)
    assert len({trial.arch for trial in whole}) == 20
    assert all(trial.arch in space for trial in whole)
    for cut in (8, 13):
        assert run(STRATEGIES[name], space, 20, whole[:cut]) == whole
    assert run(STRATEGIES[name], space, 20, seed=1) != whole


@pytest.mark.parametrize("strategy", [Evolution(population=20, parents=5), AgingEvolution(population=20, tournament=5)])
def test_evolution_beats_random(strategy: Strategy) -> None:
    for seed in range(2):
        found = max(trial.score for trial in run(strategy, LARGE, 150, seed=seed))
        drawn = max(trial.score for trial in run(at_random, LARGE, 300, seed=seed))
        assert found > drawn + 1


@pytest.mark.parametrize("name", ["TPESampler", "NSGAIISampler"])
def test_samplers_of_optuna_learn_from_the_history(name: str) -> None:
    found = run(STRATEGIES[name], LARGE, 60)
    assert sum(trial.score for trial in found[40:]) / 20 > sum(trial.score for trial in found[:20]) / 20 + 1


def test_a_generation_descends_from_the_best_before_it() -> None:
    evolution = Evolution(population=10, parents=2, crossover=0.5, mutation=0.3, rate=0.05)
    history = run(at_random, LARGE, 10)
    best = sorted(history, key=lambda trial: -trial.score)[:2]
    parents = [LARGE.path(trial.arch) for trial in best]
    for place in range(10):
        # What came in this generation must not matter yet, however good it is.
        now = history + [Trial(10 + i, LARGE.sample(Random(i)), 100.0) for i in range(place)]
        child = LARGE.path(evolution(LARGE, now, Random(place)))
        if place < 5:
            assert all(taken in pair for taken, *pair in zip(child, *parents, strict=True))
        elif place < 8:
            changes = min(sum(a != b for a, b in zip(child, parent, strict=True)) for parent in parents)
            assert 1 <= changes <= 6
        else:
            assert min(sum(a != b for a, b in zip(child, parent, strict=True)) for parent in parents) > 6


def test_aging_forgets_the_old() -> None:
    aging = AgingEvolution(population=5, tournament=5)
    old = [Trial(i, LARGE.sample(Random(i)), 100.0) for i in range(5)]
    young = [Trial(5 + i, LARGE.sample(Random(5 + i)), float(i)) for i in range(5)]
    child = LARGE.path(aging(LARGE, old + young, Random(0)))
    assert sum(a != b for a, b in zip(child, LARGE.path(young[-1].arch), strict=True)) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_exhausted_space_is_told(name: str) -> None:
    history = run(STRATEGIES[name], SMALL, 20)
    assert len(history) == 9
    assert propose(STRATEGIES[name], SMALL, history) is None


def test_different_paths_to_one_architecture_are_one() -> None:
    twice = Space.parse("64 vocab=50: attn 2x{conv|}")
    assert len(run(at_random, twice, 10)) == 3


@pytest.mark.parametrize("name", ["random", "evolution", "TPESampler"])
def test_limits_hold(name: str) -> None:
    most = cost.parameters(Architecture.parse("64 vocab=50: 8x(attn conv ffn)"))
    history: list[Trial] = []
    while len(history) < 12:
        arch = propose(STRATEGIES[name], LARGE, history, allowed=lambda arch: cost.parameters(arch) <= most)
        assert arch is not None
        assert cost.parameters(arch) <= most
        history.append(Trial(len(history), arch, landscape(arch)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_scores_that_are_not_finite_do_no_harm(name: str) -> None:
    history = [trial._replace(score=-math.inf) if trial.number % 3 else trial for trial in run(at_random, LARGE, 30)]
    assert propose(STRATEGIES[name], LARGE, history) in LARGE
    assert propose(STRATEGIES[name], LARGE, [trial._replace(score=-math.inf) for trial in history]) in LARGE


@given(seed=st.integers(0, 999), number=st.integers(0, 40), name=st.sampled_from(["random", "evolution", "aging"]))
def test_proposals_stay_in_the_space(seed: int, number: int, name: str) -> None:
    history = [Trial(i, arch, Random(i).random()) for i, arch in enumerate(DEEP.sample(Random(seed + i)) for i in range(number))]
    arch = STRATEGIES[name](DEEP, history, Random(seed))
    assert arch in DEEP
    assert arch == STRATEGIES[name](DEEP, history, Random(seed))


@given(seed=st.integers(0, 999))
def test_parameters_spell_the_architecture(seed: int) -> None:
    arch = DEEP.sample(Random(seed))
    values = parameters(DEEP, arch)
    assert at_parameters(DEEP, values) == arch
    assert {name: kind.choices for name, kind in distributions(DEEP).items()} == {
        "slot 01": ("conv", "attn ffn", "nothing"),
        "slot 02": ("conv", "attn ffn", "nothing"),
        "slot 03": ("conv", "attn ffn", "nothing"),
        "slot 04": ("ffn[inner=32]", "ffn[inner=64]", "ffn attn"),
        "slot 05": ("ffn[inner=32]", "ffn[inner=64]", "ffn attn"),
    }
    assert all(values[name] in kind.choices for name, kind in distributions(DEEP).items())


@pytest.mark.parametrize("name", ["random", "evolution", "aging", *(f"optuna:{name}" for name in samplers())])
def test_every_name_makes_a_strategy(name: str) -> None:
    assert StrategySettings(name=name).strategy()(SMALL, [], Random(0)) in SMALL


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "evolutoin"}, "no strategy 'evolutoin'; did you mean 'evolution'"),
        ({"name": "TPESampler"}, "did you mean 'optuna:TPESampler'"),
        ({"name": "optuna:TPESampelr"}, "did you mean 'TPESampler'"),
        ({"name": "optuna:CmaEsSampler"}, "searches numbers only"),
        ({"name": "optuna:GridSampler"}, "optuna:BruteForceSampler"),
        ({"name": "optuna:NSGAIISampler", "sampler": {"populationsize": 3}}, "did you mean 'population_size'"),
        ({"name": "optuna:NSGAIISampler", "sampler": {"population_size": 1}}, "optuna:NSGAIISampler: `population_size` must"),
        ({"sampler": {"population_size": 3}}, "sampler.population_size is for a sampler of Optuna"),
        ({"evolution": {"crossover": 0.7, "mutation": 0.7}}, "more than 1 together"),
        ({"aging": {"population": 5, "tournament": 6}}, "does not fit"),
    ],
)
def test_bad_settings_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StrategySettings.model_validate(given)
    assert message in str(caught.value)
