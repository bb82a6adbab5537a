"""Read a split of a known task, wherever its rows are: a folder of files in either form, or a Hugging Face data set."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from layerwright.errors import DataError, nearest
from layerwright.tasks.declarations import TASKS, Task, find
from layerwright.tasks.examples import Examples, OnBadRow
from layerwright.tasks.hub import hub_records, without_numbers
from layerwright.tasks.official import Shape
from layerwright.tasks.reading import Wanted, assemble, check_columns, read_file, read_questions, read_words
from layerwright.tasks.records import Faults, Record, checked, jsonl_records, tsv_records

__all__ = ["TASKS", "Task", "find", "locate", "read", "read_file"]

HUB = "hf:"


def read(task: Task | str, split: str, source: Path | str, *, on_bad_row: OnBadRow = "stop") -> Examples[Any]:
    """Read a split of a task: train, dev or test, of MNLI also dev_mismatched and test_mismatched.

    source: a folder that holds the task's files or one for the task, in the form of its official download or the one of this
    project's tables (`idx sentence1 sentence2 label`); or `hf:NAME[:CONFIG]`, a data set on the hub or a folder that `datasets`
    wrote, `hf:` alone being the task's own. Labels may be missing from test splits.
    Raises: ValueError for a task or split that is not known.  DataError naming the file and the rows at fault.
    """
    task = find(task) if isinstance(task, str) else task
    checked(on_bad_row)
    if split not in task.splits:
        raise ValueError(f"{task.name} has no split {split!r}{nearest(split, task.splits)}")
    wanted = Wanted(
        task.kind,
        task.labels or None,
        task.columns,
        task.aliases,
        between=task.between,
        labelled=not split.startswith("test"),
        pairs=task.pairs,
    )
    if str(source).startswith(HUB):
        return _from_hub(task, split, str(source).removeprefix(HUB), wanted, on_bad_row)
    path = locate(task, split, Path(source))
    if task.kind == "tags":
        return read_words(path, wanted, on_bad_row)
    if task.kind == "spans":
        return read_questions(path, wanted, on_bad_row)
    faults = Faults(str(path))
    if path.suffix == ".jsonl":
        records = jsonl_records(path, faults)
    else:
        known = [name for names in task.columns.values() for name in names]
        check = partial(check_columns, wanted, faults)
        records = tsv_records(path, faults, check, names=task.headless, known=known)
    if task.part:
        records = task.part(path, split, records)
    if task.shape:
        records = _shaped(records, task.shape, faults)
    return assemble(records, wanted, faults, on_bad_row)


def locate(task: Task, split: str, source: Path) -> Path:
    """Return the file of a split under a folder, which may hold many tasks' folders or be the task's own.

    Raises: DataError naming the places where it is not.
    """
    if not source.is_dir():
        raise DataError(f"there is no folder {source} to read {task.name} from")
    others = {folder for other in TASKS.values() if other is not task for folder in other.folders} - set(task.folders)
    own = () if source.name in others else ("",)
    places = [Path(folder, name) for folder in (*task.folders, *own) for name in task.splits[split]]
    for place in places:
        if (source / place).is_file():
            return source / place
    raise DataError(f"{source} has no {split} split of {task.name}: none of {', '.join(map(str, places))} is there")


def _from_hub(task: Task, split: str, named: str, wanted: Wanted, on_bad_row: OnBadRow) -> Examples[Any]:
    name, _, config = named.partition(":")
    usual = {"train": "train", "dev": "validation", "test": "test"}
    called = task.hub.splits.get(split) or usual.get(split)
    if called is None:
        raise ValueError(f"the data sets of {task.name} on the hub have no split {split!r}{nearest(split, usual)}")
    name = name or task.hub.name
    config = config or (task.hub.config if name == task.hub.name else "")
    columns, records = hub_records(name, config, called)
    faults = Faults(f"hf:{name}, split {called},")
    wanted = wanted._replace(columns={**task.columns, **task.hub.columns})
    if task.shape:
        records = _shaped(records, task.shape, faults)
    else:
        check_columns(wanted, faults, columns)
    if task.between and not wanted.labelled:
        records = without_numbers(records, wanted.columns["label"])
    return assemble(records, wanted, faults, on_bad_row)


def _shaped(records: Iterator[Record], shape: Shape, faults: Faults) -> Iterator[Record]:
    """Turn the records of a task into those of its rows, all of them or none."""
    for record in records:
        try:
            made = list(shape(record.fields))
        except ValueError as error:
            faults.add(record.row, str(error))
            continue
        for fields in made:
            yield Record(record.row, record.place, fields)
