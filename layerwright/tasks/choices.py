"""Tasks that choose one of several texts that may go on from another, such as COPA.

Each option is a row of its own with the text before it, and gets one number; the softmax is over the options of an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.tasks.classification import Classification
from layerwright.tasks.examples import Choice, Examples
from layerwright.tasks.lessons import HeadShape
from layerwright.tasks.rows import Reader, Rows


class Choosing(Classification):
    """Predict which option is right: rows [B * C, L], numbers [B * C, 1], labels [B]."""

    def __init__(self, backbone: Backbone, shape: HeadShape | None = None):
        super().__init__(backbone, 1, shape)

    def loss(self, logits: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        """Return the cross-entropy in nats an example."""
        return F.cross_entropy(logits.view(len(labels), -1), labels)


@dataclass(frozen=True)
class ChoiceForm:
    """As many rows an example as it has options."""

    reader: Reader
    head: str = "choices"

    def rows(self, examples: Examples[Choice], *, learn: bool = False) -> Rows:
        """Turn each option into a row with the text before it, the longer of both being cut first."""
        options = len(examples.rows[0].options)
        firsts = [row.first for row in examples.rows for _ in range(options)]
        tokens, shortened = self.reader.rows(firsts, [option for row in examples.rows for option in row.options])
        targets = torch.tensor([row.label for row in examples.rows]) if learn else None
        return Rows(tokens, targets, self.reader.pad, options, shortened)

    def objective(self, backbone: Backbone, shape: HeadShape) -> Choosing:
        """Return what learns it."""
        return Choosing(backbone, shape)

    def decode(self, logits: Tensor, rows: Rows, places: Sequence[int]) -> list[int]:
        """Return the numbers of the chosen options."""
        return list(logits.view(-1, rows.options).argmax(-1).tolist())

    def settled(self, rows: Rows, decoded: Sequence[Any]) -> "ChoiceForm":
        """Return the same: there is nothing to choose."""
        return self

    def merge(self, rows: Rows, decoded: Sequence[int]) -> list[int]:
        """Return the same."""
        return list(decoded)

    def written(self, prediction: Any) -> Any:
        """Return the number of an option, from 0."""
        return prediction

    def config(self) -> dict[str, Any]:
        """Return nothing: options have no names."""
        return {}

    def weights(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the same."""
        return head
