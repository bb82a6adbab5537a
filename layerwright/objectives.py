"""What pre-training minimises: masked language modelling, and replaced-token detection.

An objective maps a batch to a loss and owns its heads.  It asks its backbone one question and judges the answer, so that a
question can be asked many sub-networks of a supernet.  The number of chosen positions a row is fixed, so shapes are
static and the output layer, the dearest matrix of a small model, runs on those positions only.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from .backbone import Backbone
from .batches import Batch
from .fused import surprise
from .heads import MaskedHead, ReplacedHead
from .kernels import plainly, run
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


class Question(NamedTuple):
    """What a backbone is asked of a batch: ids [B, L] to read in place of the batch's; and what the answer is judged by.

    replaced: bool [B, L], and masked, the loss of the generator: of replaced-token detection only.
    """

    batch: Batch
    ids: Tensor
    choice: Choice
    replaced: Tensor | None = None
    masked: Tensor | None = None


def settle(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Differentiate a loss now and free what that took; the gradients reach the parameters when the result is differentiated.

    For one of several losses that share nothing but parameters: the passes of the next need its memory, at the peak a tenth of
    all that is in use.
    """
    if plainly() or not (torch.is_grad_enabled() and loss.requires_grad):
        return loss
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.autocast(loss.device.type, enabled=False):
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    used = [(parameter, grad) for parameter, grad in zip(wanted, grads, strict=True) if grad is not None]
    return torch.as_tensor(run(_Settled, loss.detach(), [grad for _, grad in used], *(parameter for parameter, _ in used)))


class _Settled(Function):
    @staticmethod
    def forward(ctx, loss, grads, *parameters):  # type: ignore[no-untyped-def]
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grads, ctx.grads = ctx.grads, None  # kept here any longer, they would be copied to become those of the parameters
        return None, None, *(grads if grad.device.type == "cpu" and grad == 1 else torch._foreach_mul(grads, grad))


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
    BERT, 0.85 and 0 for the generator of ELECTRA (released code).  The output matrix is the token embedding.  tokens: how many
    of its rows are tokens that texts hold, among which another one is; by default all are.
    """

    def __init__(
        self,
        backbone: Backbone | Supernet,
        special: Special,
        *,
        rate: float = 0.15,
        masked: float = 0.8,
        random: float = 0.1,
        tokens: int | None = None,
    ):
        super().__init__()
        self.backbone, self.special, self.tokens = backbone, special, tokens or backbone.arch.vocab
        self.rate, self.masked, self.random = rate, masked, random
        self.head = MaskedHead(backbone.arch)

    def forward(self, batch: Batch) -> Loss:
        """Return the cross-entropy in nats a chosen token, and the share predicted right."""
        question = self.ask(batch)
        return self.judge(encode(self.backbone, batch, question.ids), question)

    def ask(self, batch: Batch) -> Question:
        """Choose tokens and corrupt them."""
        return self._masked(batch, choose(batch, self.rate, self.special))

    def judge(self, states: Tensor, question: Question) -> Loss:
        """Return the loss of the states [B, L, D] that a backbone made of the question."""
        nats, likeliest = self._guess(states, question)
        loss = mean(nats, question.choice.real)
        if self.training:
            return Loss(loss, {})
        right = likeliest == question.batch.ids.gather(1, question.choice.places).flatten()
        return Loss(loss, {"accuracy": mean(right.float(), question.choice.real)})

    def predict(self, batch: Batch, choice: Choice, chance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Corrupt the chosen tokens and predict them: nats [B * M], and a token for each, drawn by chance or the likeliest."""
        question = self._masked(batch, choice)
        return self._guess(encode(self.backbone, batch, question.ids), question, chance)

    def _masked(self, batch: Batch, choice: Choice) -> Question:
        targets = batch.ids.gather(1, choice.places)
        return Question(batch, batch.ids.scatter(1, choice.places, self.corrupt(targets, batch, choice)), choice)

    def _guess(self, states: Tensor, question: Question, chance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        places = question.choice.places
        features = self.head.features(at(states, places).flatten(0, 1))
        targets = question.batch.ids.gather(1, places).flatten()
        return surprise(features, self.backbone.embed.token.weight, self.head.bias, targets, chance)

    def corrupt(self, targets: Tensor, batch: Batch, choice: Choice) -> Tensor:
        """Return what stands at the chosen positions instead of the targets [B, M]."""
        how, what = at(batch.dice, choice.places)[..., 1:].unbind(-1)  # type: ignore[arg-type]
        noise = (what * self.tokens).long()
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
        question = self.ask(batch)
        return self.judge(encode(self.backbone, batch, question.ids), question)

    def ask(self, batch: Batch) -> Question:
        """Let the generator fill masked tokens."""
        choice = choose(batch, self.generator.rate, self.generator.special)
        chance = at(batch.dice, choice.places)[..., 2].flatten()  # type: ignore[arg-type]
        nats, drawn = self.generator.predict(batch, choice, chance)
        masked = settle(mean(nats, choice.real), self.generator.parameters())
        ids, replaced = self.fill(batch, choice, drawn)
        return Question(batch, ids, choice, replaced, masked)

    def judge(self, states: Tensor, question: Question) -> Loss:
        """Return the loss of the states [B, L, D] that a backbone made of the question."""
        mask, replaced, masked = question.batch.mask, question.replaced, question.masked
        assert replaced is not None
        assert masked is not None
        guesses = self.head(states).float()
        detected = mean(F.binary_cross_entropy_with_logits(guesses, replaced.float(), reduction="none"), mask)
        right = mean(((guesses > 0) == replaced).float(), mask)
        parts = {"masked": masked.detach(), "replaced": detected.detach(), "accuracy": right}
        return Loss(masked + self.weight * detected, parts)

    def fill(self, batch: Batch, choice: Choice, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Put the drawn tokens [B * M] at the chosen positions: ids [B, L], and which changed, bool [B, L]."""
        original = batch.ids.gather(1, choice.places)
        ids = batch.ids.scatter(1, choice.places, torch.where(choice.real, drawn.view_as(original), original))
        return ids, ids != batch.ids


def encode(net: Backbone | Supernet, batch: Batch, ids: Tensor) -> Tensor:
    """Run a backbone, or the sub-network that the batch names: ids [B, L] -> [B, L, D]."""
    given = (ids, batch.mask, segments_of(net, batch), batch.documents)
    if isinstance(net, Supernet):
        if batch.arch is None:
            raise ValueError("a supernet needs batches that name an architecture")
        return torch.as_tensor(net(*given, arch=batch.arch))
    return torch.as_tensor(net(*given))


def segments_of(net: Backbone | Supernet, batch: Batch) -> Tensor | None:
    """Return the segments that a network reads: rows of two also train an architecture that knows of one only."""
    return batch.segments if net.arch.segments > 1 else None


def at(states: Tensor, places: Tensor) -> Tensor:
    """Take the states at some places of each row: [B, L, D] and [B, M] -> [B, M, D]."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def mean(values: Tensor, real: Tensor | None) -> Tensor:
    """Average values over those that count; NaN where none does."""
    if real is None:
        return values.mean()
    counted = real.flatten() if values.dim() == 1 else real
    return (values * counted).sum() / counted.sum()
