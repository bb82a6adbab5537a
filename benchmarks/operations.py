"""Search operations of attention on Wikipedia text by four strategies, and train what was found from scratch.

    LAYERWRIGHT_DATA=... python -m benchmarks.operations --out runs/operations [--seeds 5] [--quick]

One supernet serves all.  Operation-Priority evolution, the same without priority, plain evolution and chance each propose as
many candidates, with several seeds; then the best of three of them, plain attention, the best of a search over layers, and
others over the ranking are trained from scratch.  --quick: a few of everything, to see it run.

The same call goes on where it was.  Leaves benchmarks/results/operations.json and the picture operations.html, and prints
its tables.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.real_text import HERE, half_interval, interval, named, summary, wikipedia
from benchmarks.speed import machine
from layerwright import report
from layerwright.architecture import Architecture
from layerwright.candidates import ranked
from layerwright.console import say, table
from layerwright.corpus import Corpus
from layerwright.drawings import Axis, Chart
from layerwright.page import figure, legend, page, section
from layerwright.population import Population
from layerwright.pretrain import held_out, pretrain
from layerwright.priorities import OperationPriority
from layerwright.search import SearchSettings, search
from layerwright.settings import read
from layerwright.strategies import Evolution, Strategy, Trial, at_random
from layerwright.study import History, explore, opened

STRATEGIES: dict[str, Strategy] = {
    "operation-priority": OperationPriority(),
    "operation-priority without priority": OperationPriority(priority=False),
    "evolution": Evolution(),
    "random": at_random,
}
COLOURS = ("#0072b2", "#cc79a7", "#009e73", "#8a8a8a")
LAYERS = "128 embed=64 vocab=8192: 2xconv 2xattn 2x(ffn conv)"  # found by real_text.py, at this depth and width
QUICK = {"trials": 6, "spread": 1, "seeds": 1, "evaluate_rows": 64}


def main() -> None:
    """Run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/operations"))
    parser.add_argument("--seeds", type=int, default=5, help="searches by each strategy")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "operations.json")
    chosen = parser.parse_args()
    corpus = wikipedia(chosen.out / "corpus")
    settings = read(SearchSettings, HERE / "operations.toml", corpus=corpus.folder, baselines=["interleaved", LAYERS])
    if chosen.quick:
        plans = {
            name: getattr(settings, name).model_copy(update={"tokens": None, "steps": 30}) for name in ("supernet", "retrain")
        }
        settings = settings.model_copy(update=QUICK | plans)
    histories = explored(settings, corpus, chosen.out, chosen.seeds)
    best = {name: max((ranked(trials)[0] for trials in found), key=lambda one: one.score) for name, found in histories.items()}
    extra = tuple(str(best[name].arch) for name in ("operation-priority", "evolution", "random"))
    found = search(settings.model_copy(update={"baselines": (*settings.baselines, *extra)}), chosen.out / "search")
    say(f"page {report.write(chosen.out / 'search')}")
    publish(found, histories, best, chosen)


def explored(settings: SearchSettings, corpus: Corpus, out: Path, seeds: int) -> dict[str, list[list[Trial]]]:
    """Return the trials of each strategy and seed, all scored by one supernet: that of the search to come."""
    space = settings.candidates().space
    training = settings.training(space, settings.supernet)
    supernet = pretrain(training, out / "search" / "supernet", label="supernet")
    population = Population(supernet, held_out(corpus, training), precision=settings.supernet.precision)
    found: dict[str, list[list[Trial]]] = {name: [] for name in STRATEGIES}

    def score(arch: Architecture) -> float:
        return population.score(arch)["accuracy"]

    with opened(f"sqlite:///{(out / 'studies.db').resolve()}") as storage:
        # One seed of each before the next.
        for seed in range(seeds):
            for name, strategy in STRATEGIES.items():
                history = History(storage, f"{name}, seed {seed}", space, {"space": space.explicit()})
                for _ in explore(history, strategy, score, trials=settings.trials, seed=f"{name}/{seed}"):
                    pass
                found[name].append(history.trials[: settings.trials])
    return found


