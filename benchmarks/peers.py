"""The objective of a benchmark on both sides: ours, and the same model built from the classes of transformers.

The other side is a careful user's: output layer on the chosen positions only, and tokens drawn by one random number each
(with torch.multinomial a step takes a fifth longer).  Before anything is timed, both sides must compute the same: with
weights copied across and the same corrupted input, losses, logits and gradients agree.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ConvBertConfig,
    ConvBertForMaskedLM,
    ConvBertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraModel,
)
from transformers.models.electra.modeling_electra import ElectraDiscriminatorPredictions

from layerwright import presets
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.kernels import pick
from layerwright.objectives import MaskedLM, ReplacedTokenDetection, at, choose
from layerwright.supernet import Supernet
from layerwright.vocabulary import Special

ROWS, LENGTH, RATE, WEIGHT = 32, 128, 0.15, 50.0
FIRST = 0.1  # by what share the first losses of two sides may differ
SHAPES = {"bert-base": (8, 512)}  # rows and length where they are others
SPECIAL = Special(pad=0, unk=100, cls=101, sep=102, mask=103)
FAMILIES = {
    "electra-small": (ElectraConfig, ElectraForMaskedLM, ElectraModel),
    "convbert-small": (ConvBertConfig, ConvBertForMaskedLM, ConvBertModel),
}
# A generator of transformers' ConvBERT has one head, of half the width.
GENERATORS = {"convbert-small": Architecture.parse("64 embed=128: 12x(mixed[form=transformers] ffn)")}


class MaskedPeer(nn.Module):
    """BERT of transformers under masked language modelling, the output layer on the chosen positions only."""

    def __init__(self, dropout: float = 0.1, arch: Architecture | None = None):
        super().__init__()
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        self.model = BertForMaskedLM(BertConfig(**sizes(arch or presets.architecture("bert-base")), **rates))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss."""
        return self.generate(batch, choose(batch, RATE, SPECIAL).places)[1]

    def generate(self, batch: Batch, places: torch.Tensor):
        """Return the logits of the chosen tokens, and the loss."""
        targets, (how, what) = batch.ids.gather(1, places), at(batch.dice, places)[..., 1:].unbind(-1)
        others = torch.where(how < 0.9, (what * 30522).long(), targets)
        ids = batch.ids.scatter(1, places, torch.where(how < 0.8, SPECIAL.mask, others))
        states = self.model.bert(ids, token_type_ids=batch.segments).last_hidden_state
        logits = self.model.cls(at(states, places).flatten(0, 1))
        return logits, F.cross_entropy(logits, targets.flatten())


class Peer(nn.Module):
    """ELECTRA or ConvBERT of transformers: generator and discriminator that share embeddings, as one objective.

    arch, narrow: the sizes of the discriminator and of the generator, where they are not those of the model.
    """

    def __init__(self, model: str, dropout: float = 0.1, arch: Architecture | None = None, narrow: Architecture | None = None):
        super().__init__()
        config, masked, backbone = FAMILIES[model]
        arch, narrow = arch or presets.architecture(model), narrow or generator_of(model)
        given = {"embedding_size": arch.embed, "pad_token_id": 0}
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        small, large = (config(**sizes(one), **given, **rates) for one in (narrow, arch))
        self.generator, self.discriminator = masked(small), backbone(large)
        self.head = ElectraDiscriminatorPredictions(large)
        inner = getattr(self.generator, small.model_type)
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
            setattr(inner.embeddings, name, getattr(self.discriminator.embeddings, name))
        self.generator.generator_lm_head.weight = self.discriminator.embeddings.word_embeddings.weight

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss."""
        places = choose(batch, RATE, SPECIAL).places
        logits, nats = self.generate(batch, places, self.corrupt(batch, places))
        drawn = pick(logits.detach().float().softmax(-1), at(batch.dice, places)[..., 2].flatten())
        ids = batch.ids.scatter(1, places, drawn.view_as(places))
        return nats + WEIGHT * self.detect(batch, ids)[1]

    def corrupt(self, batch: Batch, places: torch.Tensor) -> torch.Tensor:
        """Return what the generator reads: of the chosen tokens 85% masked."""
        masked = torch.where(at(batch.dice, places)[..., 1] < 0.85, SPECIAL.mask, batch.ids.gather(1, places))
        return batch.ids.scatter(1, places, masked)

    def generate(self, batch: Batch, places: torch.Tensor, ids: torch.Tensor, mean: str = "mean"):
        """Return the logits of the chosen tokens, and the loss."""
        states = self.generator.base_model(ids, token_type_ids=batch.segments).last_hidden_state
        logits = self.generator.generator_lm_head(self.generator.generator_predictions(at(states, places).flatten(0, 1)))
        return logits, F.cross_entropy(logits, batch.ids.gather(1, places).flatten(), reduction=mean)

    def detect(self, batch: Batch, ids: torch.Tensor):
        """Return logits and loss of the discriminator."""
        logits = self.head(self.discriminator(ids, token_type_ids=batch.segments).last_hidden_state)
        return logits, F.binary_cross_entropy_with_logits(logits, (ids != batch.ids).to(logits.dtype))


def generator_of(model: str) -> Architecture:
    """Return the generator of a model."""
    return GENERATORS.get(model) or presets.architecture(model).narrow(1 / 4)


def sizes(arch: Architecture) -> dict[str, int]:
    """Return the sizes of an architecture of attention and feed-forward layers in turn, as transformers names them."""
    attention, feed_forward = (dict(layer.options) for layer in arch.layers[:2])
    return {
        "vocab_size": arch.vocab,
        "hidden_size": arch.width,
        "num_hidden_layers": len(arch) // 2,
        "num_attention_heads": int(attention["heads"]),
        "intermediate_size": int(feed_forward["inner"]),
    }


def objective(net: Backbone | Supernet, model: str = "electra-small", dropout: float = 0.1) -> ReplacedTokenDetection:
    """Build our side: the generator is a quarter as wide as that model, whatever the backbone."""
    generator = MaskedLM(Backbone(generator_of(model), dropout), SPECIAL, rate=RATE, masked=0.85, random=0.0)
    return ReplacedTokenDetection(net, generator, WEIGHT)


def random_batch(seed: int, rows: int = ROWS, length: int = LENGTH) -> Batch:
    """Draw rows "[CLS] a [SEP] b [SEP]" of random tokens."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30522, (rows, length), generator=chance)
    middle = torch.randint(2, length - 2, (rows, 1), generator=chance)
    ids = ids.scatter(1, middle, SPECIAL.sep)
    ids[:, 0], ids[:, -1] = SPECIAL.cls, SPECIAL.sep
    segments = (torch.arange(length) > middle).long()
    return Batch(ids, segments=segments, dice=torch.rand(rows, length, 3, generator=chance))


