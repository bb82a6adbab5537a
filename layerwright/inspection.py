"""Look inside an encoder: what removing and duplicating its layers changes, and what its hidden states hold.

The questions are those of Kao et al. (2020): does an encoder without some of its layers, or with some of them twice, say the
same; and can its output layer read every hidden layer.  Beside them stands how alike the layers are, and how alike tokens become.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field

from .architecture import Architecture
from .errors import DataError, nearest
from .inference import Opened
from .prefixes import applications
from .surgery import Edit, Unit, blocks, duplicate, remove
from .sweep import Effect, Order, check_enough, measure, read_rows

Sort = Literal["remove", "duplicate"]
EDITS: dict[Sort, Callable[..., Edit]] = {"remove": remove, "duplicate": duplicate}


class Changed(Effect):
    """What a change of a range of units does."""

    change: Sort
    start: int
    stop: int


class Lens(BaseModel):
    """What the output layer reads in the hidden states of a model, edited or not: after no unit, one, two and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edit: str | None
    units: tuple[int, ...]
    states: tuple[Effect, ...]


class Suggestion(BaseModel):
    """The changes of one sort and size, best first, by the measure `by`, and the command for the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    change: Sort
    size: int
    by: str
    ranked: tuple[Changed, ...]
    command: str


class InspectionSettings(BaseModel):
    """Say what to look at and how closely.

    `unit` is what is removed and duplicated: a layer, or a block of a layer that mixes tokens and an ffn; without it, blocks
    where layers pair up. `rows` lines of the text are drawn, each cut to `length` tokens, and read `batch` at a time; `seed`
    decides which lines and which tokens. `edited` are changes such as "duplicate=3:9" after which to read the hidden states too;
    without any, that of the middle half. `suggest` are sorts and sizes of changes to rank, such as "duplicate=3".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Unit | None = None
    rows: int = Field(64, ge=1)
    length: int = Field(128, ge=3)
    batch: int = Field(16, ge=1)
    seed: int = 0
    edited: tuple[str, ...] = ()
    suggest: tuple[str, ...] = ()


