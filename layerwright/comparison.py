"""Compare two models that were evaluated alike: the same tasks, rows, numbers and seeds, hence the same order of rows.

Two questions are asked of each task, and kept apart. Over seeds: would the better model be the better one again if both were
fine-tuned anew? Over rows: would it be on other rows of the kind? Neither says how much pre-training the model anew would change.
"""

import json
import statistics
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from . import console
from .errors import DataError
from .evaluation import EvaluationSettings, evaluate, prepare
from .handover import markdown_table
from .scoreboard import MARK, Evaluation, TaskScores, percent
from .settings import write_atomically
from .tasks.catalog import read
from .tasks.examples import Examples
from .tasks.paired import OverRows, Paired, Tally, holm, over_rows, over_seeds, tally
from .tasks.protocols import BY_MODEL

OF_MODEL = ("model (", "start ")  # inputs that may differ


class Difference(BaseModel):
    """How a task went for two models, by the metric that decides; differences are the second less the first.

    first, second: the score of each seed.  lost: how many runs of either did not learn.  p_holm: the p value over seeds, raised
    for the number of tasks.  over_rows: None where `note` says why.  metrics: the difference over seeds of every other metric.
    seconds, memory: what a seed took with both: seconds of the processor, the median, and MiB, the most; None where not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    metric: str
    seeds: tuple[int, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    lost: tuple[int, int]
    over_seeds: Paired
    p_holm: float
    over_rows: OverRows | None
    note: str = ""
    metrics: dict[str, Paired] = {}
    seconds: tuple[float, float] | None = None
    memory: tuple[float, float] | None = None


class Comparison(BaseModel):
    """What a comparison came to, as in its comparison.json.

    averages: both values of each average that both have all tasks for, their difference, and over how many tasks it is.
    whole: the mean over tasks of the deciding metric, seed by seed, where all tasks have the same seeds.  left_out: why tasks are
    not compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    protocol: str
    source: str
    tasks: tuple[Difference, ...]
    whole: Paired | None
    averages: dict[str, tuple[float, float, float]]
    left_out: dict[str, str]


def compare(first: Path, second: Path, out: Path, settings: EvaluationSettings | None = None) -> Comparison:
    """Compare two finished evaluations, or two models that are evaluated first, under OUT/first and OUT/second.

    Prints the table, and leaves comparison.json and comparison.md in `out`. A killed comparison goes on as evaluations do.

    Raises:
        ValueError: evaluations that were not made alike, saying what differs; or models without settings to evaluate them with.
        DataError: a file of the tasks that cannot be used.
    """
    for folder in (first, second):
        made = (folder / "results.json").is_file() and (folder / "inputs.json").is_file()
        if made and settings is not None:
            raise ValueError(f"{folder} is an evaluation, which has its suite and numbers already")
        if not made and settings is None:
            raise ValueError(f"{folder} is no finished evaluation; to compare models, say which --suite and --source")
    if settings is not None:
        # Whatever is wrong with the second shows before the first is evaluated, which may take hours.
        prepare(second, out / "second", settings)
        for folder, name in ((first, "first"), (second, "second")):
            evaluate(folder, out / name, settings)
        first, second = out / "first", out / "second"
    done = compared(first, second)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", done.model_dump_json(indent=1))
    write_atomically(out / "comparison.md", markdown(done))
    show(done)
    return done


def compared(first: Path, second: Path) -> Comparison:
    """Compare two finished evaluations.

    Raises: ValueError if they were not made alike.
    """
    one, other = (Evaluation.model_validate_json((folder / "results.json").read_text()) for folder in (first, second))
    settings = _settings(first)
    _check_alike(first, second, settings, _settings(second))
    by_task = [{done.task: done for done in evaluation.tasks} for evaluation in (one, other)]
    both = [name for name in by_task[0] if name in by_task[1]]
    alone = sorted(by_task[0].keys() ^ by_task[1].keys())
    left_out = {**other.skipped, **one.skipped} | dict.fromkeys(alone, "only one of the two has it")
    found = [_difference(by_task[0][name], by_task[1][name], first / name, second / name, settings) for name in both]
    raised = holm([task.over_seeds.p for task in found])
    return Comparison(
        first=one.model,
        second=other.model,
        protocol=one.protocol,
        source=one.source,
        tasks=tuple(task.model_copy(update={"p_holm": p}) for task, p in zip(found, raised, strict=True)),
        whole=_whole(found),
        averages=_averages(one, other),
        left_out=left_out,
    )


