"""A search space is an architecture with choices left open.

Each slot offers alternatives, each a run of layers; an empty alternative leaves the depth open.  A space takes and
returns architectures; a path, the alternative taken at each slot, is an internal coordinate.

    >>> import layerwright.layers
    >>> space = Space.parse("256: 24x{attn|ffn|conv[kernel=3|9]}")
    >>> space.size == 4 ** 24
    True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from random import Random

from . import grammar
from .architecture import SETTINGS, Architecture, Layer, build, read_layer, read_settings
from .grammar import TextError, fold
from .registry import Value

Path = tuple[int, ...]
Run = tuple[Layer, ...]


@dataclass(frozen=True)
class Space:
    """A set of architectures of the same settings: at each slot, one of some runs of layers."""

    settings: tuple[tuple[str, Value], ...]
    slots: tuple[tuple[Run, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Space:
        """Read a space.  `Space.parse(str(s)) == s` for every space.

        Raises:
            TextError: not well formed, an unknown name or value, or a space that holds an architecture without layers.
        """
        parsed = grammar.parse(text)
        width = int(read_settings(text, parsed)["width"])
        slots: list[tuple[Run, ...]] = []
        for slot in parsed.slots:
            runs = tuple(dict.fromkeys(tuple(read_layer(text, word, width) for word in run) for run in slot))
            slots += [runs] if len(runs) > 1 else [((layer,),) for layer in runs[0]]
        if not any(all(slot) for slot in slots):
            raise TextError("an empty space: every slot can be left without layers", text, len(text.rstrip()))
        whole = build(text, parsed, [layer for slot in slots for layer in max(slot, key=len)])
        return cls(tuple((name, getattr(whole, name)) for name in SETTINGS), tuple(slots))

    def __str__(self) -> str:
        width = dict(self.settings)["width"]
        return self._text(lambda layer: layer.short(int(width)), explicit=False)

    def explicit(self) -> str:
        """Return the text with every setting and option written out: the form kept on disk."""
        return self._text(str, explicit=True)

    def _text(self, spelled: Callable[[Layer], str], *, explicit: bool) -> str:
        words: list[str] = []
        for slot in self.slots:
            runs = [[spelled(layer) for layer in run] for run in slot]
            words += runs[0] if len(runs) == 1 else ["{" + "|".join(fold(run) for run in runs) + "}"]
        return f"{self.largest.header(explicit=explicit)}: {fold(words)}"

    @cached_property
    def size(self) -> int:
        """Number of paths: the number of architectures, if no two paths spell the same layers."""
        return prod(len(slot) for slot in self.slots)

    @cached_property
    def largest(self) -> Architecture:
        """An architecture of the space with as many layers as there can be."""
        return self.at(tuple(max(range(len(slot)), key=lambda taken: len(slot[taken])) for slot in self.slots))

    def at(self, path: Path) -> Architecture:
        """Return the architecture that a path spells."""
        runs = [slot[taken] for slot, taken in zip(self.slots, path, strict=True)]
        return Architecture(**dict(self.settings), layers=tuple(layer for run in runs for layer in run))  # type: ignore[arg-type]

    def path(self, arch: Architecture) -> Path:
        """Return a path that spells an architecture, of several always the same.

        Raises:
            ValueError: the architecture is not in this space, and why.
        """
        for name, value in self.settings:
            if getattr(arch, name) != value:
                raise ValueError(f"not in this space: {name} is {getattr(arch, name)}, and the space has {value}")
        layers, steps, begins = arch.layers, [], [0]
        for slot in self.slots:
            step: dict[int, tuple[int, int]] = {}  # where this slot may end: the alternative taken, and where it began
            for begin in begins:
                for taken, run in enumerate(slot):
                    end = begin + len(run)
                    if end not in step and layers[begin:end] == run:
                        step[end] = taken, begin
            steps.append(step)
            begins = list(step)
        if len(layers) not in begins:
            raise ValueError(f"not in this space: {arch}\n    the space is {self}")
        path, place = [], len(layers)
        for step in reversed(steps):
            taken, place = step[place]
            path.append(taken)
        return tuple(reversed(path))

    def __contains__(self, arch: Architecture) -> bool:
        try:
            self.path(arch)
        except ValueError:
            return False
        return True

    def sample(self, rng: Random) -> Architecture:
        """Draw one uniformly over paths."""
        return self.at(tuple(rng.randrange(len(slot)) for slot in self.slots))

    def mutate(self, arch: Architecture, rng: Random, rate: float | None = None) -> Architecture:
        """Change the alternative at one open slot, or at each with a probability `rate` but at least at one.

        A space without open slots has nothing to change: it returns its one architecture.
        """
        path = list(self.path(arch))
        if not self.open_slots:
            return arch
        changed = [slot for slot in self.open_slots if rate is not None and rng.random() < rate]
        for slot in changed or [rng.choice(self.open_slots)]:
            path[slot] = rng.choice([taken for taken in range(len(self.slots[slot])) if taken != path[slot]])
        return self.at(tuple(path))

    def cross(self, first: Architecture, second: Architecture, rng: Random) -> Architecture:
        """Take each slot from one parent or the other."""
        return self.at(tuple(rng.choice(pair) for pair in zip(self.path(first), self.path(second), strict=True)))

    @cached_property
    def open_slots(self) -> tuple[int, ...]:
        """The slots with more than one alternative."""
        return tuple(i for i, slot in enumerate(self.slots) if len(slot) > 1)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Space.parse, (self.explicit(),)
