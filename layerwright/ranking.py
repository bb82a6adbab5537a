"""Compare what was trained from scratch with what the supernet said of it.

An encoder first learns how frequent each token is, whatever its layers, and stays there for a while: the unigram plateau. A
ranking of encoders that are still on it says little about their layers, so agreement is also told without them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from .batches import Batch
from .console import say, table
from .corpus import Corpus
from .objectives import MaskedLM, choose

BELOW_PLATEAU = 0.5
PIECE = 1 << 24

Row = Mapping[str, Any]


def unigram_loss(corpus: Corpus, held: Sequence[Batch], objective: MaskedLM) -> float:
    """Return the cross-entropy, in nats, of the held-out masked tokens under the frequencies of the training tokens.

    Every token counts once more than it occurs, so that none is impossible.
    """
    tokens = corpus.tokens("train")
    counts = np.ones(objective.backbone.arch.vocab, np.int64)
    for start in range(0, len(tokens), PIECE):
        counts += np.bincount(tokens[start : start + PIECE], minlength=len(counts))
    nats = np.log(counts.sum()) - np.log(counts)
    losses = [nats[batch.ids.gather(1, choose(batch, objective.rate, objective.special).places).numpy()].mean() for batch in held]
    return float(fmean(losses))


def has_learned(loss: float, plateau: float) -> bool:
    """Return whether a held-out loss lies at least `BELOW_PLATEAU` nats below the unigram loss; the margin is our choice."""
    return loss <= plateau - BELOW_PLATEAU


def agreement(rows: Sequence[Row]) -> dict[str, float | int] | None:
    """Return Kendall's tau-b between supernet and standalone scores, the mean over seeds of each architecture.

    Those that the supernet cannot score do not count. None for less than three, or where all scores are equal.
    """
    pairs = [(fmean(row["supernet"] for row in group), mean_score(group)) for group in by_architecture(rows) if _in_space(group)]
    if len(pairs) < 3:
        return None
    found = kendalltau(*zip(*pairs, strict=True))
    tau, p = float(found.statistic), float(found.pvalue)
    return {"tau": tau, "p": p, "n": len(pairs)} if math.isfinite(tau) else None


def agreement_of_learned(rows: Sequence[Row]) -> dict[str, float | int] | None:
    """Return the agreement over the architectures that left the unigram plateau with every seed."""
    groups = [group for group in by_architecture(rows) if all(row.get("learned") for row in group)]
    return agreement([row for group in groups for row in group])


def by_architecture(rows: Iterable[Row]) -> list[list[Row]]:
    """Gather the rows of each architecture; one that goes by two names has each seed once."""
    groups: dict[str, dict[int, Row]] = {}
    for row in rows:
        groups.setdefault(row["arch"], {}).setdefault(row["seed"], row)
    return [list(seeds.values()) for seeds in groups.values()]


def by_name(rows: Iterable[Row]) -> list[list[Row]]:
    """Gather the rows of each name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return list(groups.values())


def best(rows: Sequence[Row], first: Sequence[str]) -> str:
    """Return the name of the architecture with the best mean score; of its names one of `first`, if it has one."""
    winner = max(by_architecture(rows), key=mean_score)[0]["arch"]
    names = [row["name"] for row in rows if row["arch"] == winner]
    return str(min(names, key=lambda name: name not in first))


def mean_score(group: Sequence[Row]) -> float:
    """Return the mean score over the seeds of one architecture."""
    return fmean(row["score"] for row in group)


def show(rows: Sequence[Row], score_name: str) -> None:
    """Print the table of what was trained from scratch, best first."""
    groups = sorted(by_name(rows), key=mean_score, reverse=True)
    columns = ("", "name", "layers", "parameters", "MFLOPs", "supernet", "score", "over seeds", "loss", "learned")
    table(f"Trained from scratch, by {score_name}", columns, map(_line, range(1, len(groups) + 1), groups))
    for found, which in ((agreement(rows), "all"), (agreement_of_learned(rows), "without those on the unigram plateau")):
        said = (
            f"{found['tau']:.2f} (p = {found['p']:.2g}, n = {found['n']})" if found else "not defined: fewer than three, or ties"
        )
        say(f"Kendall's tau of supernet and standalone scores, {which}: {said}")


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    """Return a number over tokens, as a pre-training run logged it."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["tokens"], record[name]) for record in records if name in record]


def _in_space(group: Sequence[Row]) -> bool:
    return all(row["supernet"] is not None and math.isfinite(row["supernet"]) for row in group)


def _line(rank: int, group: Sequence[Row]) -> list[object]:
    first, scores = group[0], [row["score"] for row in group]
    span = f"{min(scores):.4f} to {max(scores):.4f}" if len(group) > 1 else None
    learned = None if first["learned"] is None else {True: "yes", False: "no"}[all(row["learned"] for row in group)]
    layers = first["arch"].partition(": ")[2]
    told = [rank, first["name"], layers, first["parameters"], round(first["flops"] / 1e6, 1), first["supernet"]]
    return [*told, mean_score(group), span, fmean(row["loss"] for row in group), learned]
