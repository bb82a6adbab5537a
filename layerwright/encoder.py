"""The backbone as a model of transformers: what such models take, return and can do besides.

The names of its weights are those of `Backbone`.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from .architecture import Architecture
from .backbone import Embedding, Residual, initialise, last_norm, run, set_weights
from .configuration import LayerwrightConfig
from .dense import packed
from .errors import nearest
from .guard import INDEX, WEIGHTS, stored
from .layers import Context


class Asked(TypedDict, total=False):
    """What a call asks for besides its inputs; without it, or with None, the configuration decides.

    output_hidden_states: indices, which may be negative, ask for those only; None stands in place of the others.
    """

    output_attentions: bool | None
    output_hidden_states: bool | Sequence[int] | None
    return_dict: bool | None


class Inputs(NamedTuple):
    """What goes into a backbone, by the names that transformers gives it."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Have at hand the weights that accelerate keeps on disk or in another memory.

    It fetches those of a module that is called, but layers also read the weights of their parts without calling them.
    """
    hooks: list[tuple[nn.Module, Any]] = []
    if "_hf_hook" in vars(module):  # then its parts may have one, too
        hooks = [(part, hook) for part in module.modules() if getattr(hook := vars(part).get("_hf_hook"), "offload", False)]
    for part, hook in hooks:
        hook.pre_forward(part)
    try:
        yield
    finally:
        for part, hook in hooks:
            hook.post_forward(part, None)


class Checkpointed(GradientCheckpointingLayer, Residual):
    """A layer in its residual which, if asked, computes its states again in the backward pass instead of keeping them."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        with present(self):
            return super().forward(x, context)


class LayerwrightPreTrainedModel(PreTrainedModel):
    """What the models share: their configuration, where the backbone is, and how weights begin."""

    config_class = LayerwrightConfig
    config: LayerwrightConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    # Losses are means over a batch: the Trainer itself has to divide by the number of batches it accumulates.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = [Embedding.__name__, Checkpointed.__name__]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **more: Any) -> Any:
        """Load a model as transformers does, but from safetensors alone: a pickle, which could run code, is never loaded.

        Raises:
            ValueError: other weights are asked for, or the index of a folder names files outside it.
            IntegrityError: the header of a weights file does not agree with the file.
        """
        if more.pop("use_safetensors", None) is False:
            raise ValueError("use_safetensors=False: weights are read from safetensors only, never from a pickle")
        if pretrained_model_name_or_path is not None:
            folder = Path(pretrained_model_name_or_path)
            if (folder / INDEX).is_file() or (folder / WEIGHTS).is_file():
                stored(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *arguments, use_safetensors=True, **more)

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

    def wants(self, name: str, asked: Asked) -> Any:
        """Return what a call asks for by this name, or else the configuration."""
        value = asked.get(name)
        return getattr(self.config, name) if value is None else value


