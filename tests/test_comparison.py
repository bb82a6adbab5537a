"""Paired statistics equal counting by hand; two models are compared only where they were evaluated alike."""

import itertools
import json
import shutil
import statistics
from pathlib import Path
from random import Random

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from test_evaluation import NUMBERS, make_model, settings_for, write_split
from typer.testing import CliRunner

from layerwright import cli, comparison
from layerwright.comparison import Comparison, compared
from layerwright.evaluation import evaluate
from layerwright.tasks.examples import Answer, Choice, Examples, Row, Span, Tagged
from layerwright.tasks.metrics import metric_names, score
from layerwright.tasks.paired import holm, over_rows, over_seeds, tally


def classes(count: int, labels: int, seed: int, groups: int = 0) -> Examples:
    chance = Random(seed)
    rows = [Row(str(n), "text", None, float(chance.randrange(labels)), f"g{n % groups}" if groups else "") for n in range(count)]
    return Examples("made", "classification", tuple(map(str, range(labels))), tuple(rows))


def guesses(examples: Examples, right: float, seed: int) -> list[int]:
    chance = Random(seed)
    return [int(row.label) if chance.random() < right else chance.randrange(len(examples.labels)) for row in examples.rows]


@pytest.mark.parametrize("seeds", [1, 2, 5, 9])
def test_the_test_over_seeds_counts_every_exchange(seeds):
    chance = Random(seeds)
    first = [chance.uniform(0.4, 0.6) for _ in range(seeds)]
    second = [value + chance.gauss(0.02, 0.03) for value in first]
    found = over_seeds(first, second)
    change = [b - a for a, b in zip(first, second, strict=True)]
    means = [
        statistics.fmean(s * c for s, c in zip(signs, change, strict=True)) for signs in itertools.product((1, -1), repeat=seeds)
    ]
    as_large = sum(abs(mean) >= abs(statistics.fmean(change)) - 1e-12 for mean in means)
    assert found.exact
    assert found.p == as_large / 2**seeds
    assert found.least == min(1.0, 2 / 2**seeds)
    assert found.mean == pytest.approx(statistics.fmean(change))
    assert found.median == pytest.approx(statistics.median(change))
    assert found.std == pytest.approx(statistics.stdev(change) if seeds > 1 else 0)


def test_five_seeds_that_all_agree_cannot_say_more_than_one_in_sixteen():
    found = over_seeds([0.1] * 5, [0.2, 0.3, 0.4, 0.5, 0.6])
    assert (found.p, found.least) == (0.0625, 0.0625)


def test_of_many_seeds_exchanges_are_drawn_and_come_close_to_all():
    chance = np.random.default_rng(3)
    change = chance.normal(0.01, 0.03, 15)
    found = over_seeds([0.0] * 15, list(change))
    signs = 1 - 2 * (np.arange(2**15)[:, None] >> np.arange(15) & 1)
    exact = float((np.abs(signs @ change) >= abs(change.sum()) - 1e-12).mean())
    assert not found.exact
    assert abs(found.p - exact) < 4 * (exact * (1 - exact) / 10_000) ** 0.5
    assert over_seeds([0.0] * 20, [1.0] * 20).p == found.least == 1 / 10_001


def test_the_interval_over_seeds_is_that_of_all_resamples():
    change = [0.0, 0.1, 0.3, 0.7, 0.2]
    means = [statistics.fmean(drawn) for drawn in itertools.product(change, repeat=5)]
    low, high = np.percentile(means, [2.5, 97.5])
    found = over_seeds([0.0] * 5, change)
    assert found.low == pytest.approx(low, abs=0.011)
    assert found.high == pytest.approx(high, abs=0.011)


def test_scores_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="2 scores cannot be paired with 3"):
        over_seeds([0.1, 0.2], [0.1, 0.2, 0.3])


