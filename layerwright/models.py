"""The face that transformers knows: a configuration of one text, model classes, and the heads they share with training.

A model folder is an ordinary one of transformers.  The text of the architecture is its one field of ours, and sizes
follow from it.  Importing this module registers the classes, after which the Auto classes load such a folder.
"""

from collections.abc import Callable
from functools import lru_cache
from textwrap import shorten
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import ModelOutput

from .architecture import Architecture
from .backbone import Embedding, Residual, initialise, last_norm, run, set_weights
from .layers import Context


class MaskedHead(nn.Module):
    """States -> logits over the vocabulary: linear, gelu, norm, then the token embedding as output matrix and a bias."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.transform = nn.Linear(arch.width, arch.embed)
        self.norm = nn.LayerNorm(arch.embed, eps=arch.eps)
        self.bias = nn.Parameter(torch.zeros(arch.vocab))
        initialise(self)

    def initialise(self) -> None:
        """Set the bias to zero."""
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Map states [..., D], with the token embedding [V, E], to logits [..., V]."""
        return F.linear(self.features(states), embedding, self.bias)

    def features(self, states: Tensor) -> Tensor:
        """Map states [..., D] to what meets the token embedding, [..., E]."""
        return torch.as_tensor(self.norm(F.gelu(self.transform(states))))


class ReplacedHead(nn.Module):
    """States -> one logit a token, positive where it looks replaced: linear, gelu, linear (Clark et al. 2020)."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.hidden = nn.Linear(arch.width, arch.width)
        self.replaced = nn.Linear(arch.width, 1)
        initialise(self)

    def forward(self, states: Tensor) -> Tensor:
        """Map states [B, L, D] to logits [B, L]."""
        return torch.as_tensor(self.replaced(F.gelu(self.hidden(states)))[..., 0])


class ClassificationHead(nn.Module):
    """State of the first token -> logits over the classes (one number in a regression): dropout, linear."""

    def __init__(self, arch: Architecture, classes: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Linear(arch.width, classes)
        initialise(self)

    def forward(self, states: Tensor) -> Tensor:
        """Map states [B, L, D] to logits [B, classes]."""
        return torch.as_tensor(self.classes(self.dropout(states[:, 0])))


class LayerwrightConfig(PreTrainedConfig):
    """The text of an architecture, and what changes only training: dropout, labels, special tokens.

    Raises:
        ValueError: the text is not an architecture.
    """

    model_type = "layerwright"
    has_no_defaults_at_init = True

    architecture: str = ""
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    pad_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __post_init__(self, **others: Any) -> None:
        self.architecture = _read(self.architecture).explicit()
        super().__post_init__(**others)  # type: ignore[no-untyped-call]

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

    @property
    def max_position_embeddings(self) -> int:
        """How many tokens a row can have."""
        return self.arch.positions

    @property
    def type_vocab_size(self) -> int:
        """How many segments have an embedding."""
        return self.arch.segments


@lru_cache(maxsize=64)
def _read(text: str) -> Architecture:
    """Read the text of a configuration, which may come from anyone."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"the configuration has no text of an architecture, but `architecture` is {text!r}")
    try:
        return Architecture.parse(text)
    except ValueError as error:
        raise ValueError(f"`architecture` of the configuration is {shorten(text, 80)!r}: {error}") from None


