"""The priority of operations: the bound against a slow direct calculation, and a search that follows it."""

import math
import re
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerwright.layers  # noqa: F401
from layerwright.architecture import Architecture, Layer
from layerwright.formulas import Formula
from layerwright.operations import OPERATIONS
from layerwright.priorities import AVERAGE, OperationPriority, Unit, chances, operations_at, priorities, worths
from layerwright.registry import KINDS, layer
from layerwright.space import Space
from layerwright.strategies import Evolution, Strategy, StrategySettings, Trial, at_random, propose

OPEN = Space.parse("64 vocab=50: 3x({lightconv[kernel=3|9]|formula[text=*8]} ffn)")
FIXED = Space.parse("64 vocab=50: {lightconv|formula[text=*6]} formula[text=matmul(cosine(q,k),v)] formula[text=*6]")
CLOSED = Space.parse("64 vocab=50: 6x{conv|attn|ffn}")
SMALL = OperationPriority(population=8, parents=3)
scores = st.floats(-5, 5) | st.just(-math.inf) | st.integers(0, 2).map(float)


def formulas(arch: Architecture) -> list[Formula]:
    return [Formula.parse(str(dict(one.options)["text"])) for one in arch.layers if one.kind == "formula"]


def history(space: Space, found: list[float], seed: int = 0) -> list[Trial]:
    return [Trial(number, space.sample(Random(f"{seed}/{number}")), score) for number, score in enumerate(found)]


def cosines(arch: Architecture) -> float:
    """A landscape: how many cosine similarities there are."""
    return float(sum(one.operations.count("cosine") for one in formulas(arch)))


def softsigns(arch: Architecture) -> float:
    """Another: on how many layers there is a softsign and no scale; negative, and of another scale."""
    return -1e4 * sum("softsign" not in one.operations or "scale" in one.operations for one in formulas(arch)) - 1e4


def run(
    strategy: Strategy,
    space: Space,
    trials: int,
    land: Callable[[Architecture], float],
    seed: int = 0,
    begun: list[Trial] | None = None,
) -> list[Trial]:
    trials_so_far = list(begun or [])
    while len(trials_so_far) < trials and (arch := propose(strategy, space, trials_so_far, seed=seed)) is not None:
        trials_so_far.append(Trial(len(trials_so_far), arch, land(arch)))
    return trials_so_far


def inside(one: Layer) -> set[str]:
    """The operations of a layer, without any of the code that counts them."""
    return set(re.findall(r"[a-z]+(?=\()", str(dict(one.options)["text"]))) if one.kind == "formula" else set()


def worth(one: Trial, trials: list[Trial]) -> float:
    others = [other.score for other in trials if other is not one]
    return sum((one.score > other) + 0.5 * (one.score == other) for other in others) / len(others) if others else 0.5


@given(
    found=st.lists(scores, max_size=25),
    seed=st.integers(0, 50),
    alpha=st.floats(0, 2),
    slot=st.sampled_from([None, 0, 2, 4]),
    unit=st.sampled_from(["formula", "candidate"]),
)
def test_the_bound_is_what_a_slow_direct_calculation_gives(
    found: list[float], seed: int, alpha: float, slot: int | None, unit: Unit
) -> None:
    trials = history(OPEN, found, seed)
    counted = []
    for one in trials:
        sets = [inside(layer) for place, layer in enumerate(one.arch.layers) if slot in (None, place) and inside(layer)]
        sets = [set().union(*sets)] if unit == "candidate" and sets else sets
        counted += [(worth(one, trials), names) for names in sets]
    told = priorities(OPEN, trials, alpha, slot=slot, unit=unit)
    assert told.keys() == OPERATIONS.keys() - {"t"}
    for name, known in told.items():
        values = [value for value, names in counted if name in names]
        assert known.formulas == len(values)
        if values:
            mean = math.fsum(values) / len(values)
            assert known.mean == pytest.approx(mean)
            assert known.bound == pytest.approx(mean + alpha * math.sqrt(2 * math.log(len(counted)) / len(values)))
        else:
            assert known.bound >= max(one.bound for one in told.values()) - 1e-9
    assert all(0 <= one.mean <= 1 and math.isfinite(one.bound) for one in told.values())
    assert sum(chances(told, 0.05).values()) == pytest.approx(1)


