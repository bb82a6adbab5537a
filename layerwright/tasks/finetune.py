"""Fine-tune a model folder on a labelled task of any kind, once for each of several seeds.

Two ideas. A run is its seeds: each begins with the same weights, is sealed when it ends and never repeated, so a killed
run goes on with the seed it was in. And the score of a seed is that of its last epoch, never that of its best one, which
would be chosen by the rows it is scored on.
"""

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerwright import console
from layerwright.backbone import Backbone
from layerwright.checkpoint import MANIFEST, Signals, append_line, hold, seal_folder, sealed
from layerwright.dense import packing
from layerwright.encoder import share
from layerwright.errors import Interrupted, nearest
from layerwright.handover import model_card, model_of, save_model
from layerwright.memory import most_memory, release_memory, watch_memory
from layerwright.settings import write_atomically
from layerwright.tasks.choices import ChoiceForm
from layerwright.tasks.classification import ClassForm, layer_scale
from layerwright.tasks.declarations import TASKS
from layerwright.tasks.examples import Examples, Kind
from layerwright.tasks.inputs import SUMMED_UP, Splits, check_classes, open_model, open_start, read_splits
from layerwright.tasks.lessons import Form, HeadObjective
from layerwright.tasks.metrics import Measured, metric_names, score, summary
from layerwright.tasks.protocols import FinetuneSettings
from layerwright.tasks.results import FinetuneResults, SeedResult, finished, show
from layerwright.tasks.rows import Reader, Rows
from layerwright.tasks.spans import SpanForm
from layerwright.tasks.tags import TagForm, TagRows
from layerwright.train import Plan, Report, make_accelerator, make_optimizer, mix, train

__all__ = ["FinetuneResults", "FinetuneSettings", "SeedResult", "finetune", "form_of"]

WEIGHTS = "model.safetensors"
PREDICTIONS = "predictions.jsonl"


def finetune(model: Path, out: Path, settings: FinetuneSettings) -> FinetuneResults:
    """Fine-tune a model folder with every seed, or go on with what `out` holds; print and return the results.

    Leaves settings.toml with every number, for each seed seeds/N/metrics.jsonl, predictions.jsonl (key and prediction of each
    validation example; predictions.SPLIT.jsonl for other splits) and result.json, and in model/ the weights of the median one.

    Raises:
        ValueError: settings that do not fit the model or the task, or a folder begun with other ones.
        DataError: a file or tokenizer that cannot be used.
        IntegrityError: the model folder is torn or altered.
        RunInUse: another process fine-tunes in this folder.
        Interrupted: asked to stop; finished seeds are kept.
        FloatingPointError: the loss is not finite.
    """
    run = _Run(model, settings)
    with hold(out):
        sealed(out, run.settings)
        _same_inputs(out / "inputs.json", run.digests())
        run.tell()
        kept = out / "results.json"
        if kept.exists():
            results = FinetuneResults.model_validate_json(kept.read_text())
        else:
            results = run.finish(out)
            write_atomically(kept, results.model_dump_json(indent=1))
        for passed in (*out.glob(f"seeds/*/{WEIGHTS}"), *out.glob(f"seeds/*/{MANIFEST}")):
            passed.unlink()
    show(results)
    return results


def form_of(learned: Examples[Any], reader: Reader, settings: FinetuneSettings) -> Form:
    """Return the form for what is learned from these examples."""
    if learned.kind == "choices":
        return ChoiceForm(reader)
    if learned.kind == "tags":
        return TagForm(reader, learned.labels, settings.stride)
    if learned.kind == "spans":
        missing = not all(row.answers for row in learned.rows)
        threshold = settings.threshold if missing else 0.0
        return SpanForm(reader, settings.stride, settings.longest, settings.best, missing, threshold)
    return ClassForm.of(reader, learned)


def score_names(settings: FinetuneSettings, splits: Splits) -> tuple[str, ...]:
    """Return the metrics, the one that the median seed is chosen by first.

    Raises: ValueError for a score that is none of them.
    """
    names = metric_names(splits.valid)
    first = settings.score or (TASKS[settings.task].metrics[0] if settings.task else names[0])
    if first not in names:
        raise ValueError(f"no score {first!r} for {settings.task or f'this {splits.train.kind}'}{nearest(first, names)}")
    return (first, *(name for name in names if name != first))


