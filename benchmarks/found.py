"""Train the networks that AutoBERT-Zero found, at the small size and in bf16, beside ELECTRA-small: does any diverge?

    LAYERWRIGHT_DATA=... python -m benchmarks.found --out runs/found [--steps 1000] [--only NAME ...]

Replaced-token detection on Wikipedia text, 32 rows of 128 tokens a step.  The loss is that of the generator, which falls, and
50 times that of the encoder, which first falls and then rises while the generator learns to replace tokens by likelier ones.
The same call goes on where it was.
Leaves benchmarks/results/found.json and prints its table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.real_text import HERE, wikipedia
from benchmarks.speed import machine
from layerwright.console import table
from layerwright.pretrain import PretrainSettings, pretrain
from layerwright.train import Plan

NAMES = ("electra-small", "autobert-zero-read-small", "autobert-zero-ours-att-small", "autobert-zero-ours-conv-small")
SHAPE: dict[str, Any] = {"batch": 32, "length": 128}
NUMBERS: dict[str, Any] = {"rate": 5e-4, "warmup": 0.1, "precision": "bf16"}


def main() -> None:
    """Train what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/found"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "found.json")
    chosen = parser.parse_args()
    corpus = wikipedia(chosen.out / "corpus")
    plan = Plan(steps=chosen.steps, **NUMBERS)
    for name in chosen.only:
        settings = PretrainSettings(arch=name, corpus=corpus.folder, **SHAPE, plan=plan, evaluate_every=100)
        # A loss, a gradient or a weight that is not finite ends this with an error.
        pretrain(settings, chosen.out / name, label=name)
    publish(chosen)


def publish(chosen: argparse.Namespace) -> None:
    """Write and print what came out of the trainings that are finished."""
    found: dict[str, Any] = {}
    for name in NAMES:
        run = chosen.out / name
        if not (run / "result.json").exists():
            continue
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        scored = [line for line in lines if "held_out_loss" in line]
        later = [line for line in lines if line["step"] > chosen.steps // 10]  # when it has warmed up
        found[name] = {
            "steps": lines[-1]["step"],
            "first loss": lines[0]["loss"],
            "largest loss later": max(line["loss"] for line in later),
            "largest norm later": max(line["norm"] for line in later),
            "last loss": lines[-1]["loss"],
            **{f"held-out {part}": scored[-1][f"held_out_{part}"] for part in ("masked", "replaced", "accuracy")},
            "curve": [{part: line[part] for part in ("step", "held_out_masked", "held_out_replaced")} for line in scored],
            "seconds": lines[-1]["seconds"],
            "share of time waiting for text": json.loads((run / "result.json").read_text(encoding="utf-8"))["waiting"],
        }
    kept = {"machine": machine(), **SHAPE, **NUMBERS, "networks": found}
    chosen.results.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    columns = [name for name in next(iter(found.values())) if name != "curve"]
    rows = [[name, *(f"{one[column]:,.6g}" for column in columns)] for name, one in found.items()]
    table(f"{chosen.steps:,} steps in bf16", ["network", *columns], rows)


if __name__ == "__main__":
    main()
