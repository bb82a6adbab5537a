"""What pre-training minimises: masked language modelling, and replaced-token detection.

An objective maps a batch to a loss and owns its heads.  The number of chosen positions a row is fixed, so shapes are
static and the output layer, the dearest matrix of a small model, runs on those positions only.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Backbone
from .batches import Batch
from .heads import MaskedHead, ReplacedHead
from .kernels import settle, surprise
from .supernet import Supernet
from .vocabulary import Special


class Loss(NamedTuple):
    """The scalar to minimise, and named scalars to report."""

    total: Tensor
    parts: dict[str, Tensor]


class Choice(NamedTuple):
    """Positions to predict: places int64 [B, M], and which of them count, bool [B, M]."""

    places: Tensor
    real: Tensor


def choose(batch: Batch, rate: float, special: Special) -> Choice:
    """Choose a share of the tokens of every row, never a special token: M = round(rate * L) of L, at least 1.

    A row with padding chooses that share of its real tokens: the same ones as it would without the padding.
    """
    if batch.dice is None:
        raise ValueError("an objective needs a batch with dice")
    thousandths, length = round(rate * 1000), batch.ids.shape[1]
    # In integers, because what a float rounds to would depend on where it is computed.
    most = max(1, (length * thousandths + 500) // 1000)
    barred = (batch.ids == special.cls) | (batch.ids == special.sep) | (batch.ids == special.pad)
    if batch.mask is not None:
        barred |= ~batch.mask
    order, places = batch.dice[..., 0].masked_fill(barred, 2.0).topk(most, largest=False)
    real = order < 2.0
    if batch.mask is not None:
        wanted = ((batch.mask.sum(-1, keepdim=True) * thousandths + 500) // 1000).clamp(min=1)
        real &= torch.arange(most, device=places.device) < wanted
    return Choice(places, real)


class MaskedLM(nn.Module):
    """Predict 15% of the tokens from the rest (Devlin et al. 2019, section 3.1).

    Of the chosen ones a share `masked` becomes [MASK], a share `random` another token, the rest stays: 0.8 and 0.1 for
    BERT, 0.85 and 0 for the generator of ELECTRA (released code).  The output matrix is the token embedding.
    """

    def __init__(
        self,
        backbone: Backbone | Supernet,
        special: Special,
        *,
        rate: float = 0.15,
        masked: float = 0.8,
        random: float = 0.1,
    ):
        super().__init__()
        self.backbone, self.special = backbone, special
        self.rate, self.masked, self.random = rate, masked, random
        self.head = MaskedHead(backbone.arch)

    def forward(self, batch: Batch) -> Loss:
        """Return the cross-entropy in nats a chosen token, and the share predicted right."""
        choice = choose(batch, self.rate, self.special)
        nats, likeliest = self.predict(batch, choice)
        loss = mean(nats, choice.real)
        if self.training:
            return Loss(loss, {})
        right = likeliest == batch.ids.gather(1, choice.places).flatten()
        return Loss(loss, {"accuracy": mean(right.float(), choice.real)})

    def predict(self, batch: Batch, choice: Choice, chance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Corrupt the chosen tokens and predict them: nats [B * M], and a token for each, drawn by chance or the likeliest."""
        targets = batch.ids.gather(1, choice.places)
        ids = batch.ids.scatter(1, choice.places, self.corrupt(targets, batch, choice))
        features = self.head.features(at(encode(self.backbone, batch, ids), choice.places).flatten(0, 1))
        return surprise(features, self.backbone.embed.token.weight, self.head.bias, targets.flatten(), chance)

    def corrupt(self, targets: Tensor, batch: Batch, choice: Choice) -> Tensor:
        """Return what stands at the chosen positions instead of the targets [B, M]."""
        how, what = at(batch.dice, choice.places)[..., 1:].unbind(-1)  # type: ignore[arg-type]
        noise = (what * self.backbone.arch.vocab).long()
        others = torch.where(how < self.masked + self.random, noise, targets)
        return torch.where(choice.real, torch.where(how < self.masked, self.special.mask, others), targets)


class ReplacedTokenDetection(nn.Module):
    """A small generator fills masked tokens; the backbone tells which were replaced (Clark et al. 2020, section 2).

    The generator shares the backbone's embeddings and their norm (released code).  It is any architecture with
    embeddings of the same size.  A token that happens to be the original is not replaced.

    Raises:
        ValueError: the generator's embeddings differ.
    """

    def __init__(self, backbone: Backbone | Supernet, generator: MaskedLM, weight: float = 50.0):
        super().__init__()
        for name in ("embed", "vocab", "positions", "segments", "eps", "offset"):
            ours, theirs = getattr(backbone.arch, name), getattr(generator.backbone.arch, name)
            if ours != theirs:
                raise ValueError(f"the generator shares the embeddings: its {name} is {theirs}, the backbone's {ours}")
        self.backbone, self.generator, self.weight = backbone, generator, weight
        self.head = ReplacedHead(backbone.arch)
        for name in ("token", "position", "segment", "norm"):
            setattr(generator.backbone.embed, name, getattr(backbone.embed, name))

    def forward(self, batch: Batch) -> Loss:
        """Return the generator's loss plus `weight` times the discriminator's, both apart, and how often that is right."""
        choice = choose(batch, self.generator.rate, self.generator.special)
        chance = at(batch.dice, choice.places)[..., 2].flatten()  # type: ignore[arg-type]
        nats, drawn = self.generator.predict(batch, choice, chance)
        masked = settle(mean(nats, choice.real), self.generator.parameters())
        ids, replaced = self.fill(batch, choice, drawn)
        guesses = self.head(encode(self.backbone, batch, ids)).float()
        detected = mean(F.binary_cross_entropy_with_logits(guesses, replaced.float(), reduction="none"), batch.mask)
        right = mean(((guesses > 0) == replaced).float(), batch.mask)
        parts = {"masked": masked.detach(), "replaced": detected.detach(), "accuracy": right}
        return Loss(masked + self.weight * detected, parts)

    def fill(self, batch: Batch, choice: Choice, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Put the drawn tokens [B * M] at the chosen positions: ids [B, L], and which changed, bool [B, L]."""
        original = batch.ids.gather(1, choice.places)
        ids = batch.ids.scatter(1, choice.places, torch.where(choice.real, drawn.view_as(original), original))
        return ids, ids != batch.ids


def encode(net: Backbone | Supernet, batch: Batch, ids: Tensor) -> Tensor:
    """Run a backbone, or the sub-network that the batch names: ids [B, L] -> [B, L, D]."""
    # Rows of two segments also train an architecture that knows of one only.
    segments = batch.segments if net.arch.segments > 1 else None
    if isinstance(net, Supernet):
        if batch.arch is None:
            raise ValueError("a supernet needs batches that name an architecture")
        return torch.as_tensor(net(ids, batch.mask, segments, arch=batch.arch))
    return torch.as_tensor(net(ids, batch.mask, segments))


def at(states: Tensor, places: Tensor) -> Tensor:
    """Take the states at some places of each row: [B, L, D] and [B, M] -> [B, M, D]."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def mean(values: Tensor, real: Tensor | None) -> Tensor:
    """Average values over those that count; NaN where none does."""
    if real is None:
        return values.mean()
    counted = real.flatten() if values.dim() == 1 else real
    return (values * counted).sum() / counted.sum()
