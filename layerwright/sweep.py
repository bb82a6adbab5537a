"""Run a model with its layers in many orders over the same rows, and compare each with the model as it is.

An order is a sequence of indexes of layers: one that is left out is a layer removed, one that stands twice a layer duplicated,
and the beginning of the model's own order is one of its hidden states.  Orders that begin alike share the states up to where they
part (`prefixes`), and the numbers are, to the last bit, those of the edited model run whole on the same batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from .console import track
from .errors import DataError
from .geometry import FEWEST, cosines, debiased_cka, uniformity
from .heads import MaskedHead
from .inference import Opened, by_length
from .layers import Context
from .models import LayerwrightForMaskedLM
from .prefixes import applications, visit
from .tasks.records import Faults, existing, lines

SHARE = 0.15  # of the tokens of a row that are masked, and as many of those kept that are asked for
ENOUGH = 256  # tokens, below which a batch takes no less time than one of more
COMPARED = 1_024  # tokens by which hidden states are compared, at most

Order = tuple[int, ...]


class Row(NamedTuple):
    """A row of tokens, and the places at which the model is asked what stands there: those masked, and some of those kept."""

    ids: list[int]
    masked: list[int]
    kept: list[int]


class Effect(BaseModel):
    """What a model with its layers in some order makes of the rows, beside the model as it is.

    cosine, l2: of the final states of the two at real tokens; l2 is the length of the difference, in lengths of the state of
    the model as it is.  agreement, kl: of what the output layer predicts at the tokens asked for; how often the likeliest
    token is the same, and the divergence of the predictions from those of the model as it is, in nats.  recovered, accuracy: how
    often the likeliest token is the right one, where it was kept and where it was masked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cosine: float
    l2: float
    agreement: float | None = None
    kl: float | None = None
    recovered: float | None = None
    accuracy: float | None = None


class Geometry(NamedTuple):
    """The states of some orders: token uniformity of each, and cosine and CKA of any two."""

    uniformity: list[float]
    cosine: list[list[float]]
    cka: list[list[float]]


def read_rows(opened: Opened, text: Path, *, rows: int, length: int, seed: int) -> list[Row]:
    """Draw lines of a text of UTF-8 that are not blank, and tokens of them to mask and to ask for, all by the seed.

    length: most tokens of a row, special ones included; the rest of a line is left out.  Tokens are masked for a model with an
    output layer for them only.

    Raises:
        DataError: the text cannot be used.
    """
    faults, chance = Faults(str(text), "line"), Random(seed)
    drawn: list[tuple[int, str]] = []
    written = (line for _, line in lines(existing(text), faults, blank=True) if line.strip())
    for number, line in enumerate(written):
        if len(drawn) < rows:
            drawn.append((number, line))
        elif (place := chance.randrange(number + 1)) < rows:
            drawn[place] = (number, line)
    faults.settle("stop")
    found = []
    for number, one in enumerate(opened.encode([line for _, line in sorted(drawn)], length)):
        tokens = [place for place, special in enumerate(one.special_tokens_mask) if not special]
        if tokens:
            Random(f"{seed}/{number}").shuffle(tokens)
            asked = max(1, round(SHARE * len(tokens)))
            masked = asked if opened.head == "mlm" else 0
            found.append(Row(one.ids, sorted(tokens[:masked]), sorted(tokens[masked : masked + asked])))
    if not found:
        raise DataError(f"{text} holds no text")
    return found


def check_enough(rows: Sequence[Row], text: Path) -> None:
    """Refuse rows by which the geometry of hidden states would not be numbers.

    Raises:
        DataError: too few kept tokens can be asked for, or no row has two tokens.
    """
    kept = sum(len(row.kept) for row in rows)
    if kept < FEWEST:
        raise DataError(
            f"{text} is too little: of the rows drawn, {kept} kept tokens can be asked for, and hidden states are compared by "
            f"{FEWEST} at least; give more text, or more of --rows or --length"
        )
    if max(len(row.ids) for row in rows) < 2:
        raise DataError(
            f"{text} is too little: each row drawn is a single token, and uniformity is that of two; give longer lines"
        )


@dataclass(frozen=True)
class Reading:
    """A batch of rows, as the model reads them.

    ids: int64 [B, L].  mask: bool [B, L], None where every token is real.  places: row and place of each token asked for, [N, 2].
    tokens: what stood there, [N].  masked: whether it is masked, bool [N].
    """

    ids: Tensor
    mask: Tensor | None
    places: Tensor
    tokens: Tensor
    masked: Tensor

    @classmethod
    def of(cls, opened: Opened, rows: Sequence[Row]) -> "Reading":
        """Put rows together, a mask token at the places that are masked."""
        inputs = opened.inputs([row.ids for row in rows])
        asked = [(at, place, place in row.masked) for at, row in enumerate(rows) for place in sorted(row.masked + row.kept)]
        places = torch.tensor([one[:2] for one in asked], device=opened.device).view(-1, 2)
        masked = torch.tensor([one[2] for one in asked], dtype=torch.bool, device=opened.device)
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        tokens = ids[places[:, 0], places[:, 1]]
        if masked.any():
            ids[places[masked, 0], places[masked, 1]] = opened.special["mask"]
        return cls(ids, None if mask is None else mask.bool(), places, tokens, masked)

    @property
    def real(self) -> Tensor:
        """Return which tokens are real, bool [B, L]."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask


def readings(opened: Opened, rows: Sequence[Row], batch: int) -> list[Reading]:
    """Return the rows in batches of about one length."""
    batches = by_length([len(row.ids) for row in rows], batch, ENOUGH)
    return [Reading.of(opened, [rows[place] for place in places]) for places in batches]


def final_states(
    opened: Opened, reading: Reading, orders: Sequence[Order], advance: Callable[[], object] = lambda: None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the place of each order and its states [B, L, D], after the last norm where there is one, as the output layer reads.

    The first order comes first, though what it begins with is known before it.  advance: called after each layer.
    """
    net: Any = getattr(opened.model, "backbone", opened.model)
    context = Context(reading.mask)

    def apply(x: Tensor, layer: int) -> Tensor:
        x = net.layers[layer](x, context)
        advance()
        return x

    found = visit(orders, net.embed(reading.ids), apply)
    early = []
    for place, x in found:
        if place == 0:
            yield place, net.norm(x)
            break
        early.append((place, net.norm(x)))
    yield from early
    early.clear()
    for place, x in found:
        yield place, net.norm(x)


