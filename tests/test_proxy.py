"""Candidates that train a little before they are scored: from the supernet's weights, which stay; all with the same chance."""

import sys
from random import Random
from typing import Any

import pytest
import torch

from layerwright import proxy
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.corpus import Corpus
from layerwright.objectives import MaskedLM, ReplacedTokenDetection
from layerwright.proxy import Proxy, inherit
from layerwright.recipe import Objective, PretrainSettings, held_out, make_objective, score
from layerwright.space import Space
from layerwright.supernet import Supernet
from layerwright.train import Plan

SPACE = Space.parse("16 embed=8 vocab=300 positions=32: 2x({lightconv[kernel=3|9]|formula[text=*7]} ffn)")


def made(corpus: Corpus, kind: str, steps: int, **given: Any) -> tuple[Objective, Proxy]:
    plan = Plan(steps=steps, rate=5e-3, **given)
    shared = {"objective": kind, "generator": "1/2", "batch": 4, "length": 24, "evaluate_rows": 8}
    settings = PretrainSettings(arch=SPACE.explicit(), corpus=corpus.folder, plan=plan, **shared)
    supernet = make_objective(settings, corpus)
    return supernet, Proxy(supernet, held_out(corpus, settings), corpus, settings)


@pytest.mark.parametrize("kind", ["mlm", "rtd"])
def test_without_a_step_it_has_the_score_that_the_supernet_tells(tiny_corpus: Corpus, kind: str) -> None:
    supernet, judge = made(tiny_corpus, kind, 1)
    for number in range(4):
        arch = SPACE.sample(Random(number))
        learner = inherit(supernet, arch)
        assert score(learner, judge.held) == score(supernet, judge.held, arch)
        assert isinstance(learner.backbone, Backbone)
        if isinstance(learner, ReplacedTokenDetection):
            for name in ("token", "position", "segment", "norm"):
                assert getattr(learner.generator.backbone.embed, name) is getattr(learner.backbone.embed, name)
        ours = {parameter.data_ptr() for parameter in learner.parameters()}
        assert ours.isdisjoint(parameter.data_ptr() for parameter in supernet.parameters())


@pytest.mark.parametrize("kind", ["mlm", "rtd"])
def test_a_score_is_a_function_of_the_candidate_and_leaves_the_supernet_as_it_was(
    tiny_corpus: Corpus, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under several processes one alone scores candidates, and must not wait for others.
    monkeypatch.setattr(sys.modules["layerwright.train"], "make_accelerator", lambda: pytest.fail("it asked for all processes"))
    supernet, judge = made(tiny_corpus, kind, 6)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    archs = [SPACE.sample(Random(number)) for number in range(3)]
    torch.manual_seed(5)
    found = [judge.score(arch) for arch in archs]
    assert len({scores["loss"] for scores in found}) == 3
    torch.manual_seed(6)
    assert [judge.score(arch) for arch in reversed(archs)] == found[::-1]
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_steps_help(tiny_corpus: Corpus) -> None:
    arch = Architecture.parse("16 embed=8 vocab=300 positions=32: formula ffn lightconv ffn")
    losses = []
    for steps in (1, 10, 40):
        _, judge = made(tiny_corpus, "mlm", steps)
        losses.append(judge.score(arch)["loss"])
    assert losses[0] > losses[1] > losses[2]


def test_what_does_not_stay_finite_is_told(tiny_corpus: Corpus) -> None:
    supernet, judge = made(tiny_corpus, "mlm", 2)
    with torch.no_grad():
        supernet.backbone.embed.token.weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="step 1"):
        judge.score(SPACE.sample(Random(0)))


def test_only_from_a_supernet_and_what_it_holds(tiny_corpus: Corpus) -> None:
    supernet, _ = made(tiny_corpus, "mlm", 1)
    with pytest.raises(ValueError, match="not in this space"):
        inherit(supernet, Architecture.parse("16 embed=8 vocab=300 positions=32: attn ffn"))
    assert isinstance(supernet.backbone, Supernet)
    alone = MaskedLM(Backbone(SPACE.largest), supernet.special)  # type: ignore[union-attr, arg-type]
    with pytest.raises(ValueError, match="only from a supernet"):
        proxy.inherit(alone, SPACE.largest)
