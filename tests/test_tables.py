"""Tables are read as they stand, line by line, or refused with the rows at fault."""

import json
import os
import re
from pathlib import Path

import pytest

from layerwright.errors import DataError, exit_code
from layerwright.tasks.tables import LONGEST_ROW, Row, read_table

LARGE = os.environ.get("LAYERWRIGHT_DATA")
HEADER = "idx\tsentence1\tsentence2\tlabel\n"


def table(folder: Path, content: str | bytes, name: str = "some.tsv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, *arguments: object) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, *arguments)
    assert exit_code(caught.value) == 3
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_pairs_and_their_classes(tmp_path):
    read = read_table(table(tmp_path, HEADER + "0\tA man sings.\tA man is singing.\tyes\n1\tA dog\tA cat\tno\n"))
    assert read.kind == "classification"
    assert read.labels == ("no", "yes")
    assert read.rows == (Row("A man sings.", "A man is singing.", 1), Row("A dog", "A cat", 0))
    assert read.pairs


@pytest.mark.parametrize("header", ["sentence1\tlabel", "sentence\tlabel", "text\tlabel", "text_a\tlabel"])
def test_one_sentence(tmp_path, header):
    read = read_table(table(tmp_path, f"{header}\na\t1\nb\t0"))
    assert read.rows == (Row("a", None, 1), Row("b", None, 0))
    assert not read.pairs


def test_an_empty_second_column_is_none(tmp_path):
    assert not read_table(table(tmp_path, HEADER + "0\ta\t\t1\n1\tb\t\t0\n")).pairs


def test_quotes_backslashes_and_odd_line_ends_stay_text(tmp_path):
    odd = ['"unbalanced', 'a "quoted" word', "it's", "back\\slash\\t", "line\u2028end\x85and\x0bvt", '""', "lone\rreturn"]
    read = read_table(table(tmp_path, "sentence1\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(odd))))
    assert [row.first for row in read.rows] == odd


def test_windows_files_read_the_same(tmp_path):
    plain = HEADER + "0\tcafé\tb\t1\n1\tc\td\t0\n"
    windows = b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode()
    assert read_table(table(tmp_path, plain)).rows == read_table(table(tmp_path, windows, "windows.tsv")).rows


def test_jsonl_reads_as_tsv_does(tmp_path):
    lines = [
        {"sentence1": 'a "b', "sentence2": "c\td", "label": True, "word": "ignored"},
        {"sentence1": "e", "sentence2": None, "label": False},
    ]
    read = read_table(table(tmp_path, "\n".join(map(json.dumps, lines)), "some.jsonl"))
    assert read.labels == ("false", "true")
    assert read.rows == (Row('a "b', "c\td", 1), Row("e", "", 0))


@pytest.mark.parametrize(
    ("written", "labels"),
    [(["10", "9", "1"], ("1", "9", "10")), (["b", "a", "10"], ("10", "a", "b")), (["v1.5", "nan"], ("nan", "v1.5"))],
)
def test_found_labels_are_in_order(tmp_path, written, labels):
    rows = "".join(f"text\t{label}\n" for label in written)
    assert read_table(table(tmp_path, "text\tlabel\n" + rows)).labels == labels


def test_given_labels_keep_their_order(tmp_path):
    path = table(tmp_path, "text\tlabel\na\tyes\nb\tno\n")
    assert [row.label for row in read_table(path, None, ["yes", "maybe", "no"]).rows] == [0, 2]


def test_fractions_make_a_regression_and_integers_do_not(tmp_path):
    fractions = read_table(table(tmp_path, "text\tlabel\na\t5.000\nb\t-1e-1\nc\t2\n"))
    assert (fractions.kind, fractions.labels) == ("regression", ())
    assert [row.label for row in fractions.rows] == [5, -0.1, 2]
    integers = table(tmp_path, "text\tlabel\na\t5\nb\t1\n")
    assert read_table(integers).kind == "classification"
    assert [row.label for row in read_table(integers, "regression").rows] == [5, 1]
    numbers = "\n".join(json.dumps({"text": "a", "label": label}) for label in (3, 4.0))
    assert read_table(table(tmp_path, numbers, "some.jsonl")).kind == "regression"


@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        (HEADER + "0\ta\tb\t1\n1\ta\tb\n", 3, "has 3 fields, and the header 4"),
        (HEADER + "0\ta\tb\t1\textra\n", 2, "has 5 fields, and the header 4"),
        (HEADER + "0\ta\tb\t1\n\n2\ta\tb\t0\n", 3, "is blank"),
        (HEADER + "0\ta\0a\tb\t1\n", 2, "NUL"),
        ((HEADER + "0\ta\tb\t1\n").encode() + b"1\tcaf\xe9\tb\t0\n", 3, "is not UTF-8 at byte 6 (0xe9)"),
        (HEADER + "0\ta\tb\t1\n1\ta\tb\t\n", 3, "has no label"),
        (HEADER + "0\t\t \t1\n", 2, "has no sentence"),
        ("sentence1\tsentence2\na\tb\n", 1, "has no column 'label'"),
        ("sentence1\tlable\na\t1\n", 1, "has no column 'label'; did you mean 'lable'?"),
        ("sentence1\tsentense2\tlabel\na\tb\t1\n", 1, "did you mean 'sentence2'?"),
        ("sentence1\ttext\tlabel\na\tb\t1\n", 1, "has both a column 'sentence1' and a column 'text'"),
        ("a\tb\t1\n", 1, "has no column 'sentence1'"),
        (HEADER.encode("utf-16"), 1, "is not UTF-8"),
    ],
)
def test_a_faulty_tsv_names_its_row(tmp_path, content, row, reason):
    message = refusal(table(tmp_path, content))
    assert re.search(rf"^  row {row} .*{re.escape(reason)}", message, re.MULTILINE), message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a", "label": 1', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('["a", 1]', "is not an object"),
        ('{"text": "a"}', "has no column 'label'"),
        ('{"text": "a", "label": null}', "has no label"),
        ('{"text": 5, "label": 1}', "needs text"),
        ('{"text": "a", "label": [1]}', "needs text"),
        (r'{"text": "a\u0000", "label": 1}', "holds a NUL"),
        (r'{"text": "\ud800", "label": 1}', "surrogate"),
    ],
)
def test_a_faulty_jsonl_names_its_row(tmp_path, line, reason):
    message = refusal(table(tmp_path, '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n' + line, "some.jsonl"))
    assert re.search(rf"^  row 3 .*{reason}", message, re.MULTILINE), message