def measure(
    opened: Opened, rows: Sequence[Row], orders: Sequence[Order], *, batch: int, levels: Sequence[Order] = ()
) -> tuple[dict[Order, Effect], Geometry]:
    """Compare each order with the first, over all rows, and return the geometry of the levels, which are among the orders."""
    orders = list(dict.fromkeys(orders))
    placed = {orders.index(level): at for at, level in enumerate(levels)}
    totals, spread = _Totals(opened, len(orders)), _Spread(len(levels), sum(len(row.kept) for row in rows))
    some = readings(opened, rows, batch)
    with track("layers", applications(orders) * len(some)) as advance:
        for reading in some:
            with opened.running():
                for place, final in final_states(opened, reading, orders, advance):
                    totals.add(place, final, reading)
                    if place in placed:
                        spread.add(placed[place], final, reading)
    effects = [Effect(**found) for found in totals.means()]
    return dict(zip(orders, effects, strict=True)), spread.geometry()


class _Totals:
    """Sums over batches of what is measured of each order."""

    def __init__(self, opened: Opened, orders: int):
        self.model = cast(LayerwrightForMaskedLM, opened.model) if opened.head == "mlm" else None
        names = list(Effect.model_fields) if self.model else ["cosine", "l2"]
        self.sums = {name: torch.zeros(orders, dtype=torch.float64) for name in names}
        self.counts = dict.fromkeys(names, 0)
        self.final = torch.empty(0)
        self.first: _Predicted | None = None

    def add(self, place: int, final: Tensor, reading: Reading) -> None:
        """Add what a batch says of an order; the first of a batch is the one that the others are compared with."""
        x = final[reading.real].float()
        self.final = x if place == 0 else self.final
        found = {
            "cosine": F.cosine_similarity(x, self.final, dim=-1),
            "l2": (x - self.final).norm(dim=-1) / self.final.norm(dim=-1),
        }
        if self.model is not None:
            predicted = _Predicted.of(self.model, final[reading.places[:, 0], reading.places[:, 1]])
            self.first = predicted if place == 0 or self.first is None else self.first
            right = predicted.likeliest == reading.tokens
            found |= {"agreement": predicted.likeliest == self.first.likeliest, "kl": self.first.divergence(predicted)}
            found |= {"recovered": right[~reading.masked], "accuracy": right[reading.masked]}
        for name, values in found.items():
            self.sums[name][place] += float(values.double().sum())
            self.counts[name] += len(values) if place == 0 else 0

    def means(self) -> list[Mapping[str, float]]:
        """Return the means for each order; what nothing was asked for is left out."""
        known = [name for name in self.sums if self.counts[name]]
        orders = len(self.sums["cosine"])
        return [{name: float(self.sums[name][place]) / self.counts[name] for name in known} for place in range(orders)]


@dataclass(frozen=True)
class _Predicted:
    """What the output layer predicts at some tokens: logits [N, V], the likeliest token, and the logarithm of all mass."""

    logits: Tensor
    likeliest: Tensor
    mass: Tensor

    @classmethod
    def of(cls, model: LayerwrightForMaskedLM, states: Tensor) -> "_Predicted":
        """Read states [N, D]."""
        logits = torch.as_tensor(cast(MaskedHead, model.head)(states, model.backbone.embed.token.weight)).float()
        return cls(logits, logits.argmax(-1), logits.logsumexp(-1))

    @cached_property
    def probabilities(self) -> Tensor:
        """Return the probabilities [N, V]."""
        return (self.logits - self.mass[:, None]).exp_()

    def divergence(self, other: "_Predicted") -> Tensor:
        """Return the KL divergence of another prediction from this one, [N]."""
        # Written so that equal logits diverge by zero, not by the rounding of a softmax.
        gap = torch.einsum("nv,nv->n", self.probabilities, self.logits - other.logits)
        return (gap + other.mass - self.mass).clamp(min=0)


class _Spread:
    """The states of hidden layers, gathered over batches: those of some kept tokens, and how uniform those of a row are."""

    def __init__(self, levels: int, kept: int):
        self.stride = max(1, -(-kept // COMPARED))
        self.uniformity: list[list[Tensor]] = [[] for _ in range(levels)]
        self.states: list[list[Tensor]] = [[] for _ in range(levels)]

    def add(self, level: int, final: Tensor, reading: Reading) -> None:
        """Keep what is needed of the states of a level."""
        self.uniformity[level].append(uniformity(final, reading.real).cpu())
        row, place = reading.places[~reading.masked][:: self.stride].T
        self.states[level].append(final[row, place].float().cpu())

    def geometry(self) -> Geometry:
        """Return what all batches together say."""
        if not self.states:
            return Geometry([], [], [])
        states = torch.stack([torch.cat(parts) for parts in self.states])
        even = [float(torch.cat(parts).nanmean()) for parts in self.uniformity]
        return Geometry(even, cosines(states).tolist(), debiased_cka(states).tolist())
