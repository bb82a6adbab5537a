"""The objective of tasks that give a text or a pair a class or a number, and how fast each of its layers learns."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.heads import ClassificationHead
from layerwright.objectives import Loss, encode


class Classification(nn.Module):
    """Predict the label of a row from the state of its first token: one of several classes, or with one class a number."""

    def __init__(self, backbone: Backbone, classes: int, dropout: float = 0.1):
        super().__init__()
        self.backbone = backbone
        self.head = ClassificationHead(backbone.arch, classes, dropout)

    def forward(self, batch: Batch) -> Loss:
        """Return the cross-entropy in nats a row, or the squared error."""
        if batch.labels is None:
            raise ValueError("classification needs a batch with labels")
        logits = self.predict(batch)
        single = logits.shape[-1] == 1
        return Loss(F.mse_loss(logits[:, 0], batch.labels) if single else F.cross_entropy(logits, batch.labels), {})

    def predict(self, batch: Batch) -> Tensor:
        """Return logits float32 [B, classes]."""
        return torch.as_tensor(self.head(encode(self.backbone, batch, batch.ids))).float()


def layer_scale(name: str, layers: int, decay: float) -> float:
    """Return the factor on the learning rate of a weight of `Classification`: the nearer to the input, the smaller.

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
