"""Fine-tune a model on a suite of tasks with several seeds each, and write what it came to in every form one needs.

Two ideas. An evaluation is a folder of fine-tuning runs, one for each task, and nothing else is remembered: what was killed goes
on because each run does, and the tables are a function of the finished runs. And everything is read before anything is learned,
so that a fault in the last task shows in the first minute; a task whose files are not there is skipped with the reason, in every
table.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, field_validator

from . import console, evaluation_page, scoreboard
from .architecture import Architecture
from .checkpoint import hold, sealed
from .errors import DataError, nearest
from .scoreboard import Evaluation, SeedScores, TaskScores
from .settings import read, write_atomically
from .submission import submit
from .tasks.catalog import HUB, Task, find, locate
from .tasks.examples import Choice, Examples, OnBadRow, Row, Span
from .tasks.finetune import FinetuneResults, FinetuneSettings, finetune, score_names
from .tasks.inputs import Splits, check_classes, open_model, read_splits
from .tasks.metrics import summary
from .tasks.protocols import PROTOCOLS
from .tasks.suites import MISMATCHED, averages_of, rows_note, tasks_of

WRITTEN_BY = {"results.csv": scoreboard.spreadsheet, "table.md": scoreboard.markdown, "report.html": evaluation_page.page_of}
SCORED_SPLITS = ("train", "dev", "train32", "dev32")


class EvaluationSettings(BaseModel):
    """What to fine-tune on, and how.

    suite: glue, superglue, all, or names of tasks with commas between.  source: a folder with the files of all of them, or
    hf: for each task's own data set on the hub.  seeds: how many or which, for every task; without it, what the protocol has for
    the task.  numbers: settings of every fine-tuning that replace the protocol's.  tasks: the same for single tasks, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    source: str
    protocol: str = "electra"
    seeds: int | tuple[int, ...] | None = None
    on_bad_row: OnBadRow = "stop"
    numbers: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any]] = {}

    @field_validator("protocol")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PROTOCOLS:
            raise ValueError(f"no protocol {name!r}{nearest(name, PROTOCOLS)}")
        return name

    @field_validator("tasks", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """Find tasks by their names, one with a point, SQuAD-v1.1, also where the command line cut it there."""
        if not isinstance(given, Mapping) or not all(isinstance(numbers, Mapping) for numbers in given.values()):
            return given
        whole: dict[str, Any] = {}
        for name, numbers in given.items():
            cut = {part: inner for part, inner in numbers.items() if isinstance(inner, Mapping)}
            for part, inner in cut.items():
                whole.setdefault(find(f"{name}.{part}").name, {}).update(inner)
            if rest := {part: value for part, value in numbers.items() if part not in cut}:
                whole.setdefault(find(name).name, {}).update(rest)
        return whole


class Planned(NamedTuple):
    """A task that is to be run.

    digests: SHA-256 of what it reads.  work: about how many thousand tokens go through the model for each seed.
    """

    task: Task
    settings: FinetuneSettings
    digests: Mapping[str, str]
    work: float

    @property
    def seeds(self) -> Sequence[int]:
        """List the seeds."""
        chosen = self.settings.seeds
        return range(chosen) if isinstance(chosen, int) else chosen


def evaluate(model: Path, out: Path, settings: EvaluationSettings) -> Evaluation:
    """Fine-tune a model folder on every task of a suite, or go on with what `out` holds; print and return what it came to.

    Leaves OUT/TASK, a fine-tuning run for each task; results.json, results.csv, table.md and report.html; and in submission/ what
    the server of GLUE wants, where there are test splits. These are the same bytes however often it was stopped.

    Raises:
        ValueError: settings that do not fit, or a folder begun with others, or with other models or rows.
        DataError: a file that cannot be used, or no task of which there are files.
        IntegrityError: the model folder is torn or altered.
        RunInUse: another process evaluates in this folder.
        Interrupted: asked to stop; finished seeds are kept.
    """
    arch, planned, skipped = prepare(model, out, settings)
    with hold(out):
        sealed(out, settings)
        _same_inputs(out / "inputs.json", _digests(model, planned))
        for name, reason in skipped.items():
            console.warn(f"skipped {name}: {reason}")
        _learn(model, out, planned, settings.suite)
        done = _collect(model, arch, out, settings, planned)
        done = done.model_copy(update={"skipped": skipped, "submission": submit(out, done, settings.on_bad_row)})
        write_atomically(out / "results.json", done.model_dump_json(indent=1))
        for name, written in WRITTEN_BY.items():
            write_atomically(out / name, written(done))
    scoreboard.show(done)
    return done


def prepare(model: Path, out: Path, settings: EvaluationSettings) -> tuple[Architecture, list[Planned], dict[str, str]]:
    """Read a model folder and every task; return its architecture, the tasks to run, and why others are skipped.

    Raises: as `evaluate`, for all that can be wrong before anything is learned.
    """
    net = open_model(model)
    planned, skipped = plan(settings, net.arch, out)
    for one in planned:
        check_classes(net, one.task.labels, one.task.name)
    return net.arch, planned, skipped


def plan(settings: EvaluationSettings, arch: Architecture, out: Path) -> tuple[list[Planned], dict[str, str]]:
    """Read every task of a suite; return those to run, in the order they run in, and why others are skipped.

    A task that others begin from comes first.
    """
    wanted = tasks_of(settings.suite)
    if unused := sorted(settings.tasks.keys() - {task.name for task in wanted}):
        raise ValueError(f"there are settings for {', '.join(unused)}, but {settings.suite!r} does not have it")
    folder = Path(settings.source)
    if not settings.source.startswith(HUB) and not folder.is_dir():
        raise DataError(f"there is no folder {folder} to read tasks from")
    planned: dict[str, Planned] = {}
    skipped = {}
    for task in sorted(wanted, key=lambda task: task.name not in PROTOCOLS[settings.protocol].begins.values()):
        if reason := _lacking(task, settings.source, alone=len(wanted) == 1):
            skipped[task.name] = reason
            continue
        chosen = _settings(task, settings)
        if chosen.begins in planned:
            chosen = chosen.model_copy(update={"start": out / str(chosen.begins) / "model"})
        chosen = chosen.for_model(arch)
        splits = read_splits(chosen)
        score_names(chosen, splits)
        planned[task.name] = Planned(task, chosen, splits.digests(), _work(splits, chosen))
    if not planned:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in skipped.items())
        raise DataError(f"no task of {settings.suite!r} can be run:{reasons}")
    return list(planned.values()), skipped


