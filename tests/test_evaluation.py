"""A suite ends with the same tables however often it is killed; averages say what they are over; nothing is left out silently."""

import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from typer.testing import CliRunner

from layerwright import cli, console, evaluation, presets, scoreboard, submission, vocabulary
from layerwright import settings as settings_module
from layerwright.configuration import LayerwrightConfig
from layerwright.errors import DataError
from layerwright.evaluation import EvaluationSettings, evaluate, plan
from layerwright.evaluation_page import page_of
from layerwright.handover import save_model
from layerwright.models import LayerwrightForPreTraining
from layerwright.scoreboard import Evaluation, SeedScores, TaskScores
from layerwright.tasks.catalog import read
from layerwright.tasks.metrics import summary
from layerwright.tasks.suites import AVERAGES, MISMATCHED, SUITES, averages_of, rows_note, tasks_of

WORDS = ["good", "bad", "fine", *(f"w{number}" for number in range(40))]
LABELS = {
    "CoLA": ("0", "1"),
    "STS-B": (),
    "RTE": ("entailment", "not_entailment"),
    "MNLI": ("entailment", "neutral", "contradiction"),
    "AX": ("entailment", "neutral", "contradiction"),
}
NUMBERS = {"epochs": 1, "batch": 16, "rate": 5e-3, "layer_decay": 1.0, "length": 32}
LEFT = ("results.json", "results.csv", "table.md", "report.html")


def make_model(folder: Path, seed: int) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = folder.with_name("vocab.txt")
    words.write_text("\n".join([*vocabulary.SPECIAL, *WORDS]))
    vocabulary.save(vocabulary.load(words, lowercase=True), folder.with_name("tokenizer"))
    torch.manual_seed(seed)
    config = LayerwrightConfig(architecture=str(presets.architecture("debug")))
    save_model(folder, LayerwrightForPreTraining(config), tokenizer=folder.with_name("tokenizer"))
    return folder


def write_split(source: Path, task: str, file: str, rows: int, *, labelled: bool = True) -> Path:
    """A split in the form of the project's tables: one word of the text decides."""
    chance, labels = Random(f"{task}/{file}"), LABELS[task]
    lines = ["idx\tsentence1\tsentence2\tlabel"]
    for place in range(rows):
        number = chance.randrange(len(labels) or 3)
        words = [*chance.choices(WORDS[3:], k=chance.randint(2, 8)), WORDS[number]]
        text = " ".join(chance.sample(words, len(words)))
        first, second = (text, "") if task == "CoLA" else (" ".join(chance.choices(WORDS[3:], k=4)), text)
        label = (labels[number] if labels else f"{2 * number + chance.random():.2f}") if labelled else ""
        lines.append(f"{place}\t{first}\t{second}\t{label}")
    path = source / "glue" / task / f"{file}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("made") / "model", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for task in ("CoLA", "STS-B", "RTE", "MNLI"):
        dev, test = ("dev_matched", "test_matched") if task == "MNLI" else ("dev", "test")
        write_split(folder, task, "train", 48)
        write_split(folder, task, dev, 24)
        write_split(folder, task, test, 10, labelled=False)
    write_split(folder, "MNLI", "dev_mismatched", 24)
    write_split(folder, "AX", "test", 9)
    return folder


@pytest.fixture(scope="module")
def finished(model, source, tmp_path_factory) -> tuple[Path, Evaluation]:
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, evaluate(model, out, settings_for(source))


def settings_for(source: Path, **given) -> EvaluationSettings:
    quick = {"suite": "CoLA,STS-B,MNLI,RTE,SST-2", "seeds": 2, "numbers": NUMBERS}
    return EvaluationSettings(source=str(source), **quick | given)


def scored(name: str, scores: Sequence[float], metric: str = "accuracy", lost: Sequence[int] = ()) -> TaskScores:
    seeds = tuple(SeedScores(seed=seed, scores={metric: value}, learned=seed not in lost) for seed, value in enumerate(scores))
    return TaskScores(
        task=name,
        suite="glue",
        kind="classification",
        metrics=(metric,),
        rows={"train": 2_490, "dev": 277},
        seeds=seeds,
        median_seed=0,
        summary={metric: summary(scores)._asdict()},
        settings={"rate": 1e-4},
    )