METRICS = {
    "accuracy": accuracy_score,
    "matthews": lambda truth, given: matthews_corrcoef(truth, given) if len(set(truth)) > 1 and len(set(given)) > 1 else 0.0,
    "f1": lambda truth, given: f1_score(truth, given, zero_division=0),
    "macro_f1": lambda truth, given: f1_score(truth, given, average="macro", zero_division=0),
}


@pytest.mark.parametrize("metric", METRICS)
def test_the_test_over_rows_counts_every_exchange_of_rows_in_all_seeds_at_once(metric):
    examples, measure = classes(6, 2, 1), METRICS[metric]
    truth = [int(row.label) for row in examples.rows]
    first, second = ([guesses(examples, right, seed) for seed in seeds] for right, seeds in ((0.3, (1, 2)), (0.95, (3, 4))))

    def difference(swapped: tuple[int, ...]) -> float:
        found = []
        for one, other in zip(first, second, strict=True):
            pairs = [(b, a) if swap else (a, b) for a, b, swap in zip(one, other, swapped, strict=True)]
            a, b = map(list, zip(*pairs, strict=True))
            found.append(measure(truth, b) - measure(truth, a))
        return statistics.fmean(found)

    seen = difference((0,) * 6)
    as_large = sum(abs(difference(swapped)) >= abs(seen) - 1e-12 for swapped in itertools.product((0, 1), repeat=6))
    found = over_rows(*([tally(metric, examples, one) for one in given] for given in (first, second)))
    assert found.difference == pytest.approx(seen)
    assert (found.p, found.exact, found.units) == (as_large / 2**6, True, 6)


def test_the_interval_over_rows_is_that_of_resampled_rows():
    examples = classes(300, 3, 5)
    first, second = guesses(examples, 0.4, 1), guesses(examples, 0.6, 2)
    found = over_rows([tally("matthews", examples, first)], [tally("matthews", examples, second)])
    truth, chance, drawn = np.array([row.label for row in examples.rows]), np.random.default_rng(11), []
    for _ in range(600):
        places = chance.integers(0, 300, 300)
        one, other = (matthews_corrcoef(truth[places], np.array(given)[places]) for given in (first, second))
        drawn.append(other - one)
    assert not found.exact
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.03)
    assert found.low < found.difference < found.high


def test_exchanging_rows_of_models_that_are_the_same_but_for_chance_is_rarely_significant():
    examples, small = classes(60, 2, 9), 0
    for trial in range(60):
        one, other = (tally("matthews", examples, guesses(examples, 0.5, 2 * trial + part)) for part in (0, 1))
        small += over_rows([one], [other]).p <= 0.1
    assert small <= 13, "about 6 of 60 should be"


def some_of_each_kind() -> list[tuple[Examples, object]]:
    chance = Random(2)
    numbers = tuple(Row(str(n), "text", None, chance.choice([1.0, 2.5, 3.0, 4.75])) for n in range(40))
    choices = tuple(Choice(str(n), "text", ("a", "b"), chance.randrange(2)) for n in range(30))
    golds = ["the red house", "a house", "red", "The", "one two"]
    answered = [Span(str(n), "who?", " ".join(golds), (Answer(0, golds[n % 5]),) if n % 4 else ()) for n in range(40)]
    given = {one.key: chance.choice([*golds, "", "House."]) for one in answered}
    tags = ("O", "B-per", "I-per", "B-loc", "I-loc")
    sentences = [[chance.choice(("O", "B-per", "B-loc")) for _ in range(6)] for _ in range(30)]
    tagged = tuple(Tagged(str(n), ("w",) * 6, tuple(words)) for n, words in enumerate(sentences))
    found = [[tag if chance.random() < 0.7 else chance.choice(tags) for tag in words] for words in sentences]
    grouped = classes(50, 2, 3, groups=9)
    return [
        *((examples, guesses(examples, 0.6, 4)) for examples in (classes(50, 2, 1), classes(50, 3, 2), grouped)),
        (classes(10, 2, 1), [1] * 10),
        (Examples("made", "regression", (), numbers), [row.label + chance.gauss(0, 1) for row in numbers]),
        (Examples("made", "regression", (), numbers), [2.0] * 40),
        (Examples("made", "choices", (), choices), [chance.randrange(2) for _ in choices]),
        (Examples("made", "spans", (), tuple(answered)), given),
        (
            Examples("made", "spans", (), tuple(one for one in answered if one.answers)),
            {one.key: given[one.key] for one in answered if one.answers},
        ),
        (Examples("made", "tags", tags, tagged), found),
        (Examples("made", "tags", tags, tagged), [["O"] * 6 for _ in tagged]),
    ]