def _settings(folder: Path) -> EvaluationSettings:
    return EvaluationSettings.model_validate(tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8")))


def _check_alike(first: Path, second: Path, one: EvaluationSettings, other: EvaluationSettings) -> None:
    """Refuse evaluations over other rows or with other numbers; where the rows lie may differ, and which tasks there are."""
    if one.protocol != other.protocol:
        raise ValueError(f"{first} was made by the protocol {one.protocol}, and {second} by {other.protocol}")
    before, after = (json.loads((folder / "inputs.json").read_text()) for folder in (first, second))
    rows = [name for name in before if name in after and not name.startswith(OF_MODEL) and before[name] != after[name]]
    if rows:
        raise ValueError(f"{first} and {second} were made with other rows: {', '.join(rows)}")


def _difference(one: TaskScores, other: TaskScores, first: Path, second: Path, settings: EvaluationSettings) -> Difference:
    by_model = _check_numbers(one, other)
    seeds = [seed.seed for seed in one.seeds if seed.seed in {seed.seed for seed in other.seeds}]
    if not seeds:
        raise ValueError(f"{one.task} has no seed in common in {first} and {second}")
    by_seed = [{seed.seed: seed.scores for seed in done.seeds} for done in (one, other)]
    values = {
        metric: tuple(tuple(scores[seed][metric] for seed in seeds) for scores in by_seed)
        for metric in one.summary
        if metric in other.summary
    }
    deciding = [name for name in one.metrics if name in values]
    metric, *others = (*deciding, *(name for name in values if name not in deciding))
    rows, note = _rows(one, metric, seeds, (first, second), settings)
    lost = tuple(sum(seed in done.lost for seed in seeds) for done in (one, other))
    return Difference(
        task=one.task,
        metric=metric,
        seeds=tuple(seeds),
        first=values[metric][0],
        second=values[metric][1],
        lost=(lost[0], lost[1]),
        over_seeds=over_seeds(*values[metric]),
        p_holm=1.0,
        over_rows=rows,
        note="; ".join(filter(None, (by_model, note))),
        metrics={name: over_seeds(*values[name]) for name in others},
        **_costs(seeds, (first, second)),
    )


def _costs(seeds: Sequence[int], runs: tuple[Path, Path]) -> dict[str, Any]:
    """Return what a seed took with both models, None where a run does not say of each."""
    paths = [[run / "seeds" / str(seed) / "result.json" for seed in seeds] for run in runs]
    told = [[json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} for path in both] for both in paths]

    def of_both(what: str, of_all: Callable[[list[Any]], float]) -> tuple[float, ...] | None:
        values = [[result.get(what) for result in results] for results in told]
        return None if any(None in known for known in values) else tuple(map(of_all, values))

    return {"seconds": of_both("processor_seconds", statistics.median), "memory": of_both("memory", max)}


def _check_numbers(one: TaskScores, other: TaskScores) -> str:
    """Refuse a task that was learned with other numbers, and say which differ because protocols go by the size of a model."""
    numbers = {name: (value, other.settings.get(name)) for name, value in one.settings.items() if name != "seeds"}
    unlike = {name: f"{name} {a} and {b}" for name, (a, b) in numbers.items() if a != b}
    if wrong := [said for name, said in unlike.items() if name not in BY_MODEL]:
        raise ValueError(f"{one.task} was learned with other numbers: {', '.join(wrong)}")
    return f"learned with {', '.join(unlike.values())}" if unlike else ""


def _rows(
    done: TaskScores, metric: str, seeds: Sequence[int], runs: tuple[Path, Path], settings: EvaluationSettings
) -> tuple[OverRows | None, str]:
    """Compare the stored predictions row by row, or say why that cannot be."""
    try:
        examples = read(done.task, "dev", settings.source, on_bad_row=settings.on_bad_row)
    except DataError as error:
        return None, f"not compared by row: {error}"
    tallies: list[list[Tally]] = []
    for run in runs:
        paths = [run / "seeds" / str(seed) / "predictions.jsonl" for seed in seeds]
        if lacking := [path for path in paths if not path.is_file()]:
            return None, f"not compared by row: there is no {lacking[0]}"
        tallies.append([tally(metric, examples, _predictions(path, examples)) for path in paths])
    return over_rows(*tallies), ""


def _predictions(path: Path, examples: Examples[Any]) -> Any:
    """Read predictions as `metrics.score` takes them.

    Raises: ValueError if they are not of these rows.
    """
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    if [line["key"] for line in lines] != [row.key for row in examples.rows]:
        raise ValueError(f"{path} holds predictions for other rows than {examples.source}")
    found = {line["key"]: line["prediction"] for line in lines}
    if examples.kind == "spans":
        return found
    names = {name: place for place, name in enumerate(examples.labels)} if examples.kind == "classification" else None
    return [names[line["prediction"]] if names else line["prediction"] for line in lines]


def _whole(tasks: Sequence[Difference]) -> Paired | None:
    """Compare the means over tasks, seed by seed, if all tasks have the same seeds."""
    if len(tasks) < 2 or len({task.seeds for task in tasks}) > 1:
        return None
    first, second = (
        [statistics.fmean(scores) for scores in zip(*(getattr(task, side) for task in tasks), strict=True)]
        for side in ("first", "second")
    )
    return over_seeds(first, second)


