"""How a task is learned, by the names of those who published it; and the settings of a fine-tuning, which a protocol fills in.

A protocol says numbers for every task. Whoever sets a number has it instead, and what was used in the end is printed and kept
with the results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator

from layerwright.architecture import Architecture
from layerwright.errors import DataError, nearest
from layerwright.tasks.catalog import find
from layerwright.tasks.examples import Kind, OnBadRow
from layerwright.tasks.reading import CONLL, kind_of
from layerwright.tasks.records import Faults, jsonl_records, suffix_of, tsv_records

Numbers = Mapping[str, Any]
Beta = Annotated[float, Field(ge=0, lt=1)]

BY_MODEL = ("rate", "length", "layer_decay")  # settings that depend on the model, too
LARGE = ("SST-2", "QQP", "MNLI", "QNLI", "MultiRC", "SQuAD-v1.1", "SQuAD-v2.0")  # of which one seed tells enough to begin with
TINY = ("WNLI", "CB", "COPA", "WSC")  # under 700 rows, and without numbers in the papers: ours are those for RTE's 2,490


@dataclass(frozen=True)
class Protocol:
    """The numbers of a publication: for all tasks, by width of the model from some on, by kind and by name of the task.

    begins: tasks that begin with the weights of a model fine-tuned on another.  source: where the numbers are from, and where
    this differs.
    """

    source: str
    usual: Numbers
    widths: Mapping[int, Numbers] = field(default_factory=dict)
    kinds: Mapping[Kind, Numbers] = field(default_factory=dict)
    tasks: Mapping[str, Numbers] = field(default_factory=dict)
    begins: Mapping[str, str] = field(default_factory=dict)

    def numbers(self, task: str | None, kind: Kind | None, width: int = 0) -> dict[str, Any]:
        """Return what the protocol says for a task, or for one of a kind, learned by a model of a width."""
        wide = [numbers for least, numbers in sorted(self.widths.items()) if width >= least]
        of_kind = self.kinds.get(kind, {}) if kind else {}
        parts = (self.usual, *wide, of_kind, self.tasks.get(task or "", {}), {"seeds": 1} if task in LARGE else {})
        return {name: number for part in parts for name, number in part.items()}


def _mosaic(rate: float, batch: int, epochs: int, decay: float = 0.1) -> Numbers:
    return {"rate": rate, "batch": batch, "epochs": epochs, "decay": decay}


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "electra": Protocol(
            "Clark et al. 2020 and Yu et al. 2021 (LV-BERT), released code. There Adam has no bias correction, the answers of "
            "SQuAD have a joint head, and scores are medians of ten seeds",
            {"rate": 3e-4, "batch": 32, "epochs": 3, "length": 128, "warmup": 0.1, "decay": 0.01, "layer_decay": 0.8},
            widths={768: {"rate": 1e-4}, 1024: {"rate": 5e-5, "layer_decay": 0.9}},
            kinds={"spans": {"epochs": 2, "length": 512}},
            tasks={
                "RTE": {"epochs": 10},
                "STS-B": {"epochs": 10, "both_orders": True},
                "MRPC": {"both_orders": True},
                **{name: {"epochs": 10} for name in TINY},
            },
        ),
        "mosaic": Protocol(
            "Portes et al. 2023 (MosaicBERT), released code. There the rate ends at a fiftieth, here at 0; its weight decay, "
            "which no rate multiplies, is given here as that share of the rate",
            {"rate": 5e-5, "batch": 32, "epochs": 3, "length": 256, "warmup": 0.06, "decay": 0.1, "layer_decay": 1.0}
            | {"betas": (0.9, 0.98)},
            kinds={"spans": {"length": 384}},
            tasks={
                "MNLI": _mosaic(5e-5, 48, 3),
                "QQP": _mosaic(3e-5, 16, 5),
                "QNLI": _mosaic(1e-5, 16, 10),
                "SST-2": _mosaic(3e-5, 16, 3),
                "CoLA": _mosaic(5e-5, 32, 10),
                "MRPC": _mosaic(8e-5, 32, 10),
                "RTE": _mosaic(1e-5, 16, 3, decay=1.0),
                "STS-B": _mosaic(3e-5, 32, 10),
                **{name: {"epochs": 10} for name in TINY},
            },
            begins={"RTE": "MNLI", "MRPC": "MNLI", "STS-B": "MNLI"},
        ),
        "bert": Protocol(
            "Devlin et al. 2019, sections 4.1-4.3, A.3: of rates {5, 4, 3, 2}e-5, batches {16, 32} and 2 to 4 epochs those that "
            "run_glue.py of transformers is documented with; decay and warm-up as in the released code, Adam as in run_glue.py",
            {"rate": 2e-5, "batch": 32, "epochs": 3, "length": 128, "warmup": 0.1, "decay": 0.01, "layer_decay": 1.0},
            kinds={"spans": {"rate": 5e-5, "length": 384}, "tags": {"rate": 5e-5}},
            tasks={
                "SQuAD-v2.0": {"batch": 48, "epochs": 2},
                **{name: {"epochs": 4} for name in TINY},
            },
        ),
    }
)


def _some_seeds(seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise ValueError("seeds are how many, at least 1, or a list of different numbers from 0 on")
    return seeds


def _known_task(name: str | None) -> str | None:
    return None if name is None else find(str(name)).name


def _known_protocol(name: str) -> str:
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}{nearest(name, PROTOCOLS)}")
    return name


class FinetuneSettings(BaseModel):
    """What to learn and how.  Numbers that are not given are those of the protocol for the task.

    Either train and valid, files of one's own, or task, one that is known by name, and source: a folder with its files, or
    hf:NAME.  also: other splits of the task to predict.  score: what the median seed is chosen by; without it, the first
    metric.  start: a model folder fine-tuned on another task to begin with.  length: most tokens of a row.  both_orders: learn
    each pair the other way round too.  warmup: share of the steps.  layer_decay: factor on the learning rate from a pair of
    layers to the one below.  stride, longest, best, threshold: see `spans.SpanForm`.  tag: the column of the tag in files of
    words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Annotated[str | None, AfterValidator(_known_task)] = None
    source: str | None = None
    train: Path | None = None
    valid: Path | None = None
    also: tuple[str, ...] = ()
    protocol: Annotated[str, AfterValidator(_known_protocol)] = "electra"
    start: Path | None = None
    kind: Kind | None = None
    score: str | None = None
    on_bad_row: OnBadRow = "stop"
    seeds: Annotated[int | tuple[int, ...], AfterValidator(_some_seeds)] = 5
    epochs: PositiveInt = 3
    batch: PositiveInt = 32
    length: int | None = Field(None, ge=8)
    both_orders: bool = False
    rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    decay: float = Field(0.01, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    bias_correction: bool = True
    stride: PositiveInt = 128
    longest: PositiveInt = 30
    best: PositiveInt = 20
    threshold: float | Literal["tuned"] = 0.0
    tag: int = -1
    precision: Literal["float32", "bf16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _by_protocol(cls, given: Any) -> Any:
        """Fill in what the protocol says for the task."""
        if not isinstance(given, Mapping):
            return given
        chosen = {name: value for name, value in given.items() if value is not None}
        protocol = PROTOCOLS.get(str(chosen.get("protocol", "electra")))
        try:
            task = _known_task(chosen.get("task"))
        except ValueError:
            protocol = None
        if protocol is None:  # said when the fields are checked, with all else that is wrong
            return chosen
        numbers = protocol.numbers(task, _kind(task, chosen))
        return {name: number for name, number in numbers.items() if name not in BY_MODEL} | chosen

    @model_validator(mode="after")
    def _one_source(self) -> "FinetuneSettings":
        files = [name for name in ("train", "valid") if getattr(self, name) is not None]
        known = [name for name in ("task", "source") if getattr(self, name) is not None]
        if files and known:
            raise ValueError(f"give either train and valid, or task and source, not {' and '.join(files + known)}")
        if len(files) + len(known) < 2:
            have = f"; there is only {(files + known)[0]}" if files or known else ""
            raise ValueError(
                f"what to learn is train and valid, two files, or task and source, a known task and its folder{have}"
            )
        if self.also and not self.task:
            raise ValueError("`also` names other splits of a task")
        if learned := [split for split in self.also if split in ("train", "dev")]:
            raise ValueError(
                f"`also` names other splits than those to learn from and to score on, and {learned[0]!r} is one of them"
            )
        return self

    def for_model(self, arch: Architecture) -> "FinetuneSettings":
        """Fill in what the protocol says for a model of this size.

        Raises: ValueError for more tokens than it has positions.
        """
        numbers = PROTOCOLS[self.protocol].numbers(self.task, _kind(self.task, self.model_dump()), arch.width)
        filled = {name: numbers[name] for name in BY_MODEL if getattr(self, name) is None}
        if "length" in filled:
            filled["length"] = min(filled["length"], arch.positions)
        settings = self.model_copy(update=filled)
        assert settings.length is not None
        if settings.length > arch.positions:
            raise ValueError(f"length={settings.length}, but the model has {arch.positions} positions")
        return settings

    @property
    def begins(self) -> str | None:
        """Name the task that the protocol would begin this one from."""
        return PROTOCOLS[self.protocol].begins.get(self.task or "")


def _kind(task: str | None, settings: Mapping[str, Any]) -> Kind | None:
    """Tell the kind of a task as far as its name, that of its file or the columns in it do."""
    if task is not None:
        return find(task).kind
    kind: Kind | None = settings.get("kind")
    return kind or (_told(Path(settings["train"])) if settings.get("train") else None)


def _told(path: Path) -> Kind | None:
    """Tell the kind of a file by its name, and of a table by its columns; None where neither tells, or there is no such file."""
    suffix = suffix_of(path)
    if suffix in CONLL:
        return "tags"
    if suffix == ".json":
        return "spans"
    if suffix not in (".tsv", ".jsonl") or not path.is_file():
        return None
    faults = Faults(str(path))
    try:
        records = jsonl_records(path, faults) if suffix == ".jsonl" else tsv_records(path, faults, lambda columns: None)
        head = next(records, None)
    except DataError:  # said when the file is read
        return None
    return None if head is None else kind_of(head.fields)
