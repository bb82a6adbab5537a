"""What the page of a search says of operations and formulas, and the token uniformity that it draws."""

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from test_report import CHROMIUM, Page, alone, browse, results, written
from test_search import search, settings, timeless

from layerwright import report
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.corpus import Corpus
from layerwright.formulas import Formula
from layerwright.operations import OPERATIONS
from layerwright.population import Population
from layerwright.pretrain import held_out, load
from layerwright.priorities import OperationPriority, chances, priorities
from layerwright.space import Space
from layerwright.strategies import Trial
from layerwright.supernet import Supernet
from layerwright.token_uniformity import by_layer

SPACE = Space.parse("32 vocab=64: 2x({lightconv[kernel=3|9]|formula[text=*8]} ffn)")
PLAIN = "32 vocab=64: 2x(attn ffn)"
STRATEGY = OperationPriority(population=10, parents=3, alpha=0.3)
NAMED = {"name": "operation-priority", "operation_priority": STRATEGY.model_dump()}


def trials(count: int = 40) -> list[Trial]:
    return [Trial(number, SPACE.sample(Random(number)), Random(-number).random()) for number in range(count)]


def searched(strategy: dict[str, Any] = NAMED, **changed: Any) -> dict[str, Any]:
    """Results of a search over formulas, of which one trial failed."""
    rows = [{"number": one.number, "arch": str(one.arch), "score": one.score, "parameters": 5, "flops": 7} for one in trials()]
    rows[7]["score"] = None
    failed = [{"stage": "search", **rows.pop(7), "failure": "its score is nan"}]
    best = next(one for one in rows if "formula" in one["arch"])["arch"]
    standalone = [alone("top-1", best, 0.5, seed, uniformity=[0.1, 0.2, 0.3 + 0.1 * seed, 0.4, 0.5]) for seed in (0, 1)]
    standalone += [alone("interleaved", PLAIN, 0.4, uniformity=[0.1, 0.5, 0.7, 0.8, 0.9])]
    whole = {"space": str(SPACE), "trials": rows, "failures": failed, "random": [], "standalone": standalone}
    return results(settings={"strategy": strategy}, **(whole | changed))


