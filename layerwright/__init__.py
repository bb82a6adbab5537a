"""Compose, search, train and edit language encoders whose backbone is any sequence of typed layers.

A name is imported with its file when it is first used.  Importing the package registers the layer kinds, and the model
classes with transformers; only where the process is the command line, each command imports what it needs.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .architecture import Architecture, Layer
    from .backbone import Backbone
    from .batches import Batch, along, batches
    from .configuration import LayerwrightConfig
    from .corpus import Corpus, CorpusSettings, build
    from .cost import flops, parameters
    from .errors import TextError
    from .formulas import Formula
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
    from .surgery import Edit, Graft, carry, duplicate, grow, insert, keep, pick, remove, reorder, repeat, replace, splice
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
    "Edit",
    "Formula",
    "Graft",
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
    "carry",
    "duplicate",
    "flops",
    "grow",
    "insert",
    "keep",
    "layer",
    "parameters",
    "pick",
    "pretrain",
    "remove",
    "reorder",
    "repeat",
    "replace",
    "splice",
    "train",
]

# Which file holds a name; the imports above say the same to whoever checks types.
_FILES = {
    name: file
    for file, names in {
        "architecture": "Architecture Layer",
        "backbone": "Backbone",
        "batches": "Batch along batches",
        "configuration": "LayerwrightConfig",
        "corpus": "Corpus CorpusSettings build",
        "cost": "flops parameters",
        "errors": "TextError",
        "formulas": "Formula",
        "layers": "Context",
        "models": "LayerwrightForMaskedLM LayerwrightForMultipleChoice LayerwrightForPreTraining "
        "LayerwrightForQuestionAnswering LayerwrightForSequenceClassification LayerwrightForTokenClassification LayerwrightModel",
        "objectives": "Loss MaskedLM ReplacedTokenDetection",
        "presets": "PRESETS architecture",
        "pretrain": "PretrainSettings pretrain",
        "registry": "layer",
        "space": "Space",
        "supernet": "Supernet",
        "surgery": "Edit Graft carry duplicate grow insert keep pick remove reorder repeat replace splice",
        "train": "Plan train",
    }.items()
    for name in names.split()
}


class _Package(ModuleType):
    """The package: its names stand for what is in its files, also where a file is called like one of them."""

    def __getattr__(self, name: str) -> Any:
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_FILES[name]}", __name__), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # What imports a file sets the name of the file to it.
        if name not in _FILES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


def _is_command() -> bool:
    """Return whether this process is `layerwright ...` or `python -m layerwright ...`."""
    arguments: list[str] = getattr(sys, "argv", None) or [""]
    called = arguments[0]
    if called == "-m":  # what stands there until Python has found the module
        at = sys.orig_argv.index("-m") + 1 if "-m" in sys.orig_argv else 0
        return sys.orig_argv[at : at + 1] == [__name__]
    return Path(called).name == __name__


sys.modules[__name__].__class__ = _Package
if not _is_command():
    import_module(".models", __name__)
