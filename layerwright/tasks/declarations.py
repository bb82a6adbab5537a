"""The tasks that are known by name, each one declaration: its columns, its labels in order, its metrics, where its files are.

A task's own files, the one form of this project's tables and the data set of the hub all have other names for the same columns;
`columns` lists them, and which form a file has is told by the names it has.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from layerwright.errors import nearest
from layerwright.tasks import official
from layerwright.tasks.examples import Kind
from layerwright.tasks.reading import Columns


@dataclass(frozen=True)
class Hub:
    """A data set of the hub; `splits` names those that are called otherwise than train, validation and test."""

    name: str
    config: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task of a suite.

    labels: classes or tags in order; the order is that of the logits of every model fine-tuned on it.  metrics: those of its
    official scorer, the first of which decides.  folders, splits: the places and names its files have, the first that is there
    being read.  headless: the columns of official files without a header.  aliases: other spellings of labels.  between: the
    least and greatest number of a regression.  shape: what makes rows of records, where columns do not say it.  part: what tells
    splits apart that share a file.  submissions: the file a benchmark's server wants, by split.  note: what one should know.
    """

    name: str
    suite: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: Columns
    folders: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    hub: Hub
    headless: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    between: tuple[float, float] | None = None
    shape: official.Shape | None = None
    part: official.Part | None = None
    submissions: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def pairs(self) -> bool:
        """Tell whether its rows hold two texts."""
        return "second" in self.columns


NLI = ("entailment", "neutral", "contradiction")
ENTAILED = ("entailment", "not_entailment")
BINARY = ("0", "1")
TRUTH = ("false", "true")
WNUT_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")

_PREMISE = {"first": ("sentence1", "premise", "Premise"), "second": ("sentence2", "hypothesis", "Hypothesis")}
_SENTENCES = {"first": ("sentence1",), "second": ("sentence2",)}
_SENTENCE = {"first": ("sentence1", "sentence")}
_LABEL = {"label": ("label",), "key": ("idx", "index")}
_SHAPED = {name: (name,) for name in ("first", "second", "label", "key", "group")}
_CHOSEN = {name: (name,) for name in ("first", "label", "key")}
_TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
_JSONL = {
    "train": ("train.jsonl",),
    "dev": ("val.jsonl", "dev.jsonl"),
    "test": ("test.jsonl",),
    "train32": ("train32.jsonl",),
    "dev32": ("dev32.jsonl",),
}
_WRITTEN = {"False": "false", "True": "true"}
_ENTAILS = {"not_entailment": "0", "entailment": "1"}
_DUPLICATES = {"not_duplicate": "0", "duplicate": "1"}
_EQUIVALENTS = {"not_equivalent": "0", "equivalent": "1"}


def _glue(name: str, labels: tuple[str, ...], metrics: tuple[str, ...], hub: Hub | str, columns: Columns, **more: Any) -> Task:
    kind: Kind = "classification" if labels else "regression"
    found = hub if isinstance(hub, Hub) else Hub("nyu-mll/glue", hub)
    usual: dict[str, Any] = {"splits": _TSV, "submissions": {"test": f"{name}.tsv"}}
    return Task(name, "glue", kind, labels, metrics, _LABEL | dict(columns), (f"glue/{name}", name), hub=found, **usual | more)


def _sick(name: str, labels: tuple[str, ...], metrics: tuple[str, ...], judged: tuple[str, ...], **more: Any) -> Task:
    """Declare one of the two tasks that share the files of SICK, the official ones having both labels."""
    columns = {"first": ("sentence1", "sentence_A"), "second": ("sentence2", "sentence_B"), "label": ("label", *judged)}
    splits = {
        "train": ("train.tsv", "SICK_train.txt", "SICK.txt"),
        "dev": ("dev.tsv", "SICK_trial.txt", "SICK.txt"),
        "test": ("test.tsv", "SICK_test_annotated.txt", "SICK.txt"),
    }
    folders = (f"extra/{name}", name, "SICK", "extra/SICK")
    kind: Kind = "classification" if labels else "regression"
    columns["key"] = ("idx", "pair_ID")
    return Task(name, "extra", kind, labels, metrics, columns, folders, splits, part=official.sick_part, **more)


