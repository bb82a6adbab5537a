"""Compose, search, train and edit language encoders whose backbone is any sequence of typed layers.

Importing it registers the layer kinds, and the model classes with transformers.
"""

from .architecture import Architecture, Layer
from .backbone import Backbone
from .batches import Batch, along, batches
from .configuration import LayerwrightConfig
from .corpus import Corpus, CorpusSettings, build
from .cost import flops, parameters
from .grammar import TextError
from .layers import Context
from .models import (
    LayerwrightForMaskedLM,
    LayerwrightForMultipleChoice,
    LayerwrightForPreTraining,
    LayerwrightForQuestionAnswering,
    LayerwrightForSequenceClassification,
    LayerwrightForTokenClassification,
    LayerwrightModel,
)
from .objectives import Loss, MaskedLM, ReplacedTokenDetection
from .presets import PRESETS, architecture
from .pretrain import PretrainSettings, pretrain
from .registry import layer
from .space import Space
from .supernet import Supernet
from .train import Plan, train

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Architecture",
    "Backbone",
    "Batch",
    "Context",
    "Corpus",
    "CorpusSettings",
    "Layer",
    "LayerwrightConfig",
    "LayerwrightForMaskedLM",
    "LayerwrightForMultipleChoice",
    "LayerwrightForPreTraining",
    "LayerwrightForQuestionAnswering",
    "LayerwrightForSequenceClassification",
    "LayerwrightForTokenClassification",
    "LayerwrightModel",
    "Loss",
    "MaskedLM",
    "Plan",
    "PretrainSettings",
    "ReplacedTokenDetection",
    "Space",
    "Supernet",
    "TextError",
    "along",
    "architecture",
    "batches",
    "build",
    "flops",
    "layer",
    "parameters",
    "pretrain",
    "train",
]
