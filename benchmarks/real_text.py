"""Search a small space on Wikipedia text, train 16 architectures from scratch, and say how far the search can be trusted.

    LAYERWRIGHT_DATA=... python -m benchmarks.real_text --out runs/real-text            an hour and a half on 2 cores
    LAYERWRIGHT_DATA=... python -m benchmarks.real_text --out runs/real-text --seeds 3  two more seeds of four: half an hour more

The same call goes on where it was.  Leaves benchmarks/results/real_text.json and prints its tables.
"""

import argparse
import json
import os
import platform
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy import stats

from layerwright import report
from layerwright.console import say, table
from layerwright.corpus import Corpus, CorpusSettings, build
from layerwright.search import SearchSettings, search
from layerwright.settings import read

HERE = Path(__file__).parent
SHARDS = ("train-00-of-08.txt.gz", "train-01-of-08.txt.gz")


def main() -> None:
    """Run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real-text"))
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each of the top and the baselines")
    chosen = parser.parse_args()
    corpus = wikipedia(chosen.out / "corpus")
    settings = read(SearchSettings, HERE / "real_text.toml", corpus=corpus.folder, seeds=chosen.seeds)
    found = search(settings, chosen.out / "search")
    say(f"page {report.write(chosen.out / 'search')}")
    publish(found)


def wikipedia(folder: Path) -> Corpus:
    """Build the corpus of two shards of Wikipedia, or open it where that was done."""
    if "LAYERWRIGHT_DATA" not in os.environ:
        raise SystemExit("LAYERWRIGHT_DATA names no folder: it should hold text/enwiki-2015/train-00-of-08.txt.gz and so on")
    source = Path(os.environ["LAYERWRIGHT_DATA"]) / "text" / "enwiki-2015"
    return build([str(source / name) for name in SHARDS], folder, CorpusSettings(vocab=8192))


def publish(found: dict[str, Any]) -> None:
    """Write and print what came out."""
    rows = found["standalone"]
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    kept = {
        name: found[name] for name in ("space", "corpus", "settings", "seconds", "plateau", "kendall", "winner", "standalone")
    }
    kept["corpus"] = {name: value for name, value in kept["corpus"].items() if name != "folder"}
    kept["settings"] = {name: value for name, value in kept["settings"].items() if name != "corpus"}
    kept |= {"machine": machine, "summary": [summary(group, rows, found) for group in named(rows)]}
    kept["best_of_search"] = [{"arch": one["arch"], "score": one["score"]} for one in ranked(found["trials"])[:10]]
    kept["worst_of_random"] = [{"arch": one["arch"], "score": one["score"]} for one in ranked(found["random"])[-5:]]
    target = HERE / "results" / "real_text.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    columns = list(kept["summary"][0])
    table(found["space"], columns, [[one[column] for column in columns] for one in kept["summary"]])
    for which, agreement in found["kendall"].items():
        say(f"Kendall's tau, {which}: {agreement}")


def ranked(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return trials, the best first."""
    return sorted(trials, key=lambda one: -one["score"])


def named(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group trainings by name, the best mean loss first."""
    ordered = sorted(rows, key=lambda row: row["name"])
    groups = [list(group) for _, group in groupby(ordered, key=lambda row: row["name"])]
    return sorted(groups, key=lambda group: fmean(row["loss"] for row in group))


def summary(group: list[dict[str, Any]], rows: list[dict[str, Any]], found: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the table: means with 95 % t-intervals, and the paired difference to the interleaved baseline."""
    first = group[0]
    ordinary = {row["seed"]: row["loss"] for row in rows if row["name"] == "interleaved"}
    differences = [row["loss"] - ordinary[row["seed"]] for row in group if row["seed"] in ordinary]
    level = found["plateau"]["unigram_loss"] - found["plateau"]["below"]
    left = [next((tokens for tokens, loss in row["curve"] if loss < level), None) for row in group]
    return {
        "name": first["name"],
        "layers": first["arch"].partition(": ")[2],
        "parameters": first["parameters"],
        "MFLOPs": round(first["flops"] / 1e6, 1),
        "seeds": len(group),
        "supernet": first["supernet"],
        "accuracy": interval([row["score"] for row in group]),
        "loss": interval([row["loss"] for row in group]),
        "loss minus interleaved": interval(differences) if first["name"] != "interleaved" else "",
        "left the plateau at tokens": ", ".join("never" if tokens is None else f"{tokens:,}" for tokens in left),
    }


def interval(values: list[float]) -> str:
    """Return the mean with its 95 % t-interval, where there are several values."""
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else ""
    return f"{fmean(values):.4f} ± {half_interval(values):.4f}"


def half_interval(values: list[float]) -> float:
    """Return half the 95 % t-interval of the mean; 0 of a single value, of which nothing is known."""
    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
