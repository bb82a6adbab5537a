"""Sentences of tagged words are read as they stand, or refused with the lines at fault."""

import json
from pathlib import Path
from random import Random

import pytest
from files import refusal, written

from layerwright.tasks.examples import Tagged
from layerwright.tasks.reading import read_file

ROME = "In\tO\nNew\tB-place\nRome\tI-place\n"


def file(folder: Path, content: str | bytes, name: str = "some.conll") -> Path:
    return written(folder, content, name)


def test_words_and_tags(tmp_path):
    read = read_file(file(tmp_path, ROME + '\n\n#Ann\tB-person\n"\tO\n'))
    assert (read.kind, read.labelled, read.pairs) == ("tags", True, False)
    assert read.labels == ("O", "B-person", "I-person", "B-place", "I-place")
    assert read.rows == (
        Tagged("0", ("In", "New", "Rome"), ("O", "B-place", "I-place")),
        Tagged("1", ("#Ann", '"'), ("B-person", "O")),
    )


def test_columns_between_blanks_documents_and_the_column_of_the_tag(tmp_path):
    content = "-DOCSTART- -X- O O\n\nIn IN O B-x\nRome  NNP B-place O\n\n-DOCSTART- -X- O O\nAnn NNP O O\n"
    path = file(tmp_path, content)
    assert [row.tags for row in read_file(path, tag=2).rows] == [("O", "B-place"), ("O",)]
    assert [row.tags for row in read_file(path).rows] == [("B-x", "O"), ("O",)]
    plain = read_file(path, tag=1)
    assert plain.labels == ("IN", "NNP")
    assert [row.words for row in plain.rows] == [("In", "Rome"), ("Ann",)]
    assert "has 4 columns, and the tag should be in column 4" in refusal(path, tag=4)


def test_windows_files_and_other_names_read_the_same(tmp_path):
    plain = read_file(file(tmp_path, ROME)).rows
    assert read_file(file(tmp_path, b"\xef\xbb\xbf" + ROME.replace("\n", "\r\n").encode())).rows == plain
    assert read_file(file(tmp_path, ROME + "\n \t\n", "a.tsv"), "tags").rows == plain
    lines = json.dumps({"tokens": ["In", "New", "Rome"], "ner_tags": ["O", "B-place", "I-place"]})
    assert read_file(file(tmp_path, lines, "a.jsonl")).rows == plain


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Rome\tI-place", "has 'I-place' after 'O': in IOB2 an entity begins with 'B-place'"),
        ("New\tB-place\nRome\tI-person", "has 'I-person' after 'B-place'"),
        ("Rome\tS-place", "has the tag 'S-place', and IOB2 has only O, B-... and I-..."),
        ("Rome\tB-", "has the tag 'B-'"),
        ("Rome", "has 1 column, and the first line 2"),
        ("Rome\tO\tO", "has 3 columns, and the first line 2"),
        ("Rome\t", "has no tag"),
        ("\tO", "has no word"),
        ("Ro\0me\tO", "holds a NUL"),
    ],
)
def test_a_faulty_line_is_named_and_its_sentence_left_out(tmp_path, line, reason):
    path = file(tmp_path, f"{ROME}\nFor\tO\n{line}\nnow\tO\n\nAnn\tB-person\n")
    message = refusal(path)
    assert f"\n  line {6 + line.count(chr(10))} {reason}" in message
    read = read_file(path, on_bad_row="skip")
    assert [row.key for row in read.rows] == ["0", "2"]
    assert len(read.skipped) == 1


def test_a_line_that_is_no_text_never_joins_two_sentences(tmp_path):
    path = file(tmp_path, ROME.encode() + b"\xff\n" + ROME.encode() + b"\n" + ROME.encode())
    assert "line 4 is not UTF-8" in refusal(path)
    assert [row.key for row in read_file(path, on_bad_row="skip").rows] == ["1"]


def test_tags_that_the_task_does_not_have(tmp_path):
    path = file(tmp_path, ROME)
    labels = ("O", "B-person", "I-person", "B-places", "I-places")
    assert "line 2 has the unknown tag 'B-place'; did you mean 'B-places'?" in refusal(path, "tags", labels)
    assert "every tag is 'O'" in refusal(file(tmp_path, "a\tO\nb\tO\n"))
    assert read_file(file(tmp_path, "a\tO\nb\tO\n"), "tags", labels).labels == labels


def test_words_alone(tmp_path):
    path = file(tmp_path, "In\nRome\n\nAnn\n")
    assert "line 1 has no tags" in refusal(path)
    read = read_file(path, labels=("O", "B-x", "I-x"), labelled=False)
    assert [row.tags for row in read.rows] == [None, None]
    assert not read.labelled


@pytest.mark.parametrize("content", ["", "\n\n", "-DOCSTART- O\n\n"])
def test_files_without_sentences_are_refused(tmp_path, content):
    assert "holds no rows" in refusal(file(tmp_path, content))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"words": [], "tags": []}, "needs a list of words"),
        ({"words": ["a", 1], "tags": ["O", "O"]}, "needs a list of words"),
        ({"words": ["a", "b"], "tags": ["O"]}, "has 2 words, and not a tag for each"),
        ({"words": ["a", "b"], "tags": ["O", "I-x"]}, "has 'I-x' after 'O'"),
        ({"words": ["a"], "tags": None}, "has no tags"),
    ],
)
def test_faulty_objects_are_named(tmp_path, fields, reason):
    good = {"words": ["a"], "tags": ["B-x"]}
    path = file(tmp_path, "\n".join(map(json.dumps, [good, fields])), "a.jsonl")
    assert f"row 2 {reason}" in refusal(path)


def test_every_sentence_of_a_random_file_is_read_as_it_stands_or_has_a_fault(tmp_path):
    chance = Random(7)
    pieces = [
        "Ann\tO",
        "Ann\tO",
        "Rome\tB-x",
        "Rome\tI-x",
        "",
        "",
        " ",
        "a b\tO",
        '"\tO',
        "Rome",
        "\t",
        "\u00a0\tO",
        "\0\tO",
        "a\tO\tO",
        "-DOCSTART-\tO",
    ]
    for number in range(60):
        lines = ["Ann\tB-x", "", *chance.choices(pieces, k=30), "", "Ann\tO"]
        read = read_file(file(tmp_path, "\n".join(lines), f"{number}.conll"), on_bad_row="skip")
        faults = {int(reason.split()[1]) for reason in read.skipped}
        blocks: list[dict[int, str]] = [{}]
        for place, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("-DOC"):
                blocks.append({})
            else:
                blocks[-1][place] = line
        whole = [block for block in blocks if block and not faults & block.keys()]
        assert [[f"{word}\t{tag}" for word, tag in zip(row.words, row.tags, strict=True)] for row in read.rows] == [
            list(block.values()) for block in whole
        ]
        assert faults <= {place for block in blocks for place in block}
