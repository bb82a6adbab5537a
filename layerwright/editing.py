"""Plan an edit of a model on disk: what becomes of each layer, what the result costs, and what it can be written as."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .configuration import LayerwrightConfig
from .convert import choose
from .cost import flops, layer_flops, layer_parameters, parameters
from .errors import nearest
from .express import wording
from .families import FAMILIES, Family
from .fresh import check_near
from .models import FACES
from .originals import Original, check_tokenizers
from .surgery import Edit, Graft, ties

OURS = LayerwrightConfig.model_type
TARGETS = (*FAMILIES, OURS)


class Row(NamedTuple):
    """What becomes of a place of the result.

    origin: where the layer comes from.  state: kept, copied, tied, new or near.  parameters: those that it adds.
    """

    place: int
    layer: str
    origin: str
    state: str
    parameters: int
    flops: int


class Target(NamedTuple):
    """What a result is written as.

    family: None for one of ours.  named: the class that loads it.  fields: those of the family's config.json.  reasons: why the
    family of the original cannot hold it, where none is demanded.
    """

    family: Family | None
    named: str
    fields: Mapping[str, Any]
    notes: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """An edit of a model on disk, not carried out yet: whatever is wrong with it shows before anything is written.

    grafts: the models that layers are taken from, by the names that the edit gives them.  tie: copies share their weights.
    near: new layers change as little as they can.  seed: of the weights of new layers.  to: a family, or `layerwright`.

    Raises:
        ValueError: the result cannot be what `to` demands, with every reason, or a new layer not near identity.
        DataError: two models have different vocabularies.
    """

    original: Original
    edit: Edit
    grafts: Mapping[str, Original] = field(default_factory=dict)
    tie: bool = False
    near: bool = False
    seed: int = 0
    to: str | None = None

    def __post_init__(self) -> None:
        if self.to is not None and self.to not in TARGETS:
            raise ValueError(f"no family '{self.to}'{nearest(self.to, TARGETS)}")
        for other in self.grafts.values():
            check_tokenizers(self.original, other)
        if self.near:
            check_near(self.edit.result, (self.edit.result.layers[place] for place in self.new))
        _ = self.target

    @property
    def new(self) -> list[int]:
        """The places of new layers."""
        return [place for place, source in enumerate(self.edit.sources) if source is None]

    @cached_property
    def config(self) -> LayerwrightConfig:
        """The configuration of the result, in our words."""
        grafted = {name: other.ties for name, other in self.grafts.items()}
        groups = ties(self.edit, self.original.ties, grafted, tie=self.tie)
        told = {"architecture": self.edit.result.explicit(), "tied_layers": [list(group) for group in groups] or None}
        config: LayerwrightConfig = LayerwrightConfig.from_dict(self.original.config.to_dict() | told)
        return config

    @cached_property
    def repeated(self) -> set[int]:
        """The places whose weights are those of a place before."""
        return {place for _, *others in self.config.tied_layers or () for place in others}

    @cached_property
    def target(self) -> Target:
        """What the result is written as: what is demanded, else the family of the original if that can hold it, else ours."""
        key, own = self.original.key, self.original.family
        ours = Target(None, FACES[key].model.__name__, {}, (), ())
        if self.to == OURS or (self.to is None and own is None):
            return ours
        if self.to is None and own is not None:
            family, words = own, wording(own, key, self.config)
            if words.reasons:
                return ours._replace(reasons=tuple(words.reasons))
        else:
            family, words = choose(self.config, key, self.to)
        named = self.original.named if family is own else family.heads[key].model
        return Target(family, named, words.fields, tuple(words.notes), ())

    @property
    def left_out(self) -> tuple[str, ...]:
        """What files of the original hold and those of the result will not, and why; a folder of the same family keeps all."""
        if self.target.family is self.original.family:
            return ()
        return (*self.original.unused, *self.original.given.lost_sentences())

    @property
    def length(self) -> int:
        """Tokens of the row that operations are counted for."""
        return min(128, self.original.arch.positions)

    def rows(self) -> list[Row]:
        """Return what becomes of each place."""
        arch, length, seen = self.edit.result, self.length, set()
        rows = []
        for place, source in enumerate(self.edit.sources):
            if source is None:
                origin, state = "", "near" if self.near else "new"
            else:
                origin = f"{source.model} {source.place}" if isinstance(source, Graft) else str(source)
                copied = isinstance(source, Graft) or source in seen
                state = "tied" if place in self.repeated else "copied" if copied else "kept"
            seen.add(source)
            added = 0 if place in self.repeated else layer_parameters(arch, place)
            rows.append(Row(place, arch.layers[place].short(arch.width), origin, state, added, layer_flops(arch, place, length)))
        return rows

    def totals(self) -> list[tuple[str, int, int, int]]:
        """Return layers, parameters (without the head) and operations, before and after."""
        both = (("before", self.original.config), ("after", self.config))
        return [(name, len(one.arch), count_parameters(one), flops(one.arch, self.length)) for name, one in both]


def count_parameters(config: LayerwrightConfig) -> int:
    """Count the parameters of the backbone, those of layers that share them once."""
    arch = config.arch
    return parameters(arch) - sum((len(group) - 1) * layer_parameters(arch, group[0]) for group in config.tied_layers or ())


def refuse_existing(out: Path) -> None:
    """Refuse to write where something is, or where nothing can be.

    Raises:
        FileExistsError: there is something, if only a link that leads nowhere.
        NotADirectoryError: a part of the path is no folder.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists: give a folder that does not")
    parent = next((folder for folder in out.parents if os.path.lexists(folder)), None)
    if parent is not None and not parent.is_dir():
        raise NotADirectoryError(f"{out} cannot be written: {parent} is no folder")