def evaluated(*tasks: TaskScores, skipped: dict[str, str] | None = None) -> Evaluation:
    scores = {one.task: {metric: [s.scores[metric] for s in one.seeds] for metric in one.metrics} for one in tasks}
    return Evaluation(
        model="model",
        arch="32 embed=16: attn ffn",
        suite="glue",
        source="source",
        protocol="electra",
        tasks=tasks,
        skipped=skipped or {},
        averages=tuple(averages_of(scores, SUITES["glue"])),
    )


def test_an_evaluation_holds_what_each_of_its_runs_came_to(finished):
    out, done = finished
    assert [one.task for one in done.tasks] == ["CoLA", "STS-B", "MNLI", "RTE"]
    assert Evaluation.model_validate_json((out / "results.json").read_text()) == done
    for one in done.tasks:
        run = json.loads((out / one.task / "results.json").read_text())
        assert [seed.seed for seed in one.seeds] == [seed["seed"] for seed in run["seeds"]] == [0, 1]
        for seed, there in zip(one.seeds, run["seeds"], strict=True):
            assert {name: seed.scores[name] for name in there["scores"]} == there["scores"]
        assert one.settings["epochs"] == 1
        assert one.rows == {"train": 48, "dev": 24}
    mnli = done.tasks[2]
    values = [seed.scores[MISMATCHED] for seed in mnli.seeds]
    assert mnli.summary[MISMATCHED]["median"] == statistics.median(values)
    other = read("MNLI", "dev_mismatched", done.source)
    lines = (out / "MNLI/seeds/1/predictions.dev_mismatched.jsonl").read_text().splitlines()
    right = [other.labels[int(row.label)] == json.loads(line)["prediction"] for row, line in zip(other.rows, lines, strict=True)]
    assert values[1] == pytest.approx(statistics.fmean(right))


def test_a_task_without_files_is_skipped_with_the_reason_in_every_table(finished):
    out, done = finished
    assert list(done.skipped) == ["SST-2"]
    assert "no train split of SST-2: none of glue/SST-2/train.tsv" in done.skipped["SST-2"]
    for name in LEFT:
        assert done.skipped["SST-2"] in (out / name).read_text(), name
    assert not (out / "SST-2").exists()


def test_the_spreadsheet_has_every_number(finished):
    out, done = finished
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for one in done.tasks:
        for metric, parts in one.summary.items():
            (row,) = (row for row in rows if (row["name"], row["metric"]) == (one.task, metric))
            assert {part: float(row[part]) for part in parts} == parts
            assert json.loads(row["every_seed"]) == {str(seed.seed): seed.scores[metric] for seed in one.seeds}
            assert int(row["decides"]) == (metric == one.metrics[0])
            assert int(row["not_learned"]) == len(one.lost)
    assert [row["name"] for row in rows if row["what"] == "average"] == ["convbert-8", "glue-9", "mean-of-4"]
    (eight,) = (row for row in rows if row["name"] == "convbert-8")
    assert eight["median"] == ""
    assert eight["note"] == "missing: SST-2, MRPC, QQP, QNLI"


PUBLISHED = {  # ConvBERT-small on the test splits: its paper's table, and the leaderboard of the model trained longer
    "convbert-8": (
        {"MNLI": [81.5], "QNLI": [88.5], "QQP": [88.0], "RTE": [62.2], "SST-2": [89.2], "MRPC": [83.3], "CoLA": [54.8]}
        | {"STS-B": [83.4]},
        78.9,
    ),
    "glue-9": (
        {"CoLA": [56.7], "SST-2": [91.2], "MRPC": [89.1, 85.1], "STS-B": [84.6, 83.8], "QQP": [69.9, 88.4], "MNLI": [82.1, 80.8]}
        | {"QNLI": [88.5], "RTE": [65.1], "WNLI": [65.1]},
        77.6,
    ),
}


@pytest.mark.parametrize("average", AVERAGES, ids=lambda average: average.name)
def test_an_average_gives_the_number_that_was_published_by_this_name(average):
    table, published = PUBLISHED[average.name]
    scores = {task: dict(zip(average.parts[task], ([value] for value in table[task]), strict=True)) for task in table}
    told = next(one for one in averages_of(scores, SUITES["glue"]) if one.name == average.name)
    assert round(told.summary["median"], 1) == published
    assert told.tasks == average.parts
    assert told.split == "dev"
    for task in table:
        less = {name: values for name, values in scores.items() if name != task}
        lacking = next(one for one in averages_of(less, SUITES["glue"]) if one.name == average.name)
        assert (lacking.missing, lacking.summary) == ((task,), None)