def masked_objective(dropout: float = 0.1) -> MaskedLM:
    """Build our side of BERT under masked language modelling."""
    return MaskedLM(Backbone(presets.architecture("bert-base"), dropout), SPECIAL, rate=RATE)


def copy_masked_weights(ours: MaskedLM, peer: MaskedPeer) -> None:
    """Copy our weights into the peer."""
    pairs = [*_pairs(ours.backbone, peer.model.bert)]
    head = peer.model.cls.predictions
    pairs += [(ours.head.transform, head.transform.dense), (ours.head.norm, head.transform.LayerNorm)]
    head.bias.data.copy_(ours.head.bias)
    _copy(pairs)


def copy_weights(ours: ReplacedTokenDetection, peer: Peer) -> None:
    """Copy our weights into the peer."""
    pairs = [*_pairs(ours.generator.backbone, peer.generator.base_model), *_pairs(ours.backbone, peer.discriminator)]
    pairs += [
        (ours.generator.head.transform, peer.generator.generator_predictions.dense),
        (ours.generator.head.norm, peer.generator.generator_predictions.LayerNorm),
        (ours.head.hidden, peer.head.dense),
        (ours.head.replaced, peer.head.dense_prediction),
    ]
    peer.generator.generator_lm_head.bias.data.copy_(ours.generator.head.bias)
    _copy(pairs)