@given(found=st.lists(scores, min_size=2, max_size=20))
def test_what_is_a_candidate_worth_depends_on_the_order_alone(found: list[float]) -> None:
    told = worths(found)
    assert worths([math.atan(score) for score in found]) == told or len({*map(math.atan, found)}) < len({*found})
    assert sum(told) == pytest.approx(len(found) / 2)
    for one, value in zip(found, told, strict=True):
        assert all((other < one) == (less < value) for other, less in zip(found, told, strict=True))


def test_only_what_the_space_leaves_open_counts() -> None:
    arch = FIXED.at((1, 0, 0))
    attention = frozenset(("matmul", "softmax", "scale", "t"))
    assert operations_at(FIXED, arch) == {0: (attention,), 2: (attention,)}
    assert operations_at(FIXED, FIXED.at((0, 0, 0))) == {2: (attention,)}
    assert priorities(FIXED, [Trial(0, arch, 1.0)], 0.1)["cosine"].formulas == 0


def test_scores_that_are_not_finite_are_worth_least_and_harm_no_other() -> None:
    trials = history(OPEN, [0.1 * number for number in range(20)])
    failed = [Trial(20 + number, OPEN.sample(Random(number)), -math.inf) for number in range(5)]
    told = priorities(OPEN, trials + failed, 0.1)
    assert all(math.isfinite(one.bound) for one in told.values())
    assert worths([one.score for one in trials + failed])[:20] == sorted(worths([one.score for one in trials + failed])[:20])
    assert SMALL(OPEN, trials + failed, Random(0)) in OPEN
    assert SMALL(OPEN, failed * 2, Random(0)) in OPEN


@pytest.mark.parametrize("space", [OPEN, FIXED, CLOSED], ids=["open", "fixed", "closed"])
@pytest.mark.parametrize(
    "strategy", [SMALL, SMALL.model_copy(update={"positions": True}), SMALL.model_copy(update={"priority": False})]
)
def test_the_whole_is_a_part_and_the_rest(strategy: OperationPriority, space: Space) -> None:
    whole = run(strategy, space, 20, cosines)
    assert len({space.key(trial.arch) for trial in whole}) == 20
    assert all(trial.arch in space for trial in whole)
    for cut in (5, 8, 13):
        assert run(strategy, space, 20, cosines, begun=whole[:cut]) == whole
    assert run(strategy, space, 20, cosines, seed=1) != whole


@given(seed=st.integers(0, 999), found=st.lists(scores, max_size=30), turn=st.sampled_from([0.0, 0.5, 1.0]))
def test_proposals_stay_in_the_space_and_follow_from_the_history(seed: int, found: list[float], turn: float) -> None:
    strategy = OperationPriority(population=4, parents=2, turn=turn)
    trials = history(FIXED, found, seed)
    arch = strategy(FIXED, trials, Random(seed))
    assert arch in FIXED
    assert arch == strategy(FIXED, list(trials), Random(seed))


def test_a_generation_descends_from_the_best_before_it_one_child_each() -> None:
    strategy = OperationPriority(population=6, parents=3, turn=0.0)
    trials = history(OPEN, [1.0, 9.0, 2.0, 8.0, 3.0, 7.0])
    best = [trials[number].arch for number in (1, 3, 5)]
    for born in range(3):
        # What came in this generation must not matter yet, however good it is.
        now = trials + [Trial(6 + place, OPEN.sample(Random(place)), 100.0) for place in range(born)]
        child = strategy(OPEN, now, Random(born))
        changed = [one != other for one, other in zip(OPEN.parts(child), OPEN.parts(best[born]), strict=True)]
        assert sum(changed) == 1
    grown = trials + [Trial(6 + place, OPEN.sample(Random(place)), 100.0) for place in range(3)]
    child = strategy(OPEN, grown, Random(0))
    assert sum(one != other for one, other in zip(OPEN.parts(child), OPEN.parts(grown[6].arch), strict=True)) == 1


