"""What a fine-tuning came to, as it is kept and printed."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from layerwright import console
from layerwright.checkpoint import MANIFEST, verify_folder
from layerwright.errors import IntegrityError
from layerwright.tasks.examples import Kind


class SeedResult(BaseModel):
    """What a seed came to on the validation examples after its last epoch.

    learned: False if it predicts the same for every row.  loss: mean of the last epoch.  padding, padding_scored: shares of the
    tokens it learned from, and of those of the validation examples.  seconds: on the clock.  processor_seconds: of all cores
    together.  memory: MiB that the process held at most, None where the system does not say.  also: scores on other splits that
    have labels.  config: what the model folder says of the task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    scores: dict[str, float]
    learned: bool
    loss: float
    padding: float
    padding_scored: float | None = None
    seconds: float
    processor_seconds: float | None = None
    memory: float | None = None
    also: dict[str, dict[str, float]] = {}
    config: dict[str, Any] = {}


class FinetuneResults(BaseModel):
    """What a run came to, as in its results.json; `summary` has median, mean, std, low and high for each metric.

    task: its name, if it is known by one.  settings: every number that was used.  start: what it began with if not with the
    model alone.  labels: names of the classes or tags in order, none where there are none.  skipped: why rows were left out, by
    split.  notes: what else one should know.  median_seed: the one whose weights are in model/, of two in the middle the lower.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    arch: str
    task: str | None
    kind: Kind
    protocol: str
    settings: dict[str, Any]
    start: str | None
    labels: tuple[str, ...]
    rows: dict[str, int]
    skipped: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    score: str
    median_seed: int
    summary: dict[str, dict[str, float]]
    seeds: tuple[SeedResult, ...]


def finished(folder: Path) -> SeedResult | None:
    """Read the result of a seed, if it is there and whole."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        verify_folder(folder)
    except IntegrityError as error:
        console.warn(f"repeating seed {folder.name}: {error}")
        return None
    return SeedResult.model_validate_json((folder / "result.json").read_text())


def show(results: FinetuneResults) -> None:
    """Print every seed, and what they come to together."""
    names = list(results.summary)
    rows: list[list[object]] = [
        [f"seed {one.seed}", *(one.scores[name] for name in names), one.loss, one.padding, one.padding_scored, one.seconds]
        for one in results.seeds
    ]
    for title, part in (("median", "median"), ("mean", "mean"), ("std", "std"), ("95 % from", "low"), ("to", "high")):
        rows.append([title, *(results.summary[name][part] for name in names), None, None, None, None])
    title = f"{results.task or results.kind} on {results.rows['valid']:,} rows"
    console.table(title, ["", *names, "loss", "padding", "when scored", "seconds"], rows)
    if lost := [str(one.seed) for one in results.seeds if not one.learned]:
        console.warn(f"not learned, the same prediction for every row: seed {', '.join(lost)}")