def test_an_average_is_the_mean_over_tasks_of_the_median_over_seeds():
    scores = {"RTE": {"accuracy": [0.5, 0.9, 0.6]}, "CoLA": {"matthews": [0.2, 0.4], "accuracy": [0.9, 0.9]}}
    (told,) = (one for one in averages_of(scores, ["RTE", "CoLA"]) if one.name == "mean-of-2")
    assert told.tasks == {"CoLA": ("matthews",), "RTE": ("accuracy",)}
    assert told.summary["median"] == pytest.approx((0.6 + 0.3) / 2)
    assert told.summary["mean"] == pytest.approx((2 / 3 + 0.3) / 2)
    spread = math.hypot(statistics.stdev([0.5, 0.9, 0.6]), statistics.stdev([0.2, 0.4])) / 2
    assert told.summary["std"] == pytest.approx(spread)
    assert 0.35 <= told.summary["low"] < 0.45 < told.summary["high"] <= 0.65
    # Of both metrics of a task, the mean of each seed counts, not that of the medians.
    both = AVERAGES[1].parts["MRPC"]
    seeds = {"f1": [0.0, 1.0, 0.5], "accuracy": [1.0, 0.0, 0.5]}
    glue = {task: {name: [0.5] * 3 for name in names} for task, names in AVERAGES[1].parts.items()} | {"MRPC": seeds}
    assert both == ("f1", "accuracy")
    told = next(one for one in averages_of(glue, SUITES["glue"]) if one.name == "glue-9")
    assert told.summary["low"] == told.summary["high"] == 0.5


def test_runs_that_did_not_learn_are_marked_everywhere_and_dropped_nowhere():
    done = evaluated(scored("RTE", [0.5, 0.7, 0.6], lost=[0]), scored("WNLI", [0.56] * 3))
    assert done.tasks[0].summary["accuracy"]["mean"] == pytest.approx(0.6)
    assert done.averages[-1].summary["median"] == pytest.approx((0.6 + 0.56) / 2)
    told = scoreboard.markdown(done)
    assert "| RTE † | accuracy | 60.00 | 60.00 |" in told
    assert "50.00†, 70.00, 60.00" in told
    assert "| mean-of-2 † |" in told
    assert "† RTE: 1 of 3 seeds did not learn, they predict the same for every row (seed 0)" in told
    assert "| WNLI | accuracy |" in told
    assert "RTE †" in page_of(done)
    assert "1 did not learn" in page_of(done)


def test_a_single_seed_has_no_interval():
    told = scoreboard.markdown(evaluated(scored("RTE", [0.5])))
    assert "| RTE | accuracy | 50.00 | 50.00 | - | - | 50.00 |" in told


def test_the_page_loads_nothing_and_escapes_what_it_shows():
    done = evaluated(scored("RTE", [0.5, 0.6]), skipped={"CoLA": "<script>alert(1)</script>"})
    page = page_of(done)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert not [word for word in ("http://", "https://", "src=") if word in page]


def test_the_submission_files_have_the_form_of_the_server(finished):
    out, done = finished
    assert {path.name for path in (out / "submission").iterdir()} == {
        *("CoLA.tsv", "STS-B.tsv", "RTE.tsv", "MNLI-m.tsv", "AX.tsv")
    }
    assert done.submission["MNLI-mm.tsv"] == "not written, there is no test_mismatched split"
    for name, rows in (("CoLA", 10), ("RTE", 10), ("STS-B", 10), ("MNLI-m", 10), ("AX", 9)):
        head, *lines = (out / "submission" / f"{name}.tsv").read_text().splitlines()
        assert head == "index\tprediction"
        assert [line.split("\t")[0] for line in lines] == [str(place) for place in range(rows)]
        answers = [line.split("\t")[1] for line in lines]
        if name == "STS-B":
            assert all(0 <= float(answer) <= 5 and len(answer.partition(".")[2]) == 3 for answer in answers)
        else:
            assert set(answers) <= set(LABELS[name.removesuffix("-m")])
    median = next(one.median_seed for one in done.tasks if one.task == "RTE")
    lines = (out / f"RTE/seeds/{median}/predictions.test.jsonl").read_text().splitlines()
    answers = [line.split("\t")[1] for line in (out / "submission/RTE.tsv").read_text().splitlines()[1:]]
    assert answers == [json.loads(line)["prediction"] for line in lines]
    assert "there are 10 rows, and 3,000 in GLUE's file" in done.submission["RTE.tsv"]
    assert "Matthews correlation" in done.submission["AX.tsv"]
    assert "not here: SST-2.tsv, MRPC.tsv, QQP.tsv, MNLI-mm.tsv, QNLI.tsv, WNLI.tsv" in done.submission["submission/"]


