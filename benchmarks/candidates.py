"""Measure what an evolution over a supernet costs when candidates share what they begin with, beside scoring one by one.

    python -m benchmarks.candidates [--trials 1000] [--slots 8 24] [--objectives mlm rtd] [--strategies evolution aging]

A supernet is trained for some steps on the documentation that Python carries, and evolutions with their usual numbers propose
candidates: the one that crosses parents and mutates several slots, and the aging one, whose children differ from a parent in one.
They go by the loss: after so few steps most candidates have the same accuracy, and the first ones would stay parents for ever.
Each candidate is scored in every way, in turn, so that what else the machine does falls on all: along shared beginnings, within
the usual 2 GiB and within an eighth of it, and one by one by `recipe.score`.  All scores have to be equal.  Memory for what is
kept is taken from the system before, and timed apart: a virtual machine may need ten times as long for it as for its use.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.speed import RESULTS, machine
from layerwright.architecture import Architecture
from layerwright.batches import Batch, along, batches
from layerwright.console import say, table
from layerwright.corpus import Corpus, CorpusSettings, build
from layerwright.population import ROOM, Population, Scores
from layerwright.prefixes import applications
from layerwright.recipe import Objective, PretrainSettings, held_out, make_objective, score
from layerwright.settings import write_atomically
from layerwright.strategies import StrategySettings, Trial, propose
from layerwright.train import Plan, make_optimizer, train

WIDE = "128 embed=64 vocab=4096 positions=64 norm=pre"  # 24 layers learn little in so few steps where norms come last
ROWS = 32  # held out, of 64 tokens
ROOMS = {"2 GiB": ROOM, "256 MiB": ROOM // 8}
TOLD = 50  # candidates between two lines of progress


def trained(corpus: Corpus, slots: int, kind: str, steps: int) -> tuple[PretrainSettings, Objective]:
    """Return a supernet that has learned a little, so that its losses differ."""
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


def take(room: int) -> float:
    """Take so many bytes from the system, which the process keeps since it trained; return the seconds of the processor."""
    began = time.process_time()
    torch.ones(room, dtype=torch.uint8)
    return time.process_time() - began


def measure(settings: PretrainSettings, objective: Objective, held: list[Batch], name: str, trials: int) -> dict[str, object]:
    """Run one evolution, score each candidate in every way, and return what they took."""
    space, strategy = settings.space(), StrategySettings(name=name).strategy()
    taking = take(sum(ROOMS.values()))
    kept = {told: Population(objective, held, room=room) for told, room in ROOMS.items()}
    ways: list[tuple[str, Callable[[Architecture], Scores]]] = [(told, way.score) for told, way in kept.items()]
    ways.append(("one by one", partial(score, objective, held)))
    seconds, history, proposing = {told: 0.0 for told, _ in ways}, list[Trial](), 0.0
    while len(history) < trials:
        began = time.process_time()
        arch = propose(strategy, space, history)
        assert arch is not None, "the space is used up"
        proposing += time.process_time() - began
        turn, found = len(history) % len(ways), []
        for told, way in ways[turn:] + ways[:turn]:
            began = time.process_time()
            found.append(way(arch))
            seconds[told] += time.process_time() - began
        assert all(scores == found[0] for scores in found), "scores differ"
        history.append(Trial(len(history), arch, -found[0]["loss"]))
        if len(history) % TOLD == 0:
            print(
                space, name, f"{len(history)} of {trials}", {told: round(spent, 1) for told, spent in seconds.items()}, flush=True
            )
    paths = [space.path(trial.arch) for trial in history]
    return {
        "space": str(space),
        "objective": settings.objective,
        "strategy": name,
        "trials": trials,
        "rows": len(held[0].ids),
        "length": settings.length,
        "layers": {
            "one by one": len(paths[0]) * trials,
            **{told: way.layers for told, way in kept.items()},
            "different beginnings": applications(paths),
        },
        "processor seconds": {**seconds, "proposing": proposing, "taking memory": taking},
        "times as fast": {told: seconds["one by one"] / seconds[told] for told in kept},
        "best": max(trial.score for trial in history),
        "different scores": len({trial.score for trial in history}),
    }


def main() -> None:
    """Measure each space with each objective and strategy, print a table and write results/candidates.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300, help="of training the supernet")
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--objectives", nargs="+", default=["mlm", "rtd"])
    parser.add_argument("--strategies", nargs="+", default=["evolution", "aging"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "candidates.json")
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    with tempfile.TemporaryDirectory() as folder:
        corpus = build(["python"], Path(folder) / "corpus", CorpusSettings(vocab=4096, validation=0.05))
        found = []
        for slots, kind in product(told.slots, told.objectives):
            settings, objective = trained(corpus, slots, kind, told.steps)
            for strategy in told.strategies:
                found.append(measure(settings, objective, held_out(corpus, settings), strategy, told.trials))
                kept = {"machine": machine() | {"threads": told.threads}, "runs": found}
                write_atomically(told.out, json.dumps(kept, indent=1) + "\n")
    rows = [
        [
            one["space"].rpartition(": ")[2],
            one["objective"],
            one["strategy"],
            name,
            one["layers"][name],
            spent,
            one["times as fast"].get(name),
        ]  # type: ignore[attr-defined,index]
        for one in found
        for name, spent in one["processor seconds"].items()  # type: ignore[attr-defined]
        if name in one["layers"]  # type: ignore[operator]
    ]
    table(
        f"{told.trials:,} candidates",
        ["space", "objective", "strategy", "kept", "layers run", "processor seconds", "times as fast"],
        rows,
    )


if __name__ == "__main__":
    main()
