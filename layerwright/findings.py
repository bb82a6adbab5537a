"""Read what a search found: its results.json as values, with what is missing or not a number made plain.

A number that is absent, null or not a number is NaN here, so whoever draws or compares asks one question only: is it
finite?
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

Point = tuple[float, float]
Row = Mapping[str, Any]

ROLES = ("winner", "interleaved", "sandwich", "random", "other")


class Candidate(NamedTuple):
    """An architecture scored with the weights of the supernet; `series` is "search" or "control"."""

    number: int
    arch: str
    score: float
    parameters: float
    flops: float
    series: str


class Agreement(NamedTuple):
    """Kendall's tau between supernet and standalone scores of n architectures, and its p-value."""

    tau: float
    p: float
    n: int


@dataclass(frozen=True)
class Standing:
    """An architecture trained from scratch, its seeds together.

    role: one of ROLES.  scores: the finite ones, one a seed.  supernet: its score with the supernet's weights.
    curves: held-out loss over tokens, one a seed.  learned: whether it left the unigram plateau; None: not known.
    uniformity: the mean cosine of two tokens, before the first layer and after each, the mean over seeds; empty: not known.
    """

    name: str
    arch: str
    role: str
    seeds: int
    scores: tuple[float, ...]
    supernet: float
    parameters: float
    flops: float
    curves: tuple[tuple[Point, ...], ...]
    learned: bool | None = None
    uniformity: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        """The mean over seeds; NaN where there is none."""
        return fmean(self.scores) if self.scores else math.nan


@dataclass(frozen=True)
class Findings:
    """What a search found so far.

    standings: best first.  agreement: over all, and over those that left the unigram plateau.  plateau: the held-out
    loss there, in nats.
    """

    title: str
    created: str
    space: str
    corpus: Row
    settings: Row
    seconds: Mapping[str, float]
    search: tuple[Candidate, ...]
    control: tuple[Candidate, ...]
    standings: tuple[Standing, ...]
    agreement: tuple[Agreement, Agreement]
    supernet_curve: tuple[Point, ...]
    score_name: str
    finetune: Row
    failures: tuple[Row, ...]
    finished: bool
    plateau: float

    @classmethod
    def read(cls, path: Path, spell: Callable[[str], str] = str) -> "Findings":
        """Read a results.json.  spell: how to write the texts of architectures, so that equal ones look the same.

        Raises:
            ValueError: it is not JSON, or not of a search.
        """
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        if not isinstance(written, dict):
            raise ValueError(f"{path} cannot be read: it holds no results")
        if written and not written.keys() & {"space", "trials", "standalone"}:
            raise ValueError(f"{path} cannot be drawn: these are not the results of a search")
        kendall = written.get("kendall") or {}
        return cls(
            title=str(written.get("title") or "Search"),
            created=str(written.get("created") or ""),
            space=str(written.get("space") or ""),
            corpus=written.get("corpus") or {},
            settings=written.get("settings") or {},
            seconds={name: number(value) for name, value in (written.get("seconds") or {}).items()},
            search=_candidates(written.get("trials"), "search", spell),
            control=_candidates(written.get("random"), "control", spell),
            standings=_standings(written.get("standalone") or [], str(written.get("winner") or ""), spell),
            agreement=(_agreement(kendall.get("all")), _agreement(kendall.get("learned"))),
            supernet_curve=curve(written.get("supernet_curve")),
            score_name=str(written.get("score_name") or "score"),
            finetune=written.get("finetune") or {},
            failures=tuple(written.get("failures") or ()),
            finished=written.get("finished") is not False,
            plateau=number((written.get("plateau") or {}).get("unigram_loss")),
        )

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate of the search and of its random control."""
        return self.search + self.control

    @property
    def winner(self) -> Standing | None:
        """The architecture named as winner, else the best trained from scratch; None where there is none."""
        scored = [one for one in self.standings if one.scores]
        return next((one for one in self.standings if one.role == "winner"), scored[0] if scored else None)

    @property
    def baseline(self) -> Standing | None:
        """The ordinary backbone, unless that is the winner or has no score."""
        return next((one for one in self.standings if one.name == "interleaved" and one.scores and one is not self.winner), None)


def best_so_far(scores: Sequence[float]) -> list[float]:
    """Return, for each place, the best score up to there; NaN until the first that is finite."""
    best, so_far = math.nan, []
    for score in scores:
        if math.isfinite(score) and not score <= best:
            best = score
        so_far.append(best)
    return so_far


def pareto(points: Sequence[Point]) -> list[int]:
    """Return the places of the (cost, score) points that none beats, cheapest first.

    One point beats another when it costs no more and scores no less, and is better in one of the two.
    """
    finite = [place for place, point in enumerate(points) if all(map(math.isfinite, point))]
    front: list[int] = []
    for place in sorted(finite, key=lambda place: (points[place][0], -points[place][1])):
        if not front or points[place][1] > points[front[-1]][1] or points[place] == points[front[-1]]:
            front.append(place)
    return front


def number(value: object) -> float:
    """Return a value as a number; NaN for what is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def curve(points: object) -> tuple[Point, ...]:
    """Return the finite points of a list of pairs."""
    pairs = [(number(pair[0]), number(pair[1])) for pair in (points if isinstance(points, list) else [])]
    return tuple(pair for pair in pairs if all(map(math.isfinite, pair)))


def _candidates(rows: Sequence[Row] | None, series: str, spell: Callable[[str], str]) -> tuple[Candidate, ...]:
    candidates = []
    for place, row in enumerate(rows or []):
        score, parameters, flops = (number(row.get(key)) for key in ("score", "parameters", "flops"))
        candidates.append(
            Candidate(int(row.get("number", place)), spell(str(row.get("arch") or "")), score, parameters, flops, series)
        )
    return tuple(candidates)


def _standings(rows: Sequence[Row], winner: str, spell: Callable[[str], str]) -> tuple[Standing, ...]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row.get("name") or "unnamed"), spell(str(row.get("arch") or ""))), []).append(row)
    standings = [_standing(name, arch, group, winner) for (name, arch), group in groups.items()]
    return tuple(sorted(standings, key=lambda one: (-one.score if one.scores else math.inf, one.name)))


def _standing(name: str, arch: str, rows: Sequence[Row], winner: str) -> Standing:
    def mean(key: str) -> float:
        values = [value for value in (number(row.get(key)) for row in rows) if math.isfinite(value)]
        return fmean(values) if values else math.nan

    kind = name.partition("-")[0]
    learned = {row["learned"] for row in rows if isinstance(row.get("learned"), bool)}
    return Standing(
        name=name,
        arch=arch,
        role="winner" if name == winner else kind if kind in ROLES[1:-1] else "other",
        seeds=len(rows),
        scores=tuple(score for score in (number(row.get("score")) for row in rows) if math.isfinite(score)),
        supernet=mean("supernet"),
        parameters=mean("parameters"),
        flops=mean("flops"),
        curves=tuple(curve(row.get("curve")) for row in rows),
        learned=all(learned) if learned else None,
        uniformity=tuple(
            map(fmean, zip(*(map(number, row["uniformity"]) for row in rows if row.get("uniformity")), strict=False))
        ),
    )


def _agreement(row: Row | None) -> Agreement:
    row = row or {}
    count = number(row.get("n"))
    return Agreement(number(row.get("tau")), number(row.get("p")), int(count) if math.isfinite(count) else 0)