def _lacking(task: Task, source: str, *, alone: bool) -> str:
    """Say which files of a task are not there, if it cannot be run without them; alone: no other task is read from there."""
    if source.startswith(HUB):
        return ""
    try:
        places = [locate(task, split, Path(source)) for split in ("train", "dev")]
    except DataError as error:
        return str(error)
    if not alone and Path(source) in {place.parent for place in places} and Path(source).name not in task.folders:
        return f"{places[0]} does not tell which task it is of"
    return ""


def _settings(task: Task, settings: EvaluationSettings) -> FinetuneSettings:
    others = [split for split in task.splits if split not in SCORED_SPLITS and _is_there(task, split, settings.source)]
    given = {"seeds": settings.seeds} | settings.numbers | settings.tasks.get(task.name, {})
    own = {"task": task.name, "source": settings.source, "protocol": settings.protocol, "on_bad_row": settings.on_bad_row}
    if clash := sorted(given.keys() & {*own, "train", "valid", "also", "start"}):
        raise ValueError(f"{clash[0]} cannot be set for single tasks of a suite")
    return read(FinetuneSettings, **given | own, also=others)


def _is_there(task: Task, split: str, source: str) -> bool:
    if source.startswith(HUB):
        return split in task.hub.splits or split == "test"
    try:
        locate(task, split, Path(source))
    except DataError:
        return False
    return True


def _work(splits: Splits, settings: FinetuneSettings) -> float:
    """Estimate the tokens of a seed in thousands; a forward pass costs a third of a step of learning."""
    most = settings.length or 128
    learned, scored, *others = (_tokens(examples, most) for examples in splits.named.values())
    return (settings.epochs * (learned + scored / 3) + sum(others) / 3) / 1000


def _tokens(examples: Examples[Any], most: int) -> float:
    """Guess the tokens of examples by their blanks; texts are cut, but contexts and sentences of words are read in windows."""
    limit = most if examples.kind in ("classification", "regression", "choices") else math.inf
    return sum(min(limit, 1.3 * text.count(" ") + 4) for row in examples.rows for text in _texts(row))


def _texts(row: Any) -> list[str]:
    match row:
        case Row(first=first, second=second):
            return [f"{first} {second or ''}"]
        case Choice(first=first, options=options):
            return [f"{first} {option}" for option in options]
        case Span(question=question, context=context):
            return [f"{question} {context}"]
    return [" ".join(row.words)]


