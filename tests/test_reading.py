"""Anyone's own files are read as they stand, line by line, or refused with the rows at fault."""

import gzip
import json
import re
from pathlib import Path
from random import Random

import pytest
from files import refusal, written

from layerwright.tasks.examples import Choice, Row
from layerwright.tasks.reading import read_file
from layerwright.tasks.records import LONGEST_ROW

HEADER = "idx\tsentence1\tsentence2\tlabel\n"


def table(folder: Path, content: str | bytes, name: str = "some.tsv") -> Path:
    return written(folder, content, name)


def test_pairs_and_their_classes(tmp_path):
    read = read_file(table(tmp_path, HEADER + "0\tA man sings.\tA man is singing.\tyes\n1\tA dog\tA cat\tno\n"))
    assert read.kind == "classification"
    assert read.labels == ("no", "yes")
    assert read.rows == (Row("0", "A man sings.", "A man is singing.", 1), Row("1", "A dog", "A cat", 0))
    assert read.pairs


@pytest.mark.parametrize("header", ["sentence1\tlabel", "sentence\tlabel", "text\tlabel", "text_a\tlabel"])
def test_one_sentence(tmp_path, header):
    read = read_file(table(tmp_path, f"{header}\na\t1\nb\t0"))
    assert read.rows == (Row("0", "a", None, 1), Row("1", "b", None, 0))
    assert not read.pairs


def test_an_empty_second_column_is_none(tmp_path):
    assert not read_file(table(tmp_path, HEADER + "0\ta\t\t1\n1\tb\t\t0\n")).pairs


