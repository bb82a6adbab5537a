"""Fine-tune a model folder on a table of labelled sentences, once for each of several seeds.

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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from layerwright import console, vocabulary
from layerwright.backbone import Backbone
from layerwright.checkpoint import MANIFEST, Signals, append_line, hold, seal_folder, sealed, verify_folder
from layerwright.errors import DataError, IntegrityError, Interrupted, nearest
from layerwright.handover import model_card, model_of, save_model
from layerwright.models import LayerwrightModel
from layerwright.settings import write_atomically
from layerwright.tasks.classification import Classification, layer_scale
from layerwright.tasks.metrics import SCORES, Measured, measure, summary
from layerwright.tasks.rows import Rows, Tokens, tokenize
from layerwright.tasks.tables import Kind, Row, Table, read_table
from layerwright.train import Plan, Report, make_accelerator, make_optimizer, mix, train

WEIGHTS = "model.safetensors"


def _some_seeds(seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise ValueError("seeds are how many, at least 1, or a list of different numbers from 0 on")
    return seeds


class FinetuneSettings(BaseModel):
    """What to learn and how; the defaults are those of small models in LV-BERT (released code).

    kind: classification or regression; without it, what the training table looks like.  score: what the median seed is
    chosen by; without it, accuracy or spearman.  seeds: how many, or which.  length: most tokens of a row, the longer
    sentence being cut.  both_orders: learn each pair the other way round too.  warmup: share of the steps.  layer_decay:
    factor on the learning rate from a pair of layers to the one below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Path
    valid: Path
    kind: Kind | None = None
    score: str | None = None
    seeds: Annotated[int | tuple[int, ...], AfterValidator(_some_seeds)] = 5
    epochs: PositiveInt = 3
    batch: PositiveInt = 32
    length: int = Field(128, ge=8)
    both_orders: bool = False
    rate: float = Field(3e-4, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    decay: float = Field(0.01, ge=0)
    layer_decay: float = Field(0.8, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    precision: Literal["float32", "bf16"] = "float32"


class SeedResult(BaseModel):
    """What a seed came to on the validation table after its last epoch.

    learned: False if it predicts the same for every row.  loss: mean of the last epoch.  padding: share of the tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    scores: dict[str, float]
    learned: bool
    loss: float
    padding: float
    seconds: float


class FinetuneResults(BaseModel):
    """What a run came to, as in its results.json; `summary` has median, mean, std, low and high for each metric.

    labels: names of the classes in order, none in a regression.  median_seed: the one whose weights are in model/, of
    two in the middle the lower.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    arch: str
    kind: Kind
    labels: tuple[str, ...]
    rows: dict[str, int]
    score: str
    median_seed: int
    summary: dict[str, dict[str, float]]
    seeds: tuple[SeedResult, ...]


def finetune(model: Path, out: Path, settings: FinetuneSettings) -> FinetuneResults:
    """Fine-tune a model folder with every seed, or go on with what `out` holds; print and return the results.

    Leaves settings.toml, for each seed seeds/N/metrics.jsonl and result.json, and in model/ the weights of the median one.

    Raises:
        ValueError: settings that do not fit the model or the task, or a folder begun with other ones.
        DataError: a table or tokenizer that cannot be used.
        IntegrityError: the model folder is torn or altered.
        RunInUse: another process fine-tunes in this folder.
        Interrupted: asked to stop; finished seeds are kept.
        FloatingPointError: the loss is not finite.
    """
    run = _Run(model, settings)
    with hold(out):
        sealed(out, settings)
        _same_inputs(out / "inputs.json", _digests(model, settings))
        kept = out / "results.json"
        if kept.exists():
            results = FinetuneResults.model_validate_json(kept.read_text())
        else:
            results = run.finish(out)
            write_atomically(kept, results.model_dump_json(indent=1))
        for passed in (*out.glob(f"seeds/*/{WEIGHTS}"), *out.glob(f"seeds/*/{MANIFEST}")):
            passed.unlink()
    _print(results)
    return results


def open_model(folder: Path) -> tuple[LayerwrightModel, Tokenizer]:
    """Load the backbone and the tokenizer of a model folder.

    Raises:
        ValueError: it is none.
        IntegrityError: it is torn or altered.
        DataError: the tokenizer is missing, cannot be used, or has more tokens than the model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    if (folder / MANIFEST).exists():
        verify_folder(folder)
    try:
        net, loaded = cast(Any, LayerwrightModel.from_pretrained(folder, output_loading_info=True))
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder} cannot be loaded: {error}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise IntegrityError(f"{folder} lacks {len(missing)} weights of its architecture, such as {missing[0]}")
    tokenizer = vocabulary.load(folder / "tokenizer.json", lowercase=True)
    size, room = vocabulary.size(tokenizer), net.config.arch.vocab
    if size > room:
        raise DataError(f"the tokenizer of {folder} has {size:,} tokens, and the model embeddings for {room:,}")
    return net, tokenizer


class _Run:
    """One fine-tuning: all its inputs, read at once, so that whatever is wrong shows before anything is written."""

    def __init__(self, model: Path, settings: FinetuneSettings):
        self.model, self.settings, self.machine = model, settings, make_accelerator()
        if self.machine.num_processes > 1:
            raise ValueError(f"fine-tuning runs in one process, and this is one of {self.machine.num_processes}")
        learned = read_table(settings.train, settings.kind)
        scored = read_table(settings.valid, learned.kind, learned.labels)
        if learned.pairs != scored.pairs:
            one, two = (scored, learned) if learned.pairs else (learned, scored)
            raise DataError(f"{one.path} has one sentence a row, and {two.path} two")
        if settings.both_orders:
            if not learned.pairs:
                raise ValueError(f"both_orders is for pairs, and {learned.path} has one sentence a row")
            turned = tuple(Row(row.second or "", row.first, row.label) for row in learned.rows)
            learned = replace(learned, rows=learned.rows + turned)
        self.kind, self.labels, self.pairs = learned.kind, learned.labels, learned.pairs
        self.score = self._score_name()
        self.net, tokenizer = open_model(model)
        self.arch, self.special = self.net.config.arch, vocabulary.special(tokenizer)
        if settings.length > self.arch.positions:
            raise ValueError(f"length={settings.length}, but {model} has {self.arch.positions} positions")
        # A regression learns targets of mean 0 and spread 1; its head is scaled back to theirs when saved.
        targets = [row.label for row in learned.rows if self.kind == "regression"]
        self.centre, self.spread = (statistics.fmean(targets), statistics.pstdev(targets) or 1.0) if targets else (0.0, 1.0)
        self.train, self.valid = self._rows(learned, tokenizer), self._rows(scored, tokenizer)
        steps = settings.epochs * math.ceil(len(learned.rows) / settings.batch)
        self.plan = Plan(steps=steps, **settings.model_dump(include={"rate", "warmup", "decay", "clip", "precision"}))

    def finish(self, out: Path) -> FinetuneResults:
        """Learn with every seed that is not finished, and hand over the median one."""
        chosen = self.settings.seeds
        folders = {seed: out / "seeds" / str(seed) for seed in (range(chosen) if isinstance(chosen, int) else chosen)}
        results = {seed: result for seed, folder in folders.items() if (result := _finished(folder))}
        steps = self.plan.steps or 0
        with Signals() as signals, console.track("fine-tuning", steps * len(folders), steps * len(results)) as advance:

            def after_step(seed: int, report: Report) -> None:
                advance(seed=seed, loss=report.loss)
                if signals.stop and report.step < steps:
                    raise Interrupted(f"stopped in seed {seed}; the same command goes on from the beginning of that seed")

            for seed in [seed for seed in folders if seed not in results]:
                results[seed] = self._learn(seed, folders[seed], partial(after_step, seed))
        return self._hand_over(out, [results[seed] for seed in folders])

    def _learn(self, seed: int, folder: Path, after_step: Callable[[Report], None]) -> SeedResult:
        """Learn with a seed and seal its folder."""
        began, settings = time.monotonic(), self.settings
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        objective = self._objective(seed)
        scale = partial(layer_scale, layers=len(self.arch), decay=settings.layer_decay)
        optimizer = make_optimizer(objective, self.plan, scale)
        epochs = [self.train.grouped(settings.batch, seed, epoch) for epoch in range(settings.epochs)]
        stream = (self.train.batch(places) for batches in epochs for places in batches)
        losses = []
        for report in train(objective, stream, self.plan, optimizer, seed=seed, accelerator=self.machine):
            losses.append(report.loss)
            line = {"step": report.step, "loss": report.loss, "rate": report.rate, "norm": report.norm}
            if report.step % len(epochs[0]) == 0:
                measured = self._measure(objective)
                line |= {f"valid_{name}": value for name, value in measured.scores.items()}
            append_line(folder / "metrics.jsonl", line)
            after_step(report)
        result = SeedResult(
            seed=seed,
            scores=measured.scores,
            learned=measured.learned,
            loss=statistics.fmean(losses[-len(epochs[0]) :]),
            padding=self.train.padding([places for batches in epochs for places in batches]),
            seconds=time.monotonic() - began,
        )
        save_file(self._weights(objective), folder / WEIGHTS)
        (folder / "result.json").write_text(result.model_dump_json(indent=1))
        seal_folder(folder)
        return result

    def _objective(self, seed: int) -> Classification:
        torch.manual_seed(mix(seed, -1))
        backbone = Backbone(self.arch, self.settings.dropout)
        backbone.load_state_dict(self.net.state_dict())
        return Classification(backbone, len(self.labels) or 1, self.settings.dropout).to(self.machine.device)

    @torch.no_grad()
    def _measure(self, objective: Classification) -> Measured:
        """Score the validation table."""
        objective.eval()
        device, precision = self.machine.device, self.settings.precision
        predicted = torch.empty_like(self.valid.targets)
        for places in self.valid.by_length(self.settings.batch, range(len(predicted))):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = objective.predict(self.valid.batch(places).to(device)).cpu()
            predicted[places] = logits.argmax(-1) if self.labels else logits[:, 0]
        return measure(self.kind, self.valid.targets.numpy(), predicted.numpy(), len(self.labels))

    def _weights(self, objective: Classification) -> dict[str, Tensor]:
        """Return weights that predict in the units of the table."""
        weights = {name: weight.cpu().contiguous() for name, weight in objective.state_dict().items()}
        weights["head.classes.weight"] = weights["head.classes.weight"] * self.spread
        weights["head.classes.bias"] = weights["head.classes.bias"] * self.spread + self.centre
        return weights

    def _hand_over(self, out: Path, finished: Sequence[SeedResult]) -> FinetuneResults:
        """Sum up, and write the model folder of the median seed."""
        ranked = sorted(finished, key=lambda result: result.scores[self.score])
        median = ranked[(len(ranked) - 1) // 2]
        results = FinetuneResults(
            model=str(self.model),
            arch=str(self.arch),
            kind=self.kind,
            labels=self.labels,
            rows={"train": len(self.train.tokens), "valid": len(self.valid.tokens)},
            score=self.score,
            median_seed=median.seed,
            summary={name: summary([result.scores[name] for result in finished])._asdict() for name in median.scores},
            seeds=tuple(finished),
        )
        model = model_of(
            self.arch, load_file(out / "seeds" / str(median.seed) / WEIGHTS), "classification", **self._model_config()
        )
        facts = {
            "task": f"{self.kind} of {'pairs of sentences' if self.pairs else 'sentences'}",
            "rows": f"{results.rows['train']:,} to learn from, {results.rows['valid']:,} to score on",
            "seed": f"{median.seed}, the median of {len(finished)} by {self.score}",
            "peak learning rate": self.settings.rate,
            "epochs": self.settings.epochs,
        }
        card = model_card(model, str(self.arch), facts=facts, scores=median.scores)
        save_model(out / "model", model, tokenizer=self.model, card=card)
        return results

    def _model_config(self) -> dict[str, Any]:
        """Return the configuration of the model folder; it names the labels."""
        config = {
            "hidden_dropout_prob": self.settings.dropout,
            "attention_probs_dropout_prob": self.settings.dropout,
            "pad_token_id": self.special.pad,
            "cls_token_id": self.special.cls,
            "sep_token_id": self.special.sep,
        }
        if self.kind == "regression":
            return config | {"problem_type": "regression", "num_labels": 1}
        names = dict(enumerate(self.labels))
        places = {name: place for place, name in names.items()}
        return config | {"problem_type": "single_label_classification", "id2label": names, "label2id": places}

    def _rows(self, table: Table, tokenizer: Tokenizer) -> Rows:
        tokens = tokenize(table, tokenizer, self.settings.length)
        if self.arch.segments < 2:
            tokens = [Tokens(row.ids, len(row.ids)) for row in tokens]
        labels = [row.label for row in table.rows]
        targets = torch.tensor(labels, dtype=torch.int64) if self.labels else (torch.tensor(labels) - self.centre) / self.spread
        return Rows(tokens, targets, self.special.pad)

    def _score_name(self) -> str:
        names = [name for name in SCORES[self.kind] if name != "f1" or len(self.labels) == 2]
        name = self.settings.score or names[0]
        if name not in names:
            raise ValueError(f"no score {name!r} for this {self.kind}{nearest(name, names)}")
        return name


def _finished(folder: Path) -> SeedResult | None:
    """Read the result of a seed, if it is there and whole."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        verify_folder(folder)
    except IntegrityError as error:
        console.warn(f"repeating seed {folder.name}: {error}")
        return None
    return SeedResult.model_validate_json((folder / "result.json").read_text())


def _digests(model: Path, settings: FinetuneSettings) -> dict[str, str]:
    """Return the SHA-256 of all that a run reads."""
    files = {
        f"model {path.name}": path for path in (*model.glob("*.safetensors"), model / "config.json", model / "tokenizer.json")
    }
    files |= {"training table": settings.train, "validation table": settings.valid}
    digests = {}
    for name, path in files.items():
        with open(path, "rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _same_inputs(path: Path, digests: dict[str, str]) -> None:
    """Note what a run reads, or check that it is what the run began with."""
    before = json.loads(path.read_text()) if path.exists() else digests
    if changed := [name for name in before | digests if before.get(name) != digests.get(name)]:
        raise ValueError(f"{path.parent} was begun with another {' and another '.join(changed)}; use another --out")
    write_atomically(path, json.dumps(digests, indent=1))


def _print(results: FinetuneResults) -> None:
    names = list(results.summary)
    rows: list[list[object]] = [
        [f"seed {one.seed}", *(one.scores[name] for name in names), one.loss, one.padding, one.seconds] for one in results.seeds
    ]
    for title, part in (("median", "median"), ("mean", "mean"), ("std", "std"), ("95 % from", "low"), ("to", "high")):
        rows.append([title, *(results.summary[name][part] for name in names), None, None, None])
    console.table(f"{results.kind} on {results.rows['valid']:,} rows", ["", *names, "loss", "padding", "seconds"], rows)
    if lost := [str(one.seed) for one in results.seeds if not one.learned]:
        console.warn(f"not learned, the same prediction for every row: seed {', '.join(lost)}")