@pytest.mark.parametrize(("examples", "predictions"), some_of_each_kind())
def test_a_score_split_into_rows_is_the_score(examples, predictions):
    names = metric_names(examples)
    whole = score(examples.kind, names, examples, predictions).scores
    for name in names:
        split = tally(name, examples, predictions)
        assert float(split.score(split.parts.sum(0))) == pytest.approx(whole[name]), name


def test_p_values_of_several_tasks_are_raised_as_holm_does():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for task in ("RTE", "STS-B"):
        write_split(folder, task, "train", 48)
        write_split(folder, task, "dev", 40)
    return folder


@pytest.fixture(scope="module")
def evaluations(source, tmp_path_factory) -> dict[str, Path]:
    """Two models, one of them evaluated twice, in folders of their own."""
    made = tmp_path_factory.mktemp("models")
    models = {name: make_model(made / name / "model", seed) for name, seed in (("a", 1), ("b", 2))}
    settings = settings_for(source, suite="RTE,STS-B", seeds=3, numbers=NUMBERS | {"epochs": 2})
    for name, of in (("a", "a"), ("again", "a"), ("b", "b")):
        evaluate(models[of], made / f"run-{name}", settings)
    return {name: made / f"run-{name}" for name in ("a", "again", "b")} | {f"model-{name}": models[name] for name in models}


def test_a_model_does_not_differ_from_itself_in_any_seed_or_row(evaluations):
    found = compared(evaluations["a"], evaluations["again"])
    for one in found.tasks:
        assert one.first == one.second, "another order of rows, or another head"
        assert one.seeds == (0, 1, 2)
        assert (one.over_seeds.p, one.p_holm, one.over_rows.p, one.over_rows.difference) == (1, 1, 1, 0)
    assert found.whole.mean == 0


def test_two_models_are_compared_by_their_seeds_and_their_stored_predictions(evaluations):
    found = compared(evaluations["a"], evaluations["b"])
    assert [(one.task, one.metric) for one in found.tasks] == [("STS-B", "pearson"), ("RTE", "accuracy")]
    for one in found.tasks:
        for values, name in ((one.first, "a"), (one.second, "b")):
            run = json.loads((evaluations[name] / one.task / "results.json").read_text())
            assert list(values) == [seed["scores"][one.metric] for seed in run["seeds"]]
        assert one.over_rows.difference == pytest.approx(one.over_seeds.mean), "predictions and scores are of other rows"
        assert one.over_rows.units == 40
        assert one.metrics.keys() >= {"spearman"} if one.task == "STS-B" else {"matthews"}
    means = [statistics.fmean(one.over_seeds.mean for one in found.tasks), found.whole.mean]
    assert means[0] == pytest.approx(means[1])
    before, after, change = found.averages["mean-of-2"]
    assert change == pytest.approx(after - before)