def lines(page: Page) -> dict[str, list[tuple[float, float]]]:
    """The curves of operations on the first chart that has such, by name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for attrs in page.all("polyline", "operation"):
        places = [tuple(map(float, place.split(","))) for place in (attrs["points"] or "").split()]
        found.setdefault(attrs["data-name"] or "", [(x, y) for x, y in places])
    return found


def test_each_operation_has_a_curve_that_ends_at_its_bound_and_a_row(tmp_path: Path) -> None:
    page = Page(written(tmp_path, searched()))
    history = [one._replace(score=-float("inf")) if one.number == 7 else one for one in trials()]
    known = priorities(SPACE, history, STRATEGY.alpha)
    drawn = lines(page)
    assert drawn.keys() == known.keys() == OPERATIONS.keys() - {"t"}
    assert all(line[0][0] < line[-1][0] for line in drawn.values())
    # The higher a bound, the higher its curve ends.
    ends = sorted(known, key=lambda name: drawn[name][-1][1])
    assert [known[name].bound for name in ends] == sorted((one.bound for one in known.values()), reverse=True)
    chance = chances(known, STRATEGY.temperature)
    for name, one in known.items():
        assert re.search(rf"{name}{one.formulas:,}{one.mean:.3f}{one.bound:.3f}{100 * chance[name]:.1f} %", page.text)
    keys = {attrs["style"] for attrs in page.all("i") if "style" in attrs}
    for attrs in page.all("polyline", "operation"):
        assert (attrs["style"] or "").replace("stroke:", "background:") in keys


def test_who_followed_the_bounds_is_said_and_slots_are_shown_where_they_count(tmp_path: Path) -> None:
    assert "By their softmax new operations are drawn" in Page(written(tmp_path, searched())).text
    for other in ({"name": "evolution"}, NAMED | {"operation_priority": {"priority": False}}):
        page = Page(written(tmp_path, searched(other)))
        assert "The strategy does not look at this" in page.text
        assert len(lines(page)) == len(OPERATIONS) - 1
        assert "Bound at each slot" not in page.text
    placed = NAMED | {"operation_priority": {"positions": True}}
    source = written(tmp_path, searched(placed))
    assert "Bound at each slot" in Page(source).text
    assert "cosine, slot 2: bound" in source


def test_the_formulas_of_the_best_are_drawn_once_with_where_they_stand(tmp_path: Path) -> None:
    text = "matmul(softmax(cosine(q,k)),v)"
    arch = f"32 vocab=64: formula[text={text}] ffn formula[text={text}] ffn"
    rows = [alone(name, arch, value) for name, value in (("top-1", 0.5), ("top-2", 0.6))]
    source = written(tmp_path, searched(standalone=rows, winner="top-2"))
    page = Page(source)
    assert len(list(page.all("svg", "formula"))) == 1
    assert "top-2, layers 0, 2; top-1, layers 0, 2: softmax(cosine(q, k)) v" in page.text
    assert Formula.parse(text).latex() in page.text
    assert "No network trained from scratch has been looked into yet." in page.text
    untrained = Page(written(tmp_path, searched(standalone=[], winner=None)))
    assert "The formulas of rank 1, rank 2, rank 3, best first." in untrained.text


def test_uniformity_is_a_line_a_network_the_mean_over_seeds(tmp_path: Path) -> None:
    source = written(tmp_path, searched())
    page = Page(source)
    assert [f"top-1: {value:.3f}" in source for value in (0.1, 0.2, 0.35, 0.4, 0.5, 0.3, 0.45)] == [True] * 5 + [False] * 2
    assert re.search(r"top-10\.50000\.1000\.500", page.text)
    assert "interleaved: plain attention" in page.text
    assert re.search(r"interleaved0\.40000\.1000\.900", page.text)
    alone_there = [row for row in searched()["standalone"] if row["name"] == "top-1"]
    assert "There is no interleaved baseline to compare with." in Page(written(tmp_path, searched(standalone=alone_there))).text


def test_pages_of_other_searches_say_nothing_of_formulas(tmp_path: Path) -> None:
    for content in (results(), searched(space="32 vocab=64: 4x{nosuchkind|attn}"), searched(space="")):
        page = Page(written(tmp_path, content))
        assert "What the best compute" not in page.text
        assert not lines(page)


def test_candidates_of_another_space_are_an_answer_and_no_crash(tmp_path: Path) -> None:
    rows = [{"number": 0, "arch": "32 vocab=64: attn", "score": 0.5}]
    assert "Operations cannot be told: not in this space" in Page(written(tmp_path, searched(trials=rows, failures=[]))).text
    assert "No candidate has been tried." in Page(written(tmp_path, searched(trials=[], failures=[]))).text
    odd = {"name": "operation-priority", "operation_priority": {"alpha": -1}}
    assert "Operations cannot be told" in Page(written(tmp_path, searched(odd))).text


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_uniformity_of_each_layer_is_what_pairs_of_tokens_give(norm: str) -> None:
    torch.manual_seed(0)
    net = Backbone(Architecture.parse(f"32 vocab=50 norm={norm}: attn conv ffn"), 0.5)
    batches = [
        Batch(torch.randint(5, 50, (3, 7))),
        Batch(torch.randint(5, 50, (2, 7)), mask=torch.arange(7) < torch.tensor([[7], [4]])),
    ]
    found = by_layer(net, batches)
    assert net.training
    net.eval()
    with torch.no_grad():
        for level in range(4):
            cosines = []
            for batch in batches:
                short = Backbone(Architecture.parse(f"32 vocab=50 norm={norm}: attn conv ffn"), 0.0).eval()
                short.load_state_dict(net.state_dict())
                short.layers = short.layers[:level]
                for row, states in enumerate(short(batch.ids, batch.mask)):
                    real = states if batch.mask is None else states[batch.mask[row]]
                    unit = torch.nn.functional.normalize(real, dim=-1)
                    pairs = [float(one @ other) for i, one in enumerate(unit) for other in unit[:i]]
                    cosines.append(sum(pairs) / len(pairs))
            assert found[level] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    with pytest.raises(ValueError, match="a supernet is many networks"):
        by_layer(Supernet(SPACE), batches)


def test_a_search_by_priority_goes_on_where_it_stopped_and_leaves_what_the_page_draws(
    tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(
        tiny_corpus.folder,
        space="16 embed=8 vocab=300 positions=32: 2x({lightconv[kernel=3|9]|formula[text=*8]} ffn)",
        strategy={"name": "operation-priority", "operation_priority": {"population": 4, "parents": 2}},
        trials=9,
        top=2,
        baselines=["interleaved"],
    )
    whole = search(told, tmp_path / "whole")
    score_one, scored = Population.score, 0

    def stop_at_the_sixth(*given: Any) -> dict[str, float]:
        nonlocal scored
        scored += 1
        if scored == 6:
            raise KeyboardInterrupt
        return score_one(*given)

    monkeypatch.setattr(Population, "score", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        search(told, tmp_path / "cut")
    assert timeless(search(told, tmp_path / "cut")) == timeless(whole)
    for row in whole["standalone"]:
        objective = load(tmp_path / "whole" / row["folder"])[1]
        rows = held_out(tiny_corpus, told.training(told.candidates().space, told.supernet))
        assert row["uniformity"] == by_layer(objective.backbone, rows)
        assert len(row["uniformity"]) == 5
    page = Page(report.write(tmp_path / "whole").read_text(encoding="utf-8"))
    assert "By their softmax new operations are drawn" in page.text
    assert "What the best compute" in page.text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_on_a_phone(tmp_path: Path) -> None:
    source = written(tmp_path, searched(NAMED | {"operation_priority": {"positions": True}}))
    asked = "<script>document.documentElement.dataset.wider = document.documentElement.scrollWidth - innerWidth;</script></body>"
    (tmp_path / "read.html").write_text(source.replace("</body>", asked), encoding="utf-8")
    shown = browse(tmp_path / "read.html", tmp_path, "--dump-dom", "--window-size=500,900")
    root = next(attrs for tag, attrs in Page(shown).elements if tag == "html")
    assert (root.get("data-error"), root.get("data-ready")) == (None, "yes")
    assert int(root["data-wider"] or 1) <= 0, "the page is wider than a phone"
