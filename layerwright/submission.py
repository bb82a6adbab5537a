"""Write the files that the server of GLUE scores: an answer for each row of a test split, in the server's order.

The server goes by the place of a row, and scores whatever it is given: answers in another order come back as a low score and
nothing else. So the rows are put in the order of their index, and where their number or the first of them is not that of GLUE's
own file, it is said.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError
from .inference import open_model
from .prediction import Predictor
from .scoreboard import Evaluation, TaskScores, percent
from .settings import write_atomically
from .tasks.catalog import TASKS, read
from .tasks.examples import Examples, OnBadRow
from .tasks.metrics import score
from .tasks.suites import DIAGNOSTIC

FOLDER = "submission"


class Official(NamedTuple):
    """A test file of GLUE; begins: of the first row, SHA-256 of the first 16 letters and digits in lower case, cut to 8."""

    rows: int
    begins: str


OFFICIAL = {
    "CoLA.tsv": Official(1_063, "29f8c7c2"),
    "SST-2.tsv": Official(1_821, "59b5f34d"),
    "MRPC.tsv": Official(1_725, "850f87a0"),
    "STS-B.tsv": Official(1_379, "775348ae"),
    "QQP.tsv": Official(390_965, "367779f7"),
    "MNLI-m.tsv": Official(9_796, "d4a39079"),
    "MNLI-mm.tsv": Official(9_847, "2a89e488"),
    "QNLI.tsv": Official(5_463, "465e9ced"),
    "RTE.tsv": Official(3_000, "9750eb0a"),
    "WNLI.tsv": Official(146, "60f453d9"),
    "AX.tsv": Official(1_104, "a47dfb71"),
}


def submit(out: Path, done: Evaluation, on_bad_row: OnBadRow = "stop") -> dict[str, str]:
    """Write OUT/submission/TASK.tsv for each task of GLUE with a test split, answered by the model of the median seed.

    The diagnostic set is answered by the model of MNLI. Returns what is to be said of each file, and of those that lack.
    """
    notes = {}
    for one in (one for one in done.tasks if one.suite == "glue"):
        for split, file in TASKS[one.task].submissions.items():
            written = out / one.task / "seeds" / str(one.median_seed) / f"predictions.{split}.jsonl"
            if not written.is_file():
                notes[file] = f"not written, there is no {split} split"
                continue
            examples = read(one.task, split, done.source, on_bad_row=on_bad_row)
            notes[file] = _write(out / FOLDER / file, examples, _predictions(written)) or f"seed {one.median_seed}"
        if one.task == "MNLI":
            notes |= _diagnose(out, one, done.source, on_bad_row)
    lacking = [file for file in OFFICIAL if not (out / FOLDER / file).is_file()]
    if 0 < len(lacking) < len(OFFICIAL):
        notes[f"{FOLDER}/"] = f"the server takes {len(OFFICIAL)} files together; not here: {', '.join(lacking)}"
    return notes


def _diagnose(out: Path, mnli: TaskScores, source: str, on_bad_row: OnBadRow) -> dict[str, str]:
    """Answer the diagnostic set with the model of MNLI, and score the answers if there are labels."""
    file = TASKS[DIAGNOSTIC].submissions["test"]
    try:
        examples = read(DIAGNOSTIC, "test", source, on_bad_row=on_bad_row)
    except DataError as error:
        return {file: f"not written: {error}"}
    predictor = Predictor(open_model(out / "MNLI" / "model", ["classification"]), length=mnli.settings["length"])
    answers = {one.key: one.said["label"] for one in predictor.predict(examples.rows)}
    note = _write(out / FOLDER / file, examples, answers)
    said = [note] if note else []
    if examples.labelled:
        numbers = [examples.labels.index(answers[row.key]) for row in examples.rows]
        measured = score(examples.kind, ["matthews"], examples, numbers)
        said.append(f"Matthews correlation {percent(measured.scores['matthews'])}, of seed {mnli.median_seed} of MNLI")
    return {file: "; ".join(said) or f"seed {mnli.median_seed} of MNLI"}


def _predictions(path: Path) -> dict[str, Any]:
    """Read predictions by the keys of their rows; lines of bytes, since in text other characters would end some, too."""
    lines = (json.loads(line) for line in path.read_bytes().splitlines())
    return {line["key"]: line["prediction"] for line in lines}


def _write(path: Path, examples: Examples[Any], answers: Mapping[str, Any]) -> str:
    """Write the answers in the order of the index, and say what is not as in GLUE's own file."""
    keys = [row.key for row in examples.rows]
    counted = sorted(keys, key=lambda key: int(key) if key.isdecimal() else -1)
    numbered = counted == [str(place) for place in range(len(keys))]
    order = counted if numbered else keys
    rows = [f"{place}\t{_said(answers[key])}\n" for place, key in enumerate(order)]
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, "".join(["index\tprediction\n", *rows]))
    first = next((row for row in examples.rows if row.key == order[0]), None)
    return _unlike(path.name, len(rows), first.first if first else "", numbered=numbered)


def _unlike(file: str, rows: int, first: str, *, numbered: bool) -> str:
    """Say what shows that rows are not those of GLUE's file, or not in its order."""
    official, said = OFFICIAL[file], []
    if not numbered:
        said.append("the rows have no index from 0 on, and stand as they do in the file")
    if rows != official.rows:
        said.append(f"there are {rows:,} rows, and {official.rows:,} in GLUE's file")
    if begins(first) != official.begins:
        said.append("the order is not GLUE's, the first row is another: the server would score it against other rows")
    return "; ".join(said)


def begins(text: str) -> str:
    """Return what tells the first row of a file: see `Official`."""
    letters = re.sub(r"[^a-z0-9]", "", text.lower())[:16]
    return hashlib.sha256(letters.encode()).hexdigest()[:8]


def _said(answer: Any) -> str:
    """Write an answer as the server reads it: a class by name, similarity as a number between 0 and 5."""
    return f"{min(max(answer, 0.0), 5.0):.3f}" if isinstance(answer, float) else str(answer)