def test_rows_are_submitted_in_the_order_of_their_index_and_another_order_is_told(tmp_path, source, monkeypatch):
    first = read("STS-B", "test", str(source)).rows[0].first
    monkeypatch.setitem(submission.OFFICIAL, "STS-B.tsv", submission.Official(10, submission.begins(first)))
    answers = {str(place): float(place) - 2 for place in range(10)}

    def submitted(lines: list[str]) -> tuple[str, list[str]]:
        path = tmp_path / "glue/STS-B/test.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        examples = read("STS-B", "test", str(tmp_path))
        note = submission._write(tmp_path / "submission/STS-B.tsv", examples, answers)
        return note, (tmp_path / "submission/STS-B.tsv").read_text().splitlines()

    head, *lines = (source / "glue/STS-B/test.tsv").read_text().splitlines()
    wanted = ["index\tprediction", *(f"{place}\t{min(max(place - 2, 0), 5):.3f}" for place in range(10))]
    assert submitted([head, *lines]) == ("", wanted)
    assert submitted([head, *reversed(lines)]) == ("", wanted)
    turned = ["\t".join([str(place), *line.split("\t")[1:]]) for place, line in enumerate(reversed(lines))]
    assert "the order is not GLUE's" in submitted([head, *turned])[0]
    answers |= {"nine": 1.0}
    assert "have no index" in submitted([head, *lines[:9], lines[9].replace("9\t", "nine\t", 1)])[0]


@pytest.mark.large
def test_of_the_test_files_that_are_there_only_that_of_sst_is_in_another_order():
    folder = os.environ.get("LAYERWRIGHT_DATA")
    if not folder:
        pytest.skip("LAYERWRIGHT_DATA names no folder")
    told = {}
    for task in ("CoLA", "SST-2", "MRPC", "STS-B", "QNLI", "RTE", "WNLI", "AX"):
        rows = read(task, "test", folder).rows
        told[task] = submission._unlike(f"{task}.tsv", len(rows), rows[0].first, numbered=True)
    assert {task for task, note in told.items() if note} == {"SST-2"}
    assert "the order is not GLUE's" in told["SST-2"]


KILLED = """
import os, random, signal, sys, time, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from layerwright.evaluation import EvaluationSettings, evaluate
model, out, settings, kills = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def started(out):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        evaluate(model, out, EvaluationSettings.model_validate_json(settings))
        os._exit(0)
    return child

def spent(child):  # seconds that it has computed; none, once it has ended
    state, *numbers = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return float("inf") if state == "Z" else sum(map(int, numbers[10:12])) / os.sysconf("SC_CLK_TCK")

# Moments are in the time that this machine computes for all of it, so that kills fall alike on a slow and on a quick one.
_, status, used = os.wait4(started(out.with_name("whole")), 0)
whole, seen, killed = used.ru_utime + used.ru_stime, {}, 0
moments = random.Random(7).sample(range(1, kills + 1), kills)  # some before the first seed is finished, some after
for attempt in range(kills + 1):
    child = started(out)
    if attempt < kills:
        while spent(child) < moments[attempt] / kills * 0.3 * whole:
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += status == signal.SIGKILL
    sealed = [path.parent for path in out.glob("*/seeds/*/manifest.json")]
    sealed += [seed for path in out.glob("*/results.json") for seed in path.parent.glob("seeds/*")]
    for seed in sealed:
        seen.setdefault(seed / "result.json", (seed / "result.json").read_bytes())
    early = len(seen) if attempt < kills else early
print(status, sum(path.read_bytes() != content for path, content in seen.items()), early, killed)
"""