class Inspection(BaseModel):
    """What was found inside a model.

    units: for each, its first layer and the one after its last.  evaluations: of a layer on a batch, and how many
    they would be if each edited model ran whole.  cosine, cka: of hidden states, in the order of `lenses[0]`; uniformity: the
    mean cosine of two tokens of a row.  left_out: what could not be measured, and why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    head: str
    arch: str
    text: str
    settings: InspectionSettings
    unit: Unit
    units: tuple[tuple[int, int], ...]
    rows: int
    tokens: int
    masked: int
    kept: int
    unedited: Effect
    changes: tuple[Changed, ...]
    lenses: tuple[Lens, ...]
    uniformity: tuple[float, ...]
    cosine: tuple[tuple[float, ...], ...]
    cka: tuple[tuple[float, ...], ...]
    suggestions: tuple[Suggestion, ...]
    evaluations: int
    evaluations_whole: int
    left_out: tuple[str, ...]

    def changes_of(self, sort: Sort) -> list[Changed]:
        """Return the changes of one sort."""
        return [one for one in self.changes if one.change == sort]


def inspect(
    opened: Opened, text: Path, settings: InspectionSettings, *, name: str | None = None, imports: Sequence[str] = ()
) -> Inspection:
    """Measure every removal and duplication of a range of units, and read every hidden state.

    name: what the model is called in the results and the suggested commands; without it, its folder.  imports: the modules that
    those commands import, such as for layer kinds of the model that are not ours.

    Raises:
        ValueError: settings that do not fit the model.
        DataError: the text cannot be used or is too little, or the tokenizer has no mask token where the model predicts such.
    """
    plan = Plan.of(opened, settings)
    rows = read_rows(opened, text, rows=settings.rows, length=settings.length, seed=settings.seed)
    check_enough(rows, text)
    found, geometry = measure(opened, rows, plan.orders(), batch=settings.batch, levels=plan.states_of(plan.whole))
    changes = tuple(
        Changed(change=one.sort, start=one.start, stop=one.stop, **found[order_of(one.edit)].model_dump()) for one in plan.changes
    )
    run = [plan.whole, *(one.edit for one in plan.changes), *plan.read.values()]
    lenses = [(None, plan.whole), *plan.read.items()]
    name = name or str(opened.folder)
    words = [name, "--unit", plan.unit, *(word for module in imports for word in ("--import", module))]
    return Inspection(
        model=name,
        head=opened.head,
        arch=str(opened.model.config.arch),
        text=str(text),
        settings=settings,
        unit=plan.unit,
        units=tuple((unit[0], unit[-1] + 1) for unit in plan.units),
        rows=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        masked=sum(len(row.masked) for row in rows),
        kept=sum(len(row.kept) for row in rows),
        unedited=found[order_of(plan.whole)],
        changes=changes,
        lenses=tuple(plan.lens(name, edit, found) for name, edit in lenses),
        suggestions=tuple(suggest(changes, sort, size, shlex.join(words)) for sort, size in plan.sizes),
        evaluations=applications(list(found)),
        evaluations_whole=sum(map(len, {order_of(edit) for edit in run})),
        left_out=_left_out(opened.head),
        **geometry._asdict(),
    )


class Change(NamedTuple):
    """An edit of the units `start:stop`."""

    sort: Sort
    start: int
    stop: int
    edit: Edit


class Plan(NamedTuple):
    """What is to be measured of a model.

    units: the layers of each.  changes: the removal and the duplication of each range of units.  read: the edits, by what
    they are called, after which to read the hidden states.  sizes: the sorts and sizes of changes to rank.
    """

    unit: Unit
    units: list[tuple[int, ...]]
    whole: Edit
    changes: list[Change]
    read: dict[str, Edit]
    sizes: list[tuple[Sort, int]]

    @classmethod
    def of(cls, opened: Opened, settings: InspectionSettings) -> "Plan":
        """Return the plan for a model.

        Raises:
            ValueError: settings that do not fit the model.
            DataError: the model predicts masked tokens, and its tokenizer has none.
        """
        if settings.length > opened.positions:
            raise ValueError(f"length={settings.length}, and the model reads rows of at most {opened.positions} tokens")
        if opened.head == "mlm" and "mask" not in opened.special:
            raise DataError("the tokenizer of the model has no mask token")
        arch = opened.model.config.arch
        unit = settings.unit or usual_unit(arch)
        units = blocks(arch, unit)
        half = f"{len(units) // 4}:{max(len(units) - len(units) // 4, 1)}"
        read = {text: read_edit(text, arch, unit) for text in settings.edited or (f"duplicate={half}",)}
        sizes = [read_size(text, len(units), unit) for text in settings.suggest]
        return cls(unit, units, Edit(arch, tuple(range(len(arch)))), all_changes(arch, unit), read, sizes)

    def states_of(self, edit: Edit) -> list[Order]:
        """Return the layers before each hidden state of the model after an edit: none, those of the first unit, and so on."""
        ends = [0, *(unit[-1] + 1 for unit in blocks(edit.result, self.unit))]
        return [order_of(edit)[:end] for end in ends]

    def orders(self) -> list[Order]:
        """Return every order of layers to run, that of the model as it is first."""
        read = [order for edit in (self.whole, *self.read.values()) for order in self.states_of(edit)]
        return [order_of(self.whole), *(order_of(one.edit) for one in self.changes), *read]

    def lens(self, name: str | None, edit: Edit, found: Mapping[Order, Effect]) -> Lens:
        """Return what was read in the hidden states after an edit."""
        units = [order_of(edit)[unit[0]] for unit in blocks(edit.result, self.unit)]
        of = {layer: place for place, unit in enumerate(self.units) for layer in unit}
        states = tuple(found[order] for order in self.states_of(edit))
        return Lens(edit=name, units=tuple(of[layer] for layer in units), states=states)


def order_of(edit: Edit) -> Order:
    """Return the layers that an edit runs, none of which is new."""
    return cast(Order, edit.sources)


def usual_unit(arch: Architecture) -> Unit:
    """Return `block` where all layers pair up to blocks, else `layer`."""
    return "block" if all(len(one) == 2 for one in blocks(arch, "block")) else "layer"


def all_changes(arch: Architecture, unit: Unit) -> list[Change]:
    """Return the removal and the duplication of each range of units, but for the removal of all."""
    count = len(blocks(arch, unit))
    spans = [(start, stop) for start in range(count) for stop in range(start + 1, count + 1)]
    changes = [(sort, *span) for sort in EDITS for span in spans if (sort, *span) != ("remove", 0, count)]
    return [Change(sort, start, stop, EDITS[sort](arch, f"{start}:{stop}", unit=unit)) for sort, start, stop in changes]


def read_edit(text: str, arch: Architecture, unit: Unit) -> Edit:
    """Read an edit such as `duplicate=3:9` or `remove=-1`.

    Raises:
        ValueError: it is none, or of units that are not there.
    """
    sort, span = _split(text)
    try:
        return EDITS[sort](arch, span, unit=unit)
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from None


def read_size(text: str, units: int, unit: Unit) -> tuple[Sort, int]:
    """Read which changes to rank, such as `duplicate=3` for three units in a row.

    Raises:
        ValueError: it is none, or of more units than there are.
    """
    sort, written = _split(text)
    most = units - (sort == "remove")
    if not most:
        raise ValueError(f"'{text}': the only {unit} cannot be removed")
    if not written.isdecimal() or not 1 <= int(written) <= most:
        raise ValueError(f"'{text}': say how many of the {units} in a row to {sort}, at least 1 and at most {most}")
    return sort, int(written)


def _split(text: str) -> tuple[Sort, str]:
    sort, _, written = text.partition("=")
    if sort not in EDITS:
        raise ValueError(f"'{text}': no edit '{sort}'{nearest(sort, EDITS)}")
    return sort, written


def suggest(changes: Sequence[Changed], sort: Sort, size: int, model: str) -> Suggestion:
    """Rank the changes of one sort and size by how little they change the model.

    By the divergence of the predictions where there are any, else by the cosine of the final states; of equal ones the first.
    model: how the command names it, with its options.
    """
    fitting = [one for one in changes if one.change == sort and one.stop - one.start == size]
    by = "kl" if fitting[0].kl is not None else "cosine"
    ranked = sorted(fitting, key=lambda one: -one.cosine if one.kl is None else one.kl)
    best = ranked[0]
    out = f"{sort}-{best.start}-{best.stop}"
    command = f"layerwright edit {model} --{sort} {best.start}:{best.stop} --out {out}"
    return Suggestion(change=sort, size=size, by=by, ranked=tuple(ranked), command=command)


def _left_out(head: str) -> tuple[str, ...]:
    if head == "mlm":
        return ()
    what = "what the output layer predicts and reads in hidden states, edited or not, and its accuracy at masked tokens"
    return (f"Left out: {what}. That needs the head 'mlm', and this model has '{head}'.",)