class LayerwrightPreTrainedModel(PreTrainedModel):
    """What the models share: their configuration, where the backbone is, and how weights begin."""

    config_class = LayerwrightConfig
    config: LayerwrightConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _no_split_modules = [Embedding.__name__, Residual.__name__]  # noqa: RUF012

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.base_model.embed.token  # type: ignore[union-attr,return-value]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.base_model.embed.token = value  # type: ignore[union-attr]

    def _init_weights(self, module: nn.Module) -> None:
        set_weights(module)

    def _initialize_weights(self, module: nn.Module, *_: object) -> None:
        # transformers passes over outside modules that hold no parameter themselves, but a layer may set its children's.
        if not all(getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()):
            super()._initialize_weights(module)

    def _given(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple[Any, ...]:
        """Return the output as its class or as a tuple, as the call or else the configuration wants it."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


class LayerwrightModel(LayerwrightPreTrainedModel):
    """The backbone alone; the names of its weights are those of `Backbone`."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012

    def __init__(self, config: LayerwrightConfig):
        super().__init__(config)
        arch, dropout = config.arch, config.hidden_dropout_prob
        self.embed = Embedding(arch, dropout)
        self.layers = nn.ModuleList(Residual(layer, arch, dropout) for layer in arch.layers)
        self.norm = last_norm(arch)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Map ids [B, L], or token vectors [B, L, E], to states [B, L, D].

        attention_mask: [B, L], not zero at real tokens.  Of the hidden states, the first is what enters the first
        layer, and the last is the result.

        Raises:
            ValueError: both or neither of ids and vectors, or a mask of another shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        tokens = inputs_embeds if input_ids is None else input_ids
        assert tokens is not None
        if attention_mask is not None and attention_mask.shape != tokens.shape[:2]:
            raise ValueError(f"attention_mask is {list(attention_mask.shape)}, and the tokens are {list(tokens.shape[:2])}")
        mask = None if attention_mask is None else attention_mask.bool()
        context = Context(mask, dropout=self.config.attention_probs_dropout_prob if self.training else 0.0)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: list[Tensor] | None = [] if wanted else None
        last = run(self.layers, self.norm, self.embed(tokens, token_type_ids), context, states)
        return self._given(BaseModelOutput(last, tuple(states) if states else None), return_dict)


class ModelWithHead(LayerwrightPreTrainedModel):
    """A backbone and a head: states -> logits, and a loss where there are labels.  Its weights: `backbone.*`, `head.*`."""

    output: ClassVar[Callable[..., ModelOutput]]

    def __init__(self, config: LayerwrightConfig):
        super().__init__(config)
        self.backbone = LayerwrightModel(config)
        self.head = self.build_head(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        raise NotImplementedError

    def predict(self, states: Tensor) -> Tensor:
        """Return the logits for states [B, L, D]."""
        return torch.as_tensor(self.head(states))

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean loss over the labels; -100 is no label."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Map ids [B, L], or token vectors [B, L, E], to logits, and a loss where labels are given."""
        encoded = self.backbone(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.predict(encoded.last_hidden_state)
        loss = None if labels is None else self.loss(logits.float(), labels, attention_mask)
        return self._given(self.output(loss=loss, logits=logits, hidden_states=encoded.hidden_states), return_dict)


class LayerwrightForMaskedLM(ModelWithHead):
    """Predict masked tokens: logits [B, L, V], labels [B, L].  The output matrix is the token embedding itself."""

    output = MaskedLMOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        return MaskedHead(config.arch)

    def predict(self, states: Tensor) -> Tensor:
        """Return logits [B, L, V]."""
        return torch.as_tensor(self.head(states, self.backbone.embed.token.weight))

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the cross-entropy in nats a labelled token."""
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class LayerwrightForPreTraining(ModelWithHead):
    """Tell replaced tokens from original ones: logits [B, L], labels [B, L], 1 where replaced (Clark et al. 2020)."""

    output = TokenClassifierOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        return ReplacedHead(config.arch)

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the binary cross-entropy in nats a real token."""
        counted = labels >= 0 if mask is None else (labels >= 0) & mask.bool()
        return F.binary_cross_entropy_with_logits(logits[counted], labels[counted].float())


class LayerwrightForSequenceClassification(ModelWithHead):
    """Classify a text or a pair, or give it a number: logits [B, classes] from the first token, labels [B].

    The configuration's `problem_type` decides the loss; without it, one class means regression.
    """

    output = SequenceClassifierOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        return ClassificationHead(config.arch, config.num_labels or 2, dropout)

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the squared error, the cross-entropy of one class, or that of several classes at once."""
        problem = self.config.problem_type or ("regression" if logits.shape[-1] == 1 else "single_label_classification")
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels)
        labels = labels.view_as(logits).to(logits.dtype)
        return F.mse_loss(logits, labels) if problem == "regression" else F.binary_cross_entropy_with_logits(logits, labels)


class Face(NamedTuple):
    """A model class, the Auto class that loads it, and the task by which the Hub lists it."""

    model: type[LayerwrightPreTrainedModel]
    auto: Any
    task: str


FACES = {
    "backbone": Face(LayerwrightModel, AutoModel, "feature-extraction"),
    "mlm": Face(LayerwrightForMaskedLM, AutoModelForMaskedLM, "fill-mask"),
    "rtd": Face(LayerwrightForPreTraining, AutoModelForPreTraining, "feature-extraction"),
    "classification": Face(LayerwrightForSequenceClassification, AutoModelForSequenceClassification, "text-classification"),
}

AutoConfig.register(LayerwrightConfig.model_type, LayerwrightConfig, exist_ok=True)
for _face in FACES.values():
    _face.auto.register(LayerwrightConfig, _face.model, exist_ok=True)