def _learn(model: Path, out: Path, planned: Sequence[Planned], suite: str) -> None:
    """Run every task that is not finished, with the time left for all of them."""
    waiting = [one for one in planned if not (out / one.task.name / "results.json").exists()]
    for one in planned:
        if one not in waiting:  # the numbers of a protocol may be others in another release
            sealed(out / one.task.name, one.settings)
    left = {one.task.name: one.work * len(_unfinished(one, out)) for one in waiting}
    with console.track(f"{suite}, thousand tokens", max(1, round(sum(left.values())))) as advance:
        for one in waiting:

            def tell(by: float = 1, *, name: str = one.task.name, **fields: object) -> None:
                advance(by, task=name, **fields)

            console.say(f"task {planned.index(one) + 1} of {len(planned)}: {one.task.name}")
            with console.part(tell, one.work * len(one.seeds)):
                finetune(model, out / one.task.name, one.settings)


def _unfinished(one: Planned, out: Path) -> list[int]:
    return [seed for seed in one.seeds if not (out / one.task.name / "seeds" / str(seed) / "result.json").exists()]


def _collect(model: Path, arch: Architecture, out: Path, settings: EvaluationSettings, planned: Sequence[Planned]) -> Evaluation:
    """Read what the finished runs came to."""
    tasks = {one.task.name: _scores(one.task, out / one.task.name) for one in planned}
    by_task = {
        name: {metric: [seed.scores[metric] for seed in tasks[name].seeds] for metric in _first(tasks[name])} for name in tasks
    }
    return Evaluation(
        model=str(model),
        arch=str(arch),
        suite=settings.suite,
        source=settings.source,
        protocol=settings.protocol,
        tasks=tuple(tasks[task.name] for task in tasks_of(settings.suite) if task.name in tasks),
        skipped={},
        averages=tuple(averages_of(by_task, [task.name for task in tasks_of(settings.suite)])),
    )


def _first(done: TaskScores) -> list[str]:
    """Return the metrics of a task, the one that decides first."""
    return [*done.metrics, *(name for name in done.summary if name not in done.metrics)]


def _scores(task: Task, run: Path) -> TaskScores:
    """Return the scores of a finished run; those of MNLI's other dev split stand among its own."""
    done = FinetuneResults.model_validate_json((run / "results.json").read_text())
    scores, summaries = {one.seed: dict(one.scores) for one in done.seeds}, dict(done.summary)
    others = {split: _summaries([one.also[split] for one in done.seeds]) for split in done.seeds[0].also}
    if "dev_mismatched" in others:
        summaries[MISMATCHED] = others.pop("dev_mismatched")["accuracy"]
        for one in done.seeds:
            scores[one.seed][MISMATCHED] = one.also["dev_mismatched"]["accuracy"]
    skipped = [f"{len(reasons):,} rows of {split} were left out" for split, reasons in done.skipped.items()]
    # The place of the model it begins from is left out: it is another one in every folder.
    begun = [f"begun from the model of {PROTOCOLS[done.protocol].begins[task.name]}"] if done.start else []
    learned = done.rows["train"] // (2 if done.settings["both_orders"] else 1)
    rows = {"train": learned, "dev": done.rows["valid"]}
    return TaskScores(
        task=task.name,
        suite=task.suite,
        kind=done.kind,
        metrics=(*task.metrics, *([MISMATCHED] if MISMATCHED in summaries else [])),
        rows=rows,
        seeds=tuple(SeedScores(seed=one.seed, scores=scores[one.seed], learned=one.learned) for one in done.seeds),
        median_seed=done.median_seed,
        summary=summaries,
        others=others,
        settings=done.settings,
        notes=(*rows_note(task.name, rows), *skipped, *done.notes, *begun),
    )


def _summaries(seeds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {metric: summary([scores[metric] for scores in seeds])._asdict() for metric in seeds[0]}


def _digests(model: Path, planned: Sequence[Planned]) -> dict[str, str]:
    """Return the SHA-256 of all that an evaluation reads."""
    files = [*sorted(model.glob("*.safetensors")), model / "config.json", model / "tokenizer.json"]
    found = {f"model ({path.name})": hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
    return found | {f"{one.task.name} ({name})": digest for one in planned for name, digest in one.digests.items()}


def _same_inputs(path: Path, digests: Mapping[str, str]) -> None:
    """Note what an evaluation reads, or check that it is what it began with."""
    before = json.loads(path.read_text()) if path.exists() else digests
    if changed := [name for name in {**before, **digests} if before.get(name) != digests.get(name)]:
        raise ValueError(f"{path.parent} was begun with another {' and another '.join(changed)}; use another --out")
    write_atomically(path, json.dumps(digests, indent=1))