def test_a_suite_killed_ten_times_ends_with_the_same_tables(tmp_path, model, source, finished):
    out, _ = finished
    given = settings_for(source).model_dump_json()
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path / "run"), given, "10"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    status, repeated, sealed, killed = map(int, told.stdout.split()[-4:])
    assert status == 0
    assert killed >= 5, "it was over before most kills"
    assert repeated == 0, "a finished seed was learned again"
    assert sealed >= 1
    for name in (*LEFT, *(f"submission/{path.name}" for path in (out / "submission").iterdir())):
        assert (tmp_path / "run" / name).read_bytes() == (out / name).read_bytes(), name


def test_a_finished_evaluation_learns_nothing_again(tmp_path, model, source, finished, monkeypatch):
    out = shutil.copytree(finished[0], tmp_path / "run")
    monkeypatch.setattr(evaluation, "finetune", lambda *_: pytest.fail("a finished task was learned again"))
    assert evaluate(model, out, settings_for(source)) == finished[1]


def test_what_is_wrong_in_the_last_task_shows_before_anything_is_learned(tmp_path, model, source):
    broken = shutil.copytree(source, tmp_path / "source")
    path = broken / "glue/RTE/dev.tsv"
    path.write_text(path.read_text().replace("\tentailment\n", "\tentails\n", 1))
    with pytest.raises(DataError, match=r"RTE/dev\.tsv cannot be read: 1 fault"):
        evaluate(model, tmp_path / "run", settings_for(broken))
    assert not (tmp_path / "run").exists()
    skipping = settings_for(broken, suite="RTE", seeds=1, on_bad_row="skip")
    done = evaluate(model, tmp_path / "run", skipping)
    assert done.tasks[0].rows["dev"] == 23
    assert "1 rows of valid were left out" in scoreboard.markdown(done)


def test_other_rows_or_another_model_are_refused(tmp_path, source, finished):
    run = shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(ValueError, match="begun with another model"):
        evaluate(make_model(tmp_path / "other/model", 2), run, settings_for(source))
    changed = shutil.copytree(source, tmp_path / "source")
    with pytest.raises(ValueError, match="other settings"):
        evaluate(Path(finished[1].model), run, settings_for(changed))


def test_a_model_that_contradicts_the_last_task_is_refused_before_the_first_is_learned(tmp_path, source, finished):
    tuned = shutil.copytree(finished[0] / "RTE/model", tmp_path / "tuned")
    config = json.loads((tuned / "config.json").read_text())
    turned = {"id2label": {0: "not_entailment", 1: "entailment"}, "label2id": {"not_entailment": 0, "entailment": 1}}
    (tuned / "config.json").write_text(json.dumps(config | turned))
    (tuned / "manifest.json").unlink()
    with pytest.raises(DataError, match="contradicts RTE: its class 0 is 'not_entailment', and that of the task 'entailment'"):
        evaluate(tuned, tmp_path / "run", settings_for(source))
    assert not (tmp_path / "run").exists()


def test_no_task_at_all_is_an_error_that_names_each(tmp_path, model):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no task of 'superglue' can be run:(?s:.*)COPA(?s:.*)WSC"):
        evaluate(model, tmp_path / "run", settings_for(tmp_path / "empty", suite="superglue"))
    with pytest.raises(DataError, match="there is no folder"):
        evaluate(model, tmp_path / "run", settings_for(tmp_path / "nowhere"))


def test_files_that_do_not_say_which_task_they_are_of_are_read_for_none_of_several(tmp_path, source):
    own = shutil.copytree(source / "glue/CoLA", tmp_path / "mine")
    arch = presets.architecture("debug")
    with pytest.raises(DataError, match="does not tell which task it is of"):
        plan(settings_for(own, suite="CoLA,WNLI"), arch, tmp_path)
    planned, _ = plan(settings_for(own, suite="CoLA"), arch, tmp_path)
    assert [one.task.name for one in planned] == ["CoLA"]


def test_a_protocol_that_begins_from_another_task_has_this_one_first(tmp_path, source):
    given = settings_for(source, protocol="mosaic", seeds=None, numbers={"length": 64}, tasks={"rte": {"seeds": 3}})
    planned, _ = plan(given, presets.architecture("debug"), tmp_path)
    assert [one.task.name for one in planned] == ["MNLI", "CoLA", "STS-B", "RTE"]
    starts = {one.task.name: one.settings.start for one in planned}
    assert starts == {"MNLI": None, "CoLA": None, "STS-B": tmp_path / "MNLI/model", "RTE": tmp_path / "MNLI/model"}
    assert [len(one.seeds) for one in planned] == [1, 5, 5, 3]
    assert planned[0].settings.also == ("dev_mismatched", "test")


