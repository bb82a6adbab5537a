"""The main job in a few minutes on two cores: from the documentation that Python carries to a searched encoder.

Text, tokenizer, packed corpus, supernet, search, the best found and the baselines trained from scratch, a page, a model
folder, and a fine-tuning: which package does a docstring document?  Budgets are in steps, so that every machine ends
with about the same numbers.
"""

import json
from collections import Counter
from hashlib import blake2b
from pathlib import Path

from . import report
from .console import say, table
from .corpus import CorpusSettings, build, python_documents
from .search import SearchSettings, search
from .settings import write_atomically
from .strategies import Evolution, StrategySettings
from .tasks.finetune import FinetuneSettings, finetune
from .train import Plan

SPACE = "96 embed=64 vocab=4096 positions=128: 6x{conv|attn|ffn}"
PACKAGES = 8  # with the most documents: the classes of the fine-tuning
MOST = 150  # documents of a package, so that no class drowns the others


def demo(out: Path) -> None:
    """Do the main job in a folder; the same call again goes on where it was."""
    corpus = build(["python"], out / "corpus", CorpusSettings(vocab=4096, validation=0.05))
    say(f"corpus: {len(corpus.tokens('train')):,} tokens of {len(corpus.starts('train')) - 1:,} documents")
    settings = SearchSettings(
        space=SPACE,
        corpus=out / "corpus",
        strategy=StrategySettings(evolution=Evolution(population=20, parents=5)),
        trials=60,
        top=2,
        supernet=Plan(steps=500, rate=2e-3, warmup=0.1),
        retrain=Plan(steps=280, rate=2e-3, warmup=0.1),
        batch=32,
        length=64,
    )
    results = search(settings, out / "search")
    train, valid = _questions(out)
    tuning = FinetuneSettings(train=train, valid=valid, seeds=2, epochs=3, length=64, rate=1e-3)
    tuned = finetune(out / "search" / "model", out / "finetune", tuning)
    results["finetune"] = {
        "task": "which package does a docstring document?",
        "accuracy (median)": tuned.summary["accuracy"]["median"],
        "always the largest package": _largest_share(valid),
        "rows to learn from": tuned.rows["train"],
        "rows held out": tuned.rows["valid"],
    }
    write_atomically(out / "search" / "results.json", json.dumps(results, indent=1))
    page = report.write(out / "search")
    table("Fine-tuned", ["what", "value"], results["finetune"].items())
    places = {"page": page, "model": out / "search" / "model", "fine-tuned": out / "finetune" / "model", "corpus": out / "corpus"}
    for name, place in places.items():
        say(f"{name:<11}{place}")


def _largest_share(table_file: Path) -> float:
    """Return the accuracy of always answering the most frequent label."""
    labels = Counter(line.rpartition("\t")[2] for line in table_file.read_text(encoding="utf-8").splitlines()[1:])
    return max(labels.values()) / labels.total()


def _questions(out: Path) -> tuple[Path, Path]:
    """Write the tables of the fine-tuning: a document and the package it is from; a fifth is held out."""
    documents = [(package, " ".join(text.split())[:400]) for package, text in python_documents()]
    largest = [package for package, _ in Counter(package for package, _ in documents).most_common(PACKAGES)]
    rows: dict[str, list[str]] = {"train": [], "valid": []}
    taken: Counter[str] = Counter()
    for package, text in documents:
        if package in largest and taken[package] < MOST:
            taken[package] += 1
            held = blake2b(text.encode(), digest_size=4).digest()[0] % 5 == 0
            rows["valid" if held else "train"].append(f"{text}\t{package}")
    paths = {split: out / f"packages.{split}.tsv" for split in rows}
    for split, lines in rows.items():
        write_atomically(paths[split], "\n".join(["sentence1\tlabel", *lines]) + "\n")
    return paths["train"], paths["valid"]
