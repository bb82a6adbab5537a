import importlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
import torch

from layerwright.architecture import Architecture
from layerwright.checkpoint import hold
from layerwright.corpus import Corpus, CorpusSettings, build
from layerwright.errors import DataError, Interrupted, RunInUse
from layerwright.forecast import outlook
from layerwright.population import Population
from layerwright.pretrain import held_out, load, pretrain, score
from layerwright.proxy import Proxy
from layerwright.search import SearchSettings, search
from layerwright.settings import read
from layerwright.space import Part, Space
from layerwright.supernet import Supernet
from layerwright.train import Plan

# The package has a function of this name.
module = importlib.import_module("layerwright.search")

SPACE = "16 embed=8 vocab=200 positions=32: 3x{conv|attn|ffn}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    chance = Random(0)
    words = ["".join(chance.choices("aeioulnrst", k=3)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(" ".join(chance.choices(words, k=60)) for _ in range(60)))
    build([str(folder / "text.txt")], folder / "corpus", CorpusSettings(vocab=150, validation=0.2))
    return folder / "corpus"


def settings(corpus: Path, **given: Any) -> SearchSettings:
    small = {
        "space": SPACE,
        "corpus": corpus,
        "strategy": {"evolution": {"population": 4, "parents": 2}},
        "trials": 6,
        "controls": 3,
        "top": 1,
        "supernet": {"steps": 4},
        "retrain": {"steps": 2},
        "batch": 4,
        "length": 16,
        "evaluate_rows": 8,
    }
    return read(SearchSettings, **(small | given))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, search(settings(corpus, seeds=2, spread=2), out)


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """What must not differ between two runs of one search."""
    kept = {name: value for name, value in results.items() if name not in ("created", "seconds", "title")}
    for name in ("trials", "random", "standalone"):
        kept[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in results[name]]
    return kept


def test_what_a_search_leaves(corpus: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    out, results = whole
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["finished"]
    assert [len(results[name]) for name in ("trials", "random", "failures")] == [6, 3, 0]
    names = [row["name"] for row in results["standalone"]]
    assert names[:6] == ["top-1", "interleaved", "sandwich", "random-1", *names[4:6]]
    assert names[6:] == ["top-1", "interleaved", "sandwich", "random-1"]
    assert [row["seed"] for row in results["standalone"]] == [0] * 6 + [1] * 4
    best = max(results["trials"], key=lambda row: row["score"])
    assert results["standalone"][0]["arch"] == best["arch"]
    assert results["standalone"][0]["supernet"] == best["score"]
    for row in results["standalone"]:
        assert row["curve"][-1] == (2 * 4 * 16, row["loss"])
        assert row["learned"] is False
    assert {name: found["n"] for name, found in results["kendall"].items() if found} in ({}, {"all": len({*names})})
    with_scores: dict[str, list[float]] = {}
    for row in results["standalone"]:
        with_scores.setdefault(row["arch"], []).append(row["score"])
    means = {arch: sum(scores) / len(scores) for arch, scores in with_scores.items()}
    winner = next(row for row in results["standalone"] if row["name"] == results["winner"])
    assert means[winner["arch"]] == max(means.values())
    assert (out / "model" / "model.safetensors").read_bytes() == (out / winner["folder"] / "model/model.safetensors").read_bytes()
    assert Architecture.parse(winner["arch"]).explicit() in (out / "model" / "config.json").read_text()
    assert 0 < results["plateau"]["unigram_loss"] <= math.log(200)
    assert results["supernet_curve"][-1][0] == 4 * 4 * 16


def test_scores_are_those_of_the_supernet_on_the_same_rows(corpus: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    out, results = whole
    told, supernet = load(out / "supernet")
    held = held_out(Corpus.open(corpus), told)
    for row in [*results["trials"], *results["random"]]:
        assert row["score"] == score(supernet, held, Architecture.parse(row["arch"]))["accuracy"]
    studies = optuna.storages.RDBStorage(f"sqlite:///{out}/study.db")
    for name, rows in (("search", results["trials"]), ("random", results["random"])):
        trials = optuna.load_study(study_name=name, storage=studies).trials
        assert [trial.value for trial in trials] == [row["score"] for row in rows]
        assert [trial.user_attrs["parameters"] for trial in trials] == [row["parameters"] for row in rows]
    studies.engine.dispose()


@pytest.mark.parametrize("stop", [1, 4])
def test_stopped_before_any_training_it_goes_on(
    corpus: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    calls = 0

    def killed(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise Interrupted("stopped")
        return pretrain(*given, **named)

    monkeypatch.setattr(module, "pretrain", killed)
    told = settings(corpus, seeds=2, spread=2)
    with pytest.raises(Interrupted):
        search(told, tmp_path)
    assert timeless(search(told, tmp_path)) == timeless(whole[1])


def test_asked_to_stop_it_finishes_the_trial_and_goes_on_later(
    corpus: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    score_one = Population.score

    def scored(*given: Any) -> dict[str, float]:
        nonlocal asked
        asked += 1
        if asked in (3, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return score_one(*given)

    monkeypatch.setattr(Population, "score", scored)
    told = settings(corpus, seeds=2, spread=2)
    for trials in (3, 4):
        with pytest.raises(Interrupted, match="the same command goes on from there"):
            search(told, tmp_path)
        assert asked == trials + 3 * (trials == 4)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert timeless(search(told, tmp_path)) == timeless(whole[1])


def test_more_is_more_of_the_same(corpus: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    search(settings(corpus, trials=3, controls=0, baselines=["interleaved"]), tmp_path)
    supernet = (tmp_path / "supernet" / "result.json").stat().st_mtime_ns
    assert timeless(search(settings(corpus, seeds=2, spread=2), tmp_path)) | {"settings": {}} == timeless(whole[1]) | {
        "settings": {}
    }
    assert (tmp_path / "supernet" / "result.json").stat().st_mtime_ns == supernet


def test_another_search_is_refused_and_a_folder_in_use_too(
    corpus: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = whole
    with pytest.raises(ValueError, match=r"retrain\.steps: 2 -> 5"):
        search(settings(corpus, seeds=2, spread=2, retrain={"steps": 5}), out)
    with hold(tmp_path), pytest.raises(RunInUse):
        search(settings(corpus), tmp_path)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"limits": {"parameters": 5}}, ValueError, "no architecture of the space has at most 5 parameters"),
        ({"limits": {"flops": 7}}, ValueError, "no architecture of the space has at most 7 flops"),
        ({"space": "16 vocab=200: 2x{conv|atn}"}, ValueError, "did you mean 'attn'"),
        ({"baselines": ["sandwhich"]}, ValueError, "did you mean 'sandwich'"),
        ({"baselines": ["16 vocab=50: attn"]}, DataError, "the corpus has 124 word pieces"),
        ({"corpus": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(
    corpus: Path, tmp_path: Path, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        search(settings(**{"corpus": corpus} | given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_are_checked_together() -> None:
    with pytest.raises(ValueError, match="3 problems") as caught:
        read(SearchSettings, assign=["space=x", "strategy.name=evolutoin", "supernet.setps=3"])
    for said in ("corpus: Field required", "did you mean 'evolution'", "did you mean 'steps'"):
        assert said in str(caught.value)


def test_a_plan_without_a_budget_lasts_its_usual_minutes() -> None:
    assert SearchSettings(space=SPACE, corpus=Path(), retrain=Plan(rate=1e-3)).retrain == Plan(minutes=5, rate=1e-3)
    assert read(SearchSettings, assign=["supernet.precision=bf16"], space=SPACE, corpus="c").supernet.minutes == 20
    assert read(SearchSettings, assign=["supernet.steps=7"], space=SPACE, corpus="c").supernet == Plan(steps=7)


def test_limits_hold_for_all_that_is_proposed(corpus: Path, tmp_path: Path) -> None:
    most = 8_000
    results = search(settings(corpus, limits={"parameters": most}, strategy={"name": "random"}), tmp_path)
    assert all(row["parameters"] <= most for row in [*results["trials"], *results["random"]])
    assert next(row for row in results["standalone"] if row["name"] == "random-1")["parameters"] <= most


def test_what_does_not_stay_finite_is_a_failure_and_not_the_end(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(told: Any, *given: Any, label: str) -> Any:
        if label.startswith(("top", "sandwich")):
            raise FloatingPointError("step 2: loss nan")
        return pretrain(told, *given, label=label)

    score_one = Population.score

    def scored(population: Population, arch: Architecture) -> dict[str, float]:
        found = score_one(population, arch)
        return found | {"accuracy": math.nan} if arch.layers[0].kind == "conv" else found

    monkeypatch.setattr(module, "pretrain", breaks)
    monkeypatch.setattr(Population, "score", scored)
    results = search(settings(corpus, trials=9), tmp_path)
    assert [row["name"] for row in results["standalone"]] == ["interleaved", "random-1"]
    failed = [(row["stage"], row["failure"]) for row in results["failures"]]
    assert failed[-2:] == [("retrain", "step 2: loss nan")] * 2
    assert failed[:1] == [("search", "its score is nan")]
    assert len(results["trials"]) + sum(stage == "search" for stage, _ in failed) == 9
    assert results["winner"] in ("interleaved", "random-1")
    assert "sandwich, seed 0, failed: step 2: loss nan" in capsys.readouterr().err
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_baseline_outside_the_space_is_trained_and_said_to_be(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "16 embed=8 vocab=200 positions=32: 2x{conv|ffn[inner=8]}"
    results = search(settings(corpus, space=space, trials=20, baselines=["interleaved"], objective="rtd"), tmp_path)
    assert len(results["trials"]) == 4
    assert [(row["name"], row["supernet"] is None) for row in results["standalone"]] == [("top-1", False), ("interleaved", True)]
    assert results["kendall"] == {"all": None, "learned": None}
    assert [row["learned"] for row in results["standalone"]] == [None, None]
    told = capsys.readouterr()
    assert "interleaved is not in the space" in told.err
    assert "nothing new within the limits was found after 4 trials" in told.err


def test_minutes_are_those_of_the_interleaved_baseline_and_steps_for_all(corpus: Path, tmp_path: Path) -> None:
    results = search(settings(corpus, retrain={"minutes": 1e-6}, fitness="loss"), tmp_path)
    assert json.loads((tmp_path / "budget.json").read_text())["steps"] == 1
    assert {row["tokens"] for row in results["standalone"]} == {4 * 16}
    assert all(row["score"] == -row["loss"] for row in results["standalone"])
    assert all(row["score"] < 0 for row in results["trials"])


def test_the_outlook_tells_sizes_and_budgets(corpus: Path) -> None:
    rows = dict(outlook(settings(corpus, spread=3, limits={"parameters": 20_000})))
    assert rows["architectures"] == "27"
    assert rows["smallest"].endswith("3xattn") or rows["smallest"].endswith("3xconv")
    assert rows["limit on parameters"] == "20,000"
    assert rows["supernet"].startswith("4 steps, 256 tokens")
    assert rows["search by evolution"].startswith("6 trials and 3 at random")
    assert rows["from scratch"].startswith("7 runs of 2 steps, 128 tokens")
    trained = dict(outlook(settings(corpus, space=FORMULAS, proxy=1_000_000)))
    assert trained["search by evolution"].startswith("6 trials and 3 at random after 1,000,000 steps each, ")
    assert float(trained["search by evolution"].split()[-2].replace(",", "")) > 60  # at 0.4 milliseconds a step and more


KILLED = """
import json, os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_search import search, settings

chance = random.Random(0)
for _ in range(4):
    child = os.fork()
    if not child:
        search(settings(Path(sys.argv[2]), **json.loads(sys.argv[4])), Path(sys.argv[3]))
        os._exit(0)
    time.sleep(0.1 + 1.5 * chance.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def killed_it_ends_like(whole: tuple[Path, dict[str, Any]], corpus: Path, out: Path, **given: Any) -> None:
    """Kill a search four times at random moments, let it end, and compare."""
    script = [sys.executable, "-W", "ignore", "-c", KILLED, str(Path(__file__).parent), str(corpus), str(out), json.dumps(given)]
    found = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    results = search(settings(corpus, **given), out)
    assert timeless(results) == timeless(whole[1])
    model = "model/model.safetensors"
    assert (out / model).read_bytes() == (whole[0] / model).read_bytes()


def test_killed_at_random_moments_it_ends_the_same(corpus: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    killed_it_ends_like(whole, corpus, tmp_path / "run", seeds=2, spread=2)


PRIORITY = {"name": "operation-priority", "operation_priority": {"population": 4, "parents": 2}}
FORMULAS = "16 embed=8 vocab=200 positions=32: 2x({lightconv[kernel=3|9|15]|formula[text=*8]} ffn)"


@pytest.mark.parametrize("given", [{"strategy": {"name": "random"}}, {"proxy": 2, "strategy": PRIORITY}])
def test_formulas_are_searched_and_a_kill_changes_nothing(corpus: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    given = {**given, "space": FORMULAS, "trials": 9, "baselines": ["interleaved"], "top": 2}
    results = search(settings(corpus, **given), tmp_path / "whole")
    space = Space.parse(FORMULAS)
    archs = [Architecture.parse(row["arch"]) for row in [*results["trials"], *results["random"]]]
    assert all(arch in space for arch in archs)
    assert {layer.kind for arch in archs for layer in arch.layers} == {"lightconv", "formula", "ffn"}
    searched = [space.key(arch) for arch in archs[:9]]
    assert len(set(searched)) == 9
    assert [row["name"] for row in results["standalone"]] == ["top-1", "top-2", "interleaved"]
    for row in results["standalone"][:2]:
        kept = Architecture.parse(row["arch"])
        assert f'architecture": "{kept.explicit()}' in (tmp_path / "whole" / row["folder"] / "model/config.json").read_text()
    if "proxy" in given:  # once will do
        killed_it_ends_like((tmp_path / "whole", results), corpus, tmp_path / "killed", **given)


def test_candidates_that_train_first_are_scored_as_their_training_leaves_them(corpus: Path, tmp_path: Path) -> None:
    told = settings(corpus, space=FORMULAS, proxy=3, trials=3, controls=0, baselines=["interleaved"], fitness="loss")
    results = search(told, tmp_path)
    _, supernet = load(tmp_path / "supernet")
    training = told.training(Space.parse(FORMULAS), Plan(steps=3))
    opened = Corpus.open(corpus)
    judge = Proxy(supernet, held_out(opened, training), opened, training)
    for row in results["trials"]:
        arch = Architecture.parse(row["arch"])
        assert row["score"] == -judge.score(arch)["loss"] != -score(supernet, judge.held, arch)["loss"]
    with pytest.raises(ValueError, match="proxy: 3 -> 0"):
        search(told.model_copy(update={"proxy": 0}), tmp_path)


def test_a_candidate_that_is_not_finite_is_a_failure(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow = Supernet.follow

    def overflow(net: Supernet, x: torch.Tensor, slot: int, part: Part, context: Any) -> torch.Tensor:
        found = follow(net, x, slot, part, context)
        return found * math.inf if slot == 0 and part[1][0].kind == "formula" else found

    monkeypatch.setattr(Supernet, "follow", overflow)
    results = search(settings(corpus, space=FORMULAS, trials=9, baselines=["interleaved"]), tmp_path)
    failed = [row for row in results["failures"] if row["stage"] == "search"]
    assert failed
    assert all("formula" in row["arch"] and "its score is" in row["failure"] for row in failed)
    assert len(results["trials"]) == 9 - len(failed)
    assert not any(Architecture.parse(row["arch"]).layers[0].kind == "formula" for row in results["trials"])


def test_a_baseline_without_a_score_is_trained_all_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Proxy.score

    def diverging(judge: Proxy, arch: Architecture) -> dict[str, float]:
        if sys._getframe(1).f_code.co_name == "_judged":
            raise FloatingPointError("step 1: loss nan")
        return judged(judge, arch)

    monkeypatch.setattr(Proxy, "score", diverging)
    results = search(settings(corpus, proxy=1, trials=2, controls=0, baselines=["random"]), tmp_path)
    row = next(row for row in results["standalone"] if row["name"] == "random-1")
    assert row["supernet"] is None
    assert math.isfinite(row["loss"])
