"""The training loop: a generator, so that what happens between steps is written by whoever runs it.

    for report in train(objective, stream, plan, optimizer):
        if report.step % 100 == 0:
            save(...)

Chance inside a step (dropout) is seeded by the seed, the step and the rank; so a run that starts at a step goes on as
one that never stopped.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from .adamw import AdamW
from .batches import Batch
from .errors import nearest
from .memory import keep_memory
from .objectives import Loss

Beta = Annotated[float, Field(ge=0, lt=1)]


class Plan(BaseModel):
    """How long and how fast to learn.

    Exactly one of steps, tokens and minutes says how long.  rate: peak learning rate.  warmup: steps of linear warm-up, or
    below 1 a share of all steps; it multiplies the linear decay to zero (Clark et al. 2020, released code).  decay:
    weight decay, on matrices only.  clip: largest gradient norm.  accumulate: pieces a batch is cut into.
    bias_correction: false is Adam as BERT and ELECTRA have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0, allow_inf_nan=False)
    rate: float = Field(5e-4, gt=0)
    warmup: float = Field(0.01, ge=0)
    decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    accumulate: int = Field(1, ge=1)
    precision: Literal["float32", "bf16"] = "float32"
    bias_correction: bool = True
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    epsilon: float = Field(1e-6, gt=0)

    @model_validator(mode="after")
    def _one_budget(self) -> "Plan":
        given = [name for name in ("steps", "tokens", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a budget is one of steps, tokens and minutes, not {' and '.join(given)}")
        return self

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up times linear decay."""
        steps = self.steps or 1
        warmup = self.warmup * steps if self.warmup < 1 else self.warmup
        return self.rate * min(1.0, (step + 1) / max(1.0, warmup)) * (1 - step / steps)


class Report(NamedTuple):
    """What a step did: step counts the steps so far, norm is the gradient's before clipping.

    finite: whether loss and gradient were; where they were not, the weights are as before.
    """

    step: int
    loss: float
    parts: dict[str, float]
    rate: float
    norm: float
    finite: bool = True


class Alone:
    """A process that learns while the others do not: what the loop asks of an accelerator."""

    num_processes, process_index = 1, 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Do nothing: there is nobody to wait for."""
        return nullcontext()

    def reduce(self, values: Tensor, reduction: str = "sum") -> Tensor:
        """Return the values: there are no others."""
        return values


def make_optimizer(model: nn.Module, plan: Plan, scale: Callable[[str], float] = lambda name: 1.0) -> AdamW:
    """Return AdamW over a model's parameters, in groups of equal weight decay and rate.

    scale: the factor on the learning rate of a parameter, by name (layer-wise decay).  Biases and norms do not decay.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scale(name), plan.decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    made = [{"params": group, "scale": factor, "weight_decay": decay} for (factor, decay), group in groups.items()]
    return AdamW(made, lr=plan.rate, betas=plan.betas, eps=plan.epsilon, bias_correction=plan.bias_correction)


def make_accelerator(*, partial: bool = False, trackers: Sequence[str] = (), folder: Path | None = None) -> Accelerator:
    """Return the devices and processes to train on; the precision is the plan's, whatever the launcher says.

    partial: a step leaves parameters unused, as a supernet's does.  trackers: those of Accelerate, to write into `folder`
    once they are started.

    Raises:
        ValueError: an unknown tracker, or one that is not installed.
    """
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    installed = [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in known:
            raise ValueError(f"no tracker {name!r}{nearest(name, known)}")
        if name not in installed:
            raise ValueError(f"the package of the tracker {name!r} is not installed")
    unused = DistributedDataParallelKwargs(find_unused_parameters=partial)
    # Unless told that the CPU is meant, an accelerator takes each process on it for a training of its own.
    cpu, log_with = not torch.accelerator.is_available(), list(trackers) or None
    return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[unused], log_with=log_with, project_dir=folder)


def _usual(model: nn.Module) -> Accelerator | Alone:
    """Return where a model is trained without an accelerator: where it lies, unless a launcher began several processes."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return make_accelerator() if several else Alone(next(model.parameters()).device)


def train(
    model: nn.Module,
    stream: Iterable[Batch],
    plan: Plan,
    optimizer: AdamW,
    *,
    start: int = 0,
    seed: int = 0,
    accelerator: Accelerator | Alone | None = None,
) -> Iterator[Report]:
    """Take steps `start` to `plan.steps`, yielding after each; the stream begins at the batch of step `start`.

    model: a batch -> Loss.  It must already be on the accelerator's device; without one it is trained where it is.  A step
    whose loss or gradient is not finite changes nothing where its batch names an architecture, for that may be the fault of
    this one alone; the next goes on.

    Raises:
        FloatingPointError: the loss or the gradient of another batch is not finite; the weights are those before the step.
        ValueError: the plan does not say how many steps.
    """
    if plan.steps is None:
        raise ValueError("a plan needs a number of steps to train by")
    machine = accelerator or _usual(model)
    keep_memory()
    model.train()
    # An accelerator keeps every model it has prepared, so several trainings with one would fill the memory.
    wrapped = model if isinstance(machine, Alone) or machine.num_processes == 1 else machine.prepare_model(model)
    for step, batch in zip(range(start, plan.steps), stream, strict=False):
        torch.manual_seed(mix(seed, step, machine.process_index))
        if not model.training:  # whoever evaluates between two steps switches all of it
            model.train()
        loss = _backward(wrapped, batch, plan, machine)
        norm = optimizer.clip(plan.clip)
        values = torch.stack([loss.total.detach(), norm, *loss.parts.values()])
        total, length, *parts = machine.reduce(values, reduction="mean").tolist()
        rate, finite = plan.rate_at(step), math.isfinite(total) and math.isfinite(length)
        if not finite:
            optimizer.zero_grad()
        if not finite and batch.arch is None:
            raise FloatingPointError(
                f"step {step + 1}: loss {total}, gradient norm {length}; the weights are those of step {step}. "
                f"Seed {seed}; a lower rate, a longer warm-up or float32 may help"
            )
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        if finite:
            optimizer.step()
            optimizer.zero_grad()
        yield Report(step + 1, total, dict(zip(loss.parts, parts, strict=True)), rate, length, finite)


def _backward(model: nn.Module, batch: Batch, plan: Plan, machine: Accelerator | Alone) -> Loss:
    """Add up the gradients of a batch, in pieces; return the mean loss."""
    pieces = batch.to(machine.device).split(plan.accumulate)
    losses = []
    for piece in pieces:
        last = piece is pieces[-1]
        with nullcontext() if last else machine.no_sync(model):
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                loss: Loss = model(piece)
            (loss.total / len(pieces)).backward()
        losses.append(loss)
    if len(losses) == 1:
        return losses[0]
    mean = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
    return Loss(torch.stack([loss.total.detach() for loss in losses]).mean(), mean)


def mix(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on all numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1
