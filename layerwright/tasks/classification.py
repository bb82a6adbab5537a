"""Tasks that give a text or a pair a class or a number, and how fast each layer of a model learns."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.heads import ClassificationHead
from layerwright.tasks.examples import Examples, Row
from layerwright.tasks.lessons import HeadObjective, HeadShape
from layerwright.tasks.rows import Reader, Rows

REGRESSION = {"problem_type": "regression", "num_labels": 1}


class Classification(HeadObjective):
    """Predict the label of a row from the state of its first token: one of several classes, or with one class a number."""

    def __init__(self, backbone: Backbone, classes: int, shape: HeadShape | None = None):
        dropout, act, input_dropout = shape or HeadShape()
        super().__init__(backbone, ClassificationHead(backbone.arch, classes, dropout, act=act, input_dropout=input_dropout))

    def loss(self, logits: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        """Return the cross-entropy in nats a row, or the squared error, of logits [B, classes] and labels [B]."""
        return F.mse_loss(logits[:, 0], labels) if logits.shape[-1] == 1 else F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class ClassForm:
    """Classes, or without labels numbers, which are learned with mean 0 and spread 1."""

    reader: Reader
    labels: tuple[str, ...]
    centre: float = 0.0
    spread: float = 1.0
    pairs: bool = False
    head: str = "classification"

    @classmethod
    def of(cls, reader: Reader, learned: Examples[Row]) -> "ClassForm":
        """Return the form for what is learned from these examples."""
        if learned.labels:
            return cls(reader, learned.labels, pairs=learned.pairs)
        numbers = [row.label for row in learned.rows if row.label is not None]
        return cls(reader, (), statistics.fmean(numbers), statistics.pstdev(numbers) or 1.0, learned.pairs)

    def rows(self, examples: Examples[Row], *, learn: bool = False) -> Rows:
        """Turn texts or pairs into rows, the longer text of a pair being cut first."""
        seconds = [row.second or "" for row in examples.rows] if examples.pairs else None
        tokens, shortened = self.reader.rows([row.first for row in examples.rows], seconds)
        targets = None
        if learn:
            labels = [row.label for row in examples.rows]
            targets = torch.tensor(labels, dtype=torch.int64 if self.labels else torch.float32)
            targets = targets if self.labels else (targets - self.centre) / self.spread
        return Rows(tokens, targets, self.reader.pad, cut=shortened)

    def objective(self, backbone: Backbone, shape: HeadShape) -> Classification:
        """Return what learns it."""
        return Classification(backbone, len(self.labels) or 1, shape)

    def decode(self, logits: Tensor, rows: Rows, places: Sequence[int]) -> list[Any]:
        """Return class numbers, or numbers in the units of the examples."""
        if self.labels:
            return list(logits.argmax(-1).tolist())
        return list((logits[:, 0].double() * self.spread + self.centre).tolist())

    def settled(self, rows: Rows, decoded: Sequence[Any]) -> "ClassForm":
        """Return the same: there is nothing to choose."""
        return self

    def merge(self, rows: Rows, decoded: Sequence[Any]) -> list[Any]:
        """Return the same: a row is an example."""
        return list(decoded)

    def written(self, prediction: Any) -> Any:
        """Return the name of a class, or a number."""
        return self.labels[prediction] if self.labels else prediction

    def config(self) -> dict[str, Any]:
        """Return the sort of problem, the names of the classes, and whether rows hold two texts."""
        problem = {"problem_type": "single_label_classification", **named(self.labels)} if self.labels else REGRESSION
        return {**problem, "text_pairs": self.pairs}

    def weights(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale the last map back to the units of the examples."""
        scaled = {name: head[name] * self.spread for name in ("classes.weight", "classes.bias")}
        return head | scaled | {"classes.bias": scaled["classes.bias"] + self.centre}


def named(labels: Sequence[str]) -> dict[str, Any]:
    """Return the names of classes as a configuration has them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {name: place for place, name in enumerate(labels)}}


def layer_scale(name: str, layers: int, decay: float) -> float:
    """Return the factor on the learning rate of a weight of an objective: the nearer to the input, the smaller.

    decay ** (groups + 2 - depth) for groups of two layers, the blocks of BERT: embeddings have depth 0, group g of 0, 1, ...
    has g + 1, and a last norm that of the last group; the head has factor 1 (ELECTRA and LV-BERT, released code, where
    the top block is two below the head). An odd last layer is a group of its own.
    """
    part, place, *rest = name.split(".")
    groups = math.ceil(layers / 2)
    if part == "head":
        return 1.0
    depth = {"embed": 0, "norm": groups}[place] if place != "layers" else int(rest[0]) // 2 + 1
    return decay ** (groups + 2 - depth)
