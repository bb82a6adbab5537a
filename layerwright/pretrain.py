"""Pre-train one architecture, or a supernet of a whole space, from a packed corpus into a run folder.

A text with choices left open trains a supernet: the same run, but every batch names an architecture.  The run goes on
where it was cut off; on CPU it ends with the same bits as one that never was.
"""

import json
import math
import statistics
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from . import cost
from .batches import Prefetched
from .checkpoint import (
    Checkpoint,
    Signals,
    append_line,
    flatten_optimizer,
    hold,
    latest,
    restore_optimizer,
    save,
    sealed,
    truncate_after,
)
from .console import track, warn
from .corpus import Corpus
from .errors import Interrupted
from .handover import model_card, model_of, save_model
from .objectives import ReplacedTokenDetection
from .recipe import Objective, PretrainSettings, check_pieces, held_out, make_objective, score, stream_of
from .settings import write_atomically
from .train import Plan, Report, make_accelerator, make_optimizer, train

__all__ = [
    "Objective",
    "PretrainSettings",
    "held_out",
    "load",
    "make_objective",
    "outlook",
    "pretrain",
    "score",
    "seconds_per_step",
    "write_model",
]

# The corpus is known by its fingerprint, so it may move.
MAY_CHANGE = ("corpus", "evaluate_every", "save_every", "trackers")


def pretrain(settings: PretrainSettings, out: Path, *, label: str = "pretraining") -> Objective:
    """Train as the settings say, or go on with what `out` holds; return the objective, on the CPU, for evaluation.

    Raises:
        ValueError: settings that do not fit, or a folder of other settings.
        DataError: a corpus too small, or of more word pieces than the architecture has.
        RunInUse: another process trains in this folder.
        Interrupted: asked to stop; a checkpoint was written.
        FloatingPointError: the loss or the weights are not finite; the checkpoint before that stays.
    """
    run = _Run(settings, out)
    with hold(out) if run.machine.is_main_process else nullcontext():
        if run.machine.is_main_process:
            sealed(out, settings.explicit(), MAY_CHANGE)
        run.machine.wait_for_everyone()
        if not _finished(out):
            run.resume()
            run.finish(label)
        run.machine.wait_for_everyone()
    return load(out)[1]