@pytest.mark.parametrize(("land", "name"), [(cosines, "cosine"), (softsigns, "softsign")])
def test_it_beats_random_and_the_priority_of_what_is_good_rises(land: Callable[[Architecture], float], name: str) -> None:
    space = Space.parse("64 vocab=50: 3x(formula[text=*8] ffn)") if land is softsigns else OPEN
    strategy = OperationPriority(population=20, parents=6)
    for seed in range(2):
        found, drawn = (run(one, space, 80, land, seed) for one in (strategy, at_random))
        late, by_chance = (sum(trial.score for trial in trials[50:]) / 30 for trials in (found, drawn))
        assert max(trial.score for trial in found) >= max(trial.score for trial in drawn)
        assert late > by_chance
        for so_far in (found[:30], found):
            told = priorities(space, so_far, strategy.alpha)
            assert chances(told, strategy.temperature)[name] > 1 / len(OPERATIONS)
            assert told[name].mean > AVERAGE
        if land is softsigns:
            assert chances(told, strategy.temperature)["scale"] < 1 / len(OPERATIONS)


def test_priority_draws_more_of_what_is_good_than_without() -> None:
    counts = []
    for priority in (True, False):
        strategy = OperationPriority(population=20, parents=6, priority=priority)
        trials = history(OPEN, [0.0] * 20)
        trials = [trial._replace(score=cosines(trial.arch)) for trial in trials]
        counts.append(sum(cosines(strategy(OPEN, trials, Random(seed))) for seed in range(150)))
    assert counts[0] > counts[1]


def test_other_values_left_open_mutate_as_their_domains_do() -> None:
    class Digit:
        """Any digit."""

        usual, size = "5", 10

        def __str__(self) -> str:
            return "*"

        def read(self, text: str) -> str:
            return text

        def __contains__(self, value: object) -> bool:
            return str(value).isdigit()

        def key(self, value: str) -> str:
            return value

        def sample(self, rng: Random) -> str:
            return rng.choice("0123456789")

        def mutate(self, value: str, rng: Random) -> str:
            return str((int(value) + 1) % 10)

        cross = None

    before = dict(KINDS)
    try:

        @layer("digits", text="5")
        class Digits:
            open = {"text": lambda text: Digit()}  # noqa: RUF012

            def __init__(self, width: int, text: str): ...

        space = Space.parse("64 vocab=50: digits[text=*] {formula[text=*6]|ffn}")
        trials = run(SMALL, space, 15, lambda arch: -len(str(arch)))
        assert all(trial.arch in space for trial in trials)
        assert len(trials) == 15
        alone = Space.parse("64 vocab=50: 3xdigits[text=*]")
        parent = alone.sample(Random(1))
        children = [SMALL(alone, [Trial(n, parent, 1.0) for n in range(8)], Random(n)) for n in range(20)]
        assert {str(child) for child in children} - {str(parent)}, "the parent itself came back"
        slots = [sum(a != b for a, b in zip(child.layers, parent.layers, strict=True)) for child in children]
        assert max(slots) == 1
    finally:
        KINDS.clear()
        KINDS.update(before)


def test_it_is_a_strategy_of_searches() -> None:
    told = StrategySettings.model_validate({"name": "operation-priority", "operation_priority": {"alpha": 0.5, "population": 9}})
    assert told.strategy() == OperationPriority(alpha=0.5, population=9)
    with pytest.raises(ValueError, match="did you mean 'operation-priority'"):
        StrategySettings(name="operation-priorities")
    with pytest.raises(ValueError, match="temperature"):
        OperationPriority(temperature=0)


def test_without_priority_and_formulas_it_is_an_evolution_by_single_turns() -> None:
    trials = run(Evolution(population=10), CLOSED, 10, lambda arch: Random(str(arch)).random())
    best = max(trials, key=lambda trial: trial.score).arch
    child = OperationPriority(population=10, parents=3, turn=0.0)(CLOSED, trials, Random(3))
    assert sum(one != other for one, other in zip(CLOSED.path(child), CLOSED.path(best), strict=True)) == 1
