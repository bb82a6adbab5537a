"""The face that transformers knows: the backbone alone and under each head.

A model folder is an ordinary one of transformers.  Importing this module registers the classes, after which the Auto
classes load such a folder.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import ModelOutput

from .configuration import LayerwrightConfig
from .encoder import Asked, Inputs, LayerwrightModel, LayerwrightPreTrainedModel, present
from .heads import ClassificationHead, MaskedHead, ReplacedHead, TokenHead

__all__ = [
    "FACES",
    "Face",
    "LayerwrightConfig",
    "LayerwrightForMaskedLM",
    "LayerwrightForMultipleChoice",
    "LayerwrightForPreTraining",
    "LayerwrightForQuestionAnswering",
    "LayerwrightForSequenceClassification",
    "LayerwrightForTokenClassification",
    "LayerwrightModel",
    "LayerwrightPreTrainedModel",
    "ModelWithHead",
]

IGNORED = -100  # the label of what has none


Output = TypeVar("Output", bound=ModelOutput)


class ModelWithHead(LayerwrightPreTrainedModel, Generic[Output]):
    """A backbone and a head: states -> logits, and a loss where there are labels.  Its weights: `backbone.*`, `head.*`."""

    _keys_to_ignore_on_load_unexpected = [r"pooler\."]  # noqa: RUF012
    output: ClassVar[Callable[..., Any]]

    def __init__(self, config: LayerwrightConfig):
        super().__init__(config)
        self.backbone = LayerwrightModel(config, pooled=False)
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
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[Asked],
    ) -> Output | tuple[Any, ...]:
        """Map ids [B, L], or token vectors [B, L, E], to logits, and a loss where labels are given."""
        inputs = Inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self.encode(inputs, kwargs)
        logits = self.predict(encoded.last_hidden_state)
        loss = None if labels is None else self.loss(logits.float(), labels.to(logits.device), attention_mask)
        return self.answer(encoded, kwargs, loss=loss, logits=logits)

    def encode(self, inputs: Inputs, asked: Asked) -> Any:
        """Return what the backbone makes of the inputs."""
        return self.backbone(**inputs._asdict(), **(asked | {"return_dict": True}))

    def answer(self, encoded: Any, asked: Asked, **found: Tensor | None) -> Output | tuple[Any, ...]:
        """Return what was found, with what was asked for, as the class of the output or as a tuple."""
        output: Output = self.output(**found, hidden_states=encoded.hidden_states, attentions=encoded.attentions)
        return output if self.wants("return_dict", asked) else output.to_tuple()


class LayerwrightForMaskedLM(ModelWithHead[MaskedLMOutput]):
    """Predict masked tokens: logits [B, L, V], labels [B, L].  The output matrix is the token embedding itself."""

    output = MaskedLMOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        return MaskedHead(config.arch, config.head_act)

    def predict(self, states: Tensor) -> Tensor:
        """Return logits [B, L, V]."""
        token = self.backbone.embed.token
        with present(token):
            return torch.as_tensor(self.head(states, token.weight.to(states.device)))

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the cross-entropy in nats a labelled token."""
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize the token embedding, as other models of transformers do, and with it the bias of the output."""
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        head = cast(MaskedHead, self.head)
        if embedding.num_embeddings != len(head.bias):
            head.resize(embedding.num_embeddings, mean=mean_resizing)
        return embedding


class LayerwrightForPreTraining(ModelWithHead[TokenClassifierOutput]):
    """Tell replaced tokens from original ones: logits [B, L], labels [B, L], 1 where replaced (Clark et al. 2020)."""

    output = TokenClassifierOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        return ReplacedHead(config.arch, config.head_act)

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the binary cross-entropy in nats a real token."""
        counted = labels >= 0 if mask is None else (labels >= 0) & mask.to(labels.device, torch.bool)
        return F.binary_cross_entropy_with_logits(logits[counted], labels[counted].float())


