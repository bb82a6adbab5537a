"""Questions are read in windows that lose nothing, and answered by pieces of their contexts."""

import json
import os
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from toys import ARCH, assert_a_kill_changes_nothing, make_model, quick, reader_for, sentence
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from layerwright import vocabulary
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.models import LayerwrightConfig, LayerwrightForQuestionAnswering
from layerwright.tasks.answers import answer_scores
from layerwright.tasks.catalog import read
from layerwright.tasks.examples import Answer, Examples, Span
from layerwright.tasks.finetune import finetune
from layerwright.tasks.lessons import HeadShape
from layerwright.tasks.metrics import score
from layerwright.tasks.reading import read_file
from layerwright.tasks.rows import Reader, windows
from layerwright.tasks.spans import Finding, Found, SpanForm, best_threshold

TEXT = (
    "In 1891, Zoë's café (the «old» one) sold 3.50-franc cakes; Müller & Sons' bakery, 20km away, didn't. "
    "“Naïve!” cried Ana-María — she'd paid $1,234.5 for them…  Tabs\tand\nlines, too: 日本 and ½."
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def learned(request):
    """A tokenizer that cuts words into pieces."""
    return vocabulary.learn([TEXT] * 3, vocab=400, model=request.param, lowercase=request.param == "wordpiece")


def questions(*rows: Span) -> Examples[Span]:
    return Examples("questions", "spans", (), rows)


def asked(context: str, start: int, end: int, key: str = "0") -> Span:
    return Span(key, "what is it?", context, (Answer(start, context[start:end]),))


def certain(rows) -> list[torch.Tensor]:
    """Logits that point at the gold places."""
    found = []
    for tokens, (first, last) in zip(rows.tokens, rows.targets.tolist(), strict=True):
        logits = torch.zeros(1, len(tokens.ids), 2)
        logits[0, first, 0] = logits[0, last, 1] = 9.0
        found.append(logits)
    return found


def decoded(form: SpanForm, rows, logits) -> list[Found]:
    return [found for place, one in enumerate(logits) for found in form.decode(one, rows, [place])]


@given(some.integers(0, 300), some.integers(1, 60), some.integers(1, 80))
def test_windows_cover_every_token_and_half_a_window_lies_whole_in_one(count, room, stride):
    found = windows(count, room, stride)
    assert {place for window in found for place in window} == set(range(count))
    assert all(len(window) <= room for window in found)
    assert all(0 < after.start - before.start <= stride for before, after in pairwise(found))
    assert all(window.stop < count for window in found[:-1])
    for start in range(max(1, count - room // 2 + 1)):
        piece = range(start, min(count, start + room // 2))
        assert any(window.start <= piece.start and piece.stop <= window.stop for window in found)


@pytest.mark.parametrize("length", [200, 48])
def test_answers_made_of_whole_tokens_come_back_from_their_places(learned, length):
    reader = Reader.of(learned, pad=0, length=length, segments=True)
    form = SpanForm(reader, stride=8, longest=length)
    [encoding] = reader.encode([TEXT])
    chance = Random(0)
    spans = []
    for number in range(60):
        first = chance.randrange(len(encoding.ids))
        last = min(len(encoding.ids) - 1, first + chance.randint(0, 7))
        start, end = encoding.offsets[first][0], encoding.offsets[last][1]
        start += len(TEXT[start:end]) - len(TEXT[start:end].lstrip())
        if TEXT[start:end].strip():
            spans.append(asked(TEXT, start, start + len(TEXT[start:end].strip()), str(number)))
    examples = questions(*spans)
    rows = form.rows(examples, learn=True)
    answers = form.merge(rows, decoded(form, rows, certain(rows)))
    assert [answer for answer, row in zip(answers, spans, strict=True) if answer != row.answers[0].text] == []
    assert all(answer in TEXT for answer in answers)
    given = {row.key: answer for row, answer in zip(spans, answers, strict=True)}
    assert score("spans", ("exact_match",), examples, given).scores == {"exact_match": 1.0}


def test_an_answer_that_begins_within_a_token_becomes_the_whole_token(model):
    form = SpanForm(reader_for(model))
    rows = form.rows(questions(asked("w1 w22, w3", 4, 6)), learn=True)
    assert form.merge(rows, decoded(form, rows, certain(rows))) == ["w22"]


def test_rows_are_questions_with_windows_of_the_context(model):
    reader = reader_for(model, 20)
    context = " ".join(f"w{number}" for number in range(40))
    start = context.index("w17")
    rows = SpanForm(reader, stride=6).rows(questions(Span("0", "good bad", context, (Answer(start, "w17 w18"),))), learn=True)
    names = [[reader.tokenizer.id_to_token(token) for token in row.ids] for row in rows.tokens]
    assert all(row[:4] == ["[CLS]", "good", "bad", "[SEP]"] and row[-1] == "[SEP]" for row in names)
    assert all(len(row) <= 20 and tokens.second == 4 for row, tokens in zip(names, rows.tokens, strict=True))
    assert [row[4:-1] for row in names[:2]] == [[f"w{number}" for number in range(at, at + 15)] for at in (0, 6)]
    assert names[-1][-2] == "w39"
    for row, (first, last) in zip(names, rows.targets.tolist(), strict=True):
        whole = "w17" in row and "w18" in row
        assert row[first : last + 1] == (["w17", "w18"] if whole else ["[CLS]"])
    assert any(last for _, last in rows.targets.tolist())


def test_long_questions_leave_room_for_the_context(model):
    form = SpanForm(reader_for(model, 20))
    rows = form.rows(questions(Span("0", "w1 " * 50, "w2 " * 30, (Answer(0, "w2"),))), learn=True)
    assert rows.cut == 1
    assert {window.at for window in rows.windows} == {1 + 8 + 1}
    assert {place for window in rows.windows for place in window.tokens} == set(range(30))


def plain(rows, logits, number: int, longest: int, best: int) -> tuple[float, str, float]:
    """The best answer to a question, its score and that of none, by plain loops."""
    found, none = (-float("inf"), ""), float("inf")
    for window, one in zip(rows.windows, logits, strict=True):
        if window.question != number:
            continue
        none = min(none, float(one[0, 0, 0] + one[0, 0, 1]))
        places = range(window.at, window.at + len(window.tokens))
        firsts, lasts = (sorted(places, key=lambda place, end=end: -one[0, place, end])[:best] for end in (0, 1))
        for first in firsts:
            for last in lasts:
                value = float(one[0, first, 0] + one[0, last, 1])
                if 0 <= last - first < longest and value > found[0]:
                    text = rows.texts[number]
                    first_token, last_token = (place - window.at + window.tokens.start for place in (first, last))
                    found = value, rows.examples.rows[number].context[text.begins[first_token] : text.ends[last_token]]
    return *found, none


@pytest.mark.parametrize(("longest", "best"), [(30, 20), (3, 4), (1, 1)])
def test_answers_are_those_of_plain_loops(model, longest, best):
    chance = Random(0)
    contexts = [" ".join(chance.choices([f"w{number}" for number in range(40)], k=chance.randint(1, 60))) for _ in range(12)]
    examples = questions(*(Span(str(number), "good", context, ()) for number, context in enumerate(contexts)))
    form = SpanForm(reader_for(model, 24), 7, longest, best, missing=True)
    rows = form.rows(examples)
    assert rows.targets is None
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(1, len(row.ids), 2, generator=generator) for row in rows.tokens]
    answers = form.merge(rows, decoded(form, rows, logits))
    wanted = []
    for number in range(12):
        value, text, none = plain(rows, logits, number, longest, best)
        wanted.append("" if none > value else text)
    assert answers == wanted
    assert longest == 1 or {"", *wanted} > {""}


def test_a_batch_of_padded_windows_says_what_they_say_alone(model):
    form = SpanForm(reader_for(model, 24), 7)
    rows = form.rows(questions(*(asked("w1 w2 " * size, 0, 2, str(size)) for size in (1, 5, 12))), learn=True)
    objective = form.objective(Backbone(ARCH), HeadShape()).eval()
    places = range(len(rows))
    with torch.no_grad():
        together = form.decode(objective.predict(rows.batch(places)), rows, places)
        alone = [form.decode(objective.predict(rows.batch([place])), rows, [place])[0] for place in places]
    for one, other in zip(together, alone, strict=True):
        assert one[1:3] == other[1:3]
        assert one[0] == pytest.approx(other[0], abs=1e-5)


def test_no_answer_is_given_by_its_threshold(model):
    form = SpanForm(reader_for(model), missing=True)
    rows = form.rows(questions(Span("0", "good", "w1 w2", ()), Span("1", "bad", "w1 w2", (Answer(0, "w1"),))))
    found = [Found(3.0, 0, 0, 4.0), Found(3.0, 0, 0, 2.5)]
    assert form.merge(rows, found) == ["", "w1"]
    assert SpanForm(form.reader, missing=True, threshold=1.0).merge(rows, found) == ["w1", "w1"]
    assert SpanForm(form.reader, missing=True, threshold=-1.0).merge(rows, found) == ["", ""]
    assert SpanForm(form.reader).merge(rows, found) == ["w1", "w1"]  # where every question has an answer
    told = {"answer_stride": 128, "answer_longest": 30, "answer_best": 20, "answers_may_be_missing": True}
    assert form.config() == told | {"no_answer_threshold": 0.0}
    tuned = SpanForm(form.reader, missing=True, threshold="tuned").settled(rows, found)
    assert tuned.merge(rows, found) == ["", "w1"]


@given(some.lists(some.tuples(some.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0]), some.booleans(), some.booleans()), min_size=1))
def test_the_tuned_threshold_is_the_best_there_is(drawn):
    rows = [Span(str(n), "q", "a b", (Answer(0, "a"),) if known else ()) for n, (_, known, _) in enumerate(drawn)]
    rows.append(Span("none", "q", "a b", ()))
    texts = [*("a" if right else "b" for _, _, right in drawn), "b"]
    margins = [*(margin for margin, _, _ in drawn), 0.0]

    def total(threshold: float) -> float:
        given = {row.key: text if margin <= threshold else "" for row, text, margin in zip(rows, texts, margins, strict=True)}
        return answer_scores(rows, given)["answer_f1"]

    chosen = best_threshold(rows, texts, margins)
    assert total(chosen) == pytest.approx(max(map(total, [-9.0, -2.0, -1.0, 0.0, 0.5, 1.0, 3.0])))


def test_the_loss_is_that_of_the_model_folder():
    objective = Finding(Backbone(ARCH)).eval()
    theirs = LayerwrightForQuestionAnswering(LayerwrightConfig(architecture=str(ARCH))).eval()
    theirs.load_state_dict(objective.state_dict())
    ids, mask = torch.randint(5, 64, (4, 12)), torch.arange(12) < torch.tensor([12, 9, 7, 12])[:, None]
    labels = torch.tensor([[1, 3], [0, 0], [2, 6], [11, 11]])
    ours = objective(Batch(ids, mask, torch.zeros_like(ids), labels)).total
    wanted = theirs(ids, mask.long(), start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
    torch.testing.assert_close(ours, wanted)


def marked(path: Path, rows: int, *, missing: bool) -> Path:
    """The answer is the word after "good"; without it, there is none."""
    chance = Random(path.name)
    asked = []
    for number in range(rows):
        words = sentence(chance, "bad").split()
        known = not (missing and chance.random() < 0.4)
        place = chance.randrange(len(words))
        if known:
            words.insert(place, "good")
        start = len(" ".join(words[: place + 1])) + 1
        known &= place + 1 < len(words)
        answers = [{"text": words[place + 1], "answer_start": start}] if known else []
        asked.append(
            {
                "context": " ".join(words),
                "qas": [{"id": f"q{number}", "question": "w1?", "answers": answers, "is_impossible": not known}],
            }
        )
    if not missing:
        asked = [one for one in asked if one["qas"][0]["answers"]]
    content = {"version": "v2.0" if missing else "1.1", "data": [{"title": "toy", "paragraphs": asked}]}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("missing", [False, True], ids=["v1.1", "v2.0"])
def test_answers_are_learned_and_the_model_folder_knows_them(tmp_path, model, missing):
    files = {name: marked(tmp_path / f"{name}.json", rows, missing=missing) for name, rows in (("train", 400), ("valid", 60))}
    results = finetune(model, tmp_path / "run", quick(**files, seeds=1, epochs=5, threshold="tuned"))
    assert (results.kind, results.score, results.labels) == ("spans", "exact_match", ())
    assert results.summary["exact_match"]["median"] > 0.9
    assert results.settings["longest"] == 30
    valid = read_file(files["valid"])
    lines = [json.loads(line) for line in (tmp_path / "run/seeds/0/predictions.jsonl").read_text().splitlines()]
    given = {line["key"]: line["prediction"] for line in lines}
    assert answer_scores(valid.rows, given) == pytest.approx(results.seeds[0].scores)
    # With transformers alone.
    net = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run/model")
    assert getattr(net.config, "answers_may_be_missing", False) == missing
    assert hasattr(net.config, "no_answer_threshold") == missing
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    right = 0
    answered = [row for row in valid.rows if row.answers]
    for row in answered:
        tokens = tokenizer(row.question, row.context, return_tensors="pt")
        with torch.no_grad():
            found = net(**tokens)
        first, last = int(found.start_logits[0].argmax()), int(found.end_logits[0].argmax())
        right += tokenizer.decode(tokens["input_ids"][0, first : last + 1]) == row.answers[0].text
    assert right / len(answered) > 0.85


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, model, monkeypatch):
    files = {name: marked(tmp_path / f"{name}.json", rows, missing=True) for name, rows in (("train", 48), ("valid", 16))}
    settings = quick(**files, epochs=1, threshold="tuned")
    assert_a_kill_changes_nothing(tmp_path, model, settings, monkeypatch)


@pytest.mark.large
@pytest.mark.skipif("LAYERWRIGHT_DATA" not in os.environ, reason="LAYERWRIGHT_DATA names no folder of real tasks")
@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_real_answers_come_back_from_their_places(version):
    root = Path(os.environ["LAYERWRIGHT_DATA"])
    examples = read(f"SQuAD-{version}", "dev", root)
    examples = examples._replace(rows=examples.rows[:600])
    tokenizer = vocabulary.load(root / "vocab" / "bert-base-uncased.txt", lowercase=True)
    missing = version == "v2.0"
    form = SpanForm(Reader.of(tokenizer, pad=0, length=192, segments=True), longest=60, missing=missing)
    rows = form.rows(examples, learn=True)
    answers = form.merge(rows, decoded(form, rows, certain(rows)))
    given = {row.key: answer for row, answer in zip(examples.rows, answers, strict=True)}
    found = score("spans", ("exact_match",), examples, given).scores
    # Some answers are said to begin within a token, such as 8 in 18 (12 of the 600 of v1.1): the token comes back.
    assert found["exact_match"] > 0.97
    assert all(row.answers[0].text in given[row.key] if row.answers else not given[row.key] for row in examples.rows)
    assert len(rows) > 1.2 * len(examples.rows)
