"""Pre-train one architecture, or a supernet of a whole space, from a packed corpus into a run folder.

A text with choices left open trains a supernet: the same run, but every batch names an architecture.  The run goes on
where it was cut off; on CPU it ends with the same bits as one that never was.
"""

import json
import math
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from . import cost, presets
from .architecture import Architecture
from .backbone import Backbone
from .batches import Batch, along, batches
from .checkpoint import Signals, append_line, flatten_optimizer, hold, latest, restore_optimizer, save, sealed, truncate_after
from .console import track
from .corpus import Corpus
from .errors import DataError, Interrupted
from .handover import model_card, model_of, save_model
from .objectives import MaskedLM, ReplacedTokenDetection
from .settings import write_atomically
from .space import Space
from .supernet import Supernet
from .train import Plan, Report, make_accelerator, make_optimizer, mix, train

Objective = MaskedLM | ReplacedTokenDetection


class PretrainSettings(BaseModel):
    """What to train, on what, and for how long.

    arch: an architecture, a preset, or a space (then a supernet is trained).  generator: of replaced-token detection, a
    fraction of the width or an architecture.  batch: rows a step over all processes; length: tokens a row.
    evaluate_every, save_every: steps; 0 stands for a twentieth of the run.  evaluate_rows: held-out rows.
    trackers: where to log beside metrics.jsonl (tensorboard, wandb, ...: those of Accelerate).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    corpus: Path
    objective: Literal["rtd", "mlm"] = "rtd"
    generator: str = "1/4"
    batch: int = Field(128, ge=1)
    length: int = Field(128, ge=8)
    dropout: float = Field(0.1, ge=0, lt=1)
    seed: int = 0
    plan: Plan = Plan()
    trackers: tuple[str, ...] = ()
    evaluate_every: int = Field(0, ge=0)
    evaluate_rows: int = Field(256, ge=1)
    save_every: int = Field(0, ge=0)

    def space(self) -> Space:
        """Read the text: an architecture is a space of one."""
        return presets.space(self.arch)


def pretrain(settings: PretrainSettings, out: Path, *, label: str = "pretraining") -> Objective:
    """Train as the settings say, or go on with what `out` holds; return the objective, on the CPU, for evaluation.

    Raises:
        ValueError: settings that do not fit, or a folder of other settings.
        RunInUse: another process trains in this folder.
        Interrupted: asked to stop; a checkpoint was written.
        FloatingPointError: the loss is not finite.
    """
    corpus = Corpus.open(settings.corpus)
    objective = make_objective(settings, corpus)
    machine = make_accelerator(partial=settings.space().size > 1, trackers=settings.trackers, folder=out)
    with hold(out) if machine.is_main_process else nullcontext():
        if machine.is_main_process:
            sealed(out, settings, ["evaluate_every", "save_every", "trackers"])
        machine.wait_for_everyone()
        if not (out / "result.json").exists():
            _Run(settings, out, corpus, objective, machine).finish(label)
        machine.wait_for_everyone()
    return load(out)[1]


class _Run:
    """One pre-training on its way: what every step needs, and what is kept of it."""

    def __init__(self, settings: PretrainSettings, out: Path, corpus: Corpus, objective: Objective, machine: Accelerator):
        self.settings, self.out, self.machine = settings, out, machine
        self.corpus, self.objective = corpus, objective.to(machine.device)
        self.plan = self._budget()
        self.optimizer = make_optimizer(objective, self.plan)
        self.held = held_out(corpus, settings)
        self.start, self.seconds = 0, 0.0
        checkpoint = latest(out)
        if checkpoint is not None:
            objective.load_state_dict(checkpoint.tensors("model"))
            restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
            self.start, self.seconds = checkpoint.step, float(checkpoint.state["seconds"])

    def finish(self, label: str) -> None:
        """Train to the end of the plan and write what is left behind."""
        steps = self.plan.steps or 0
        twentieth = max(1, steps // 20)
        evaluating = self.settings.evaluate_every or twentieth
        saving = self.settings.save_every or twentieth
        logging = max(1, steps // 1000)
        if self.machine.is_main_process:
            truncate_after(self.out / "metrics.jsonl", self.start)
        stream = self._stream()
        with Signals() as signals, track(label, steps, self.start) as advance:
            began = time.monotonic() - self.seconds
            reports = train(
                self.objective,
                stream,
                self.plan,
                self.optimizer,
                start=self.start,
                seed=self.settings.seed,
                accelerator=self.machine,
            )
            for report in reports:
                self.seconds = time.monotonic() - began
                scores = self._score() if report.step % evaluating == 0 or report.step == steps else {}
                if scores or report.step % logging == 0:
                    self._log(report, scores)
                advance(loss=report.loss, **({"held_out": scores["held_out_loss"]} if scores else {}))
                stop = self._everyone(signals.stop)
                if stop or report.step % saving == 0 or report.step == steps:
                    self._save(report.step)
                if stop and report.step < steps:
                    raise Interrupted(f"stopped after step {report.step} of {steps}; the same command goes on from there")
        if self.machine.is_main_process:
            self._hand_over()

    def _budget(self) -> Plan:
        """Return the plan with its length in steps; minutes are measured once and kept."""
        plan, kept = self.settings.plan, self.out / "budget.json"
        per_step = self.settings.batch * self.settings.length
        if plan.minutes is not None:
            if not kept.exists():
                seconds = seconds_per_step(self.settings, self.corpus, self.objective, self.machine)
                steps = max(1, int(plan.minutes * 60 / seconds))
                if self.machine.is_main_process:
                    write_atomically(kept, json.dumps({"steps": steps, "seconds_per_step": seconds}))
                self.machine.wait_for_everyone()
            return plan.model_copy(update={"steps": json.loads(kept.read_text())["steps"], "minutes": None})
        if plan.tokens is not None:
            return plan.model_copy(update={"steps": max(1, plan.tokens // per_step), "tokens": None})
        if plan.steps is None:
            raise ValueError("how long? give a budget in steps, tokens or minutes")
        return plan

    def _stream(self) -> Iterator[Batch]:
        return stream_of(self.settings, self.corpus, self.start, (self.machine.process_index, self.machine.num_processes))

    def _score(self) -> dict[str, float]:
        """Return held-out scores: of the architecture, or the mean over a few fixed ones of a space."""
        space = self.settings.space()
        few = [None] if space.size == 1 else [space.sample(Random(f"held out/{i}")) for i in range(4)]
        scores = [score(self.objective, self.held, arch, self.plan.precision) for arch in few]
        return {f"held_out_{name}": sum(one[name] for one in scores) / len(scores) for name in scores[0]}

    def _log(self, report: Report, scores: dict[str, float]) -> None:
        tokens = report.step * self.settings.batch * self.settings.length
        numbers = {"loss": report.loss, **report.parts, "rate": report.rate, "norm": report.norm, **scores}
        self.machine.log({**numbers, "tokens": tokens}, step=report.step)
        if self.machine.is_main_process:
            record = {"step": report.step, "tokens": tokens, "seconds": round(self.seconds, 3), **numbers}
            append_line(self.out / "metrics.jsonl", record)

    def _everyone(self, stop: bool) -> bool:
        """Return whether any process was asked to stop."""
        if self.machine.num_processes == 1:
            return stop
        asked: Tensor = self.machine.reduce(torch.tensor(float(stop), device=self.machine.device))
        return bool(asked > 0)

    def _save(self, step: int) -> None:
        if self.machine.is_main_process:
            tensors = {"model": self.objective.state_dict(), "optimizer": flatten_optimizer(self.optimizer)}
            save(self.out, tensors, {"step": step, "seconds": self.seconds})

    def _hand_over(self) -> None:
        """Write the result, and the model folder of an architecture."""
        arch = self.settings.space().largest
        steps = self.plan.steps or 0
        result = {
            "steps": steps,
            "tokens": steps * self.settings.batch * self.settings.length,
            "seconds": self.seconds,
            "score": self._score(),
        }
        if self.settings.space().size == 1:
            result |= {"arch": str(arch), "parameters": cost.parameters(arch), "flops": cost.flops(arch, self.settings.length)}
            write_model(self.settings, self.objective, self.corpus, self.out / "model", result)
        write_atomically(self.out / "result.json", json.dumps(result, indent=1))
        self.machine.end_training()


def write_model(settings: PretrainSettings, objective: Objective, corpus: Corpus, folder: Path, result: dict[str, Any]) -> None:
    """Write a trained encoder as a model folder with its tokenizer and card; a generator goes into a folder beside it."""
    tokenizer = corpus.tokenizer_file.parent
    facts = {
        "corpus": f"{settings.corpus.name}, fingerprint {corpus.fingerprint[:16]}",
        "objective": {"mlm": "masked language modelling", "rtd": "replaced-token detection"}[settings.objective],
        "budget": f"{result['steps']:,} steps of {settings.batch} x {settings.length} tokens, {result['tokens']:,} in all",
        "seconds": round(result["seconds"]),
        "seed": settings.seed,
        "peak learning rate": settings.plan.rate,
        "precision": settings.plan.precision,
    }
    special = corpus.special
    config = {
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.dropout,
        "pad_token_id": special.pad,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
    }
    arch = settings.space().largest
    model = model_of(arch, objective.state_dict(), settings.objective, **config)
    save_model(folder, model, tokenizer=tokenizer, card=model_card(model, str(arch), facts=facts, scores=result["score"]))
    if isinstance(objective, ReplacedTokenDetection):
        generator = model_of(objective.generator.backbone.arch, objective.generator.state_dict(), "mlm", **config)
        card = model_card(generator, f"The generator that trained {arch}", facts=facts, scores={})
        save_model(folder.with_name("generator"), generator, tokenizer=tokenizer, card=card)


def outlook(settings: PretrainSettings) -> list[tuple[str, str]]:
    """Return what a run would do, for people: sizes, length, and the expected time, measured on a few steps.

    Raises:
        ValueError: what would stop the run, too.
    """
    corpus = Corpus.open(settings.corpus)
    objective, space, plan = make_objective(settings, corpus), settings.space(), settings.plan
    seconds = seconds_per_step(settings, corpus, objective, make_accelerator(partial=space.size > 1))
    per_step = settings.batch * settings.length
    steps = plan.steps or (plan.tokens or 0) // per_step or int((plan.minutes or 0) * 60 / seconds)
    rows = [("architecture" if space.size == 1 else "supernet of", str(space))]
    if space.size == 1:
        arch = space.largest
        rows += [("layers", str(len(arch))), ("parameters", f"{cost.parameters(arch):,}")]
        rows.append((f"FLOPs of {settings.length} tokens", f"{cost.flops(arch, settings.length):,}"))
    if isinstance(objective, ReplacedTokenDetection):
        rows.append(("generator", str(objective.generator.backbone.arch)))
    rows.append(("parameters trained", f"{sum(p.numel() for p in objective.parameters()):,}"))
    rows += [("steps", f"{steps:,}"), ("tokens", f"{steps * per_step:,}")]
    rows.append(("epochs of the corpus", f"{steps * per_step / len(corpus.tokens('train')):.2f}"))
    rows.append(("expected time", f"{steps * seconds / 60:,.1f} minutes, at {per_step / seconds:,.0f} tokens a second"))
    return rows


def stream_of(settings: PretrainSettings, corpus: Corpus, start: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
    """Yield the batches of a run from a step on; those of a supernet name an architecture."""
    stream = batches(corpus, size=settings.batch, length=settings.length, seed=settings.seed, start=start, share=share)
    space = settings.space()
    return stream if space.size == 1 else along(stream, space, settings.seed, start)


def seconds_per_step(
    settings: PretrainSettings, corpus: Corpus, objective: Objective, machine: Accelerator, steps: int = 5
) -> float:
    """Measure a step on a copy of the objective: the median of a few, after two that do not count."""
    copy = deepcopy(objective).to(machine.device)
    plan = settings.plan.model_copy(update={"steps": steps + 2, "minutes": None, "tokens": None})
    stream = stream_of(settings, corpus, 0, (machine.process_index, machine.num_processes))
    marks = [time.monotonic()]
    for _ in train(copy, stream, plan, make_optimizer(copy, plan), seed=settings.seed, accelerator=machine):
        marks.append(time.monotonic())
    spent = torch.tensor(sorted(b - a for a, b in pairwise(marks))[: steps + 2][(steps + 2) // 2], device=machine.device)
    return float(machine.reduce(spent, reduction="mean"))


def load(out: Path) -> tuple[PretrainSettings, Objective]:
    """Return the settings and the trained objective of a finished run.

    Raises:
        FileNotFoundError: the run is not finished.
        IntegrityError: its checkpoint is damaged.
    """
    if not (out / "result.json").exists():
        raise FileNotFoundError(f"{out} holds no finished run")
    settings = PretrainSettings.model_validate(tomllib.loads((out / "settings.toml").read_text()))
    objective = make_objective(settings, Corpus.open(settings.corpus))
    checkpoint = latest(out)
    if checkpoint is None:
        raise FileNotFoundError(f"{out} holds no checkpoint")
    objective.load_state_dict(checkpoint.tensors("model"))
    objective.eval()
    return settings, objective


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
        return MaskedLM(net, corpus.special)
    # A supernet has one generator for all its architectures: that of the ordinary backbone.
    like = arch if space.size == 1 else presets.interleaved(arch)
    generator = MaskedLM(Backbone(_generator(settings, like), settings.dropout), corpus.special, masked=0.85, random=0.0)
    return ReplacedTokenDetection(net, generator)


def _generator(settings: PretrainSettings, like: Architecture) -> Architecture:
    try:
        fraction = float(Fraction(settings.generator))
    except (ValueError, ZeroDivisionError):
        return presets.architecture(settings.generator)
    if not 0 < fraction <= 1:
        raise ValueError(f"generator={settings.generator}: a fraction of the width, at most 1, or an architecture")
    return like.narrow(fraction)


def held_out(corpus: Corpus, settings: PretrainSettings, rows: int | None = None) -> list[Batch]:
    """Return the held-out batches, the same for every candidate of a corpus and length."""
    wanted, size = rows or settings.evaluate_rows, 64
    stream = batches(corpus, size=min(size, wanted), length=settings.length, seed=0, split="validation")
    return list(islice(stream, math.ceil(wanted / size)))


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