class LayerwrightForSequenceClassification(ModelWithHead[SequenceClassifierOutput]):
    """Classify a text or a pair, or give it a number: logits [B, classes] from the first token, labels [B].

    The configuration's `problem_type` decides the loss; without it, one class means regression.
    """

    output = SequenceClassifierOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        return _row_head(config, config.num_labels or 2)

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the squared error, the cross-entropy of one class, or that of several classes at once."""
        problem = self.config.problem_type or ("regression" if logits.shape[-1] == 1 else "single_label_classification")
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.flatten())
        labels = labels.view_as(logits).to(logits.dtype)
        return F.mse_loss(logits, labels) if problem == "regression" else F.binary_cross_entropy_with_logits(logits, labels)


class LayerwrightForMultipleChoice(ModelWithHead[MultipleChoiceModelOutput]):
    """Choose among C texts: inputs [B, C, L], logits [B, C], labels [B].  Hidden states are [B*C, L, D]."""

    output = MultipleChoiceModelOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head, which gives a text one number."""
        return _row_head(config, 1)

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the cross-entropy in nats a row."""
        return F.cross_entropy(logits, labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[Asked],
    ) -> MultipleChoiceModelOutput | tuple[Any, ...]:
        """Map ids [B, C, L], or token vectors [B, C, L, E], to logits [B, C], and a loss where labels are given.

        Raises:
            ValueError: ids or vectors of another shape.
        """
        given = Inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        for name, tokens, letters in (("input_ids", input_ids, "BCL"), ("inputs_embeds", inputs_embeds, "BCLE")):
            if tokens is not None and tokens.dim() != len(letters):
                raise ValueError(f"{name} is {list(tokens.shape)}, and a choice among texts takes [{', '.join(letters)}]")
        encoded = self.encode(Inputs(*(x.flatten(0, 1) if x is not None and x.dim() > 2 else x for x in given)), kwargs)
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        assert tokens is not None
        logits = self.predict(encoded.last_hidden_state).view(tokens.shape[:2])
        loss = None if labels is None else self.loss(logits.float(), labels.to(logits.device), attention_mask)
        return self.answer(encoded, kwargs, loss=loss, logits=logits)


class LayerwrightForTokenClassification(ModelWithHead[TokenClassifierOutput]):
    """Classify each token: logits [B, L, classes], labels [B, L]."""

    output = TokenClassifierOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        return TokenHead(config.arch, config.num_labels or 2, _dropout(config))

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the cross-entropy in nats a labelled real token."""
        if mask is not None:
            labels = labels.masked_fill(~mask.to(labels.device).bool(), IGNORED)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class LayerwrightForQuestionAnswering(ModelWithHead[QuestionAnsweringModelOutput]):
    """Find the first and the last token of an answer: logits [B, L] of each, start_positions and end_positions [B]."""

    output = QuestionAnsweringModelOutput

    def build_head(self, config: LayerwrightConfig) -> nn.Module:
        """Return the head."""
        return TokenHead(config.arch, 2, 0.0)

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the cross-entropy in nats of the places [B] of one end, among the real tokens [B, L].

        A place outside the row or in its padding is no label.
        """
        inside = (labels >= 0) & (labels < logits.shape[1])
        if mask is not None:
            real = mask.to(logits.device).bool()
            logits = logits.masked_fill(~real, torch.finfo(logits.dtype).min)
            inside &= real.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        return F.cross_entropy(logits, labels.masked_fill(~inside, IGNORED))

    def forward(  # type: ignore[override]  # it has two labels
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Unpack[Asked],
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Map ids [B, L], or token vectors [B, L, E], to logits of both ends, and a loss where both places are given."""
        encoded = self.encode(Inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds), kwargs)
        start, end = (x.contiguous() for x in self.predict(encoded.last_hidden_state).unbind(-1))
        losses = [
            self.loss(logits.float(), places.to(logits.device).flatten(), attention_mask)
            for logits, places in ((start, start_positions), (end, end_positions))
            if places is not None
        ]
        loss = (losses[0] + losses[1]) / 2 if len(losses) == 2 else None
        return self.answer(encoded, kwargs, loss=loss, start_logits=start, end_logits=end)


def _dropout(config: LayerwrightConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _row_head(config: LayerwrightConfig, classes: int) -> ClassificationHead:
    act, input_dropout = config.classifier_act, config.classifier_input_dropout
    return ClassificationHead(config.arch, classes, _dropout(config), act=act, input_dropout=input_dropout)


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
    "tokens": Face(LayerwrightForTokenClassification, AutoModelForTokenClassification, "token-classification"),
    "spans": Face(LayerwrightForQuestionAnswering, AutoModelForQuestionAnswering, "question-answering"),
    "choices": Face(LayerwrightForMultipleChoice, AutoModelForMultipleChoice, "multiple-choice"),
}

AutoConfig.register(LayerwrightConfig.model_type, LayerwrightConfig, exist_ok=True)
for _face in FACES.values():
    _face.auto.register(LayerwrightConfig, _face.model, exist_ok=True)
