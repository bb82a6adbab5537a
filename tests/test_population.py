"""Sub-networks scored together, or one after another, have the scores they have alone, to the last bit."""

from random import Random

import pytest
import torch

from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.objectives import MaskedLM, ReplacedTokenDetection
from layerwright.population import Population
from layerwright.prefixes import applications
from layerwright.presets import interleaved
from layerwright.recipe import score
from layerwright.space import Space
from layerwright.strategies import Evolution, Trial, propose
from layerwright.supernet import Supernet
from layerwright.vocabulary import Special

SPACE = Space.parse("32 embed=16 vocab=90 positions=24: 3x{conv|attn|ffn} {attn ffn|} {mixed[kernel=3]|ffn[inner=48]}")
SPECIAL = Special(pad=0, unk=1, cls=2, sep=3, mask=4)


def held(count: int = 3, rows: int = 4, length: int = 20) -> list[Batch]:
    torch.manual_seed(1)
    made = []
    for number in range(count):
        mask = torch.arange(length) < torch.randint(length // 2, length + 1, (rows, 1)) if number else None
        documents = (torch.arange(length) > length // 3).long().expand(rows, length) if number == 2 else None
        ids, segments = torch.randint(5, 90, (rows, length)), torch.randint(2, (rows, length))
        made.append(Batch(ids, mask, segments, documents=documents, dice=torch.rand(rows, length, 3)))
    return made


def objective(kind: str, space: Space = SPACE) -> MaskedLM | ReplacedTokenDetection:
    torch.manual_seed(0)
    net = Supernet(space)
    if kind == "mlm":
        made: MaskedLM | ReplacedTokenDetection = MaskedLM(net, SPECIAL)
    else:
        generator = Backbone(interleaved(space.largest).narrow(0.5))
        made = ReplacedTokenDetection(net, MaskedLM(generator, SPECIAL, masked=0.85, random=0.0))
    for parameter in made.parameters():
        # Fresh weights are so small that all sub-networks score alike.
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", ["mlm", "rtd"])
@pytest.mark.parametrize("room", [0, 40_000, 1 << 30])
def test_scores_are_those_of_one_alone(kind: str, precision: str, room: int) -> None:
    made, batches = objective(kind), held()
    archs = [SPACE.sample(Random(number)) for number in range(25)]
    alone = [score(made, batches, arch, precision) for arch in archs]
    assert len({str(scores) for scores in alone}) > 20
    population = Population(made, batches, precision=precision, room=room)
    assert [population.score(arch) for arch in archs] == alone
    assert population.score_all(archs) == alone
    assert made.training


def test_layers_that_several_begin_with_run_once() -> None:
    made, batches = objective("mlm"), held()
    archs = [SPACE.sample(Random(number)) for number in range(40)]
    paths = [SPACE.path(arch) for arch in archs]
    different = {tuple(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    layers = sum(len(SPACE.slots[len(some) - 1][some[-1]]) for some in different)
    together = Population(made, batches)
    together.score_all(archs)
    assert together.layers == layers * len(batches) < sum(map(len, archs)) * len(batches)
    one_by_one = Population(made, batches)
    for arch in dict.fromkeys(archs):
        one_by_one.score(arch)
    assert one_by_one.layers == layers * len(batches)
    forgetful = Population(made, batches, room=0)
    for arch in archs:
        forgetful.score(arch)
    assert forgetful.layers == sum(map(len, archs)) * len(batches)


def test_an_evolution_takes_the_same_course() -> None:
    space = Space.parse("32 embed=16 vocab=90 positions=24: 5x{conv|attn|ffn}")
    made, batches = objective("mlm", space), held(1)
    population, strategy = Population(made, batches, room=200_000), Evolution(population=8, parents=3)

    def course(found) -> list[tuple[Architecture, float]]:
        history: list[Trial] = []
        for number in range(40):
            arch = propose(strategy, space, history)
            history.append(Trial(number, arch, -found(arch)["loss"]))
        return [(trial.arch, trial.score) for trial in history]

    shared = course(population.score)
    assert shared == course(lambda arch: score(made, batches, arch))
    paths = [space.path(arch) for arch, _ in shared]
    assert applications(paths) <= population.layers < 0.75 * 5 * len(shared)


def test_the_generator_answers_a_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, batches = objective("rtd"), held(2)
    asked = []
    predict = MaskedLM.predict
    monkeypatch.setattr(MaskedLM, "predict", lambda self, *given: asked.append(1) or predict(self, *given))
    population = Population(made, batches)
    for number in range(5):
        population.score(SPACE.sample(Random(number)))
    assert len(asked) == len(batches)


def test_an_encoder_is_no_population() -> None:
    with pytest.raises(ValueError, match="is no population"):
        Population(MaskedLM(Backbone(SPACE.largest), SPECIAL), held())
