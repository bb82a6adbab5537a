"""One of several texts is chosen: a row for each, and the softmax over them."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from toys import ARCH, assert_a_kill_changes_nothing, make_model, quick, reader_for, sentence
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from layerwright.backbone import Backbone
from layerwright.models import LayerwrightConfig, LayerwrightForMultipleChoice
from layerwright.tasks.choices import ChoiceForm, Choosing
from layerwright.tasks.examples import Choice, Examples
from layerwright.tasks.finetune import finetune
from layerwright.tasks.lessons import HeadShape
from layerwright.tasks.reading import read_file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("made") / "model")


def choices(*rows: Choice) -> Examples[Choice]:
    return Examples("choices", "choices", (), rows)


ROWS = choices(
    Choice("0", "w1 w2", ("good", "bad w3 w4"), 1), Choice("1", "w5", ("w6 " * 40, "w7"), 0), Choice("2", "w8", ("w9", "w10"), 0)
)


def test_an_example_is_a_row_for_each_option(model):
    form = ChoiceForm(reader_for(model, 16))
    rows = form.rows(ROWS, learn=True)
    assert len(rows) == 3
    assert rows.cut == 1
    batch = rows.batch([2, 0])
    names = [[form.reader.tokenizer.id_to_token(token) for token in row] for row in batch.ids.tolist()]
    assert names == [
        ["[CLS]", "w8", "[SEP]", "w9", "[SEP]", "[PAD]", "[PAD]", "[PAD]"],
        ["[CLS]", "w8", "[SEP]", "w10", "[SEP]", "[PAD]", "[PAD]", "[PAD]"],
        ["[CLS]", "w1", "w2", "[SEP]", "good", "[SEP]", "[PAD]", "[PAD]"],
        ["[CLS]", "w1", "w2", "[SEP]", "bad", "w3", "w4", "[SEP]"],
    ]
    assert batch.labels.tolist() == [0, 1]
    assert rows.length(1) == 16  # the longer option, cut
    assert sorted(place for places in rows.shuffled(2, 0, 0) for place in places) == [0, 1, 2]
    assert rows.padding([[2, 0]]) == 0, "they are packed"


def test_the_loss_and_the_decision_are_over_the_options(model):
    form = ChoiceForm(reader_for(model, 16))
    rows = form.rows(ROWS, learn=True)
    objective = form.objective(Backbone(ARCH), HeadShape()).eval()
    batch = rows.batch([0, 2])
    numbers = objective.predict(batch)
    assert numbers.shape == (4, 1)
    torch.testing.assert_close(objective(batch).total, F.cross_entropy(numbers.view(2, 2), torch.tensor([1, 0])))
    decoded = form.decode(torch.tensor([[0.0], [2.0], [5.0], [-1.0]]), rows, [0, 2])
    assert form.merge(rows, decoded) == [1, 0]


def test_the_loss_is_that_of_the_model_folder(model):
    rows = ChoiceForm(reader_for(model, 16)).rows(ROWS, learn=True)
    objective = Choosing(Backbone(ARCH)).eval()
    theirs = LayerwrightForMultipleChoice(LayerwrightConfig(architecture=str(ARCH))).eval()
    theirs.load_state_dict(objective.state_dict())
    batch = rows.batch([0, 1, 2])
    ids, mask, segments = (x.view(3, 2, -1) for x in (batch.ids, batch.mask.long(), batch.segments))
    torch.testing.assert_close(objective(batch).total, theirs(ids, mask, segments, labels=batch.labels).loss)


def endings(path: Path, rows: int, options: int = 3) -> Path:
    """The right ending has the word "good"."""
    chance = Random(path.name)
    lines = []
    for number in range(rows):
        right = chance.randrange(options)
        texts = [sentence(chance, "good" if place == right else "bad") for place in range(options)]
        lines.append(json.dumps({"idx": f"row {number}", "text": sentence(chance), "options": texts, "label": right}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_choices_are_learned_and_the_model_folder_knows_them(tmp_path, model):
    files = {name: endings(tmp_path / f"{name}.jsonl", rows) for name, rows in (("train", 160), ("valid", 40))}
    results = finetune(model, tmp_path / "run", quick(**files, seeds=1))
    assert (results.kind, results.labels, results.score) == ("choices", (), "accuracy")
    assert results.summary["accuracy"]["median"] > 0.9
    valid = read_file(files["valid"])
    lines = [json.loads(line) for line in (tmp_path / "run/seeds/0/predictions.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [row.key for row in valid.rows]
    net = AutoModelForMultipleChoice.from_pretrained(tmp_path / "run/model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    found = []
    for row in valid.rows:
        tokens = tokenizer([row.first] * 3, list(row.options), padding=True, return_tensors="pt")
        with torch.no_grad():
            found.append(int(net(**{name: x[None] for name, x in tokens.items()}).logits.argmax()))
    assert found == [line["prediction"] for line in lines]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, model, monkeypatch):
    files = {name: endings(tmp_path / f"{name}.jsonl", rows, 2) for name, rows in (("train", 32), ("valid", 12))}
    settings = quick(**files, epochs=1)
    assert_a_kill_changes_nothing(tmp_path, model, settings, monkeypatch)