class Pooler(nn.Module):
    """State of the first token -> one vector a row: linear, tanh (Devlin et al. 2019)."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.dense = nn.Linear(arch.width, arch.width)
        initialise(self)

    def forward(self, states: Tensor) -> Tensor:
        """Map states [B, L, D] to [B, D]."""
        return torch.tanh(self.dense(states[:, 0]))


class LayerwrightModel(LayerwrightPreTrainedModel):
    """The backbone alone, with a pooler if the configuration has one; its weights have the names they have in `Backbone`."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012

    def __init__(self, config: LayerwrightConfig, *, pooled: bool = True):
        super().__init__(config)
        arch, dropout = config.arch, config.hidden_dropout_prob
        self.embed = Embedding(arch, dropout)
        self.layers = nn.ModuleList(Checkpointed(layer, arch, dropout) for layer in arch.layers)
        share(self.layers, config.tied_layers or ())
        self._tied_weights_keys = {
            f"layers.{place}.{name}": f"layers.{first}.{name}"
            for first, *others in config.tied_layers or ()
            for place in others
            for name in self.layers[first].state_dict()
        }
        self.norm = last_norm(arch)
        self.pooler = Pooler(arch) if pooled and config.pooler else None
        self.post_init()  # type: ignore[no-untyped-call]

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return which weights are others by a second name; transformers asks only models whose embeddings are tied."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels=True)
        return dict(self._tied_weights_keys)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[Asked],
    ) -> BaseModelOutput | BaseModelOutputWithPooling | tuple[Any, ...]:
        """Map ids [B, L], or token vectors [B, L, E], to states [B, L, D].

        attention_mask: [B, L], not zero at real tokens.  position_ids: [B or 1, L], counted from 0 at the first token, which
        is what they are without it.  Of the hidden states, the first is what enters the first layer, and the last is the
        result.  Attentions: the probabilities [B, H, L, L] of each layer that has any, in the order of the layers.

        Raises:
            ValueError: both or neither of ids and vectors, a mask of another shape, an unknown argument, a hidden state
                that is not there, or attentions where no layer has any.
        """
        _refuse(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        tokens = inputs_embeds if input_ids is None else input_ids
        assert tokens is not None
        if attention_mask is not None and attention_mask.shape != tokens.shape[:2]:
            raise ValueError(f"attention_mask is {list(attention_mask.shape)}, and the tokens are {list(tokens.shape[:2])}")
        wanted: bool | Sequence[int] = self.wants("output_hidden_states", kwargs)
        states: list[Tensor] | None = [] if wanted else None
        # Not a list, which accelerate would copy on the way from device to device.
        maps: deque[Tensor] | None = deque() if self.wants("output_attentions", kwargs) else None
        context = Context(
            None if attention_mask is None else attention_mask.bool(),
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            maps=maps,
        )
        last = self._read(tokens, token_type_ids, position_ids, context, states)
        if maps is not None and not maps:
            raise ValueError(f"output_attentions: no layer of '{self.config.arch}' has attention probabilities")
        rest: dict[str, Any] = {
            "hidden_states": _chosen(states, wanted) if states else None,
            "attentions": tuple(maps) if maps else None,
        }
        output: BaseModelOutput | BaseModelOutputWithPooling = BaseModelOutput(last, **rest)
        if self.pooler is not None:
            output = BaseModelOutputWithPooling(last, self.pooler(last), **rest)
        return output if self.wants("return_dict", kwargs) else output.to_tuple()

    def _read(
        self, tokens: Tensor, segments: Tensor | None, places: Tensor | None, context: Context, states: list[Tensor] | None
    ) -> Tensor:
        """Return the states of ids, or vectors; a batch of ids is packed where that pays."""
        dense = packed(context.mask) if tokens.dim() == 2 and context.maps is None else None
        given = (tokens, segments, places) if dense is None else dense.inputs(tokens, segments, places)
        with present(self.embed):
            x = self.embed(*given)
        last = run(self.layers, self.norm, x, context if dense is None else dense.context(context), states)
        if dense is None:
            return last
        if states is not None:
            states[:] = map(dense.scatter, states)
        return dense.scatter(last)


def share(layers: nn.ModuleList, groups: Iterable[Sequence[int]]) -> None:
    """Make the layers of each group one, the first, by all of their names."""
    for first, *others in groups:
        for place in others:
            layers[place] = layers[first]


def _chosen(states: list[Tensor], wanted: bool | Sequence[int]) -> tuple[Tensor | None, ...]:
    """Return the states, with None in place of those at other indices than the wanted ones, where there are indices."""
    if isinstance(wanted, bool):
        return tuple(states)
    count = len(states)
    for index in wanted:
        if not -count <= index < count:
            raise ValueError(f"output_hidden_states: there is no state {index}, only 0 to {count - 1}")
    kept = {index % count for index in wanted}
    return tuple(x if index in kept else None for index, x in enumerate(states))


def _refuse(asked: Asked) -> None:
    """Refuse an argument that no model has; transformers' own models ignore it, and with it a slip of the keyboard."""
    known = Asked.__annotations__
    for name, value in asked.items():
        if name not in known and value is not None:
            raise ValueError(f"the model takes no argument '{name}'{nearest(name, [*Inputs._fields, 'labels', *known])}")
