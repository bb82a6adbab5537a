"""Every known task reads the columns, splits and classes of its own data set on the Hugging Face hub, here made anew."""

from pathlib import Path
from random import Random
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from toys import WORDS, make_model, sentence

from layerwright.architecture import Architecture
from layerwright.errors import DataError, exit_code
from layerwright.evaluation import EvaluationSettings, evaluate, plan
from layerwright.tasks.catalog import TASKS, read
from layerwright.tasks.suites import SUITES

TEXT, NUMBER, SCORE = Value("string"), Value("int32"), Value("float32")
NLI = ("entailment", "neutral", "contradiction")
TWO = ("train", "validation")
ALL = (*TWO, "test")
MNLI = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
NER = [f"{part}-{kind}" for kind in ("corporation", "creative-work", "group", "location", "person", "product") for part in "BI"]
GLUE, SUPER = "nyu-mll/glue", "aps/super_glue"

# What the hub has: columns of texts, classes in the order of the hub with the names that they have here, splits.
CLASSES: dict[str, tuple[tuple[str, str], tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    "CoLA": ((GLUE, "cola"), ("sentence",), {"unacceptable": "0", "acceptable": "1"}, ALL),
    "SST-2": ((GLUE, "sst2"), ("sentence",), {"negative": "0", "positive": "1"}, ALL),
    "MRPC": ((GLUE, "mrpc"), ("sentence1", "sentence2"), {"not_equivalent": "0", "equivalent": "1"}, ALL),
    "QQP": ((GLUE, "qqp"), ("question1", "question2"), {"not_duplicate": "0", "duplicate": "1"}, ALL),
    "MNLI": ((GLUE, "mnli"), ("premise", "hypothesis"), {name: name for name in NLI}, MNLI),
    "QNLI": ((GLUE, "qnli"), ("question", "sentence"), {name: name for name in ("entailment", "not_entailment")}, ALL),
    "RTE": ((GLUE, "rte"), ("sentence1", "sentence2"), {name: name for name in ("entailment", "not_entailment")}, ALL),
    "WNLI": ((GLUE, "wnli"), ("sentence1", "sentence2"), {"not_entailment": "0", "entailment": "1"}, ALL),
    "AX": ((GLUE, "ax"), ("premise", "hypothesis"), {name: name for name in NLI}, ("test",)),
    "SICK-E": (("RobZamp/sick", ""), ("sentence_A", "sentence_B"), {name: name for name in NLI}, ALL),
    "BoolQ": ((SUPER, "boolq"), ("question", "passage"), {"False": "false", "True": "true"}, ALL),
    "CB": ((SUPER, "cb"), ("premise", "hypothesis"), {name: name for name in ("entailment", "contradiction", "neutral")}, ALL),
    "MultiRC": ((SUPER, "multirc"), ("paragraph", "question", "answer"), {"False": "0", "True": "1"}, ALL),
    "WiC": ((SUPER, "wic"), ("word", "sentence1", "sentence2"), {"False": "false", "True": "true"}, ALL),
    "WSC": ((SUPER, "wsc"), ("text", "span1_text", "span2_text"), {"False": "false", "True": "true"}, ALL),
}
SCRIPTS = ("RobZamp/sick", "leondz/wnut_17")
LABELLED = ("train", "validation", "validation_matched", "validation_mismatched")
ROWS = 12


def made(rows: list[dict[str, Any]], features: dict[str, Any]) -> Dataset:
    return Dataset.from_list(rows, features=Features(features))


def of_classes(task: str, split: str) -> Dataset:
    """Rows whose first text begins with a word for their class."""
    (name, _), texts, means, _ = CLASSES[task]
    chance, features = Random(f"{task}/{split}"), dict.fromkeys(texts, TEXT) | {"label": ClassLabel(names=list(means))}
    known = split in LABELLED or name == "RobZamp/sick" or task == "MRPC"
    rows = []
    for place in range(ROWS):
        label = place % len(means)
        row: dict[str, Any] = {text: sentence(chance) for text in texts} | {"label": label if known else -1}
        row[texts[0]] = f"{WORDS[label]} {row[texts[0]]}"
        rows.append(row | own_columns(task, place, row))
    features |= {name: feature_of(value) for name, value in rows[0].items() if name not in features}
    return made(rows, features)


def own_columns(task: str, place: int, row: dict[str, Any]) -> dict[str, Any]:
    """What else the data set of a task has."""
    if task == "MultiRC":
        return {"idx": {"paragraph": place // 4, "question": place // 2, "answer": place}}
    if task == "SICK-E":
        return {"id": str(place + 1), "relatedness_score": 1 + place / 10, "entailment_AB": "A_neutral_B"}
    if task == "WiC":
        first, second = (row[f"sentence{n}"].split()[0] for n in (1, 2))
        return {"start1": 0, "end1": len(first), "start2": 0, "end2": len(second), "idx": place}
    if task == "WSC":
        words = row["text"].split()
        return {"span1_text": words[0], "span1_index": 0, "span2_text": words[1], "span2_index": 1, "idx": place}
    return {"idx": place}


def feature_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: feature_of(one) for name, one in value.items()}
    return {str: TEXT, int: NUMBER, float: SCORE}[type(value)]


def of_another_kind(name: str, config: str, split: str) -> Dataset:
    chance = Random(f"{name}/{config}/{split}")
    places = range(ROWS)
    if config == "stsb":
        rows = [{"sentence1": sentence(chance), "sentence2": sentence(chance), "idx": place} for place in places]
        scores = [{"label": place * 0.4 if split in LABELLED else -1.0} for place in places]
        return made(
            [a | b for a, b in zip(rows, scores, strict=True)],
            {"sentence1": TEXT, "sentence2": TEXT, "idx": NUMBER, "label": SCORE},
        )
    if config == "copa":
        rows = [{name: sentence(chance) for name in ("premise", "choice1", "choice2")} for _ in places]
        more = [
            {"question": ("cause", "effect")[n % 2], "idx": n, "label": n // 2 % 2 if split in LABELLED else -1} for n in places
        ]
        features = dict.fromkeys(("premise", "choice1", "choice2", "question"), TEXT)
        features |= {"idx": NUMBER, "label": ClassLabel(names=["choice1", "choice2"])}
        return made([a | b for a, b in zip(rows, more, strict=True)], features)
    if name == "leondz/wnut_17":
        tags = [[0, 1, 2], [7, 8, 0], [0, 0, 0]]
        rows = [{"id": str(n), "tokens": chance.choices(WORDS, k=3), "ner_tags": tags[n % 3]} for n in places]
        return made(rows, {"id": TEXT, "tokens": List(TEXT), "ner_tags": List(ClassLabel(names=["O", *NER]))})
    rows = []
    for place in places:
        context = sentence(chance)
        empty = name.endswith("v2") and place % 3 == 0
        answer = {"text": [] if empty else [context.split()[0]], "answer_start": [] if empty else [0]}
        rows.append({"id": f"q{place}", "title": "t", "context": context, "question": sentence(chance), "answers": answer})
    features = dict.fromkeys(("id", "title", "context", "question"), TEXT)
    return made(rows, features | {"answers": {"text": List(TEXT), "answer_start": List(NUMBER)}})


OTHERS = {
    (GLUE, "stsb"): ALL,
    (SUPER, "copa"): ALL,
    ("rajpurkar/squad", ""): TWO,
    ("rajpurkar/squad_v2", ""): TWO,
    ("leondz/wnut_17", ""): ALL,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub whose data sets have few rows; what was asked of it."""
    asked: list[tuple[str, str]] = []
    known = {place: (task, splits) for task, (place, _, _, splits) in CLASSES.items()}

    def load(name: str, config: str | None = None, *, revision: str | None = None) -> DatasetDict:
        if name in SCRIPTS and revision != "refs/convert/parquet":
            raise RuntimeError(f"Dataset scripts are no longer supported, but found {name.partition('/')[2]}.py")
        place = (name, config or "")
        asked.append(place)
        if place in known:
            task, splits = known[place]
            return DatasetDict({split: of_classes(task, split) for split in splits})
        if place in OTHERS:
            return DatasetDict({split: of_another_kind(*place, split) for split in OTHERS[place]})
        raise ValueError(f"BuilderConfig {config!r} not found.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def called(task: str, split: str) -> str:
    """The name that a split has on the hub."""
    if task == "MNLI":
        return {"train": "train", "dev": MNLI[1], "dev_mismatched": MNLI[2], "test": MNLI[3], "test_mismatched": MNLI[4]}[split]
    return {"train": "train", "dev": "validation", "test": "test"}[split]


@pytest.mark.parametrize("task", CLASSES)
def test_a_class_of_the_hub_is_the_class_of_that_name_here(hub: list[tuple[str, str]], task: str):
    place, texts, means, there = CLASSES[task]
    for split in (name for name in TASKS[task].splits if not name.endswith("32")):
        examples = read(task, split, "hf:")
        raw = of_classes(task, called(task, split))
        assert hub[-1] == place
        assert called(task, split) in there
        assert len(examples.rows) == ROWS
        assert not examples.skipped
        for row, given in zip(examples.rows, raw, strict=True):
            assert texts[0] == "word" or row.first.replace("*", "").split()[0] == given[texts[0]].split()[0]
            wanted = None if given["label"] == -1 else means[list(means)[given["label"]]]
            assert (None if row.label is None else examples.labels[int(row.label)]) == wanted
        assert examples.labelled == (raw[0]["label"] != -1)


def test_no_task_is_left_out():
    assert {*CLASSES, "STS-B", "SICK-R", "COPA", "SQuAD-v1.1", "SQuAD-v2.0", "WNUT-17"} == set(TASKS)


def test_rows_of_the_hub_are_those_of_the_official_file(hub: list[tuple[str, str]], tmp_path: Path):
    raw = of_classes("MNLI", "validation_matched")
    names = raw.features["label"].names
    parses = "\t".join(f"sentence{n}_{kind}parse" for kind in ("binary_", "") for n in (1, 2))
    head = f"index\tpromptID\tpairID\tgenre\t{parses}\tsentence1\tsentence2\tlabel1\tgold_label"
    lines = [
        f"{row['idx']}\t1\t1n\tg\t(\t(\t(\t(\t{row['premise']}\t{row['hypothesis']}\tneutral\t{names[row['label']]}"
        for row in raw
    ]
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI/dev_matched.tsv").write_text("\n".join([head, *lines]) + "\n")
    assert read("MNLI", "dev", "hf:").rows == read("MNLI", "dev", tmp_path).rows


def test_numbers_are_those_that_were_written_and_minus_one_is_none(hub: list[tuple[str, str]]):
    assert [row.label for row in read("STS-B", "dev", "hf:").rows] == [round(place * 0.4, 1) for place in range(ROWS)]
    test = read("STS-B", "test", "hf:")
    assert not test.labelled
    assert len(test.rows) == ROWS
    assert [row.label for row in read("SICK-R", "test", "hf:").rows] == [1 + place / 10 for place in range(ROWS)]
    assert [row.label for row in read("COPA", "dev", "hf:").rows] == [place // 2 % 2 for place in range(ROWS)]
    assert not read("COPA", "test", "hf:").labelled


def test_questions_and_words(hub: list[tuple[str, str]]):
    v2 = read("SQuAD-v2.0", "dev", "hf:")
    assert [bool(row.answers) for row in v2.rows] == [place % 3 != 0 for place in range(ROWS)]
    assert all(row.context.startswith(row.answers[0].text) for row in read("SQuAD-v1.1", "train", "hf:").rows)
    words = read("WNUT-17", "test", "hf:")
    assert [row.tags for row in words.rows[:2]] == [("O", "B-corporation", "I-corporation"), ("B-location", "I-location", "O")]
    assert words.labels == ("O", *NER)


def test_what_the_hub_lacks_is_refused(hub: list[tuple[str, str]]):
    with pytest.raises(DataError, match=r"hf:nyu-mll/glue cannot be read: BuilderConfig 'colla' not found") as caught:
        read("CoLA", "dev", "hf:nyu-mll/glue:colla")
    assert exit_code(caught.value) == 3
    with pytest.raises(ValueError, match=r"SQuAD-v1\.1 has no split 'test'"):
        read("SQuAD-v1.1", "test", "hf:")
    with pytest.raises(ValueError, match="on the hub have no split 'train32'"):
        read("CB", "train32", "hf:")


def test_suites_are_learned_from_the_hub(hub: list[tuple[str, str]], tmp_path: Path):
    small = Architecture.parse("16 vocab=64 positions=32: attn[heads=2]")
    model = make_model(tmp_path / "made/model", small)
    settings = EvaluationSettings(suite="all", source="hf:", seeds=1, numbers={"epochs": 1, "batch": 12, "length": 24})
    planned, skipped = plan(settings, small, tmp_path)
    assert ({one.task.name for one in planned}, skipped) == (set(SUITES["all"]), {})
    some = settings.model_copy(update={"suite": "STS-B,MNLI,MRPC,COPA,SQuAD-v2.0"})
    done = evaluate(model, tmp_path / "run", some)
    assert [one.task for one in done.tasks] == ["MRPC", "STS-B", "MNLI", "COPA", "SQuAD-v2.0"]
    assert {one.task for one in done.tasks if one.others} == {"MRPC"}  # whose test rows have labels on the hub
    files = {path.name for path in (tmp_path / "run/submission").iterdir()}
    assert files == {file for task in ("MRPC", "STS-B", "MNLI", "AX") for file in TASKS[task].submissions.values()}
    for name in files:
        lines = (tmp_path / "run/submission" / name).read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == ["index", *map(str, range(ROWS))]
