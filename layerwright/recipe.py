"""What a pre-training is made of: settings, and from them the objective, its batches, and the held-out score.

All of it follows from the settings and the corpus, so a run can be taken up, and its weights read, with nothing else.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from . import presets
from .architecture import Architecture
from .backbone import Backbone
from .batches import Batch, along, batches
from .corpus import Corpus
from .errors import DataError
from .objectives import MaskedLM, ReplacedTokenDetection
from .space import Space
from .supernet import Supernet
from .train import Plan, mix

Objective = MaskedLM | ReplacedTokenDetection


class PretrainSettings(BaseModel):
    """What to train, on what, and for how long.

    arch: an architecture, a preset, or a space (then a supernet is trained).  generator: of replaced-token detection, a
    fraction of the width or an architecture; some presets bring one.  batch: rows a step over all processes; length: tokens
    a row.  apart: documents in one row do not see each other.  usual: of the formulas left open that a supernet trains, the
    share that is plain attention; the others are drawn.  Half is our choice, for AutoBERT-Zero tells none.
    evaluate_every, save_every: steps; 0 stands for a twentieth of the run.  evaluate_rows: held-out rows, from 64 on in
    batches of 64.  trackers: where to log beside metrics.jsonl (tensorboard, wandb, ...: those of Accelerate).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    corpus: Annotated[Path, AfterValidator(Path.absolute)]
    objective: Literal["rtd", "mlm"] = "rtd"
    generator: str = "1/4"
    batch: int = Field(128, ge=1)
    length: int = Field(128, ge=8)
    apart: bool = False
    dropout: float = Field(0.1, ge=0, lt=1)
    usual: float = Field(0.5, ge=0, le=1)
    seed: int = Field(0, ge=0)
    plan: Plan = Plan()
    trackers: tuple[str, ...] = ()
    evaluate_every: int = Field(0, ge=0)
    evaluate_rows: int = Field(256, ge=1)
    save_every: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _take_generator(cls, given: Any) -> Any:
        own = presets.GENERATORS.get(str(given.get("arch")).strip()) if isinstance(given, dict) else None
        return given if own is None else {"generator": own} | given

    @model_validator(mode="after")
    def _check_plan(self) -> Self:
        plan = self.plan
        if plan.steps is None and plan.tokens is None and plan.minutes is None:
            raise ValueError("how long? give plan.steps, plan.tokens or plan.minutes")
        if self.batch % plan.accumulate:
            raise ValueError(f"plan.accumulate={plan.accumulate} does not divide batch={self.batch}")
        return self

    def space(self) -> Space:
        """Read the text: an architecture is a space of one."""
        return presets.space(self.arch)

    def explicit(self) -> Self:
        """Return the same settings with every text of an architecture written out: what a run folder keeps.

        A default or a preset may change in a later release, and the run must go on as it began.
        """
        texts = {"arch": self.space().explicit()}
        if _fraction(self.generator) is None:
            texts["generator"] = presets.architecture(self.generator).explicit()
        return self.model_copy(update=texts)

    def steps(self, seconds: float) -> int:
        """Return the budget in steps; seconds: of one step, for a budget in minutes."""
        plan = self.plan
        if plan.minutes is not None:
            return max(1, int(plan.minutes * 60 / seconds))
        return plan.steps or max(1, (plan.tokens or 0) // (self.batch * self.length))


def check_pieces(settings: PretrainSettings, processes: int, name: str = "plan") -> None:
    """Refuse to cut what each process has of a batch into pieces that it cannot be cut into.

    name: what the user calls the plan.  Raises: ValueError.
    """
    share, pieces = settings.batch // processes, settings.plan.accumulate
    if share % pieces:
        raise ValueError(
            f"{name}.accumulate={pieces} does not divide the {share} rows that each process has of batch={settings.batch}"
        )


def make_objective(settings: PretrainSettings, corpus: Corpus) -> Objective:
    """Build what the settings describe, freshly initialised from the seed.

    Raises:
        ValueError: a vocabulary smaller than the corpus's, rows longer than the positions, a generator that does not fit.
    """
    space = settings.space()
    arch = space.largest
    if arch.vocab < corpus.vocab:
        raise DataError(
            f"the corpus has {corpus.vocab:,} word pieces and the architecture vocab={arch.vocab}: write vocab={corpus.vocab}"
        )
    if arch.positions < settings.length:
        raise ValueError(
            f"rows of {settings.length} tokens need positions={settings.length}; the architecture has {arch.positions}"
        )
    torch.manual_seed(mix(settings.seed, -1))
    net = Backbone(arch, settings.dropout) if space.size == 1 else Supernet(space, settings.dropout)
    if settings.objective == "mlm":
        return MaskedLM(net, corpus.special, tokens=corpus.vocab)
    # A supernet has one generator for all its architectures: that of the ordinary backbone.
    like = arch if space.size == 1 else presets.interleaved(arch)
    generator = MaskedLM(Backbone(_generator(settings, like), settings.dropout), corpus.special, masked=0.85, random=0.0)
    return ReplacedTokenDetection(net, generator)


def _generator(settings: PretrainSettings, like: Architecture) -> Architecture:
    fraction = _fraction(settings.generator)
    if fraction is None:
        return presets.architecture(settings.generator)
    if not 0 < fraction <= 1:
        raise ValueError(f"generator={settings.generator}: a fraction of the width, at most 1, or an architecture")
    return like.narrow(fraction)


def _fraction(text: str) -> float | None:
    """Return the number that a text such as 1/4 is, None where it is none."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        return None


def stream_of(settings: PretrainSettings, corpus: Corpus, start: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
    """Yield the batches of a run from a step on; those of a supernet name an architecture."""
    size, length, seed = settings.batch, settings.length, settings.seed
    stream = batches(corpus, shape=(size, length), seed=seed, start=start, share=share, apart=settings.apart)
    space = settings.space()
    return stream if space.size == 1 else along(stream, space, settings.seed, start, settings.usual)


def held_out(corpus: Corpus, settings: PretrainSettings) -> list[Batch]:
    """Return the held-out batches, the same for every candidate of a corpus and length.

    Raises:
        DataError: the validation split is shorter than one row.
    """
    size = min(64, settings.evaluate_rows)
    stream = batches(corpus, shape=(size, settings.length), seed=0, split="validation", apart=settings.apart)
    return list(islice(stream, math.ceil(settings.evaluate_rows / size)))


@torch.no_grad()
def score(
    objective: Objective, held: Sequence[Batch], arch: Architecture | None = None, precision: str = "float32"
) -> dict[str, float]:
    """Return the mean loss and parts over held-out batches, in evaluation; the same numbers every time.

    accuracy: of the masked tokens, or of telling replaced tokens.
    """
    was = objective.training
    objective.eval()
    device = next(objective.parameters()).device
    sums: dict[str, float] = {}
    for batch in held:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = objective(replace(batch, arch=arch).to(device))
        for name, value in {"loss": loss.total, **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(held)
    objective.train(was)
    return sums
