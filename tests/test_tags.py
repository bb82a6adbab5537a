"""Words are tagged at their first pieces, each in one window, and none is cut off."""

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from toys import ARCH, assert_a_kill_changes_nothing, make_model, quick, reader_for
from transformers import AutoModelForTokenClassification, AutoTokenizer

from layerwright import vocabulary
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.models import LayerwrightConfig, LayerwrightForTokenClassification
from layerwright.tasks.entities import entity_scores
from layerwright.tasks.examples import Examples, Tagged
from layerwright.tasks.finetune import finetune
from layerwright.tasks.lessons import HeadShape
from layerwright.tasks.metrics import score
from layerwright.tasks.reading import read_file
from layerwright.tasks.rows import Reader
from layerwright.tasks.tags import IGNORED, TagForm, Tagging, spell

TAGS = ("O", "B-place", "I-place")
ODD = ("Zürich", "w1", "I'm", "@user", "3.50", "http://t.co/x", "😀", "w2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def learned(request):
    """A tokenizer that cuts words into pieces."""
    text = "Zürich and Genève are towns; I'm @user, it costs 3.50 at http://t.co/x w1 w2"
    return vocabulary.learn([text] * 3, vocab=330, model=request.param, lowercase=False)


def sentences(*rows: Tagged) -> Examples[Tagged]:
    return Examples("sentences", "tags", TAGS, rows)


def drawn(chance: Random, words: int, key: str = "0") -> Tagged:
    tags = ["O"]
    for _ in range(words):
        tags.append(chance.choice(["O", "B-place", *(["I-place"] if tags[-1] != "O" else [])]))
    return Tagged(key, tuple(chance.choice(ODD) for _ in range(words)), tuple(tags[1:]))


def certain(rows) -> list[torch.Tensor]:
    """Logits that name the gold tags, and at all other tokens a wrong one."""
    found = []
    for place, tokens in enumerate(rows.tokens):
        labels = rows.labels([place], len(tokens.ids))
        found.append(torch.nn.functional.one_hot(torch.where(labels == IGNORED, 2, labels), 3).float())
    return found


@pytest.mark.parametrize("length", [200, 24, 12])
def test_gold_tags_come_back_from_their_places(learned, length):
    chance = Random(1)
    examples = sentences(*(drawn(chance, size, str(size)) for size in (1, 2, 7, 30, 61)))
    form = TagForm(Reader.of(learned, pad=0, length=length, segments=False), TAGS, stride=8)
    rows = form.rows(examples, learn=True)
    assert all(len(tokens.ids) <= length for tokens in rows.tokens)
    assert rows.lost == 0
    decoded = [tags for place, one in enumerate(certain(rows)) for tags in form.decode(one, rows, [place])]
    predictions = form.merge(rows, decoded)
    assert predictions == [row.tags for row in examples.rows]
    assert score("tags", ("entity_f1", "accuracy"), examples, predictions).scores == {"entity_f1": 1.0, "accuracy": 1.0}


def test_each_word_is_learned_once_where_its_neighbours_are(model):
    words = tuple(f"w{number % 40}" for number in range(50))
    form = TagForm(reader_for(model, 18), TAGS)
    rows = form.rows(sentences(Tagged("0", words, ("O",) * 50)), learn=True)
    assert len(rows) > 3
    assert rows.cut == 1
    assert sorted(word for part in rows.parts for word in part.words) == list(range(50))
    for part, tokens in zip(rows.parts, rows.tokens, strict=True):
        names = [form.reader.tokenizer.id_to_token(token) for token in tokens.ids]
        assert [names[place] for place in part.places] == [words[word] for word in part.words]
    for before, after in pairwise(rows.parts):  # of what two windows share, each has the half farther from its edge
        assert after.words[0] == before.words[-1] + 1
        assert after.places[0] >= 4
    labels = rows.labels(range(len(rows)), 18)
    assert int((labels != IGNORED).sum()) == 50


def test_a_word_that_is_cut_into_pieces_has_its_tag_at_the_first(learned):
    form = TagForm(Reader.of(learned, pad=0, length=64, segments=False), TAGS)
    rows = form.rows(sentences(Tagged("0", ("Zürichsee", "w1"), ("B-place", "O"))), learn=True)
    [(_, words)] = spell(learned, [("Zürichsee", "w1")])
    assert words.count(0) > 1
    labels = rows.labels([0], len(rows.tokens[0].ids))[0].tolist()
    assert labels == [IGNORED, 1, *[IGNORED] * (words.count(0) - 1), 0, *[IGNORED] * (words.count(1) - 1), IGNORED]


def test_words_are_spelled_as_in_running_text(learned):
    for words in (ODD, ODD[::-1]):
        [(ids, numbers)] = spell(learned, [words])
        if ids.tolist() != (running := learned.encode(" ".join(words), add_special_tokens=False)).ids:
            assert [learned.id_to_token(one) for one in ids] == running.tokens
        assert sorted(set(numbers)) == list(range(len(words)))


def test_words_of_which_nothing_is_left_are_counted_and_predicted_as_the_first_tag(model):
    form = TagForm(reader_for(model), TAGS)
    rows = form.rows(
        sentences(Tagged("0", ("w1", "\u200b", "w2"), ("O", "B-place", "O")), Tagged("1", ("\u200b",), ("O",))), learn=True
    )
    assert rows.lost == 2
    decoded = [form.decode(torch.eye(3)[1].expand(1, len(row.ids), 3), rows, [place])[0] for place, row in enumerate(rows.tokens)]
    assert form.merge(rows, decoded) == [("B-place", "O", "B-place"), ("O",)]
    objective = form.objective(Backbone(ARCH), HeadShape()).train()
    loss = objective(rows.batch([1])).total  # a batch without a word to learn from
    loss.backward()
    assert loss.item() == 0


def test_the_loss_is_that_of_the_model_folder():
    objective = Tagging(Backbone(ARCH), 3).eval()
    theirs = LayerwrightForTokenClassification(LayerwrightConfig(architecture=str(ARCH), num_labels=3)).eval()
    theirs.load_state_dict(objective.state_dict())
    ids, mask = torch.randint(5, 64, (3, 12)), torch.arange(12) < torch.tensor([12, 9, 7])[:, None]
    labels = torch.randint(0, 3, (3, 12)).masked_fill(~mask | (torch.rand(3, 12) < 0.5), IGNORED)
    ours = objective(Batch(ids, mask, torch.zeros_like(ids), labels)).total
    torch.testing.assert_close(ours, theirs(ids, mask.long(), labels=labels).loss)


def places(path: Path, rows: int) -> Path:
    """After "good" begins a place of one word, or of two if "bad" follows."""
    chance = Random(path.name)
    lines = []
    for _ in range(rows):
        words = chance.choices([f"w{number}" for number in range(40)], k=chance.randint(3, 20))
        tags = ["O"] * len(words)
        if chance.random() < 0.8:
            at = chance.randrange(len(words) - 1)
            words[at], tags[at + 1] = "good", "B-place"
            if at + 2 < len(words) and chance.random() < 0.5:
                words[at + 2], tags[at + 2] = "bad", "I-place"
        lines += [f"{word}\t{tag}" for word, tag in zip(words, tags, strict=True)] + [""]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_tags_are_learned_and_the_model_folder_knows_them(tmp_path, model):
    files = {name: places(tmp_path / f"{name}.conll", rows) for name, rows in (("train", 300), ("valid", 60))}
    results = finetune(model, tmp_path / "run", quick(**files, seeds=1, length=16, epochs=5))
    assert (results.kind, results.labels, results.score) == ("tags", TAGS, "entity_f1")
    assert results.summary["entity_f1"]["median"] > 0.9
    assert any("several windows" in note for note in results.notes)
    valid = read_file(files["valid"])
    given = {
        line["key"]: line["prediction"]
        for line in map(json.loads, (tmp_path / "run/seeds/0/predictions.jsonl").read_text().splitlines())
    }
    found = entity_scores([row.tags for row in valid.rows], [given[row.key] for row in valid.rows])
    assert found["entity_f1"] == pytest.approx(results.seeds[0].scores["entity_f1"])
    net = AutoModelForTokenClassification.from_pretrained(tmp_path / "run/model")
    assert net.config.id2label == dict(enumerate(TAGS))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    right = total = 0
    for row in (row for row in valid.rows if len(row.words) <= 14):
        with torch.no_grad():
            logits = net(**tokenizer(list(row.words), is_split_into_words=True, return_tensors="pt")).logits
        named = [TAGS[number] for number in logits.argmax(-1)[0, 1:-1].tolist()]
        right += sum(one == other for one, other in zip(named, given[row.key], strict=True))
        total += len(named)
    assert right == total


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, model, monkeypatch):
    files = {name: places(tmp_path / f"{name}.conll", rows) for name, rows in (("train", 48), ("valid", 16))}
    settings = quick(**files, epochs=1, length=16)
    assert_a_kill_changes_nothing(tmp_path, model, settings, monkeypatch)