class _Run:
    """One fine-tuning: all its inputs, read at once, so that whatever is wrong shows before anything is written."""

    def __init__(self, model: Path, settings: FinetuneSettings):
        self.model, self.machine = model, make_accelerator()
        if self.machine.num_processes > 1:
            raise ValueError(f"fine-tuning runs in one process, and this is one of {self.machine.num_processes}")
        self.splits = read_splits(settings)
        self.kind: Kind = self.splits.train.kind
        self.scores = score_names(settings, self.splits)
        self.net = open_model(model)
        check_classes(self.net, self.splits.train.labels, self.splits.train.source)
        self.start = open_start(settings.start, self.net, settings.begins) if settings.start else self.net
        self.settings = settings = settings.for_model(self.net.arch)
        assert settings.length is not None
        self.shape = self.start.shape._replace(dropout=settings.dropout)
        reader = Reader.of(
            self.net.tokenizer, pad=self.net.ids["pad"] or 0, length=settings.length, segments=self.net.arch.segments > 1
        )
        self.form = form_of(self.splits.train, reader, settings)
        self.train = self.form.rows(self.splits.train, learn=True)
        self.scored = {name: self.form.rows(examples) for name, examples in self.splits.named.items() if name != "train"}
        steps = settings.epochs * math.ceil(len(self.train) / settings.batch)
        self.plan = Plan(
            steps=steps, **settings.model_dump(include=Plan.model_fields.keys() & type(settings).model_fields.keys())
        )

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of all that the run reads."""
        folders = {"model": self.model} | ({"start": self.settings.start} if self.settings.start else {})
        files = {
            f"{name} {path.name}": path
            for name, folder in folders.items()
            for path in (*sorted(folder.glob("*.safetensors")), folder / "config.json", folder / "tokenizer.json")
            if path.is_file()
        }
        digests = {}
        for name, path in files.items():
            with open(path, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests | self.splits.digests()

    def tell(self) -> None:
        """Print the protocol and its numbers, and what one should know of the examples."""
        chosen = self._numbers()
        console.say(f"protocol {self.settings.protocol}: " + ", ".join(f"{name} {value}" for name, value in chosen.items()))
        for split, reasons in self._skipped().items():
            console.warn(f"skipped in {split}, {len(reasons):,} rows: {'; '.join(reasons[:10])}" + "; ..." * (len(reasons) > 10))
        for note in self._notes():
            console.warn(note)

    def finish(self, out: Path) -> FinetuneResults:
        """Learn with every seed that is not finished, and hand over the median one."""
        chosen = self.settings.seeds
        folders = {seed: out / "seeds" / str(seed) for seed in (range(chosen) if isinstance(chosen, int) else chosen)}
        results = {seed: result for seed, folder in folders.items() if (result := finished(folder))}
        steps = self.plan.steps or 0
        with Signals() as signals, packing(), console.track("fine-tuning", steps * len(folders), steps * len(results)) as advance:

            def after_step(seed: int, report: Report) -> None:
                advance(seed=seed, loss=report.loss)
                if signals.stop and report.step < steps:
                    raise Interrupted(f"stopped in seed {seed}; the same command goes on from the beginning of that seed")

            for seed in [seed for seed in folders if seed not in results]:
                results[seed] = self._learn(seed, folders[seed], partial(after_step, seed))
        return self._hand_over(out, [results[seed] for seed in folders])

    def _learn(self, seed: int, folder: Path, after_step: Callable[[Report], None]) -> SeedResult:
        """Learn with a seed and seal its folder."""
        began, worked, settings = time.monotonic(), time.process_time(), self.settings
        release_memory()
        watch_memory()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        objective = self._objective(seed)
        scale = partial(layer_scale, layers=len(self.net.arch), decay=settings.layer_decay or 1.0)
        optimizer = make_optimizer(objective, self.plan, scale)
        epochs = [self.train.shuffled(settings.batch, seed, epoch) for epoch in range(settings.epochs)]
        stream = (self.train.batch(places) for batches in epochs for places in batches)
        losses = []
        for report in train(objective, stream, self.plan, optimizer, seed=seed, accelerator=self.machine):
            losses.append(report.loss)
            line = {"step": report.step, "loss": report.loss, "rate": report.rate, "norm": report.norm}
            if report.step % len(epochs[0]) == 0:
                form, decoded = self._settle(objective)
                measured, predictions = self._measure(form, "valid", decoded)
                line |= {f"valid_{name}": value for name, value in measured.scores.items()}
            append_line(folder / "metrics.jsonl", line)
            after_step(report)
        self._write(folder / PREDICTIONS, "valid", predictions)
        result = SeedResult(
            seed=seed,
            scores=measured.scores,
            learned=measured.learned,
            loss=statistics.fmean(losses[-len(epochs[0]) :]),
            padding=self.train.padding([places for batches in epochs for places in batches]),
            padding_scored=self.scored["valid"].padding(self.scored["valid"].in_order(settings.batch)),
            also=self._predict_others(objective, form, folder),
            seconds=time.monotonic() - began,
            processor_seconds=time.process_time() - worked,
            memory=most_memory(),
            config=json.loads(json.dumps(form.config())),  # as it comes back from result.json
        )
        save_file(self._weights(objective), folder / WEIGHTS)
        (folder / "result.json").write_text(result.model_dump_json(indent=1))
        seal_folder(folder)
        return result

    def _objective(self, seed: int) -> HeadObjective:
        torch.manual_seed(mix(seed, -1))
        objective = self.form.objective(Backbone(self.net.arch, self.settings.dropout), self.shape)
        share(objective.backbone.layers, self.net.tied)
        objective.backbone.load_state_dict(self.start.weights)
        if self.form.head in SUMMED_UP and self.start.hidden:
            objective.head.get_submodule("hidden").load_state_dict(self.start.hidden)
        return objective.to(self.machine.device)

    @torch.no_grad()
    def _decode(self, objective: HeadObjective, rows: Rows) -> list[Any]:
        """Send examples through the model."""
        objective.eval()
        device, precision = self.machine.device, self.settings.precision
        decoded: list[Any] = [None] * len(rows)
        for places in rows.in_order(self.settings.batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = objective.predict(rows.batch(places).to(device)).cpu()
            for place, found in zip(places, self.form.decode(logits, rows, places), strict=True):
                decoded[place] = found
        return decoded

    def _settle(self, objective: HeadObjective) -> tuple[Form, list[Any]]:
        decoded = self._decode(objective, self.scored["valid"])
        return self.form.settled(self.scored["valid"], decoded), decoded

    def _measure(self, form: Form, split: str, decoded: Sequence[Any]) -> tuple[Measured, list[Any]]:
        """Score a split."""
        examples, predictions = self.splits.named[split], form.merge(self.scored[split], decoded)
        keys = [row.key for row in examples.rows]
        given = dict(zip(keys, predictions, strict=True)) if self.kind == "spans" else predictions
        return score(self.kind, self.scores, examples, given), predictions

    def _predict_others(self, objective: HeadObjective, form: Form, folder: Path) -> dict[str, dict[str, float]]:
        """Predict the other splits, and score those that have labels."""
        found = {}
        for split, examples in self.splits.also.items():
            decoded = self._decode(objective, self.scored[split])
            if examples.labelled:
                measured, predictions = self._measure(form, split, decoded)
                found[split] = measured.scores
            else:
                predictions = form.merge(self.scored[split], decoded)
            self._write(folder / f"predictions.{split}.jsonl", split, predictions)
        return found

    def _write(self, path: Path, split: str, predictions: Sequence[Any]) -> None:
        """Write the key and the prediction of each example."""
        rows = zip(self.splits.named[split].rows, predictions, strict=True)
        lines = [json.dumps({"key": row.key, "prediction": self.form.written(one)}, ensure_ascii=False) for row, one in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _weights(self, objective: HeadObjective) -> dict[str, Tensor]:
        """Return weights that predict in the units of the examples."""
        # A file holds no tensor by two names, as layers that share theirs have it.
        weights = {name: weight.cpu().clone().contiguous() for name, weight in objective.state_dict().items()}
        head = {name.removeprefix("head."): weight for name, weight in weights.items() if name.startswith("head.")}
        return weights | {f"head.{name}": weight for name, weight in self.form.weights(head).items()}

    def _hand_over(self, out: Path, seeds: Sequence[SeedResult]) -> FinetuneResults:
        """Sum up, and write the model folder of the median seed."""
        ranked = sorted(seeds, key=lambda result: result.scores[self.scores[0]])
        median = ranked[(len(ranked) - 1) // 2]
        results = FinetuneResults(
            model=str(self.model),
            arch=str(self.net.arch),
            task=self.settings.task,
            kind=self.kind,
            protocol=self.settings.protocol,
            settings=self._numbers(),
            start=self._began(),
            labels=self.splits.train.labels,
            rows={name: len(examples.rows) for name, examples in self.splits.named.items()},
            skipped=self._skipped(),
            notes=self._notes(),
            score=self.scores[0],
            median_seed=median.seed,
            summary={name: summary([result.scores[name] for result in seeds])._asdict() for name in median.scores},
            seeds=tuple(seeds),
        )
        weights = load_file(out / "seeds" / str(median.seed) / WEIGHTS)
        model = model_of(self.net.arch, weights, self.form.head, **self._model_config(median))
        card = model_card(model, str(self.net.arch), facts=self._facts(results), scores=median.scores)
        save_model(out / "model", model, tokenizer=self.model, card=card)
        return results

    def _model_config(self, median: SeedResult) -> dict[str, Any]:
        """Return the configuration of the model folder."""
        rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), self.settings.dropout)
        hidden = {"classifier_act": self.shape.act, "classifier_input_dropout": self.shape.input_dropout}
        ids = {f"{name}_token_id": self.net.ids[name] for name in ("pad", "cls", "sep")}
        tied = {"tied_layers": self.net.tied or None}
        read = {"row_length": self.settings.length}
        return rates | ids | tied | read | (hidden if self.form.head in SUMMED_UP else {}) | self.form.config() | median.config

    def _facts(self, results: FinetuneResults) -> dict[str, object]:
        """Return what the model card says of the training."""
        texts = "pairs of texts" if self.splits.train.pairs else "texts"
        facts: dict[str, object] = {
            "task": self.settings.task or f"{self.kind} of {texts}",
            "rows": f"{results.rows['train']:,} to learn from, {results.rows['valid']:,} to score on",
            "seed": f"{results.median_seed}, the median of {len(results.seeds)} by {results.score}",
            "protocol": self.settings.protocol,
            "peak learning rate": self.settings.rate,
            "epochs": self.settings.epochs,
        }
        return facts | ({"begun from": results.start} if results.start else {})

    def _numbers(self) -> dict[str, Any]:
        """Return the settings that are numbers or ways, not places."""
        places = {"task", "source", "train", "valid", "also", "protocol", "start", "kind", "score", "on_bad_row", "tag"}
        of_spans = {"longest", "best", "threshold"} if self.kind != "spans" else set()
        unused = of_spans | ({"stride"} if self.kind not in ("spans", "tags") else set())
        return self.settings.model_dump(mode="json", exclude=places | unused)

    def _skipped(self) -> dict[str, tuple[str, ...]]:
        return {split: examples.skipped for split, examples in self.splits.named.items() if examples.skipped}

    def _began(self) -> str | None:
        """Say which weights it begins with, where a protocol or a setting wants others than the model's."""
        wanted = f"a model of {self.settings.begins}" if self.settings.begins else "another task"
        return f"{wanted}: {self.settings.start}" if self.settings.start else None

    def _notes(self) -> tuple[str, ...]:
        """Say what one should know of the examples and the protocol."""
        notes = []
        if self.settings.begins and not self.settings.start:
            begins = self.settings.begins
            notes.append(f"the protocol begins {self.settings.task} with a model of {begins}; none is given (start=FOLDER)")
        what = {"spans": "questions lost their ends to the length", "tags": "sentences are read in several windows"}
        for split, rows in {"train": self.train, **self.scored}.items():
            if rows.cut:
                told = what.get(self.kind, f"rows lost tokens to the length of {self.settings.length}")
                notes.append(f"{split}: {rows.cut:,} of {len(self.splits.named[split].rows):,} {told}")
            if isinstance(rows, TagRows) and rows.lost:
                notes.append(f"{split}: {rows.lost:,} words have no pieces, and are predicted as {self.splits.train.labels[0]}")
        return tuple(notes)


def _same_inputs(path: Path, digests: dict[str, str]) -> None:
    """Note what a run reads, or check that it is what the run began with."""
    before = json.loads(path.read_text()) if path.exists() else digests
    if changed := [name for name in before | digests if before.get(name) != digests.get(name)]:
        raise ValueError(f"{path.parent} was begun with another {' and another '.join(changed)}; use another --out")
    write_atomically(path, json.dumps(digests, indent=1))