def test_the_command_compares_models_and_evaluations_alike(tmp_path, evaluations, source):
    run = ["compare", str(evaluations["model-a"]), str(evaluations["model-b"]), "--out", str(tmp_path / "models")]
    for name, value in (NUMBERS | {"epochs": 2}).items():
        run += ["--set", f"numbers.{name}={value}"]
    told = CliRunner().invoke(cli.app, [*run, "--suite", "RTE,STS-B", "--source", str(source), "--seeds", "3"])
    assert told.exit_code == 0, told.output
    done = [str(evaluations["a"]), str(evaluations["b"])]
    told = CliRunner().invoke(cli.app, ["compare", *done, "--out", str(tmp_path / "runs")])
    assert told.exit_code == 0, told.output
    models, runs = (tmp_path / name for name in ("models", "runs"))
    assert without_costs(models) == without_costs(runs)
    assert comparison.markdown(without_costs(models)) == comparison.markdown(without_costs(runs))
    for folder in (models, runs):
        told = Comparison.model_validate_json((folder / "comparison.json").read_text())
        assert (folder / "comparison.md").read_text() == comparison.markdown(told)
    table = (runs / "comparison.md").read_text()
    assert "MiB, first" in table
    assert "of 3 seeds no p value can be below 0.25" in table
    assert Comparison.model_validate_json((tmp_path / "runs/comparison.json").read_text()) == compared(*map(Path, done))
    told = CliRunner().invoke(
        cli.app, ["compare", *done, "--out", str(tmp_path / "runs"), "--suite", "RTE", "--source", str(source)]
    )
    assert "is an evaluation, which has its suite" in str(told.exception)
    models = [str(evaluations["model-a"]), str(evaluations["model-b"])]
    told = CliRunner().invoke(cli.app, ["compare", *models, "--out", str(tmp_path / "none")])
    assert "say which --suite and --source" in str(told.exception)


def without_costs(folder: Path) -> Comparison:
    found = Comparison.model_validate_json((folder / "comparison.json").read_text())
    tasks = [task.model_copy(update={"seconds": None, "memory": None}) for task in found.tasks]
    return found.model_copy(update={"tasks": tuple(tasks)})


def test_what_seeds_took_is_told_beside(tmp_path, evaluations):
    both = [shutil.copytree(evaluations[name], tmp_path / name) for name in ("a", "b")]
    for place, run in enumerate(both):
        for seed in range(3):
            path = run / f"RTE/seeds/{seed}/result.json"
            told = json.loads(path.read_text())
            assert told["processor_seconds"] > 0
            assert told["memory"] is None or told["memory"] > 50
            path.write_text(json.dumps(told | {"processor_seconds": (seed + 1) * (place + 1), "memory": 100.0 + seed * place}))
    found = compared(*both)
    rte = found.tasks[1]
    assert (rte.seconds, rte.memory) == ((2, 4), (100, 102))
    assert ["RTE", "2", "4", "2.00", "100", "102", "1.02"] in comparison.cost_rows(found)
    (both[0] / "RTE/seeds/1/result.json").unlink()
    assert compared(*both).tasks[1].seconds is None, "it is not known of every seed"


def changed(run: Path, to: Path, file: str, change) -> Path:
    shutil.copytree(run, to)
    told = json.loads((to / file).read_text())
    change(told)
    (to / file).write_text(json.dumps(told))
    return to


def test_what_was_not_made_alike_is_not_compared(tmp_path, evaluations):
    run = evaluations["b"]

    def other_rows(told):
        told["RTE (validation table)"] = "0" * 64

    def other_numbers(told):
        told["tasks"][1]["settings"]["epochs"] = 7

    def other_rate(told):
        told["tasks"][1]["settings"]["rate"] = 1e-5

    def other_seeds(told):
        for place, seed in enumerate(told["tasks"][1]["seeds"]):
            seed["seed"] = 10 + place

    for name, file, change, message in (
        ("rows", "inputs.json", other_rows, r"other rows: RTE \(validation table\)"),
        ("numbers", "results.json", other_numbers, "RTE was learned with other numbers: epochs 2 and 7"),
        ("seeds", "results.json", other_seeds, "RTE has no seed in common"),
    ):
        with pytest.raises(ValueError, match=message):
            compared(evaluations["a"], changed(run, tmp_path / name, file, change))
    # The rate of a protocol goes by the size of the model, so that it is told, not refused.
    found = compared(evaluations["a"], changed(run, tmp_path / "rate", "results.json", other_rate))
    assert "learned with rate 0.005 and 1e-05" in found.tasks[1].note


