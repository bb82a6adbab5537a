"""Questions are read with answers that are where they say they are, or refused by number and id."""

import gzip
import json
from pathlib import Path

import pytest

from layerwright.errors import DataError, exit_code
from layerwright.tasks.examples import Answer, Span
from layerwright.tasks.reading import read_file

CONTEXT = "Ann ate. Ann said “yes” — café."


def question(key: object = "q1", **changes: object) -> dict[str, object]:
    return {"id": key, "question": "Who?", "answers": [{"text": "Ann", "answer_start": 9}]} | changes


def squad(folder: Path, *questions: object, version: str = "1.1", context: object = CONTEXT, name: str = "a.json") -> Path:
    content = {"version": version, "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    packed = json.dumps(content).encode()
    (folder / name).write_bytes(gzip.compress(packed) if name.endswith(".gz") else packed)
    return folder / name


def refusal(path: Path, **more: object) -> str:
    with pytest.raises(DataError) as caught:
        read_file(path, **more)
    assert exit_code(caught.value) == 3
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_questions_of_both_versions(tmp_path, name):
    several = question("q2", answers=[{"text": "café", "answer_start": 26}, {"text": "“yes”", "answer_start": 18}])
    read = read_file(squad(tmp_path, question(), several, name=name))
    assert (read.kind, read.labels, read.labelled, read.pairs) == ("spans", (), True, True)
    assert read.rows == (
        Span("q1", "Who?", CONTEXT, (Answer(9, "Ann"),)),
        Span("q2", "Who?", CONTEXT, (Answer(26, "café"), Answer(18, "“yes”"))),
    )
    impossible = question("q3", answers=[], is_impossible=True, plausible_answers=[{"text": "x", "answer_start": 1}])
    answered = question("q4", is_impossible=False)
    assert [len(row.answers) for row in read_file(squad(tmp_path, impossible, answered, version="v2.0")).rows] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answers": [{"text": "Bob", "answer_start": 0}]}, "has the answer 'Bob', which is not in its context"),
        ({"answers": [{"text": "Ann", "answer_start": 5}]}, "at 5, where its context has another text; the nearest is at 9"),
        ({"answers": [{"text": "Ann", "answer_start": -22}]}, "the nearest is at 0"),
        ({"answers": [{"text": "", "answer_start": 0}]}, "has an empty answer"),
        ({"answers": [{"text": "Ann"}]}, "has an answer without text or answer_start"),
        ({"answers": [{"text": "Ann", "answer_start": "9"}]}, "has an answer without text or answer_start"),
        ({"answers": "Ann"}, "needs a list of answers"),
        ({"answers": []}, "has no answer, and no is_impossible that says so"),
        ({"answers": None}, "has no answer"),
        ({"is_impossible": True}, "is said to be impossible and has 1 answer"),
        ({"question": " "}, "has no question"),
        ({"question": "a\0"}, "holds a NUL"),
        ({"id": ["x"]}, "has an id that is no text"),
        ({"id": "q1"}, "has the id 'q1' of question 1"),
    ],
)
def test_faulty_questions_are_named(tmp_path, changes, reason):
    path = squad(tmp_path, question(), question("q2") | changes, question("q3"))
    message = refusal(path)
    assert "\n  question 2 " in message
    assert reason in message
    read = read_file(path, on_bad_row="skip")
    assert [row.key for row in read.rows] == ["q1", "q3"]
    assert len(read.skipped) == 1


def test_every_question_of_a_faulty_context_is_named(tmp_path):
    message = refusal(squad(tmp_path, question(), question("q2"), context=None))
    assert "question 1 (id 'q1') has no context" in message
    assert "question 2 (id 'q2') has no context" in message


def test_v2_needs_no_word_on_what_is_impossible(tmp_path):
    assert read_file(squad(tmp_path, question(answers=[]), version="v2.0")).rows[0].answers == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b'{"data": [', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "no list 'data' of articles"),
        (b'{"data": [{"paragraphs": {}}]}', "article 1 has no list 'paragraphs' of objects"),
        (b'{"data": [{"paragraphs": [{"context": "a"}]}]}', "article 1, paragraph 1 has no list 'qas'"),
        (b'{"data": []}', "holds no rows"),
        (b'{"data": [{"title": "\xe9"}]}', "line 1 is not UTF-8 (0xe9)"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    assert reason in refusal(tmp_path / "a.json", on_bad_row="skip")


def test_a_mark_at_the_beginning_and_windows_lines_are_accepted(tmp_path):
    path = squad(tmp_path, question())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b", ", b",\r\n"))
    assert len(read_file(path).rows) == 1


def test_a_torn_archive_and_another_kind_are_refused(tmp_path):
    path = squad(tmp_path, *[question(f"q{n}") for n in range(99)], name="a.json.gz")
    path.write_bytes(path.read_bytes()[:-9])
    assert "is not a whole gzip file" in refusal(path)
    assert "holds spans, and the task is of kind tags" not in refusal(path)
    assert "holds spans, and the task is of kind regression" in refusal(squad(tmp_path, question()), kind="regression")


def test_questions_line_by_line(tmp_path):
    rows = [question(context=CONTEXT), question("q2", context=CONTEXT, answers={"text": ["Ann"], "answer_start": [0]})]
    rows += [question("q3", context=CONTEXT, answers={"text": [], "answer_start": []})]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [row.answers for row in read_file(path).rows] == [(Answer(9, "Ann"),), (Answer(0, "Ann"),), ()]
    path.write_text(json.dumps(question(context=CONTEXT, answers={"text": ["Ann"], "answer_start": []})))
    assert "row 1 needs a list of answers" in refusal(path)