def _superglue(name: str, labels: tuple[str, ...], metrics: tuple[str, ...], columns: Columns, **more: Any) -> Task:
    kind: Kind = "classification" if labels else "choices"
    hub = Hub("aps/super_glue", name.lower())
    folders, submissions = (f"superglue/{name}", name), {"test": f"{name}.jsonl"}
    return Task(name, "superglue", kind, labels, metrics, columns, folders, _JSONL, hub, submissions=submissions, **more)


def _squad(version: str, hub: str, note: str) -> Task:
    splits = {split: tuple(f"{split}-{version}.json{end}" for end in ("", ".gz")) for split in ("train", "dev")}
    scores = ("exact_match", "answer_f1")
    return Task(f"SQuAD-{version}", "squad", "spans", (), scores, {}, ("squad", "SQuAD"), splits, Hub(hub), note=note)


_DECLARED = (
    _glue(
        "CoLA",
        BINARY,
        ("matthews",),
        "cola",
        _SENTENCE,
        headless=("source", "label", "mark", "sentence"),
        aliases={"unacceptable": "0", "acceptable": "1"},
        note="1 is acceptable. The official train.tsv and dev.tsv have no header.",
    ),
    _glue(
        "SST-2",
        BINARY,
        ("accuracy",),
        "sst2",
        _SENTENCE,
        aliases={"negative": "0", "positive": "1"},
        note="1 is positive. The training rows are phrases, the others sentences.",
    ),
    _glue(
        "MRPC",
        BINARY,
        ("f1", "accuracy"),
        "mrpc",
        {"first": ("sentence1", "#1 String"), "second": ("sentence2", "#2 String"), "label": ("label", "Quality")},
        splits={
            "train": ("train.tsv", "msr_paraphrase_train.txt"),
            "dev": ("dev.tsv", "msr_paraphrase_train.txt"),
            "test": ("test.tsv", "msr_paraphrase_test.txt"),
        },
        part=official.mrpc_part,
        aliases=_EQUIVALENTS,
        note="1 is a paraphrase. msr_paraphrase_train.txt holds GLUE's train and dev rows; its dev_ids.tsv tells them apart.",
    ),
    _glue(
        "STS-B",
        (),
        ("pearson", "spearman"),
        "stsb",
        _SENTENCES | {"label": ("label", "score")},
        between=(0.0, 5.0),
        note="Similarity from 0 to 5.",
    ),
    _glue(
        "QQP",
        BINARY,
        ("f1", "accuracy"),
        "qqp",
        {
            "first": ("sentence1", "question1"),
            "second": ("sentence2", "question2"),
            "label": ("label", "is_duplicate"),
            "key": ("idx", "index", "id"),
        },
        aliases=_DUPLICATES,
        note="1 is a duplicate. GLUE's train.tsv has broken rows, which its readers leave out: on_bad_row='skip' names them.",
    ),
    _glue(
        "MNLI",
        NLI,
        ("accuracy",),
        Hub(
            "nyu-mll/glue",
            "mnli",
            {
                "dev": "validation_matched",
                "dev_mismatched": "validation_mismatched",
                "test": "test_matched",
                "test_mismatched": "test_mismatched",
            },
        ),
        {"first": ("sentence1", "premise"), "second": ("sentence2", "hypothesis"), "label": ("label", "gold_label")},
        splits={
            "train": ("train.tsv",),
            "dev": ("dev_matched.tsv", "dev.tsv"),
            "dev_mismatched": ("dev_mismatched.tsv",),
            "test": ("test_matched.tsv", "test.tsv"),
            "test_mismatched": ("test_mismatched.tsv",),
        },
        submissions={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        note="Rows without an agreed label ('-') are not in GLUE's files; in those of MultiNLI each is a fault, to be skipped.",
    ),
    _glue("QNLI", ENTAILED, ("accuracy",), "qnli", {"first": ("sentence1", "question"), "second": ("sentence2", "sentence")}),
    _glue("RTE", ENTAILED, ("accuracy",), "rte", _SENTENCES),
    _glue(
        "WNLI",
        BINARY,
        ("accuracy",),
        "wnli",
        _SENTENCES,
        aliases=_ENTAILS,
        note="1 is entailment. The dev rows repeat training sentences with the other label.",
    ),
    _glue(
        "AX",
        NLI,
        ("matthews",),
        "ax",
        _PREMISE | {"label": ("label", "Label")},
        splits={"test": ("test.tsv", "diagnostic-full.tsv", "diagnostic.tsv")},
        note="A diagnostic set for models of MNLI; GLUE gives it without labels.",
    ),
    _sick(
        "SICK-E",
        NLI,
        ("accuracy",),
        ("entailment_judgment", "entailment_label"),
        hub=Hub("RobZamp/sick"),
        aliases={name.upper(): name for name in NLI},
    ),
    _sick(
        "SICK-R",
        (),
        ("pearson", "spearman"),
        ("relatedness_score",),
        hub=Hub("RobZamp/sick", columns={"label": ("relatedness_score",)}),
        between=(1.0, 5.0),
        note="Relatedness from 1 to 5.",
    ),
    _superglue(
        "BoolQ",
        TRUTH,
        ("accuracy",),
        _LABEL | {"first": ("question",), "second": ("passage",)},
        aliases=_WRITTEN,
        note="The question is the first text, the passage the second.",
    ),
    _superglue("CB", NLI, ("accuracy", "macro_f1"), _LABEL | {"first": ("premise",), "second": ("hypothesis",)}),
    _superglue(
        "COPA",
        (),
        ("accuracy",),
        _CHOSEN,
        shape=official.copa,
        aliases={"choice1": "0", "choice2": "1"},
        note="After the premise stands what is asked for, the cause or the result; the alternatives are the options.",
    ),
    _superglue(
        "MultiRC",
        BINARY,
        ("f1", "exact_match"),
        _SHAPED,
        shape=official.multirc,
        aliases={"False": "0", "True": "1"},
        note="A row is an answer: the passage, then question and answer. The exact match is over the answers to a question.",
    ),
    _superglue(
        "WiC",
        TRUTH,
        ("accuracy",),
        _SHAPED,
        shape=official.wic,
        aliases=_WRITTEN,
        note="The word stands between asterisks in both sentences; its base form is not given.",
    ),
    _superglue(
        "WSC",
        TRUTH,
        ("accuracy",),
        _SHAPED,
        shape=official.wsc,
        aliases=_WRITTEN,
        note="The pronoun stands between asterisks in the text, and the noun phrase is the second text.",
    ),
    _squad("v1.1", "rajpurkar/squad", "Every question has an answer."),
    _squad("v2.0", "rajpurkar/squad_v2", "Half of the questions cannot be answered; no answer is the empty text."),
    Task(
        "WNUT-17",
        "ner",
        "tags",
        ("O", *(f"{part}-{name}" for name in WNUT_TYPES for part in "BI")),
        ("entity_f1", "entity_precision", "entity_recall"),
        {},
        ("ner/wnut17", "wnut17", "WNUT-17"),
        {
            "train": ("train.tsv", "wnut17train.conll"),
            "dev": ("dev.tsv", "emerging.dev.conll"),
            "test": ("test.tsv", "emerging.test.annotated"),
        },
        Hub("leondz/wnut_17"),
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _DECLARED})


def find(name: str) -> Task:
    """Return the task of a name, whose case, blanks and hyphens do not matter.

    Raises: ValueError with the name nearest to an unknown one.
    """
    by_letters = {_letters(known): task for known, task in TASKS.items()}
    if (task := by_letters.get(_letters(name))) is None:
        raise ValueError(f"no task {name!r}{nearest(name, TASKS)}")
    return task


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
