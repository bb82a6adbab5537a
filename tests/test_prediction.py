"""Predictions are those of transformers' pipelines and of plain loops, in the order of the rows, in any batch; no row is lost."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForMultipleChoice, AutoModelForQuestionAnswering, AutoTokenizer, pipeline

from layerwright import cli, prediction, vocabulary
from layerwright.errors import DataError
from layerwright.handover import save_model
from layerwright.inference import open_model
from layerwright.models import FACES, LayerwrightConfig
from layerwright.prediction import Prediction, Predictor, predict_file
from layerwright.tasks.examples import Choice, Row, Span, Tagged
from layerwright.tasks.finetune import finetune
from layerwright.tasks.protocols import FinetuneSettings

PIECES = ["the", "a", "cat", "dog", "house", "runs", "sings", "like", "##ly", "un", "##like", ".", ",", "in", "on", "red", "ann"]
ARCH = "32 vocab=40 positions=32: 2x(attn[heads=4] ffn[inner=48]) conv[heads=4,kernel=3]"
CLASSES = {"id2label": {0: "no", 1: "perhaps", 2: "yes"}}
TEXTS = ["The cat runs.", "a dog", "the unlikely house , in the red house on a house .", "cat", "unknowable dog sings", "a " * 50]
QUESTION, CONTEXT = "the red dog runs in", "the cat runs in the  red house, on the house sings a dog."


def saved(root: Path, head: str, name: str = "model", **config: Any) -> Path:
    """A model folder with weights far from where they begin, and a tokenizer of word pieces."""
    (root / "vocab.txt").write_text("\n".join([*vocabulary.SPECIAL, *PIECES]))
    vocabulary.save(vocabulary.load(root / "vocab.txt", lowercase=True), root / "tokenizer")
    torch.manual_seed(1)
    model = FACES[head].model(LayerwrightConfig(architecture=ARCH, pad_token_id=0, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # norms and biases as they begin, or they drown what the texts differ in
                parameter.normal_(std=0.5)
    save_model(root / name, model, tokenizer=root / "tokenizer")
    return root / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("classes"), "classification", **CLASSES)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tags"), "tokens", id2label={0: "O", 1: "B-who", 2: "I-who"})


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("spans"), "spans")


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("choices"), "choices")


def predictor(folder: Path, **more: Any) -> Predictor:
    return Predictor(open_model(folder, tuple(prediction.KINDS)), **more)


def texts(*rows: str | tuple[str, str]) -> list[Row]:
    pairs = [row if isinstance(row, tuple) else (row, None) for row in rows]
    return [Row(str(place), first, second, None) for place, (first, second) in enumerate(pairs)]


def predicted(folder: Path, content: str | bytes, name: str = "rows.txt", **more: Any) -> list[Prediction]:
    path = folder.parent / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(predict_file(predictor(folder), path, **more))


def command(*words: object) -> None:
    typer.main.get_command(cli.app)([str(word) for word in words], standalone_mode=False)


@pytest.mark.parametrize("batch", [1, 4])
def test_classes_are_those_of_the_pipeline(folder: Path, batch: int):
    pipe = pipeline("text-classification", model=str(folder), top_k=None)
    given = [*TEXTS, ("the cat", "a red dog runs"), ("", "on"), ("a dog runs", "cat"), "house"]
    found = list(predictor(folder, batch=batch).predict(texts(*given)))
    assert [one.key for one in found] == [str(place) for place in range(len(given))]
    assert len({one.said["label"] for one in found}) > 1
    for one, row in zip(found, given, strict=True):
        said = {"text": row[0], "text_pair": row[1]} if isinstance(row, tuple) else row
        (wanted,) = pipe([said], truncation=True, max_length=32)
        assert one.said["label"] == wanted[0]["label"]
        assert one.said["probability"] == pytest.approx(wanted[0]["score"], abs=1e-5)
        assert one.said["probabilities"] == pytest.approx({each["label"]: each["score"] for each in wanted}, abs=1e-5)
        assert list(one.said["probabilities"]) == ["no", "perhaps", "yes"]


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", None])
def test_numbers_and_labels_apart_are_those_of_the_pipeline(problem: str | None, tmp_path: Path):
    labels = CLASSES if problem == "multi_label_classification" else {"num_labels": 1}
    folder = saved(tmp_path, "classification", problem_type=problem, **labels)
    pipe = pipeline("text-classification", model=str(folder), top_k=None)
    for one, text in zip(predictor(folder).predict(texts(*TEXTS[:5])), TEXTS, strict=False):
        (wanted,) = pipe([text])
        if problem == "regression":
            assert one.said == {"value": pytest.approx(wanted[0]["score"], rel=1e-4, abs=1e-5)}
        else:
            assert one.said["probabilities"] == pytest.approx({each["label"]: each["score"] for each in wanted}, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_choices_are_those_of_the_class_of_transformers(chooser: Path, batch: int):
    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(chooser), AutoTokenizer.from_pretrained(chooser)
    chance = Random(4)
    rows = [
        Choice(str(place), text, tuple(chance.sample(TEXTS, k=2 + place % 3)), None)
        for place, text in enumerate([*TEXTS, *reversed(TEXTS)])
    ]
    used = predictor(chooser, batch=batch)
    found = list(used.predict(rows))
    assert [one.key for one in found] == [row.key for row in rows]
    assert len({one.said["choice"] for one in found}) > 1
    for one, row in zip(found, rows, strict=True):
        pairs = ([row.first] * len(row.options), list(row.options))
        tokens = tokenizer(*pairs, truncation="longest_first", max_length=32, padding=True, return_tensors="pt")
        with torch.no_grad():
            wanted = model(**{name: x[None] for name, x in tokens.items()}).logits[0].softmax(-1)
        assert one.said["probabilities"] == pytest.approx(wanted.tolist(), abs=1e-5)
        assert one.said["choice"] == int(wanted.argmax())
        assert one.said["option"] == row.options[one.said["choice"]]
        assert one.said["probability"] == max(one.said["probabilities"])
    assert used.cut == sum(max(map(len, (row.first, option))) >= 100 for row in rows for option in row.options)


def test_tags_are_those_of_the_pipeline_at_the_first_piece_of_each_word(tagger: Path):
    pipe = pipeline("token-classification", model=str(tagger), ignore_labels=[])
    sentences = [("Ann", "runs", "in", "the", "unlikely", "house."), ("a",), ("the", "unlikely,unlike", "dog", "zzz")]
    found = list(predictor(tagger, batch=2).predict(Tagged(str(at), words, None) for at, words in enumerate(sentences)))
    assert len({tag for one in found for tag in one.said["tags"]}) > 1
    for one, words in zip(found, sentences, strict=True):
        starts = [len(" ".join(words[:place])) + (place > 0) for place in range(len(words))]
        pieces = {piece["start"]: piece for piece in pipe(" ".join(words))}
        assert one.said["words"] == list(words)
        assert one.said["tags"] == [pieces[start]["entity"] for start in starts]
        assert one.said["probabilities"] == pytest.approx([float(pieces[start]["score"]) for start in starts], abs=1e-5)


def test_every_word_of_a_long_sentence_gets_a_tag(tagger: Path):
    words = tuple(Random(0).choices(PIECES[:8], k=150))
    (one,) = predictor(tagger).predict([Tagged("0", words, None)])
    assert len(one.said["tags"]) == len(one.said["probabilities"]) == 150
    assert all(share > 0.33 for share in one.said["probabilities"])


def test_answers_are_those_of_a_plain_loop(finder: Path):
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(finder), AutoTokenizer.from_pretrained(finder)
    rows = tokenizer(QUESTION, CONTEXT, return_tensors="pt", return_offsets_mapping=True)
    offsets = rows.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        found = model(**rows)
    start, end = found.start_logits[0], found.end_logits[0]
    places = [place for place, of in enumerate(rows.sequence_ids(0)) if of == 1]
    first, last = max(((i, j) for i in places for j in places if i <= j), key=lambda both: float(start[both[0]] + end[both[1]]))
    (one,) = predictor(finder).predict([Span("q", QUESTION, CONTEXT, ())])
    assert one.key == "q"
    assert one.said["answer"] == CONTEXT[offsets[first][0] : offsets[last][1]]
    assert one.said["probability"] == pytest.approx(float(start.softmax(0)[first] * end.softmax(0)[last]), abs=1e-5)


def test_an_answer_may_stand_anywhere_in_a_long_context_and_may_be_missing(finder: Path, tmp_path: Path):
    context = " ".join(Random(1).choices(PIECES, k=200)).replace(" ##", "")
    (one,) = predictor(finder).predict([Span("q", "the cat", context, ())])
    assert one.said["answer"]
    assert one.said["answer"] in context
    assert 0 < one.said["probability"] <= 1
    missing = saved(tmp_path, "spans", answers_may_be_missing=True)
    asked = [Span(str(at), QUESTION, " ".join(Random(at).choices(PIECES[:8], k=2)), ()) for at in range(40)]
    found = list(predictor(missing).predict(asked))
    sure = list(predictor(finder).predict(asked))
    assert {bool(one.said["answer"]) for one in found} == {True, False}
    assert all(one.said["answer"] in ("", other.said["answer"]) for one, other in zip(found, sure, strict=True))
    never = saved(tmp_path, "spans", "never", answers_may_be_missing=True, no_answer_threshold=1e6)
    assert all(one.said["answer"] for one in predictor(never).predict(asked))


def learned_rows(kind: str, chance: Random) -> str:
    """A file to learn from, whose labels follow from the words."""
    if kind == "spans":
        questions = []
        for place in range(24):
            words = chance.choices(PIECES[:8], k=40 if place % 6 == 0 else chance.randint(4, 14))
            words = [word.removeprefix("##") for word in words]
            gone = place % 8 == 7
            answers = [] if gone else [{"text": words[2], "answer_start": len(" ".join(words[:2])) + 1}]
            asked = {"id": f"q{place}", "question": "cat in", "answers": answers, "is_impossible": gone}
            questions.append({"context": " ".join(words), "qas": [asked]})
        return json.dumps({"data": [{"title": "", "paragraphs": questions}]})
    sentences = [chance.choices(PIECES[:8], k=chance.randint(2, 40)) for _ in range(40)]
    if kind == "choices":
        both = [sorted((" ".join(one[:3]), "dog")) for one in sentences]
        rows = [
            {"text": " ".join(one), "options": two, "label": two.index("dog")} for one, two in zip(sentences, both, strict=True)
        ]
        return "\n".join(map(json.dumps, rows)) + "\n"
    if kind == "tags":
        return "\n\n".join("\n".join(f"{w}\t{'B-who' if w in ('cat', 'dog') else 'O'}" for w in one) for one in sentences) + "\n"
    number = {"classification": lambda one: one[0] in PIECES[:4], "regression": lambda one: f"{one.count('cat'):.1f}"}[kind]
    rows = [f"r{place}\t{' '.join(one)}\t{' '.join(one[:1] * 12)}\t{number(one)}" for place, one in enumerate(sentences)]
    return "\n".join(["idx\tsentence1\tsentence2\tlabel", *rows]) + "\n"


@pytest.mark.parametrize(
    ("kind", "suffix", "epochs", "more"),
    [
        ("classification", "tsv", 20, {}),
        ("regression", "tsv", 3, {}),
        ("choices", "jsonl", 3, {}),
        ("tags", "conll", 3, {}),
        ("tags", "conll", 3, {"stride": 3}),
        # With more of them these rows teach to answer nothing, and there would be one answer to compare.
        ("spans", "json", 1, {}),
        ("spans", "json", 1, {"stride": 2, "longest": 1, "best": 3}),
    ],
)
def test_what_is_predicted_is_what_was_scored_in_fine_tuning(kind: str, suffix: str, epochs: int, more: dict, tmp_path: Path):
    model = saved(tmp_path, "backbone")
    files = {}
    for name in ("train", "valid"):
        files[name] = tmp_path / f"{name}.{suffix}"
        files[name].write_text(learned_rows(kind, Random(name)))
    numbers = {"seeds": 1, "epochs": epochs, "batch": 8, "rate": 1e-2, "length": 24}
    finetune(model, tmp_path / "run", FinetuneSettings(**files, **numbers, **more))
    lines = (tmp_path / "run/seeds/0/predictions.jsonl").read_text().splitlines()
    stored = {one["key"]: one["prediction"] for one in map(json.loads, lines)}
    found = {one.key: one.said for one in predict_file(predictor(tmp_path / "run/model"), files["valid"])}
    assert stored.keys() == found.keys()
    part = {"classification": "label", "regression": "value", "choices": "choice", "tags": "tags", "spans": "answer"}[kind]
    assert len({str(said[part]) for said in found.values()}) > 1
    for key, said in found.items():
        assert said[part] == (pytest.approx(stored[key], abs=1e-4) if kind == "regression" else stored[key])


def test_rows_come_in_a_stream_and_keep_their_order(folder: Path):
    taken = 0

    def endless() -> Iterator[Row]:
        nonlocal taken
        while True:
            yield Row(str(taken), TEXTS[taken % 5], None, None)
            taken += 1

    found = list(islice(predictor(folder, batch=2).predict(endless()), 150))
    assert [one.key for one in found] == [str(place) for place in range(150)]
    assert taken <= 3 * 2 * prediction.WINDOW
    alone = [next(predictor(folder).predict(texts(text))).said["probability"] for text in TEXTS[:5]]
    assert [one.said["probability"] for one in found] == pytest.approx(alone * 30, abs=1e-5)


def test_the_forms_of_rows_say_the_same(folder: Path):
    lines = predicted(folder, "the cat\ta dog\nred house\tcat\n")
    tsv = "idx\tsentence1\tsentence2\tlabel\n0\tthe cat\ta dog\t\n1\tred house\tcat\tunheard of\n"
    objects = '{"text_a": "the cat", "text_b": "a dog"}\n{"sentence1": "red house", "sentence2": "cat", "label": null}\n'
    assert predicted(folder, tsv, "rows.tsv") == lines == predicted(folder, objects, "rows.jsonl")
    assert predicted(folder, b"\xef\xbb\xbf" + tsv.replace("\n", "\r\n").encode(), "rows.tsv") == lines
    assert predicted(folder, objects, "rows.txt", form="jsonl") == lines
    alone = predicted(folder, "sentence1\tsentence2\nthe cat\t\n", "rows.tsv")
    assert alone[0].said == next(predictor(folder).predict(texts("the cat"))).said


def test_a_model_of_pairs_wants_pairs_and_one_of_texts_texts(tmp_path: Path):
    pairs = saved(tmp_path, "classification", "pairs", text_pairs=True, **CLASSES)
    wanted = [one.said for one in predictor(pairs).predict(texts(("the cat", "a dog"), ("red", "")))]
    for name, content in (
        ("rows.txt", "the cat\ta dog\nred\t\n"),
        ("rows.tsv", "text\tsentence2\nthe cat\ta dog\nred\t\n"),
        ("rows.jsonl", '{"text": "the cat", "text_b": "a dog"}\n{"text": "red", "text_b": ""}\n'),
    ):
        assert [one.said for one in predicted(pairs, content, name)] == wanted, name
    for name, content in (("rows.txt", "cat\n"), ("rows.tsv", "question\tsentence\ta\nb\n"), ("rows.jsonl", '{"text": "a"}\n')):
        with pytest.raises(DataError, match="row 1 has no column 'sentence2'"):
            predicted(pairs, content, name)
    single = saved(tmp_path, "classification", "single", text_pairs=False, **CLASSES)
    assert len(predicted(single, "sentence1\tsentence2\nred\t\n", "rows.tsv")) == 1
    with pytest.raises(DataError, match="row 2 has two texts, and the model has learned from one"):
        predicted(single, "red\t\nred\thouse\n")


def test_words_are_read_from_every_form(tagger: Path):
    wanted = [one.said for one in predicted(tagger, "Ann  runs .\nthe cat\n")]
    conll = "Ann\tB-who\nruns\tO\n.\tO\n\nthe\tI-nonsense\ncat\tO\n"
    objects = '{"words": ["Ann", "runs", "."], "tags": ["wrong"]}\n{"text": "the cat"}\n'
    for name, content in (("rows.conll", conll), ("rows.jsonl", objects), ("rows.tsv", "text\nAnn runs .\nthe cat\n")):
        assert [one.said for one in predicted(tagger, content, name)] == wanted, name


def test_choices_are_read_from_every_form(chooser: Path, capsys: Any):
    wanted = [one.said for one in predicted(chooser, "the cat\truns\ta dog\nred\ta house\tin\n")]
    assert all(one["option"] in ("runs", "a dog", "a house", "in") for one in wanted)
    tsv = "idx\tsentence1\tchoice1\tchoice2\tlabel\n7\tthe cat\truns\ta dog\t\n8\tred\ta house\tin\t9\n"
    found = predicted(chooser, tsv, "rows.tsv")
    assert ([one.said for one in found], [one.key for one in found]) == (wanted, ["7", "8"])
    objects = '{"text": "the cat", "options": ["runs", "a dog"], "label": 0}\n{"text": "red", "endings": ["a house", "in"]}\n'
    assert [one.said for one in predicted(chooser, objects, "rows.jsonl")] == wanted
    for name, content, reason in (
        ("rows.txt", "the cat\truns\n", "row 1 has 2 columns, where text and options go"),
        ("rows.tsv", "text\nthe cat\n", "row 2 needs two options or more"),
        ("rows.tsv", "text\tsentence2\toption1\toption2\na\tb\tc\td\n", "row 2 has a second text beside its options"),
    ):
        with pytest.raises(DataError, match=reason):
            predicted(chooser, content, name)
    command("predict", chooser, chooser.parent / "rows.jsonl")
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["key", "choice", "option", "probability", "probabilities"]
    assert [row[:3] for row in rows] == [[str(place), str(one["choice"]), one["option"]] for place, one in enumerate(wanted)]
    assert [float(share) for share in rows[0][4].split()] == pytest.approx(wanted[0]["probabilities"], abs=1e-5)


def test_questions_are_read_from_every_form(finder: Path):
    wanted = [one.said for one in predicted(finder, f"{QUESTION}\t{CONTEXT}\n")]
    question = {"id": "q7", "question": QUESTION, "answers": [{"text": "nowhere", "answer_start": 3}]}
    squad = {"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": [question | {"answers": []}]}]}]}
    found = predicted(finder, json.dumps(squad), "rows.json")
    assert ([one.said for one in found], found[0].key) == (wanted, "q7")
    found = predicted(finder, json.dumps(question | {"context": CONTEXT}) + "\n", "rows.jsonl")
    assert ([one.said for one in found], found[0].key) == (wanted, "q7")


BAD = {
    "rows.txt": (b"the cat\ta dog\nred\ncaf\xe9\tcat\n\na\tb\tc\ncat\tdog\n", ["2", "3", "4", "5"]),
    "rows.tsv": (b"text\tlabel\nthe cat\t1\nred\nc\x00t\t1\n\t\ncat\t\n", ["3", "4", "5"]),
    "rows.jsonl": (b'{"text": "the cat"}\n{"txt": "a"}\n[1]\n{"text": 5}\n{"text": "a"\n{"text": "cat"}\n', ["2", "3", "4", "5"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_after_those_before_it_or_is_named_and_left_out(name: str, folder: Path, capsys: Any):
    content, bad = BAD[name]
    (folder.parent / name).write_bytes(content)
    stream = predict_file(predictor(folder), folder.parent / name)
    first = next(stream)
    with pytest.raises(DataError, match=rf"{name} cannot be read: .*\n  row {bad[0]} "):
        next(stream)
    capsys.readouterr()
    kept = predicted(folder, content, name, on_bad_row="skip")
    told = capsys.readouterr().err
    assert re.findall(r"left out  row (\d+) ", told) == bad
    assert f"{len(bad)} of {len(bad) + 2} rows were left out" in told
    assert [one.key for one in kept] == ["0", "4" if name == "rows.tsv" else "5"]
    # The rows of a batch share longer rows, in which sums are rounded otherwise.
    assert kept[0].said["probabilities"] == pytest.approx(first.said["probabilities"], rel=1e-4)


@pytest.mark.parametrize(("name", "content"), [("rows.txt", ""), ("rows.tsv", "text\n"), ("rows.tsv", "")])
def test_no_rows_at_all_is_an_error(name: str, content: str, folder: Path):
    with pytest.raises(DataError, match="holds no rows"):
        predicted(folder, content, name)


def test_a_header_without_the_text_is_refused(folder: Path):
    with pytest.raises(DataError, match=r"row 1 has no column 'sentence1'; did you mean 'sentense1'"):
        predicted(folder, "sentense1\nthe cat\n", "rows.tsv", on_bad_row="skip")


def test_models_and_settings_that_do_not_serve_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has the head 'mlm', and this needs 'classification' or 'choices' or"):
        predictor(saved(tmp_path, "mlm"))
    with pytest.raises(ValueError, match=r"length=33, and .* reads rows of 8 to 32 tokens"):
        predictor(folder, length=33)
    with pytest.raises(ValueError, match=r"no form 'lnes'; did you mean 'lines'"):
        predicted(folder, "cat\n", form="lnes")
    with pytest.raises(ValueError, match="rows of the form 'squad' are not for predicting classification"):
        predicted(folder, "cat\n", form="squad")


def test_the_command_writes_tables_and_objects(folder: Path, tmp_path: Path, capsys: Any):
    (tmp_path / "rows.txt").write_text("the cat\na dog runs\n" + "a " * 50 + "\n")
    command("predict", folder, tmp_path / "rows.txt")
    printed = capsys.readouterr()
    header, *rows = [line.split("\t") for line in printed.out.splitlines()]
    assert header == ["key", "label", "probability", "p(no)", "p(perhaps)", "p(yes)"]
    assert "no room for all their tokens: 1\n" in printed.err
    command("predict", folder, tmp_path / "rows.txt", "--to", "jsonl", "--out", tmp_path / "said.jsonl", "--batch", 1)
    objects = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert capsys.readouterr().out == ""
    for row, one in zip(rows, objects, strict=True):
        assert row[:2] == [one["key"], one["label"]]
        assert [float(cell) for cell in row[2:]] == pytest.approx([one["probability"], *one["probabilities"].values()], abs=1e-5)


def test_cells_of_a_table_hold_no_tabs_or_lines(finder: Path, tagger: Path):
    context = CONTEXT.replace("  ", "\t").replace(" on", "\non")
    one = next(predictor(finder).predict([Span("a\tb", QUESTION, context, ())]))
    assert "\t" not in "".join(cells := prediction.as_cells(one))
    assert "\n" not in "".join(cells)
    assert cells[0] == "a b"
    tags = prediction.as_cells(next(predictor(tagger).predict([Tagged("0", ("Ann", "runs"), None)])))
    assert [len(cell.split()) for cell in tags] == [1, 2, 2, 2]
    assert len(tags) == len(prediction.columns(predictor(tagger)))


def test_the_command_reads_standard_input_and_ends_with_3_at_a_bad_row(
    folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    (tmp_path / "piped").write_bytes(b"the cat\n\xff\n")
    monkeypatch.setattr(prediction, "STDIN", tmp_path / "piped")
    monkeypatch.setattr(sys, "argv", ["layerwright", "predict", str(folder), "--out", str(tmp_path / "said.tsv")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert "standard input cannot be read: 1 fault\n  row 2 is not UTF-8" in capsys.readouterr().err
    assert not list(tmp_path.glob("*said*"))