def test_quotes_backslashes_and_odd_line_ends_stay_text(tmp_path):
    odd = ['"unbalanced', 'a "quoted" word', "it's", "back\\slash\\t", "line\u2028end\x85and\x0bvt", '""', "lone\rreturn"]
    read = read_file(table(tmp_path, "sentence1\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(odd))))
    assert [row.first for row in read.rows] == odd


def test_windows_files_read_the_same(tmp_path):
    plain = HEADER + "0\tcafé\tb\t1\n1\tc\td\t0\n"
    windows = b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode()
    assert read_file(table(tmp_path, plain)).rows == read_file(table(tmp_path, windows, "windows.tsv")).rows


def test_jsonl_reads_as_tsv_does(tmp_path):
    lines = [
        {"sentence1": 'a "b', "sentence2": "c\td", "label": True, "word": "ignored"},
        {"sentence1": "e", "sentence2": None, "label": False},
    ]
    read = read_file(table(tmp_path, "\n".join(map(json.dumps, lines)), "some.jsonl"))
    assert read.labels == ("false", "true")
    assert read.rows == (Row("0", 'a "b', "c\td", 1), Row("1", "e", "", 0))


@pytest.mark.parametrize(
    ("written", "labels"),
    [(["10", "9", "1"], ("1", "9", "10")), (["b", "a", "10"], ("10", "a", "b")), (["v1.5", "nan"], ("nan", "v1.5"))],
)
def test_found_labels_are_in_order(tmp_path, written, labels):
    rows = "".join(f"text\t{label}\n" for label in written)
    assert read_file(table(tmp_path, "text\tlabel\n" + rows)).labels == labels


def test_given_labels_keep_their_order(tmp_path):
    path = table(tmp_path, "text\tlabel\na\tyes\nb\tno\n")
    assert [row.label for row in read_file(path, None, ["yes", "maybe", "no"]).rows] == [0, 2]


def test_fractions_make_a_regression_and_integers_do_not(tmp_path):
    fractions = read_file(table(tmp_path, "text\tlabel\na\t5.000\nb\t-1e-1\nc\t2\n"))
    assert (fractions.kind, fractions.labels) == ("regression", ())
    assert [row.label for row in fractions.rows] == [5, -0.1, 2]
    integers = table(tmp_path, "text\tlabel\na\t5\nb\t1\n")
    assert read_file(integers).kind == "classification"
    assert [row.label for row in read_file(integers, "regression").rows] == [5, 1]
    numbers = "\n".join(json.dumps({"text": "a", "label": label}) for label in (3, 4.0))
    assert read_file(table(tmp_path, numbers, "some.jsonl")).kind == "regression"


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


def skipping(path: Path, *arguments: object, **more: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    read = read_file(path, *arguments, on_bad_row="skip", **more)
    return tuple(row.key for row in read.rows), read.skipped


def test_skipped_rows_are_counted_and_named_and_the_others_keep_their_ids(tmp_path):
    lines = [b"text\tlabel", b"a\t1", b"b", b"", b"c\t0\tx", b"caf\xe9\t1", b"d\0\t1", b'"e\t0', b"f\t", b'g"\t1']
    path = table(tmp_path, b"\n".join(lines))
    keys, skipped = skipping(path)
    assert keys == ("0", "6", "8")
    assert [int(reason.split()[1]) for reason in skipped] == [3, 4, 5, 6, 7, 9]
    assert skipped[-1] == "row 9 has no label"
    assert "6 faults" in refusal(path)


def test_every_line_of_a_random_file_is_a_row_or_a_fault(tmp_path):
    chance = Random(5)
    pieces = ["a", '"', "\t", "\t", "0", "1", "\0", " ", "\ud800", "\r", "é", "\u2028"]
    for number in range(40):
        lines = ["".join(chance.choices(pieces, k=chance.randint(0, 8))) for _ in range(30)] + ["x\t0", "y\t1"]
        path = table(tmp_path, ("text\tlabel\n" + "\n".join(lines)).encode(errors="surrogatepass"), f"{number}.tsv")
        read = read_file(path, "classification", ["0", "1"], on_bad_row="skip")
        named = [int(reason.split()[1]) for reason in read.skipped]
        assert sorted([*named, *(int(row.key) + 2 for row in read.rows)]) == list(range(2, len(lines) + 2))
        for row in read.rows:
            assert (
                lines[int(row.key)].removesuffix("\r").split("\t") == [row.first, str(row.label)] or lines[int(row.key)].strip()
            )


def test_a_long_line_does_not_hide_the_lines_after_it(tmp_path):
    path = table(tmp_path, "text\tlabel\na\t1\n" + "x" * (LONGEST_ROW + 5) + "\nb\t0\n")
    keys, skipped = skipping(path)
    assert keys == ("0", "2")
    assert re.match(r"row 3 is longer than", skipped[0])


def test_a_fault_of_the_header_cannot_be_skipped(tmp_path):
    for header in ("text\tlable\n", "tex\0t\tlabel\n", "label\tlabel\ttext\n", "\ntext\tlabel\n"):
        assert "row 1 " in refusal(table(tmp_path, header + "a\t1\nb\t0\n"), on_bad_row="skip")


def test_a_file_of_which_nothing_is_left_is_refused(tmp_path):
    assert "all 2 were skipped" in refusal(table(tmp_path, "text\tlabel\na\nb\n"), on_bad_row="skip")
    with pytest.raises(ValueError, match="did you mean 'skip'"):
        read_file(table(tmp_path, "text\tlabel\na\t1\n"), on_bad_row="skipp")


def test_ids_name_rows_and_may_not_repeat(tmp_path):
    path = table(tmp_path, "id\ttext\tlabel\nq7\ta\t1\nq8\tb\t0\nq7\tc\t0\n")
    assert "row 4 has the id 'q7' of row 2" in refusal(path)
    assert skipping(path) == (("q7", "q8"), ("row 4 has the id 'q7' of row 2",))


def test_labels_may_be_missing_from_all_rows_or_from_none(tmp_path):
    plain = table(tmp_path, "text\na\nb\n")
    assert "has no column 'label'" in refusal(plain)
    read = read_file(plain, "classification", ["no", "yes"], labelled=False)
    assert [row.label for row in read.rows] == [None, None]
    assert (read.labels, read.labelled) == (("no", "yes"), False)
    some = table(tmp_path, "text\tlabel\na\t\nb\tyes\n")
    assert "row 2 has no label" in refusal(some, "classification", ["no", "yes"], labelled=False)


def test_gzipped_files_read_the_same_and_torn_ones_are_refused(tmp_path):
    content = "text\tlabel\n" + "".join(f"row {row} {hash(row)}\t{row % 2}\n" for row in range(500))
    packed = gzip.compress(content.encode())
    assert read_file(table(tmp_path, packed, "a.tsv.gz")).rows == read_file(table(tmp_path, content)).rows
    for torn in (packed[:200], b"no gzip", packed[:100] + b"\0\0\0\0" + packed[104:]):
        assert "is not a whole gzip file" in refusal(table(tmp_path, torn, "b.tsv.gz"))


def test_choices_from_columns_and_from_lists(tmp_path):
    columns = table(tmp_path, "text\tchoice1\tchoice2\tlabel\nIt rained.\tI got wet.\tIt was dry.\t0\nb\tc\td\t1\n")
    read = read_file(columns)
    assert (read.kind, read.labels) == ("choices", ())
    assert read.rows[0] == Choice("0", "It rained.", ("I got wet.", "It was dry."), 0)
    lists = [{"text": "b", "options": ["c", "d"], "label": 1}, {"text": "e", "endings": ["f", "g"], "label": "0"}]
    read = read_file(table(tmp_path, "\n".join(map(json.dumps, lists)), "some.jsonl"))
    assert read.rows == (Choice("0", "b", ("c", "d"), 1), Choice("1", "e", ("f", "g"), 0))
    many = "text\tlabel\t" + "\t".join(f"option{n}" for n in range(11)) + "\na\t10\t" + "\t".join("abcdefghijk")
    assert read_file(table(tmp_path, many)).rows[0].options == tuple("abcdefghijk")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"options": ["c"], "label": 0}, "needs two options or more"),
        ({"label": 0}, "needs two options or more"),
        ({"options": ["c", " "], "label": 0}, "has an option without text"),
        ({"options": ["c", "d", "e"], "label": 0}, "has 3 options, and row 1 2"),
        ({"options": ["c", "d"], "label": 2}, "has the label '2', where the places of options are 0 to 1"),
        ({"options": ["c", "d"], "label": -1}, "has the label '-1'"),
        ({"options": ["c", "d"], "label": "²"}, "has the label '²'"),
        ({"options": ["c", "d"]}, "has no column 'label'"),
        ({"options": ["c", "d\0"], "label": 1}, "holds a NUL"),
        ({"options": ["c", "d"], "label": 1, "sentence2": "e"}, "has a second text beside its options"),
    ],
)
def test_faulty_choices_name_their_row(tmp_path, fields, reason):
    first = {"text": "a", "options": ["c", "d"], "label": 0}
    path = table(tmp_path, "\n".join(map(json.dumps, [first, {"text": "b"} | fields])), "some.jsonl")
    assert f"row 2 {reason}" in refusal(path)
    assert len(skipping(path)[0]) == 1