def _copy(pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    for source, target in pairs:
        for name, value in target.named_parameters():
            place = "pointwise.bias" if name == "bias" and isinstance(source, nn.ModuleDict) else name
            value.data.copy_(source.get_parameter(place).data.view(value.shape))


def _pairs(ours: Backbone, theirs: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Return which modules hold the same weights."""
    embeddings = theirs.embeddings
    yield ours.embed.token, embeddings.word_embeddings
    yield ours.embed.position, embeddings.position_embeddings
    yield ours.embed.segment, embeddings.token_type_embeddings
    yield ours.embed.norm, embeddings.LayerNorm
    if hasattr(theirs, "embeddings_project"):
        yield ours.embed.widen, theirs.embeddings_project
    for index, layer in enumerate(theirs.encoder.layer):
        attn, ffn, own = ours.layers[2 * index], ours.layers[2 * index + 1], layer.attention.self
        yield from ((getattr(attn.body, name), getattr(own, name)) for name in ("query", "key", "value"))
        if hasattr(own, "conv_out_layer"):
            yield attn.body.conv_value, own.conv_out_layer
            yield attn.body.kernels, own.conv_kernel_layer
            separable = {"depthwise": attn.body.depthwise, "pointwise": attn.body.pointwise}
            yield nn.ModuleDict(separable), own.key_conv_attn_layer
        yield attn.body.out, layer.attention.output.dense
        yield attn.norm, layer.attention.output.LayerNorm
        yield ffn.body.up, layer.intermediate.dense
        yield ffn.body.out, layer.output.dense
        yield ffn.norm, layer.output.LayerNorm


def compare_first(name: str, losses: Mapping[str, float]) -> None:
    """Compare the first losses of sides with that of the first side; weights and dropout of each are drawn anew.

    Raises:
        SystemExit: one differs by more than a share of `FIRST`, or is no number.
    """
    (ours, first), *others = losses.items()
    for side, loss in others:
        if not abs(loss / first - 1) < FIRST:
            raise SystemExit(f"{name}: the first loss of {side} is {loss:.4g}, that of {ours} {first:.4g}")


def check_parity(model: str) -> dict[str, float]:
    """Return the largest relative differences between the sides of a model.

    Raises:
        SystemExit: they compute different things.
    """
    torch.manual_seed(0)
    if model not in FAMILIES:
        return compare(model, masked_objective(0.0), MaskedPeer(0.0), random_batch(0))
    return compare(model, objective(Backbone(presets.architecture(model), 0.0), model, 0.0), Peer(model, 0.0), random_batch(0))


def compare(model: str, ours: nn.Module, peer: nn.Module, batch: Batch) -> dict[str, float]:
    """Return the largest relative differences between two sides without dropout, given the same weights and corrupted input.

    Raises:
        SystemExit: they compute different things.
    """
    masked, kind = isinstance(peer, MaskedPeer), batch.ids.device.type
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    (copy_masked_weights if masked else copy_weights)(ours, peer)
    outcome = _masked_outcome if masked else _outcome
    found: dict[str, float] = {}
    for precision, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        with torch.autocast(kind, torch.bfloat16, enabled=precision == torch.bfloat16):
            sides = [outcome(ours, peer, batch, side) for side in ("ours", "theirs")]
        for name, (a, b) in {name: (sides[0][name].float(), sides[1][name].float()) for name in sides[0]}.items():
            difference = ((a - b).norm() / b.norm()).item()
            found[f"{name}, {str(precision)[6:]}"] = difference
            if not difference < tolerance:
                raise SystemExit(f"{model}: the sides differ in {name}, {precision}, by {difference:.2g} of its norm")
    return found


def _masked_outcome(ours: MaskedLM, peer: MaskedPeer, batch: Batch, side: str) -> dict[str, torch.Tensor]:
    """Return the loss and gradients of a side."""
    if side == "ours":
        loss, net = ours(batch).total, ours.backbone
        weights = [net.embed.token.weight, net.layers[0].body.query.weight, net.layers[1].body.up.weight]
    else:
        loss, net = peer(batch), peer.model.bert
        first = net.encoder.layer[0]
        weights = [net.embeddings.word_embeddings.weight, first.attention.self.query.weight, first.intermediate.dense.weight]
    grads = torch.autograd.grad(loss, weights)
    return {"masked loss": loss, **{f"gradient {index}": grad for index, grad in enumerate(grads)}}


def _outcome(ours: ReplacedTokenDetection, peer: Peer, batch: Batch, side: str) -> dict[str, torch.Tensor]:
    """Return logits, losses and gradients of a side, for tokens drawn by our generator in float32."""
    choice = choose(batch, RATE, SPECIAL)
    with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False):
        drawn = ours.generator.predict(batch, choice, at(batch.dice, choice.places)[..., 2].flatten())[1]
        ids, replaced = ours.fill(batch, choice, drawn)
    if side == "ours":
        nats = ours.generator.predict(batch, choice)[0]
        guesses = ours.head(ours.backbone(ids, None, batch.segments))
        detected = F.binary_cross_entropy_with_logits(guesses.float(), replaced.float())
        first, second = ours.backbone, ours.generator.backbone
        weights = [first.embed.token.weight, first.layers[0].body.query.weight, second.layers[1].body.up.weight]
    else:
        nats = peer.generate(batch, choice.places, peer.corrupt(batch, choice.places), "none")[1]
        guesses, detected = peer.detect(batch, ids)
        first, second = peer.discriminator, peer.generator.base_model.encoder.layer[0]
        attention = first.encoder.layer[0].attention.self
        weights = [first.embeddings.word_embeddings.weight, attention.query.weight, second.intermediate.dense.weight]
    grads = torch.autograd.grad(nats.mean() + WEIGHT * detected, weights)
    named = {f"gradient {index}": grad for index, grad in enumerate(grads)}
    return {"masked losses": nats, "logits": guesses, "replaced loss": detected, **named}