class _Run:
    """One pre-training on its way: what every step needs, and what is kept of it."""

    def __init__(self, settings: PretrainSettings, out: Path):
        """Make what the settings describe, so that what is wrong with them shows before anything is written."""
        self.settings, self.out, self.space = settings, out, settings.space()
        self.corpus = Corpus.open(settings.corpus)
        self.objective = make_objective(settings, self.corpus)
        self.machine = make_accelerator(partial=self.space.size > 1, trackers=settings.trackers, folder=out)
        check_pieces(settings, self.machine.num_processes)
        self.objective.to(self.machine.device)
        self.held = held_out(self.corpus, settings)
        self.start, self.seconds = 0, 0.0
        self.stream = self._stream()

    def resume(self) -> None:
        """Take up the newest good checkpoint, if there is one."""
        self.plan = self._plan()
        self.optimizer = make_optimizer(self.objective, self.plan)
        checkpoint = _checkpoint(self.out, self.corpus)
        if checkpoint is not None:
            self.objective.load_state_dict(checkpoint.tensors("model"))
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
        with Signals() as signals, self._trackers(), track(label, steps, self.start) as advance:
            before, began = self.seconds, time.monotonic() - self.seconds
            for report in self._train():
                step, self.seconds = report.step, time.monotonic() - began
                scores = self._score() if step % evaluating == 0 or step == steps else {}
                if scores or step % logging == 0 or not report.finite:
                    self._log(report, scores)
                advance(loss=report.loss, **({"held_out": scores["held_out_loss"]} if scores else {}))
                stop = self._everyone(signals.stop)
                if stop or step % saving == 0 or step == steps:
                    self._save(step)
                if stop and step < steps:
                    raise Interrupted(f"stopped after step {step} of {steps}; the same command goes on from there")
        if self.machine.is_main_process:
            self._hand_over(before)

    def _plan(self) -> Plan:
        """Return the plan with its length in steps; for minutes they are measured once and kept."""
        kept = self.out / "budget.json"
        if self.settings.plan.minutes is None:
            steps = self.settings.steps(0)
        else:
            if not kept.exists():
                seconds = seconds_per_step(self.settings, self.corpus, self.objective, self.machine)
                if self.machine.is_main_process:
                    budget = {"steps": self.settings.steps(seconds), "seconds_per_step": seconds}
                    write_atomically(kept, json.dumps(budget))
                self.machine.wait_for_everyone()
            steps = int(json.loads(kept.read_text())["steps"])
        return self.settings.plan.model_copy(update={"steps": steps, "tokens": None, "minutes": None})

    def _stream(self) -> Prefetched:
        share = (self.machine.process_index, self.machine.num_processes)
        return Prefetched(stream_of(self.settings, self.corpus, self.start, share))

    def _train(self) -> Iterator[Report]:
        given = {"start": self.start, "seed": self.settings.seed}
        self.stream = self._stream()
        return train(self.objective, self.stream, self.plan, self.optimizer, **given, accelerator=self.machine)

    @contextmanager
    def _trackers(self) -> Iterator[None]:
        self.machine.init_trackers("layerwright")
        try:
            yield
        finally:
            # Not `end_training`, which also parts the processes.
            for tracker in self.machine.trackers:
                tracker.finish()

    def _score(self) -> dict[str, float]:
        """Return held-out scores: of the architecture, or the mean over a few fixed ones of a space, whose loss is finite.

        Raises: FloatingPointError where that is none.
        """
        few = [None] if self.space.size == 1 else [self.space.sample(Random(f"held out/{i}")) for i in range(4)]
        scores = [score(self.objective, self.held, arch, self.plan.precision) for arch in few]
        finite = [one for one in scores if math.isfinite(one["loss"])]
        if not finite:
            raise FloatingPointError(f"the held-out loss is {scores[0]['loss']}; a lower rate may help")
        return {f"held_out_{name}": statistics.fmean(one[name] for one in finite) for name in finite[0]}

    def _log(self, report: Report, scores: dict[str, float]) -> None:
        tokens = report.step * self.settings.batch * self.settings.length
        numbers = {"loss": report.loss, **report.parts, "rate": report.rate, "norm": report.norm}
        # What is not finite is no JSON, and no number to draw.
        numbers = (numbers if report.finite else {"skipped": 1}) | scores
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
        """Write a checkpoint, unless the step spoilt the weights: the next one would notice, but from bad ones no run goes on."""
        weights = self.objective.state_dict()
        broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if broken:
            raise FloatingPointError(f"step {step} left {broken[0]} not finite; a lower rate may help")
        if self.machine.is_main_process:
            tensors = {"model": weights, "optimizer": flatten_optimizer(self.optimizer)}
            save(self.out, tensors, {"step": step, "seconds": self.seconds, "corpus": self.corpus.fingerprint})

    def _hand_over(self, before: float) -> None:
        """Write the result, and the model folder of an architecture; before: seconds that earlier processes took."""
        settings, steps = self.settings, self.plan.steps or 0
        tokens = steps * settings.batch * settings.length
        result: dict[str, Any] = {"steps": steps, "tokens": tokens, "seconds": self.seconds, "score": self._score()}
        if self.space.size > 1:
            result["skipped"] = self._skipped()
        # Of what this process did, which of a run that was resumed is the end.
        result |= {"waiting": self.stream.seconds / max(self.seconds - before, 1e-9), "padding": self.stream.padding}
        if self.space.size == 1:
            arch = self.space.largest
            result |= {"arch": str(arch), "parameters": cost.parameters(arch), "flops": cost.flops(arch, settings.length)}
            write_model(settings, self.objective, self.corpus, self.out / "model", result)
        write_atomically(self.out / "result.json", json.dumps(result, indent=1))

    def _skipped(self) -> int:
        """Count the steps that were not finite and changed nothing, and warn of them."""
        lines = (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        skipped = sum("skipped" in json.loads(line) for line in lines)
        if skipped:
            warn(f"{skipped:,} of {self.plan.steps:,} steps drew an architecture whose loss or gradient was not finite")
        return skipped


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
    objective, space = make_objective(settings, corpus), settings.space()
    held_out(corpus, settings)
    seconds = seconds_per_step(settings, corpus, objective, make_accelerator(partial=space.size > 1))
    steps, per_step = settings.steps(seconds), settings.batch * settings.length
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


def seconds_per_step(
    settings: PretrainSettings, corpus: Corpus, objective: Objective, machine: Accelerator, steps: int = 5
) -> float:
    """Measure a step on a copy of the objective: the median of a few, after two that do not count."""
    copy = deepcopy(objective).to(machine.device)
    plan = settings.plan.model_copy(update={"steps": steps + 2, "minutes": None, "tokens": None})
    stream = stream_of(settings, corpus, 0, (machine.process_index, machine.num_processes))
    reports = train(copy, stream, plan, make_optimizer(copy, plan), seed=settings.seed, accelerator=machine)
    marks = [time.monotonic() for _ in reports][1:]
    machine.free_memory()
    spent = statistics.median(later - earlier for earlier, later in pairwise(marks))
    return float(machine.reduce(torch.tensor(spent, device=machine.device), reduction="mean"))


def load(out: Path) -> tuple[PretrainSettings, Objective]:
    """Return the settings and the trained objective of a finished run.

    Raises:
        FileNotFoundError: the run is not finished, or its last checkpoint is damaged.
        IntegrityError: all its checkpoints are damaged.
        ValueError: its corpus is another one by now.
    """
    if not _finished(out):
        raise FileNotFoundError(f"{out} holds no finished run, or only an earlier checkpoint of one; pretrain goes on from it")
    settings = PretrainSettings.model_validate(tomllib.loads((out / "settings.toml").read_text()))
    corpus = Corpus.open(settings.corpus)
    objective, checkpoint = make_objective(settings, corpus), _checkpoint(out, corpus)
    assert checkpoint is not None
    objective.load_state_dict(checkpoint.tensors("model"))
    objective.eval()
    return settings, objective


def _finished(out: Path) -> bool:
    """Return whether the run has a result, and still the weights it is of."""
    if not (out / "result.json").exists():
        return False
    checkpoint = latest(out)
    return checkpoint is not None and checkpoint.step == json.loads((out / "result.json").read_text())["steps"]


def _checkpoint(out: Path, corpus: Corpus) -> Checkpoint | None:
    """Return the newest good checkpoint, of which the same tokens must be there."""
    checkpoint = latest(out)
    if checkpoint is not None and checkpoint.state["corpus"] != corpus.fingerprint:
        then, now = checkpoint.state["corpus"][:16], corpus.fingerprint[:16]
        raise ValueError(f"{out} was begun with another corpus than {corpus.folder} is now: fingerprint {then} -> {now}")
    return checkpoint