def publish(
    found: dict[str, Any], histories: dict[str, list[list[Trial]]], best: dict[str, Trial], chosen: argparse.Namespace
) -> None:
    """Write and print what came out."""
    called = {str(trial.arch): f"best by {name}" for name, trial in reversed(best.items())}
    called[LAYERS] = "best of a search over layers"
    rows = [row | {"name": called.get(row["arch"], row["name"])} for row in found["standalone"]]
    curves = {name: [best_so_far(trials) for trials in several] for name, several in histories.items()}
    ends = {name: [curve[-1] for curve in several] for name, several in curves.items()}
    each = fmean(row["seconds"] for row in rows)
    cost = {
        "supernet minutes": found["seconds"]["supernet"] / 60,
        "candidates a search": len(next(iter(histories.values()))[0]),
        "search minutes": found["seconds"]["search"] / 60,
        "minutes of one network from scratch": each / 60,
        "minutes of all candidates from scratch": each * len(found["trials"]) / 60,
    }
    kept = {name: found[name] for name in ("space", "seconds", "plateau", "kendall", "winner")} | {"standalone": rows}
    kept |= {"machine": machine(), "cost": cost, "best_so_far": curves, "corpus": {"tokens": found["corpus"]["tokens"]}}
    kept["best"] = {name: {"arch": str(trial.arch), "score": trial.score} for name, trial in best.items()}
    kept["summary"] = [summary(group, rows, found) for group in named(rows)]
    chosen.results.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    chosen.results.with_suffix(".html").write_text(picture(curves, found), encoding="utf-8")
    table(
        f"best accuracy after {cost['candidates a search']} candidates, {chosen.seeds} seeds",
        ["strategy", "mean", "median", "each"],
        [
            [name, interval(values), f"{median(values):.4f}", " ".join(f"{one:.4f}" for one in values)]
            for name, values in ends.items()
        ],
    )
    columns = list(kept["summary"][0])
    table(found["space"], columns, [[one[column] for column in columns] for one in kept["summary"]])
    for which, agreement in found["kendall"].items():
        say(f"Kendall's tau, {which}: {agreement}")
    for name, value in cost.items():
        say(f"{name}: {value:,.1f}")


def picture(curves: dict[str, list[list[float]]], found: dict[str, Any]) -> str:
    """Draw the best so far over candidates, a curve a strategy: means over seeds, and 95 % t-intervals at some places."""
    most = len(next(iter(curves.values()))[0])
    means = {name: [fmean(values) for values in zip(*several, strict=True)] for name, several in curves.items()}
    places = range(most // 6, most + 1, max(1, most // 6))
    bars: dict[str, list[tuple[float, float, float]]] = {}
    for shift, (name, several) in enumerate(curves.items()):
        halves = [half_interval([curve[place - 1] for curve in several]) for place in places]
        middles = [means[name][place - 1] for place in places]
        # Side by side, not on top of each other.
        bars[name] = [
            (place + (shift - 1.5) * most / 200, middle - half, middle + half)
            for place, middle, half in zip(places, middles, halves, strict=True)
        ]
    from_first = [value for mean in means.values() for value in mean[most // 15 :]]
    ends = [end for several in bars.values() for _, *both in several for end in both]
    chart = Chart(Axis("candidates", 0, most * 1.02, True), Axis.over(found["score_name"], [*from_first, *ends]))
    marks = []
    for colour, (name, mean) in zip(COLOURS, means.items(), strict=True):
        marks.append(chart.curve(enumerate(mean, 1), name, "operation", colour=colour))
        marks += [chart.curve([(x, low), (x, high)], "", "operation", colour=colour) for x, low, high in bars[name]]
    names = legend(zip(COLOURS, curves, strict=True))
    read = "A curve is the mean over seeds of the best score up to there; upright lines are 95 % intervals of that mean."
    drawn = figure("Best so far", chart.draw(marks, "the best score so far over candidates"), names, read=read)
    facts = [found["settings"]["space"], f"{len(next(iter(curves.values())))} seeds"]
    return page("benchmark", "Operations searched by four strategies", facts, section("Search", drawn))


def best_so_far(trials: list[Trial]) -> list[float]:
    """Return the best score after each trial."""
    found: list[float] = []
    for trial in trials:
        found.append(max(trial.score, found[-1] if found else trial.score))
    return found


if __name__ == "__main__":
    main()
