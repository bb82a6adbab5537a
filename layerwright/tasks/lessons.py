"""What the kinds of tasks have in common for learning: an objective made of a backbone and a head, and a form.

A form knows one kind of task: how its examples become rows of tokens, and how the logits of rows become predictions. The loop
knows forms only, and so does whoever predicts without learning.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.objectives import Loss, encode
from layerwright.tasks.examples import Examples
from layerwright.tasks.rows import Rows


class HeadShape(NamedTuple):
    """How heads begin: their dropout, and whether those that classify rows have a hidden map, with which activation."""

    dropout: float = 0.1
    act: str | None = None
    input_dropout: bool = False


class HeadObjective(nn.Module):
    """Predict from the states of a backbone with a head; a kind of task adds its loss."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, batch: Batch) -> Loss:
        """Return the mean loss of a batch."""
        if batch.labels is None:
            raise ValueError("to learn from a batch, it needs labels")
        return Loss(self.loss(self.predict(batch), batch, batch.labels), {})

    def predict(self, batch: Batch) -> Tensor:
        """Return logits in float32."""
        return torch.as_tensor(self.head(encode(self.backbone, batch, batch.ids))).float()

    def loss(self, logits: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        """Return the mean loss of logits."""
        raise NotImplementedError


class Form(Protocol):
    """How a kind of task meets a model.  head: the one it needs, by its name in FACES."""

    @property
    def head(self) -> str:
        """Return the name of the head in FACES."""

    def rows(self, examples: Examples[Any], *, learn: bool = False) -> Rows:
        """Turn examples into rows of tokens; learn: with what to predict."""

    def objective(self, backbone: Backbone, shape: HeadShape) -> HeadObjective:
        """Return what learns it, its head freshly drawn."""

    def decode(self, logits: Tensor, rows: Any, places: Sequence[int]) -> list[Any]:
        """Turn the logits of the batch of some places into what `merge` needs, for each place."""

    def settled(self, rows: Any, decoded: Sequence[Any]) -> "Form":
        """Return the form with whatever is to be chosen by scored examples, such as a threshold; mostly itself."""

    def merge(self, rows: Any, decoded: Sequence[Any]) -> list[Any]:
        """Turn what was decoded for all places into a prediction for each example, as `metrics.score` takes it."""

    def written(self, prediction: Any) -> Any:
        """Return a prediction as it is written into a file: the name of a class, a number, a text, or tags."""

    def config(self) -> dict[str, Any]:
        """Return what the configuration of a model folder says of this task."""

    def weights(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of the head that predict in the units of the examples."""
