"""Write an inspection as a folder: inspection.json has all of it, tables are CSV, and report.html is for the eye."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .checkpoint import appearing
from .inspection import Inspection
from .inspection_page import page_of
from .sweep import Effect

MEASURED = tuple(Effect.model_fields)


def write(found: Inspection, out: Path) -> None:
    """Write a folder, which has its name once it is whole."""
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[object]]]] = {
        "edits.csv": (("edit", "start", "stop", *MEASURED), edits(found)),
        "states.csv": (("edit", "units_run", "last_unit", "uniformity", *MEASURED), states(found)),
        "similarity.csv": (("one", "other", "cosine", "cka"), similarities(found)),
    }
    with appearing(out) as folder:
        (folder / "inspection.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(page_of(found), encoding="utf-8")
        for name, (heads, rows) in tables.items():
            with open(folder / name, "w", encoding="utf-8", newline="") as stream:
                csv.writer(stream, lineterminator="\n").writerows([heads, *rows])


def edits(found: Inspection) -> Iterator[Sequence[object]]:
    """Yield a row for the model as it is and for each edit."""
    yield "", "", "", *_values(found.unedited)
    for one in found.changes:
        yield one.change, one.start, one.stop, *_values(one)


def states(found: Inspection) -> Iterator[Sequence[object]]:
    """Yield a row for each hidden state of the model as it is and of those edited, read as if it were the last."""
    for lens in found.lenses:
        for place, state in enumerate(lens.states):
            last = lens.units[place - 1] if place else ""
            even = found.uniformity[place] if lens.edit is None else ""
            yield lens.edit or "", place, last, even, *_values(state)


def similarities(found: Inspection) -> Iterator[Sequence[object]]:
    """Yield a row for any two hidden states of the model as it is, by how many units were run."""
    for one, (cosines, alike) in enumerate(zip(found.cosine, found.cka, strict=True)):
        for other in range(one + 1):
            yield one, other, cosines[other], alike[other]


def _values(effect: Effect) -> list[object]:
    """Return what was measured, with nothing in place of what was not."""
    values = [getattr(effect, name) for name in MEASURED]
    return ["" if value is None else value for value in values]
