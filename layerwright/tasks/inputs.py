"""What a fine-tuning begins from: a pre-trained model folder, and the examples to learn from and to be scored on."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from torch import Tensor, nn

from layerwright.architecture import Architecture
from layerwright.convert import as_ours
from layerwright.encoder import LayerwrightModel
from layerwright.errors import DataError
from layerwright.folders import class_names, open_folder, open_tokenizer
from layerwright.models import FACES, ModelWithHead
from layerwright.tasks.catalog import TASKS, read, read_file
from layerwright.tasks.examples import Examples, Row
from layerwright.tasks.lessons import HeadShape
from layerwright.tasks.protocols import FinetuneSettings

SUMMED_UP = ("classification", "choices")  # heads that sum up a row in its first token


class Pretrained(NamedTuple):
    """A model folder as fine-tuning takes it.

    weights: of the backbone.  hidden: of the map before the classes, which a pooler or another fine-tuning has learned; none
    if there is none.  shape: of the heads that classify rows, but for their dropout.  ids: of the special tokens.
    labels: the classes of its head.  tied: groups of layers that share their weights.
    """

    folder: Path
    arch: Architecture
    weights: Mapping[str, Tensor]
    hidden: Mapping[str, Tensor]
    shape: HeadShape
    tokenizer: Tokenizer
    ids: Mapping[str, int | None]
    labels: tuple[str, ...]
    tied: Sequence[Sequence[int]]


def open_model(folder: Path) -> Pretrained:
    """Load a model folder of ours, or of a family that converts.

    Raises:
        ValueError: it is none.
        IntegrityError: it is torn or altered.
        DataError: the tokenizer is missing, cannot be used, or does not fit the model.
    """
    with as_ours(folder) as own:
        model = open_folder(own)
    head = next(name for name, face in FACES.items() if face.model is type(model))
    backbone = model.backbone if isinstance(model, ModelWithHead) else model
    assert isinstance(backbone, LayerwrightModel)
    config, hidden, act = model.config, None, model.config.classifier_act
    if isinstance(model, ModelWithHead) and head in SUMMED_UP:
        hidden = model.head.hidden
    elif backbone.pooler is not None:
        hidden, act = backbone.pooler.dense, "tanh"
    tokenizer, ids = open_tokenizer(folder, config)
    return Pretrained(
        folder,
        config.arch,
        {name: weight for name, weight in backbone.state_dict().items() if not name.startswith("pooler.")},
        hidden.state_dict() if isinstance(hidden, nn.Module) else {},
        HeadShape(act=act, input_dropout=config.classifier_input_dropout),
        tokenizer,
        ids,
        class_names(folder, config) if head in ("classification", "tokens") else (),
        config.tied_layers or (),
    )


def open_start(folder: Path, model: Pretrained, begins: str | None) -> Pretrained:
    """Load the weights to begin with from a model folder fine-tuned on another task.

    Raises:
        ValueError: it has another architecture, other layers that share weights, or its classes are not those of the task
            that the protocol begins from.
    """
    start = open_model(folder)
    if start.arch != model.arch:
        raise ValueError(f"start: {folder} is '{start.arch}', and {model.folder} '{model.arch}'")
    if list(start.tied) != list(model.tied):
        raise ValueError(f"start: the layers of {folder} that share their weights are not those of {model.folder}")
    if begins and set(start.labels) != set(TASKS[begins].labels):
        named = ", ".join(start.labels) or "none"
        raise ValueError(f"start: {folder} is no model of {begins}: its classes are {named}")
    return start


def check_classes(model: Pretrained, labels: Sequence[str], source: str) -> None:
    """Refuse a model that has the classes of the task in another order: one of the two is mistaken, and all would be confused.

    Raises: DataError naming both.
    """
    theirs, ours = ([name.casefold() for name in names] for names in (model.labels, labels))
    if theirs != ours and sorted(theirs) == sorted(ours):
        place = next(place for place, name in enumerate(theirs) if name != ours[place])
        raise DataError(
            f"{model.folder} contradicts {source}: its class {place} is {model.labels[place]!r}, and that of the task "
            f"{labels[place]!r}. Put id2label and label2id of its config.json right, or call its classes LABEL_0 and so "
            "on: they are learned anew"
        )


class Splits(NamedTuple):
    """Examples to learn from, to be scored on, and others to predict, by the name of their split."""

    train: Examples[Any]
    valid: Examples[Any]
    also: Mapping[str, Examples[Any]]

    @property
    def named(self) -> dict[str, Examples[Any]]:
        """Return all of them by name."""
        return {"train": self.train, "valid": self.valid, **self.also}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of what was read, so that the same examples from another place are the same."""
        names = {"train": "training table", "valid": "validation table"}
        return {names.get(name, f"split {name}"): _digest(examples) for name, examples in self.named.items()}


def read_splits(settings: FinetuneSettings) -> Splits:
    """Read what settings name.

    Raises:
        ValueError: an unknown split, or settings for pairs where there are none.
        DataError: a file that cannot be used, or that does not fit the others.
    """
    bad = settings.on_bad_row
    if settings.task is not None and settings.source is not None:
        source = settings.source
        train, valid = (read(settings.task, split, source, on_bad_row=bad) for split in ("train", "dev"))
        also = {split: read(settings.task, split, source, on_bad_row=bad) for split in settings.also}
        if settings.kind not in (None, train.kind):
            raise ValueError(f"{settings.task} is of kind {train.kind}, not {settings.kind}")
    else:
        assert settings.train is not None
        assert settings.valid is not None
        train = read_file(settings.train, settings.kind, on_bad_row=bad, tag=settings.tag)
        valid = read_file(settings.valid, train.kind, train.labels or None, on_bad_row=bad, tag=settings.tag)
        also = {}
    for other in (valid, *also.values()):
        _fitting(train, other)
    if settings.both_orders:
        train = _both_orders(train)
    return Splits(train, valid, also)


def _fitting(train: Examples[Any], other: Examples[Any]) -> None:
    """Refuse examples of another form than those to learn from."""
    if train.kind in ("classification", "regression") and train.pairs != other.pairs:
        one, two = (other, train) if train.pairs else (train, other)
        raise DataError(f"{one.source} has one sentence a row, and {two.source} two")


def _both_orders(train: Examples[Any]) -> Examples[Any]:
    if train.kind not in ("classification", "regression") or not train.pairs:
        what = "one sentence a row" if train.kind in ("classification", "regression") else train.kind
        raise ValueError(f"both_orders is for pairs, and {train.source} has {what}")
    rows: tuple[Row, ...] = train.rows
    turned = tuple(row._replace(first=row.second or "", second=row.first) for row in rows)
    return train._replace(rows=rows + turned)


def _digest(examples: Examples[Any]) -> str:
    content = hashlib.sha256(repr((examples.kind, examples.labels)).encode())
    for row in examples.rows:
        content.update(repr(tuple(row)).encode())
    return content.hexdigest()
