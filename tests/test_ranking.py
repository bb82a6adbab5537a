import math
from pathlib import Path

import numpy as np
import pytest
import torch

import layerwright.layers  # noqa: F401
from layerwright import ranking
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.objectives import MaskedLM
from layerwright.vocabulary import Special

SPECIAL = Special(pad=0, unk=1, cls=2, sep=3, mask=4)


def row(name: str, supernet: float | None, score: float, seed: int = 0, **more: object) -> dict[str, object]:
    layers, _, title = name.partition("=")
    return {
        "name": title or layers,
        "arch": f"8: {layers}",
        "supernet": supernet,
        "score": score,
        "seed": seed,
        "learned": True,
        **more,
    }


def test_tau_of_known_rankings() -> None:
    same = [row(f"a{i}", i / 10, i / 5) for i in range(6)]
    assert ranking.agreement(same) == pytest.approx({"tau": 1.0, "p": 2 / math.factorial(6), "n": 6})
    against = [row(f"a{i}", i / 10, -i / 5) for i in range(6)]
    assert ranking.agreement(against)["tau"] == pytest.approx(-1)  # type: ignore[index]
    one_swap = [row(f"a{i}", supernet, i) for i, supernet in enumerate([0.1, 0.3, 0.2, 0.4])]
    assert ranking.agreement(one_swap)["tau"] == pytest.approx(4 / 6)  # type: ignore[index]


def test_tau_is_over_architectures_not_over_runs() -> None:
    rows = [row("a", 0.1, 5.0), row("a", 0.1, 1.0, 1), row("b", 0.2, 4.0), row("b", 0.2, 4.0, 1), row("c", 0.3, 6.0)]
    # By its mean a is worst, so all agree; the first seed alone would say otherwise.
    assert ranking.agreement(rows)["tau"] == pytest.approx(1)  # type: ignore[index]
    assert ranking.agreement([*rows, row("c=top-1", 0.3, 6.0)])["n"] == 3  # type: ignore[index]


def test_tau_leaves_out_what_the_supernet_cannot_score() -> None:
    rows = [row("a", 0.1, 1.0), row("b", 0.2, 2.0), row("out", None, 3.0)]
    assert ranking.agreement(rows) is None
    assert ranking.agreement([*rows, row("c", 0.3, 3.0)])["n"] == 3  # type: ignore[index]
    assert ranking.agreement([row(name, 0.1, 1.0) for name in "abcd"]) is None


def test_tau_without_those_on_the_plateau() -> None:
    rows = [row("a", 0.3, 1.0), row("b", 0.2, 2.0), row("c", 0.1, 3.0)]
    stuck = [row("d", 0.0, 0.0, learned=True), row("d", 0.0, 0.0, 1, learned=False), row("e", 0.01, 0.1, learned=False)]
    assert ranking.agreement_of_learned([*rows, *stuck]) == pytest.approx({"tau": -1.0, "p": 1 / 3, "n": 3})
    assert ranking.agreement([*rows, *stuck])["tau"] > -1  # type: ignore[index]
    assert ranking.agreement_of_learned(stuck) is None


def test_the_best_is_the_best_mean_and_goes_by_the_name_of_a_baseline() -> None:
    rows = [row("a=top-1", 0.1, 3.0), row("a=top-1", 0.1, 1.0, 1), row("b=top-2", 0.1, 2.5), row("b=interleaved", 0.1, 2.5)]
    assert ranking.best(rows, ["interleaved"]) == "interleaved"
    assert ranking.best(rows, []) == "top-2"


@pytest.mark.parametrize(("loss", "learned"), [(4.51, False), (4.49, True), (9.0, False)])
def test_what_has_learned_is_clearly_below_the_plateau(loss: float, learned: bool) -> None:
    assert ranking.has_learned(loss, 5.0) is learned


class Tokens:
    def __init__(self, tokens: list[int]) -> None:
        self.kept = np.array(tokens, np.uint16)

    def tokens(self, split: str) -> np.ndarray:
        return self.kept if split == "train" else self.kept[:0]


def test_unigram_loss_is_that_of_the_masked_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "PIECE", 7)
    objective = MaskedLM(Backbone(Architecture.parse("8 vocab=10: ffn")), SPECIAL, rate=0.25)
    corpus = Tokens([5] * 30 + [6] * 9 + [7] * 3)
    ids = torch.tensor([[2, 5, 6, 7, 5, 5, 5, 3]])
    dice = torch.ones(1, 8, 3)
    dice[0, 2, 0] = dice[0, 3, 0] = 0.0
    found = ranking.unigram_loss(corpus, [Batch(ids, dice=dice)], objective)  # type: ignore[arg-type]
    assert found == pytest.approx(-(math.log(10 / 52) + math.log(4 / 52)) / 2)


def test_a_curve_is_what_the_log_says(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"tokens": 5, "loss": 2.0}\n{"tokens": 9, "loss": 1.0, "held_out_loss": 3.0}\n')
    assert ranking.curve(tmp_path, "loss") == [(5, 2.0), (9, 1.0)]
    assert ranking.curve(tmp_path, "held_out_loss") == [(9, 3.0)]


def test_the_table_is_sorted_by_mean(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {"parameters": 5, "flops": 2_000_000, "loss": 3.0}
    rows = [row("worse", 0.1, 0.1, **costs), row("better", None, 0.2, **costs), row("better", None, 0.4, 1, **costs)]
    ranking.show(rows, "accuracy")
    shown = capsys.readouterr().out
    assert shown.index("better") < shown.index("worse")
    assert "0.2000 to 0.4000" in shown
    assert "not defined" in shown
