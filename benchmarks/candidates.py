"""Measure what an evolution over a supernet costs when candidates share what they begin with, beside scoring one by one.

    python -m benchmarks.candidates [--trials 1000] [--slots 8 24] [--objectives mlm rtd] [--threads 1]

A supernet is trained for some steps on the documentation that Python carries, and an evolution with the usual numbers proposes
candidates.  Each generation of 50 is scored in both ways, in turn, so that what else the machine does falls on both: along shared
beginnings, within the usual 2 GiB and within an eighth of it, and one by one by `recipe.score`.  All scores have to be equal.
"""

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

from benchmarks.speed import RESULTS, machine
from layerwright.batches import along, batches
from layerwright.console import say, table
from layerwright.corpus import Corpus, CorpusSettings, build
from layerwright.population import ROOM, Population
from layerwright.prefixes import applications
from layerwright.recipe import Objective, PretrainSettings, held_out, make_objective, score
from layerwright.settings import write_atomically
from layerwright.strategies import Evolution, Trial, propose
from layerwright.train import Plan, make_optimizer, train

WIDE = "128 embed=64 vocab=4096 positions=64"
ROWS = 32  # held out, of 64 tokens
ROOMS = {"2 GiB": ROOM, "256 MiB": ROOM // 8}


def trained(corpus: Corpus, slots: int, kind: str, steps: int) -> tuple[PretrainSettings, Objective]:
    """Return a supernet that has learned a little, so that its scores differ as real ones do."""
    plan = Plan(steps=steps, rate=2e-3, warmup=0.1)
    space = f"{WIDE}: {slots}x{{conv|attn|ffn}}"
    settings = PretrainSettings(
        arch=space, corpus=corpus.folder, objective=kind, batch=32, length=64, evaluate_rows=ROWS, plan=plan
    )
    objective = make_objective(settings, corpus)
    stream = along(batches(corpus, shape=(32, 64), seed=0), settings.space(), seed=0)
    for report in train(objective, stream, plan, make_optimizer(objective, plan)):
        last = report.loss
    say(f"{slots} slots, {kind}: supernet trained for {steps} steps, loss {last:.2f}")
    return settings, objective.eval()


def measure(corpus: Corpus, slots: int, kind: str, trials: int, steps: int) -> dict[str, object]:
    """Run one evolution, each generation in every way, and return what they took."""
    settings, objective = trained(corpus, slots, kind, steps)
    space, held, strategy = settings.space(), held_out(corpus, settings), Evolution()
    ways = {name: Population(objective, held, room=room) for name, room in ROOMS.items()}
    seconds, history, proposing = dict.fromkeys([*ways, "one by one"], 0.0), [], 0.0
    while len(history) < trials:
        archs = []
        for _ in range(min(strategy.population, trials - len(history))):
            began = time.process_time()
            known = history + [Trial(len(history) + at, arch, 0.0) for at, arch in enumerate(archs)]
            archs.append(propose(strategy, space, known))  # of a generation, scores of its own trials are not asked for
            proposing += time.process_time() - began
        found = {}
        for name in seconds:
            began = time.process_time()
            found[name] = [ways[name].score(arch) if name in ways else score(objective, held, arch) for arch in archs]
            seconds[name] += time.process_time() - began
        assert all(scores == found["one by one"] for scores in found.values()), "scores differ"
        history += [Trial(len(history) + at, arch, found["one by one"][at]["accuracy"]) for at, arch in enumerate(archs)]
        print(f"{slots} slots, {kind}: {len(history)} of {trials}", {name: round(spent, 1) for name, spent in seconds.items()})
    paths = [space.path(trial.arch) for trial in history]
    whole = seconds["one by one"]
    return {
        "space": str(space),
        "objective": kind,
        "trials": trials,
        "rows": len(held[0].ids),
        "length": settings.length,
        "layers": {
            "one by one": slots * trials,
            **{name: way.layers for name, way in ways.items()},
            "different beginnings": applications(paths),
        },
        "processor seconds": {**seconds, "proposing": proposing},
        "times as fast": {name: whole / seconds[name] for name in ways},
        "best": max(trial.score for trial in history),
    }


def main() -> None:
    """Measure each space with each objective, print a table and write results/candidates.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300, help="of training the supernet")
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--objectives", nargs="+", default=["mlm", "rtd"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "candidates.json")
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    with tempfile.TemporaryDirectory() as folder:
        corpus = build(["python"], Path(folder) / "corpus", CorpusSettings(vocab=4096, validation=0.05))
        found = []
        for slots, kind in product(told.slots, told.objectives):
            found.append(measure(corpus, slots, kind, told.trials, told.steps))
            write_atomically(
                told.out, json.dumps({"machine": machine() | {"threads": told.threads}, "runs": found}, indent=1) + "\n"
            )
    rows = [
        [one["space"].rpartition(": ")[2], one["objective"], name, one["layers"][name], spent, one["times as fast"].get(name)]  # type: ignore[attr-defined,index]
        for one in found
        for name, spent in one["processor seconds"].items()  # type: ignore[attr-defined]
        if name != "proposing"
    ]
    table(f"{told.trials:,} candidates", ["space", "objective", "kept", "layers run", "processor seconds", "times as fast"], rows)


if __name__ == "__main__":
    main()
