import re
from random import Random

import pytest

import layerwright.layers  # noqa: F401
from layerwright import cost, presets
from layerwright.architecture import Architecture
from layerwright.candidates import Candidates, Limits, evenly, ranked
from layerwright.space import Space
from layerwright.strategies import Trial

SPACE = Space.parse("64 vocab=50: 8x{conv|attn|ffn} {attn ffn|}")
MEASURES = {"parameters": cost.parameters, "flops": lambda arch: cost.flops(arch, 64)}


def test_costs_and_limits_are_exact() -> None:
    archs = [SPACE.sample(Random(i)) for i in range(50)]
    middle = {name: sorted(measure(arch) for arch in archs)[25] for name, measure in MEASURES.items()}
    candidates = Candidates(SPACE, Limits(**middle), length=64)
    for arch in archs:
        within = all(measure(arch) <= middle[name] for name, measure in MEASURES.items())
        assert candidates.allowed(arch) == within
        assert candidates.costs(arch) == {name: measure(arch) for name, measure in MEASURES.items()}
    assert {candidates.allowed(arch) for arch in archs} == {True, False}


@pytest.mark.parametrize("name", MEASURES)
def test_a_limit_that_nothing_meets_names_the_smallest(name: str) -> None:
    least = cost.smallest(SPACE, MEASURES[name])
    most = MEASURES[name](least)
    Candidates(SPACE, Limits(**{name: most}), length=64)
    said = f"no architecture of the space has at most {most - 1:,} {name}: the smallest, '{least}', has {most:,}"
    with pytest.raises(ValueError, match=re.escape(said)):
        Candidates(SPACE, Limits(**{name: most - 1}), length=64)


def test_a_text_without_choices_is_no_search() -> None:
    with pytest.raises(ValueError, match="nothing to search in '64 vocab=50: attn ffn'"):
        Candidates(Space.parse("64 vocab=50: attn ffn"), Limits())


def test_baselines_by_name_preset_and_text() -> None:
    text = "32 vocab=60: conv"
    found = Candidates(SPACE, Limits(), ["sandwich", "interleaved", "random", "bert-tiny", text]).baselines
    assert found == {
        "sandwich": presets.sandwich(SPACE.largest),
        "interleaved": Architecture.parse("64 vocab=50: 5x(attn ffn)"),
        "random": None,
        "bert-tiny": presets.architecture("bert-tiny"),
        text: Architecture.parse(text),
    }
    with pytest.raises(ValueError, match="baselines: no 'interleavd'; did you mean 'interleaved'"):
        Candidates(SPACE, Limits(), ["interleavd"])
    with pytest.raises(ValueError, match="no layer kind 'cnov'"):
        Candidates(SPACE, Limits(), ["32: cnov"])


def test_what_is_trained_from_scratch() -> None:
    found = [Trial(i, SPACE.sample(Random(i)), i / 10) for i in range(10)]
    control = [Trial(i, SPACE.sample(Random(100 + i)), i / 20) for i in range(9)] + [Trial(9, found[9].arch, 0.9)]
    numbers = {"top": 2, "spread": 4, "seeds": 3, "seed": 0}
    chosen = Candidates(SPACE, Limits(), ["interleaved", "random"]).choose(found, control, **numbers)
    assert [one.name for one in chosen] == ["top-1", "top-2", "interleaved", "random-1", "rank-3", "rank-8", "rank-14", "rank-19"]
    assert [one.seeds for one in chosen] == [3, 3, 3, 3, 1, 1, 1, 1]
    assert [one.arch for one in chosen[:2]] == [found[9].arch, found[8].arch]
    assert chosen[4].arch == found[7].arch
    assert chosen[-1].arch in (found[0].arch, control[0].arch)
    assert len({one.arch for one in chosen}) == 8
    # The random one does not depend on what was found.
    assert Candidates(SPACE, Limits(), ["random"]).choose(found[:1], [], **numbers)[1].arch == chosen[3].arch


def test_a_ranking_has_each_architecture_once_and_no_failures() -> None:
    archs = [SPACE.sample(Random(i)) for i in range(3)]
    trials = [Trial(0, archs[0], 0.1), Trial(1, archs[1], float("-inf")), Trial(2, archs[2], 0.3), Trial(0, archs[0], 0.1)]
    assert ranked(trials) == [trials[2], trials[0]]


@pytest.mark.parametrize(
    ("total", "count", "places"), [(10, 4, [0, 3, 6, 9]), (9, 1, [4]), (3, 5, [0, 1, 2]), (0, 2, []), (5, 0, [])]
)
def test_evenly(total: int, count: int, places: list[int]) -> None:
    assert evenly(range(total), count) == places