def _averages(one: Evaluation, other: Evaluation) -> dict[str, tuple[float, float, float]]:
    both = {average.name: average for average in one.averages}
    found = {}
    for average in other.averages:
        rival = both.get(average.name)
        if rival and rival.summary and average.summary and rival.tasks == average.tasks:
            before, after = rival.summary["median"], average.summary["median"]
            found[average.name] = (before, after, after - before)
    return found


COLUMNS = (
    *("task", "metric", "first", "second", "difference", "median", "95 % over seeds", "p", "p, Holm"),
    *("95 % over rows", "p by rows"),
)
COST_TITLE = "What a seed took: seconds of the processor, the median; memory of the process at most"
COSTS = ("task", "seconds, first", "second", "times", "MiB, first", "second", "times")


def table_rows(done: Comparison) -> list[list[str]]:
    """Return a row for each task: means over seeds of both, their difference, and how sure it is."""
    rows = [
        [
            f"{one.task} {MARK}" if any(one.lost) else one.task,
            one.metric.replace("_", " "),
            *(percent(statistics.fmean(scores)) for scores in (one.first, one.second)),
            _signed(one.over_seeds.mean),
            _signed(one.over_seeds.median),
            _interval(one.over_seeds, len(one.seeds) > 1),
            _p(one.over_seeds, len(one.seeds) > 1),
            f"{one.p_holm:.3f}" if len(one.seeds) > 1 else "-",
            _interval(one.over_rows),
            _p(one.over_rows),
        ]
        for one in done.tasks
    ]
    if whole := done.whole:
        first, second = (_mean_of(done, side) for side in ("first", "second"))
        several = len(done.tasks[0].seeds) > 1
        means = [percent(first), percent(second), _signed(whole.mean), _signed(whole.median)]
        rows.append([f"mean of {len(done.tasks)}", "", *means, _interval(whole, several), _p(whole, several), "", "", ""])
    return rows


def cost_rows(done: Comparison) -> list[list[str]]:
    """Return a row for each task of which it is known: what a seed took with both, and how many times as much with the second."""
    return [
        [one.task, *_both(one.seconds), *_both(one.memory)]
        for one in done.tasks
        if one.seconds is not None or one.memory is not None
    ]


def notes(done: Comparison) -> list[str]:
    """Say what one must know to read the table."""
    said = [
        f"{MARK} {one.task}: {one.lost[0]} and {one.lost[1]} of {len(one.seeds)} runs did not learn, they predict the same for "
        "every row"
        for one in done.tasks
        if any(one.lost)
    ]
    for count in sorted({len(one.seeds) for one in done.tasks}):
        least = next(one.over_seeds.least for one in done.tasks if len(one.seeds) == count)
        if count == 1:
            said.append("one seed tells nothing about other seeds")
        elif least > 0.01:
            said.append(f"of {count} seeds no p value can be below {least:g}")
    said += [f"{one.task}: {one.note}" for one in done.tasks if one.note]
    said += [f"{name}: {percent(a)} and {percent(b)}, {_signed(c)}" for name, (a, b, c) in done.averages.items()]
    return said + [f"not compared, {task}: {reason}" for task, reason in done.left_out.items()]


def show(done: Comparison) -> None:
    """Print what a comparison came to."""
    console.say(f"first   {done.first}\nsecond  {done.second}")
    console.table("Scores on dev, means over seeds, in hundredths; differences are second less first", COLUMNS, table_rows(done))
    if costs := cost_rows(done):
        console.table(COST_TITLE, COSTS, costs)
    for note in notes(done):
        console.warn(note)


def markdown(done: Comparison) -> str:
    """Return the comparison in Markdown."""
    first = f"First: `{done.first}`. Second: `{done.second}`. Protocol `{done.protocol}`, scores on dev in hundredths."
    lines = [
        "## Comparison",
        "",
        first,
        "",
        *markdown_table(COLUMNS, table_rows(done)),
        "",
        *((f"{COST_TITLE}:", "", *markdown_table(COSTS, costs), "") if (costs := cost_rows(done)) else ()),
        *(f"- {note}" for note in notes(done)),
    ]
    return "\n".join(lines) + "\n"


def _mean_of(done: Comparison, side: str) -> float:
    return statistics.fmean(statistics.fmean(getattr(one, side)) for one in done.tasks)


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def _both(found: tuple[float, float] | None) -> tuple[str, str, str]:
    return (f"{found[0]:,.0f}", f"{found[1]:,.0f}", f"{found[1] / found[0]:.2f}") if found else ("-", "-", "-")


def _interval(found: Paired | OverRows | None, several: bool = True) -> str:
    return f"{_signed(found.low)} to {_signed(found.high)}" if found and several else "-"


def _p(found: Paired | OverRows | None, several: bool = True) -> str:
    return f"{found.p:.4f}" if found and several else "-"