def test_without_rows_or_predictions_seeds_are_compared_and_the_reason_is_told(tmp_path, evaluations, source):
    run = shutil.copytree(evaluations["b"], tmp_path / "b")
    (run / "RTE/seeds/1/predictions.jsonl").unlink()
    found = compared(evaluations["a"], run)
    assert found.tasks[1].over_rows is None
    assert "there is no" in found.tasks[1].note
    assert found.tasks[0].over_rows is not None
    assert any("not compared by row" in note for note in comparison.notes(found))
    hidden = source.rename(tmp_path / "hidden")
    try:
        assert all(one.over_rows is None and "there is no folder" in one.note for one in compared(evaluations["a"], run).tasks)
    finally:
        hidden.rename(source)


def test_runs_that_did_not_learn_are_marked(tmp_path, evaluations):
    def lose(told):
        told["tasks"][1]["seeds"][2]["learned"] = False

    found = compared(evaluations["a"], changed(evaluations["b"], tmp_path / "lost", "results.json", lose))
    assert found.tasks[1].lost[1] >= 1
    assert comparison.table_rows(found)[1][0] == "RTE †"
    assert any("of 3 runs did not learn" in note for note in comparison.notes(found))


def test_seeds_are_paired_by_their_numbers_whatever_their_order(tmp_path, evaluations):
    def turned(evaluation: dict) -> dict:
        for task in evaluation["tasks"]:
            task["seeds"] = task["seeds"][::-1]
        return evaluation

    other = changed(evaluations["b"], tmp_path / "turned", "results.json", turned)
    usual = compared(evaluations["a"], evaluations["b"])
    assert compared(evaluations["a"], other).tasks == usual.tasks


def test_a_metric_that_only_one_of_two_has_is_not_compared(tmp_path, evaluations):
    def with_another(evaluation: dict) -> dict:
        for task in evaluation["tasks"]:
            task["summary"]["accuracy_mismatched"] = next(iter(task["summary"].values()))
            task["metrics"].append("accuracy_mismatched")
            for seed in task["seeds"]:
                seed["scores"]["accuracy_mismatched"] = 0.5
        return evaluation

    more = changed(evaluations["a"], tmp_path / "more", "results.json", with_another)
    usual = compared(evaluations["a"], evaluations["b"])
    assert compared(more, evaluations["b"]).tasks == usual.tasks
    assert compared(evaluations["b"], more).tasks == compared(evaluations["b"], evaluations["a"]).tasks


def test_predictions_may_hold_whatever_else_ends_lines(tmp_path):
    path, answers = tmp_path / "predictions.jsonl", ["one\u2028two", "three\x85four"]
    lines = [json.dumps({"key": str(at), "prediction": answer}, ensure_ascii=False) for at, answer in enumerate(answers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = tuple(Span(str(at), "who?", answer, (Answer(0, answer),)) for at, answer in enumerate(answers))
    assert comparison._predictions(path, Examples("made", "spans", (), rows)) == dict(zip("01", answers, strict=True))


def test_what_is_wrong_with_the_second_model_shows_before_the_first_is_evaluated(tmp_path, evaluations, source):
    settings = settings_for(source, suite="RTE", seeds=1)
    for second, said in ((tmp_path / "typo", "is not a model folder"), (evaluations["b"], "is an evaluation")):
        with pytest.raises(ValueError, match=said):
            comparison.compare(evaluations["model-a"], second, tmp_path / "out", settings)
        assert not (tmp_path / "out").exists()
