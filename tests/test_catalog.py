"""Known tasks read the same rows from their official files, from the one TSV form and from data sets of the hub."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest

from layerwright.errors import DataError, exit_code
from layerwright.tasks.catalog import TASKS, find, read, read_file
from layerwright.tasks.examples import Answer, Choice, Row, Span, Tagged
from layerwright.tasks.metrics import SCORES, metric_names

LARGE = os.environ.get("LAYERWRIGHT_DATA")
NLI = ["entailment", "neutral", "contradiction"]


def lay(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def refusal(*arguments: object, **more: object) -> str:
    with pytest.raises(DataError) as caught:
        read(*arguments, **more)
    assert exit_code(caught.value) == 3
    return str(caught.value)


def rows(task: str, split: str, source: Path | str) -> list[tuple[object, ...]]:
    """Key, texts and label of rows of classes or numbers, the label by name."""
    examples = read(task, split, source)
    names = dict(enumerate(examples.labels)) if examples.labels else None
    return [
        (row.key, row.first, row.second, row.label if names is None or row.label is None else names[row.label])
        for row in examples.rows
    ]


PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
MNLI = f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2"
DIAGNOSTIC = "Lexical Semantics\tPredicate-Argument Structure\tLogic\tKnowledge\tDomain\tPremise\tHypothesis\tLabel"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
MSR = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
A = ("0", 'He said "yes.', 'She said "no', None)  # what most files below hold, but for the label
PAIR = f"{A[1]}\t{A[2]}"
PARSED = f"0\t1\t1n\tg\t(\t(\t(\t(\t{PAIR}"
NEUTRALS = 5 * "\tneutral"

OFFICIAL = {
    ("CoLA", "train"): (
        "CoLA/train.tsv",
        f"gj04\t1\t\t{A[1]}\ngj04\t0\t*\tThe the.\n",
        [("0", A[1], None, "1"), ("1", "The the.", None, "0")],
    ),
    ("CoLA", "test"): ("CoLA/test.tsv", f"index\tsentence\n0\t{A[1]}\n", [("0", A[1], None, None)]),
    ("SST-2", "dev"): ("SST-2/dev.tsv", f"sentence\tlabel\n{A[1]} \t1\n", [("0", A[1] + " ", None, "1")]),
    ("MRPC", "dev"): ("MRPC/dev.tsv", f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\t{PAIR}\n", [("0", *A[1:3], "0")]),
    ("MRPC", "test"): ("MRPC/msr_paraphrase_test.txt", f"{MSR}1\t7\t8\t{PAIR}\r\n", [("0", *A[1:3], "1")]),
    ("STS-B", "dev"): ("STS-B/dev.tsv", f"{STSB}\tscore\n3\tg\tf\t2012\t9\ta\tb\t{PAIR}\t4.200\n", [("3", *A[1:3], 4.2)]),
    ("STS-B", "test"): ("STS-B/test.tsv", f"{STSB}\n3\tg\tf\t2012\t9\ta\tb\t{PAIR}\n", [("3", *A[1:3], None)]),
    ("QQP", "train"): (
        "QQP/train.tsv",
        f"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\t{PAIR}\t1\n",
        [("5", *A[1:3], "1")],
    ),
    ("QQP", "test"): ("QQP/test.tsv", f"id\tquestion1\tquestion2\n5\t{PAIR}\n", [("5", *A[1:3], None)]),
    ("MNLI", "train"): ("MNLI/train.tsv", f"{MNLI}\tlabel1\tgold_label\n{PARSED}\tneutral\tneutral\n", [(*A[:3], "neutral")]),
    ("MNLI", "dev"): (
        "MNLI/dev_matched.tsv",
        f"{MNLI}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n{PARSED}{NEUTRALS}\tcontradiction\n",
        [(*A[:3], "contradiction")],
    ),
    ("MNLI", "test_mismatched"): ("MNLI/test_mismatched.tsv", f"{MNLI}\n{PARSED}\n", [A]),
    ("QNLI", "dev"): (
        "QNLI/dev.tsv",
        f"index\tquestion\tsentence\tlabel\n0\t{PAIR}\tnot_entailment\n",
        [(*A[:3], "not_entailment")],
    ),
    ("RTE", "test"): ("RTE/test.tsv", f"index\tsentence1\tsentence2\n0\t{PAIR}\n", [A]),
    ("WNLI", "train"): ("WNLI/train.tsv", f"index\tsentence1\tsentence2\tlabel\n0\t{PAIR}\t1\n", [(*A[:3], "1")]),
    ("AX", "test"): (
        "AX/diagnostic-full.tsv",
        f"{DIAGNOSTIC}\n\t\t\t\tNews\t{PAIR}\tneutral\n",
        [(*A[:3], "neutral")],
    ),
    ("SICK-E", "dev"): (
        "SICK/SICK_trial.txt",
        f"pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n4\t{PAIR}\t3.5\tNEUTRAL\n",
        [("4", *A[1:3], "neutral")],
    ),
    ("SICK-R", "test"): (
        "SICK/SICK_test_annotated.txt",
        f"pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n4\t{PAIR}\t3.5\tNEUTRAL\n",
        [("4", *A[1:3], 3.5)],
    ),
    ("BoolQ", "dev"): (
        "BoolQ/val.jsonl",
        json.dumps({"question": A[1], "passage": A[2], "idx": 9, "label": True}),
        [("9", *A[1:3], "true")],
    ),
    ("CB", "test"): ("CB/test.jsonl", json.dumps({"premise": A[1], "hypothesis": A[2], "idx": 0}), [A]),
}


@pytest.mark.parametrize(("task", "split"), OFFICIAL)
def test_official_files_are_known_by_their_columns(tmp_path, task, split):
    file, content, expected = OFFICIAL[task, split]
    assert rows(task, split, lay(tmp_path / "all", {file: content})) == expected
    own = Path(file).parent.name
    assert rows(task, split, lay(tmp_path, {file: content}) / own) == expected


@pytest.mark.parametrize("name", [task.name for task in TASKS.values() if task.suite in ("glue", "extra")])
def test_the_one_form_serves_every_task_of_texts(tmp_path, name):
    task = TASKS[name]
    labels = task.labels or ("1.5", "4.75")
    second = "b" if task.pairs else ""
    content = "idx\tsentence1\tsentence2\tlabel\n" + "".join(
        f"{place}\ta\t{second}\t{label}\n" for place, label in enumerate(labels)
    )
    split = "dev" if "dev" in task.splits else "test"
    source = lay(tmp_path, {f"{task.folders[0]}/{task.splits[split][0]}": content})
    read_rows = rows(name, split, source)
    assert read_rows == [
        (str(place), "a", second or None, label if task.labels else float(label)) for place, label in enumerate(labels)
    ]


def test_mrpc_tells_train_from_dev_by_the_ids_of_glue(tmp_path):
    msr = MSR + "".join(f"{n % 2}\t{n}\t{n + 50}\tleft {n}\tright {n}\r\n" for n in range(6))
    source = lay(tmp_path, {"MRPC/msr_paraphrase_train.txt": msr})
    assert "dev_ids.tsv, which tells them apart, is not there" in refusal("MRPC", "dev", source)
    lay(tmp_path, {"MRPC/dev_ids.tsv": "2\t52\n5\t55\n"})
    assert [row[0] for row in rows("MRPC", "dev", source)] == ["2", "5"]
    assert [row[0] for row in rows("MRPC", "train", source)] == ["0", "1", "3", "4"]
    lay(tmp_path, {"MRPC/dev_ids.tsv": "2\t52\n5\t99\n"})
    assert "names 1 pairs" in refusal("MRPC", "dev", source)


def test_sick_in_one_file_is_split_by_its_column(tmp_path):
    header = "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set\n"
    sets = ["TRAIN", "TRIAL", "TEST", "TRAIN"]
    source = lay(
        tmp_path, {"SICK/SICK.txt": header + "".join(f"{n}\ta\tb\tENTAILMENT\t4\t{name}\n" for n, name in enumerate(sets))}
    )
    assert [[row[0] for row in rows("SICK-E", split, source)] for split in ("train", "dev", "test")] == [["0", "3"], ["1"], ["2"]]
    lay(tmp_path, {"SICK/SICK.txt": header + "0\ta\tb\tENTAILMENT\t4\tDEV\n"})
    assert "row 2 has the SemEval_set 'DEV'" in refusal("SICK-R", "train", source)


WSC = {
    "text": "Ann told Eve it, since she knew.",
    "target": {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 5},
}
WIC = {
    "word": "ride",
    "sentence1": "She rode away.",
    "sentence2": "A ride.",
    "start1": 4,
    "end1": 8,
    "start2": 2,
    "end2": 6,
    "idx": 3,
}
COPA = {"premise": "It rained.", "choice1": "He sang.", "choice2": "He got wet.", "question": "effect", "idx": 1}
ANSWERS = [{"idx": n, "text": f"Ann {n}", "label": n} for n in (0, 1)]
MULTIRC = {"idx": 4, "passage": {"text": "Ann ran.", "questions": [{"idx": 2, "question": "Who?", "answers": ANSWERS}]}}


def wsc(**target: object) -> dict[str, object]:
    return WSC | {"label": True, "target": WSC["target"] | target}


def one(folder: Path, task: str, fields: dict[str, object], split: str = "dev") -> tuple[object, ...]:
    return read(task, split, lay(folder, {f"{task}/{split.replace('dev', 'val')}.jsonl": json.dumps(fields)})).rows


def test_how_the_rows_of_superglue_become_texts(tmp_path):
    text = "Ann told Eve it, since *she* knew."
    assert one(tmp_path, "WSC", WSC | {"idx": 0, "label": True}) == (Row("0", text, "Ann", 1),)
    assert one(tmp_path, "WiC", WIC | {"label": False}) == (Row("3", "She *rode* away.", "A *ride*.", 0),)
    assert one(tmp_path, "WiC", WIC, "test") == (Row("3", "She *rode* away.", "A *ride*.", None),)
    assert one(tmp_path, "COPA", COPA | {"label": 1}) == (
        Choice("1", "It rained. What happened as a result?", ("He sang.", "He got wet."), 1),
    )
    assert one(tmp_path, "MultiRC", MULTIRC) == (
        Row("4-2-0", "Ann ran.", "Who? Ann 0", 0, "4-2"),
        Row("4-2-1", "Ann ran.", "Who? Ann 1", 1, "4-2"),
    )


def test_a_pronoun_that_is_not_where_it_is_said_to_be_is_marked_at_the_nearest(tmp_path):
    moved = WSC | {
        "text": "He saw what he drew, and there he sat.",
        "target": WSC["target"] | {"span2_text": "he", "span2_index": 4},
        "label": False,
    }
    assert one(tmp_path, "WSC", moved)[0].first == "He saw what *he* drew, and there he sat."


@pytest.mark.parametrize(
    ("task", "fields", "reason"),
    [
        ("WSC", wsc(span2_text="they"), "has the pronoun 'they', which is not in its text"),
        ("WSC", wsc(span2_index=7), "has its pronoun at word 7 of 7"),
        ("WSC", {"text": "a", "label": True}, "has no text 'span2_text'"),
        ("WiC", WIC | {"label": True, "end1": 99}, "has its word at 4 to 99 of sentence1, which has 14 characters"),
        ("WiC", WIC | {"label": "maybe"}, "has the unknown label 'maybe'"),
        ("COPA", COPA | {"question": "why", "label": 0}, "asks for 'why'"),
        ("COPA", COPA | {"label": 2}, "has the label '2'"),
        ("COPA", COPA, "has no label"),
        ("MultiRC", {"idx": 1, "passage": {"text": "a", "questions": []}}, "has no list 'questions' of objects"),
        ("BoolQ", {"question": "a", "label": True}, "has no column 'passage'"),
        ("CB", {"premise": "a", "hypothesis": "b", "label": "contradict"}, "did you mean 'contradiction'?"),
    ],
)
def test_faulty_rows_of_superglue_are_named(tmp_path, task, fields, reason):
    source = lay(tmp_path, {f"{task}/val.jsonl": json.dumps(fields)})
    message = refusal(task, "dev", source)
    assert "row 1 " in message
    assert reason in message


def test_rows_without_an_agreed_label_are_faults_to_be_skipped(tmp_path):
    content = f"{MNLI}\tgold_label\n{PARSED}\t-\n1{PARSED[1:]}\tneutral\n"
    source = lay(tmp_path, {"MNLI/dev_matched.tsv": content})
    assert "row 2 has the unknown label '-'" in refusal("MNLI", "dev", source)
    skipped = read("MNLI", "dev", source, on_bad_row="skip")
    assert [row.key for row in skipped.rows] == ["1"]
    assert len(skipped.skipped) == 1


def test_a_score_beyond_the_scale_of_the_task_is_a_fault(tmp_path):
    source = lay(tmp_path, {"STS-B/dev.tsv": "idx\tsentence1\tsentence2\tlabel\n0\ta\tb\t5.2\n"})
    assert "row 2 has the label '5.2', where the task has 0 to 5" in refusal("STS-B", "dev", source)


def test_names_splits_and_folders_that_are_not_there_are_refused(tmp_path):
    assert find("sst2") is find("SST-2")
    assert find("squad v2.0").name == "SQuAD-v2.0"
    with pytest.raises(ValueError, match="no task 'RTR'; did you mean 'RTE'"):
        find("RTR")
    with pytest.raises(ValueError, match="RTE has no split 'valid'"):
        read("RTE", "valid", tmp_path)
    assert "there is no folder" in refusal("RTE", "dev", tmp_path / "none")
    assert "none of glue/RTE/dev.tsv, RTE/dev.tsv, dev.tsv is there" in refusal("RTE", "dev", tmp_path)
    lay(tmp_path, {"CoLA/dev.tsv": "sentence\tlabel\na\t1\nb\t0\n"})
    assert "has no dev split of SST-2" in refusal("SST-2", "dev", tmp_path / "CoLA")


def test_every_declaration_fits_its_kind():
    assert len(TASKS) == 21
    for task in TASKS.values():
        known = {*SCORES[task.kind], "exact_match"}
        assert set(task.metrics) <= known
        assert (task.kind in ("classification", "tags")) == bool(task.labels)
        assert set(task.aliases.values()) <= ({"0", "1"} if task.kind == "choices" else set(task.labels))
    assert TASKS["MNLI"].labels == TASKS["AX"].labels == TASKS["SICK-E"].labels == TASKS["CB"].labels == tuple(NLI)
    assert TASKS["MNLI"].submissions == {"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}


def saved(folder: Path, split: str, columns: dict[str, list[object]], **features: object) -> str:
    made = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        made = made.cast_column(name, feature)
    datasets.DatasetDict({split: made}).save_to_disk(str(folder))
    return f"hf:{folder}"


def test_a_data_set_of_the_hub_may_have_its_classes_in_any_order(tmp_path):
    columns = {"premise": ["a", "b"], "hypothesis": ["c", 'd"'], "label": [2, 0], "idx": [7, 8]}
    source = saved(
        tmp_path / "cb", "validation", columns, label=datasets.ClassLabel(names=["entailment", "contradiction", "neutral"])
    )
    assert rows("CB", "dev", source) == [("7", "a", "c", "neutral"), ("8", "b", 'd"', "entailment")]


def test_data_sets_of_the_hub_for_every_kind(tmp_path):
    spelt = datasets.ClassLabel(names=["unacceptable", "acceptable"])
    source = saved(tmp_path / "cola", "test", {"sentence": ["a", "b"], "label": [-1, -1], "idx": [0, 1]}, label=spelt)
    assert rows("CoLA", "test", source) == [("0", "a", None, None), ("1", "b", None, None)]
    source = saved(tmp_path / "stsb", "validation", {"sentence1": ["a"], "sentence2": ["b"], "label": [2.5], "idx": [0]})
    assert rows("STS-B", "dev", source) == [("0", "a", "b", 2.5)]
    source = saved(
        tmp_path / "sick", "train", {"sentence_A": ["a"], "sentence_B": ["b"], "label": [1], "relatedness_score": [4.5]}
    )
    assert rows("SICK-R", "train", source) == [("0", "a", "b", 4.5)]
    columns = {name: [value] for name, value in COPA.items()} | {"label": [1]}
    source = saved(tmp_path / "copa", "train", columns, label=datasets.ClassLabel(names=["choice1", "choice2"]))
    assert read("COPA", "train", source).rows[0].label == 1
    columns = {
        "paragraph": ["p"],
        "question": ["q"],
        "answer": ["r"],
        "idx": [{"paragraph": 1, "question": 2, "answer": 3}],
        "label": [1],
    }
    source = saved(tmp_path / "multirc", "validation", columns, label=datasets.ClassLabel(names=["False", "True"]))
    assert read("MultiRC", "dev", source).rows == (Row("1-2-3", "p", "q r", 1, "1-2"),)
    columns = {"text": [WSC["text"]], **{name: [value] for name, value in WSC["target"].items()}, "label": [0], "idx": [0]}
    source = saved(tmp_path / "wsc", "train", columns, label=datasets.ClassLabel(names=["False", "True"]))
    assert read("WSC", "train", source).rows == (Row("0", "Ann told Eve it, since *she* knew.", "Ann", 0),)
    columns = {"id": ["x"], "context": ["It is red."], "question": ["What?"], "answers": [{"text": ["red"], "answer_start": [6]}]}
    source = saved(tmp_path / "squad", "validation", columns)
    assert read("SQuAD-v2.0", "dev", source).rows == (Span("x", "What?", "It is red.", (Answer(6, "red"),)),)
    names = ["O", *TASKS["WNUT-17"].labels[:0:-1]]
    tags = datasets.List(datasets.ClassLabel(names=names))
    source = saved(
        tmp_path / "wnut",
        "test",
        {"id": ["0"], "tokens": [["In", "Rome"]], "ner_tags": [[0, names.index("B-location")]]},
        ner_tags=tags,
    )
    assert read("WNUT-17", "test", source).rows == (Tagged("0", ("In", "Rome"), ("O", "B-location")),)


def test_faulty_data_sets_are_refused_as_files_are(tmp_path):
    columns = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "idx": [0, 1, 0], "label": [0, -1, 1]}
    source = saved(tmp_path / "rte", "train", columns, label=datasets.ClassLabel(names=["entailment", "not_entailment"]))
    message = refusal("RTE", "train", source)
    assert "row 2 has no label" in message
    assert "row 3 has the id '0' of row 1" in message
    assert len(read("RTE", "train", source, on_bad_row="skip").rows) == 1
    assert "has no split 'validation'; it has train" in refusal("RTE", "dev", source)
    assert "has no column 'question'" in refusal("BoolQ", "train", source)
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "alone"))
    assert "has no split 'train'; it has None" in refusal("RTE", "train", f"hf:{tmp_path}/alone")
    assert "cannot be read" in refusal("RTE", "train", f"hf:{tmp_path}/none")


@pytest.mark.large
@pytest.mark.skipif(not LARGE, reason="LAYERWRIGHT_DATA does not name a folder of tasks")
def test_rows_and_labels_are_those_of_the_manifest():
    folder = Path(LARGE or "")
    listed = re.findall(
        r"^\| ((?:glue|extra|superglue)/(\S+)/(\w+)\.(?:tsv|jsonl)) \| ([\d,]+) \| ([^`|]+) \|",
        (folder / "MANIFEST.md").read_text(),
        re.MULTILINE,
    )
    assert len(listed) == 29 + 18
    for file, task, name, number, labels in listed:
        examples = read(task, {"val": "dev"}.get(name, name), folder)
        assert examples.source == str(folder / file)
        assert not examples.skipped
        count = int(number.replace(",", ""))
        if task == "MultiRC":
            assert len({row.key.partition("-")[0] for row in examples.rows}) == count
            continue
        assert len(examples.rows) == count, file
        if labels.strip() == "-" or "(none)" in labels:
            assert not examples.labelled
        elif examples.kind == "regression":
            low, high = map(float, re.match(r"range ([\d.]+)\.\.([\d.]+)", labels).groups())
            assert (min(row.label for row in examples.rows), max(row.label for row in examples.rows)) == (low, high)
        else:
            names = examples.labels or ("0", "1")
            found = {name: f"{number:,}" for name, number in Counter(names[row.label] for row in examples.rows).items()}
            assert found == dict(re.findall(r"(\w+): ([\d,]*\d)", labels.lower())), file


@pytest.mark.large
@pytest.mark.skipif(not LARGE, reason="LAYERWRIGHT_DATA does not name a folder of tasks")
def test_questions_and_sentences_are_those_of_the_manifest():
    folder = Path(LARGE or "")
    for examples, questions, answers, impossible in (
        (read("SQuAD-v1.1", "dev", folder), 10_570, 34_726, 0),
        (read("SQuAD-v2.0", "dev", folder), 11_873, 20_302, 5_945),
        (read_file(folder / "squad/xquad.en.json.gz"), 1_190, 1_190, 0),
    ):
        assert len(examples.rows) == questions
        assert sum(len(row.answers) for row in examples.rows) == answers
        assert sum(not row.answers for row in examples.rows) == impossible
    for split, sentences, words, entities in (
        ("dev", 1_009, 15_733, 836),
        ("test", 1_287, 23_394, 1_079),
        ("train", 3_394, 62_730, 1_975),
    ):
        examples = read("WNUT-17", split, folder)
        assert len(examples.rows) == sentences
        assert sum(len(row.words) for row in examples.rows) == words
        assert sum(tag.startswith("B-") for row in examples.rows for tag in row.tags) == entities
        assert metric_names(examples)[0] == "entity_f1"
    val = read("MultiRC", "dev", folder)
    assert (len(val.rows), len({row.group for row in val.rows})) == (4_848, 953)


def test_the_page_on_tasks_says_what_the_declarations_say():
    page = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text()
    listed = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    for task in TASKS.values():
        cells = [cell.strip() for cell in listed[task.name].split("|")[2:4]]
        if task.kind == "classification":
            assert cells[0] == ", ".join(task.labels)
        assert cells[1] == ", ".join(task.metrics)
