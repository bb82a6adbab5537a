"""The configuration of a model folder: one text of an architecture, and what changes only heads and training.

Sizes follow from the text, so `config.json` holds none that could contradict it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from textwrap import shorten
from typing import Any

from transformers import PreTrainedConfig

from .architecture import Architecture
from .errors import nearest
from .guard import check_architecture, check_keys, check_number
from .layers.feedforward import ACTIVATIONS


class LayerwrightConfig(PreTrainedConfig):
    """The text of an architecture, what heads and pooler are like, dropout, labels, special tokens.

    head_act: activation in the heads of masked and replaced tokens.  pooler: the model alone also maps the state of the
    first token through a linear map and tanh.  classifier_act: activation of a hidden linear map in the heads that
    classify rows, which have none where this is None; classifier_input_dropout: dropout before that map too.
    tied_layers: groups of indices of layers that are one by several names, whose weights a file holds once.

    Raises:
        ValueError: the text is not an architecture or one of an absurd size, an activation, a probability or a group of layers
            is none, or a field names code.
    """

    model_type = "layerwright"
    has_no_defaults_at_init = True

    architecture: str = ""
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    head_act: str = "gelu"
    pooler: bool = False
    classifier_act: str | None = None
    classifier_dropout: float | None = None
    classifier_input_dropout: bool = False
    tied_layers: Sequence[Sequence[int]] | None = None
    pad_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __post_init__(self, **others: Any) -> None:
        check_keys(others, "the configuration")
        self.architecture = _read(self.architecture).explicit()
        for name in ("head_act", "classifier_act"):
            act = getattr(self, name)
            if str(act) not in ACTIVATIONS and not (act is None and name == "classifier_act"):
                raise ValueError(f"`{name}` of the configuration is {act!r}{nearest(str(act), ACTIVATIONS)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(self, name) is not None:
                check_number(vars(self), name, 1.0)
        if self.tied_layers is not None:
            self.tied_layers = _groups(self.tied_layers, self.arch)
        super().__post_init__(**others)  # type: ignore[no-untyped-call]
        if self.id2label and self.label2id is None:
            # transformers leaves it out where labels are named, but some of its pipelines read it.
            self.label2id = {str(label): int(index) for index, label in self.id2label.items()}

    @property
    def arch(self) -> Architecture:
        """The architecture as a value."""
        return _read(self.architecture)

    @property
    def hidden_size(self) -> int:
        """The width."""
        return self.arch.width

    @property
    def num_hidden_layers(self) -> int:
        """How many layers; a block of BERT is two of ours."""
        return len(self.arch)

    @property
    def vocab_size(self) -> int:
        """How many tokens have an embedding."""
        return self.arch.vocab

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        """Rewrite the text for another number of tokens, as a model wants it whose embeddings are resized."""
        self.architecture = replace(self.arch, vocab=size).explicit()

    @property
    def max_position_embeddings(self) -> int:
        """How many tokens a row can have."""
        return self.arch.positions

    @property
    def type_vocab_size(self) -> int:
        """How many segments have an embedding."""
        return self.arch.segments


def _read(text: object) -> Architecture:
    """Read the text of a configuration, which may come from anyone."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"the configuration has no text of an architecture, but `architecture` is {text!r}")
    try:
        return _parse(text)
    except ValueError as error:
        raise ValueError(f"`architecture` of the configuration is {shorten(text, 80)!r}: {error}") from None


def _groups(groups: object, arch: Architecture) -> list[list[int]]:
    """Check groups of layers that share their weights, which may come from anyone."""
    if not isinstance(groups, list | tuple) or not all(isinstance(group, list | tuple) for group in groups):
        raise ValueError(f"`tied_layers` of the configuration is {repr(groups)[:40]}, and not groups of indices")
    found = [list(group) for group in groups]
    members = [place for group in found for place in group]
    if not all(type(place) is int and 0 <= place < len(arch) for place in members) or len(set(members)) < len(members):
        raise ValueError(f"`tied_layers` of the configuration names layers twice, or other ones than 0 to {len(arch) - 1}")
    for group in found:
        if len({arch.layers[place] for place in group}) != 1 or len(group) < 2:
            raise ValueError(f"`tied_layers` of the configuration has the group {group}, which is not several equal layers")
    return [sorted(group) for group in found]


@lru_cache(maxsize=64)
def _parse(text: str) -> Architecture:
    arch = Architecture.parse(text)
    check_architecture(arch)
    return arch