def test_unknown_labels_name_row_and_nearest(tmp_path):
    path = table(tmp_path, "text\tlabel\na\tentailment\nb\tentailmnt\n")
    assert "row 3 has the unknown label 'entailmnt'; did you mean 'entailment'?" in refusal(path, None, ["neutral", "entailment"])


@pytest.mark.parametrize("label", ["high", "nan", "inf", "1e999", "1_0", "1,5", "٣"])
def test_a_regression_needs_numbers(tmp_path, label):
    assert f"row 3 has the label {label!r}" in refusal(table(tmp_path, f"text\tlabel\na\t0.5\nb\t{label}\n"))


@pytest.mark.parametrize("content", ["", HEADER, HEADER.rstrip("\n")])
def test_a_table_without_rows_is_refused(tmp_path, content):
    assert "holds no rows" in refusal(table(tmp_path, content))


def test_missing_files_other_formats_and_one_class_are_refused(tmp_path):
    assert "there is no file" in refusal(tmp_path / "none.tsv")
    assert "not a table" in refusal(table(tmp_path, "a,b", "some.csv"))
    assert "every label is '1'" in refusal(table(tmp_path, "text\tlabel\na\t1\n"))


def test_an_endless_line_is_not_read_whole(tmp_path):
    message = refusal(table(tmp_path, "text\tlabel\na\t1\n" + "x" * (3 * LONGEST_ROW)))
    assert re.search(r"row 3 is longer than [\d,]+ bytes", message)


def test_ten_faults_are_shown_in_order_and_the_rest_counted(tmp_path):
    rows = "".join(f"a\t{'' if row % 2 else 'x	y'}\n" for row in range(2, 14))
    message = refusal(table(tmp_path, "text\tlabel\n" + rows)).splitlines()
    assert "12 faults" in message[0]
    assert [int(re.search(r"row (\d+)", line)[1]) for line in message[1:11]] == list(range(2, 12))
    assert message[11].strip() == "and 2 more"


@pytest.mark.large
@pytest.mark.skipif(not LARGE, reason="LAYERWRIGHT_DATA does not name a folder of tasks")
def test_real_tasks_have_the_rows_they_should():
    folder = Path(LARGE or "")
    manifest = (folder / "MANIFEST.md").read_text()
    listed = re.findall(r"^\| ((?:glue|extra)/\S+\.tsv) \| ([\d,]+) \| ([^`|]+) \|", manifest, re.MULTILINE)
    assert len(listed) == 29
    for name, rows, labels in listed:
        if "(none)" in labels:
            assert "has no label" in refusal(folder / name)
            continue
        read = read_table(folder / name)
        assert len(read.rows) == int(rows.replace(",", "")), name
        if read.kind == "classification":
            counts = [f"{label}: {sum(row.label == place for row in read.rows):,}" for place, label in enumerate(read.labels)]
            assert ", ".join(counts) == labels
        else:
            low, high = map(float, re.match(r"range ([\d.]+)\.\.([\d.]+)", labels).groups())
            assert (min(row.label for row in read.rows), max(row.label for row in read.rows)) == (low, high)
        assert read.pairs == (name.split("/")[1] not in {"CoLA", "SST-2"})