def test_a_task_whose_name_has_a_point_can_be_set_on_the_command_line():
    given = ["tasks.SQuAD-v1.1.length=192", "tasks.rte.epochs=2", "tasks.squad-v2.0.epochs=1", "tasks.SQuAD-v1.1.epochs=3"]
    settings = settings_module.read(EvaluationSettings, None, given, suite="all", source="data")
    assert settings.tasks == {"SQuAD-v1.1": {"length": 192, "epochs": 3}, "RTE": {"epochs": 2}, "SQuAD-v2.0": {"epochs": 1}}
    for wrong in ("tasks.SQuAD-v1.2.length=192", "tasks.rtr.epochs=1", "tasks.rte=3"):
        with pytest.raises(ValueError, match=r"1 problem with the settings:\n  tasks"):
            settings_module.read(EvaluationSettings, None, [wrong], suite="all", source="data")


def test_the_time_left_is_that_of_the_whole_suite():
    told: list[float] = []
    with console.part(lambda by, **_: told.append(by), 300.0), console.track("one task", 10, 4) as advance:
        for _ in range(6):
            advance(seed=1)
    assert sum(told) == pytest.approx(180)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("glu", "no suite or task 'glu'; did you mean 'glue'"),
        ("RTE,CoLO", "no suite or task 'CoLO'; did you mean 'CoLA'"),
        ("AX", "AX has nothing to learn from"),
        ("glue,RTE", "'glue' is a suite"),
        (",", "no suite ','"),
    ],
)
def test_an_unknown_suite_is_refused_with_the_nearest_name(suite, message):
    with pytest.raises(ValueError, match=message):
        tasks_of(suite)


def test_suites_are_those_of_the_benchmarks():
    assert set(SUITES["glue"]) == set(AVERAGES[1].parts)
    assert set(SUITES["superglue"]) == {"BoolQ", "CB", "COPA", "MultiRC", "WiC", "WSC"}
    assert [task.name for task in tasks_of("wnli, cola,CoLA")] == ["CoLA", "WNLI"]


def test_rows_that_are_not_the_official_ones_are_told():
    assert rows_note("RTE", {"train": 2_490, "dev": 277}) == []
    assert rows_note("QQP", {"train": 363_849, "dev": 40_430}) == []
    assert "train 20,360 of 363,846" in rows_note("QQP", {"train": 20_360, "dev": 3_137})[0]


def test_the_command_evaluates_and_its_settings_are_checked(tmp_path, model, source):
    run = ["evaluate", str(model), "--source", str(source), "--out", str(tmp_path / "run"), "--seeds", "1"]
    for name, value in NUMBERS.items():
        run += ["--set", f"numbers.{name}={value}"]
    told = CliRunner().invoke(cli.app, [*run, "--suite", "CoLA"])
    assert told.exit_code == 0, told.output
    assert "| CoLA" in (tmp_path / "run/table.md").read_text()
    for wrong, message in (
        (["--suite", "CoLA", "--set", "numbers.epoch=1"], "epoch: no such setting; did you mean 'epochs'"),
        (["--suite", "CoLA", "--set", "numbers.task=RTE"], "task cannot be set"),
        (["--suite", "CoLA", "--set", "tasks.RTE.epochs=1"], "'CoLA' does not have it"),
        (["--suite", "CoLA", "--protocol", "elektra"], "no protocol 'elektra'; did you mean 'electra'"),
        ([], "suite: Field required"),
    ):
        told = CliRunner().invoke(cli.app, [*run, *wrong])
        assert isinstance(told.exception, ValueError), told.output
        assert message in str(told.exception)


@pytest.mark.parametrize("given", [{"numbers": {**NUMBERS, "score": "accuracy"}}, {"tasks": {"STS-B": {"score": "spaerman"}}}])
def test_a_score_that_a_task_has_not_is_refused_before_anything_is_learned(tmp_path, model, source, given):
    with pytest.raises(ValueError, match=r"no score '\w+' for STS-B"):
        evaluate(model, tmp_path / "run", settings_for(source, suite="RTE,STS-B", **given))
    assert not (tmp_path / "run").exists()
