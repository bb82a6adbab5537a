"""A search space is an architecture with choices left open.

Each slot offers alternatives, each a run of layers; an empty alternative leaves the depth open.  A space takes and
returns architectures; a path, the alternative taken at each slot, is an internal coordinate.  An option such as
`formula[text=*8]` leaves a value open besides: any of its domain (`registry.Domain`), which a path does not tell.

    >>> import layerwright.layers
    >>> space = Space.parse("256: 24x{attn|ffn|conv[kernel=3|9]}")
    >>> space.size == 4 ** 24
    True
    >>> formulas = Space.parse("128: 6x{formula[text=*8]|lightconv} ffn")
    >>> formulas.sample(Random(1)) in formulas
    True
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from random import Random
from typing import Any, NamedTuple

from . import grammar
from .architecture import SETTINGS, Architecture, Layer, build, read_layer, read_settings
from .errors import TextError
from .grammar import Word, fold
from .registry import KINDS, Domain, OptionError, Value, left_open

Path = tuple[int, ...]
Run = tuple[Layer, ...]
Part = tuple[int, Run]  # the alternative taken at a slot, and the layers that stand there
Change = Callable[[Domain, Any, Random], Any]


class Branch(NamedTuple):
    """Alternatives of a slot that can share their weights, by number, and layers that have the weights of all of them."""

    alternatives: tuple[int, ...]
    layers: Run


@dataclass(frozen=True)
class Space:
    """A set of architectures of the same settings: at each slot, one of some runs of layers."""

    settings: tuple[tuple[str, Value], ...]
    slots: tuple[tuple[Run, ...], ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Of all that a space holds, and asked for by each look into what is cached of it.
        return hash((self.settings, self.slots))

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
            runs = tuple(dict.fromkeys(tuple(_read(text, word, width) for word in run) for run in slot))
            slots += [runs] if len(runs) > 1 else [((layer,),) for layer in runs[0]]
        if not any(all(slot) for slot in slots):
            raise TextError("an empty space: every slot can be left without layers", text, len(text.rstrip()))
        whole = build(text, parsed, [layer for slot in slots for layer in closed(max(slot, key=len))])
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
        """Number of paths, times that of the values left open: of the architectures, if no two spell the same layers.

        Where `values_open`, an estimate: as good as the domains' own.
        """
        return prod(
            sum(prod(domain.size for layer in run for _, domain in domains(layer)) for run in slot) for slot in self.slots
        )

    @cached_property
    def values_open(self) -> bool:
        """Whether a value is left open besides the paths."""
        return any(domains(layer) for slot in self.slots for run in slot for layer in run)

    @cached_property
    def largest(self) -> Architecture:
        """An architecture of the space with as many layers as there can be."""
        return self.at(tuple(max(range(len(slot)), key=lambda taken: len(slot[taken])) for slot in self.slots))

    def at(self, path: Path) -> Architecture:
        """Return the architecture that a path spells, values left open at the usual ones of their domains."""
        return self._join(closed(slot[taken]) for slot, taken in zip(self.slots, path, strict=True))

    def _join(self, runs: Iterable[Run]) -> Architecture:
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
                    if end not in step and _fits(run, layers[begin:end]):
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

    def parts(self, arch: Architecture) -> list[Part]:
        """Return the alternative that an architecture takes at each slot, and the layers that stand there.

        Raises:
            ValueError: the architecture is not in this space, and why.
        """
        found: list[Part] = []
        place = 0
        for slot, taken in zip(self.slots, self.path(arch), strict=True):
            found.append((taken, arch.layers[place : place + len(slot[taken])]))
            place += len(slot[taken])
        return found

    def key(self, arch: Architecture) -> Hashable:
        """Return what is the same for architectures of the space that compute the same, as far as the domains can tell."""
        if not self.values_open:
            return arch
        return tuple(
            _with(layer, pattern, lambda domain, text: domain.key(domain.read(text)))
            for slot, (taken, run) in zip(self.slots, self.parts(arch), strict=True)
            for layer, pattern in zip(run, slot[taken], strict=True)
        )

    @cached_property
    def branches(self) -> tuple[tuple[Branch, ...], ...]:
        """The branches of each slot: alternatives that differ only in options which their kinds can share, else one by one."""
        return tuple(map(_branches, self.slots))

    def sample(self, rng: Random, usual: float = 0.0) -> Architecture:
        """Draw one: at each slot a branch, and of it an alternative, uniformly; values left open as their domains draw.

        So seven kernels do not make a convolution seven times as likely as something else.  usual: the probability of the
        usual value of a domain instead.
        """
        return self._join(drawn(self._pick(slot, rng), rng, usual) for slot in range(len(self.slots)))

    def _pick(self, slot: int, rng: Random, without: int | None = None) -> Run:
        """Draw a branch of a slot and of it an alternative, but for one."""
        left = [[taken for taken in branch.alternatives if taken != without] for branch in self.branches[slot]]
        branch = rng.choice([some for some in left if some])
        return self.slots[slot][branch[0] if len(branch) == 1 else rng.choice(branch)]

    def varying(self, arch: Architecture) -> list[int]:
        """Return the slots at which an architecture has a value left open."""
        return [slot for slot, (run, _) in enumerate(self.parts(arch)) if any(map(domains, self.slots[slot][run]))]

    def mutate(self, arch: Architecture, rng: Random, rate: float | None = None) -> Architecture:
        """Change one open slot, or each with a probability `rate` but at least one: `turn` it or, as likely, `vary` it.

        A space without open slots has nothing to change: it returns its one architecture.
        """
        parts = self.parts(arch)
        if not self.open_slots:
            return arch
        changed = [slot for slot in self.open_slots if rate is not None and rng.random() < rate]
        for slot in changed or [rng.choice(self.open_slots)]:
            varies = any(map(domains, self.slots[slot][parts[slot][0]]))
            if varies and (len(self.slots[slot]) == 1 or rng.random() < 0.5):
                parts[slot] = parts[slot][0], self._varied(parts, slot, rng, _mutated)
            else:
                parts[slot] = parts[slot][0], self._turned(parts, slot, rng)
        return self._join(run for _, run in parts)

    def turn(self, arch: Architecture, slot: int, rng: Random) -> Architecture:
        """Take another alternative at a slot that has several."""
        parts = self.parts(arch)
        fresh = self._turned(parts, slot, rng)
        return self._join(fresh if place == slot else run for place, (_, run) in enumerate(parts))

    def vary(self, arch: Architecture, slot: int, rng: Random, change: Change | None = None) -> Architecture:
        """Change one of the values left open in what an architecture takes at a slot, or nothing where there is none.

        change: makes another value of a domain's; without it, the domain mutates.
        """
        parts = self.parts(arch)
        fresh = self._varied(parts, slot, rng, change or _mutated)
        return self._join(fresh if place == slot else run for place, (_, run) in enumerate(parts))

    def _turned(self, parts: Sequence[Part], slot: int, rng: Random) -> Run:
        return drawn(self._pick(slot, rng, without=parts[slot][0]), rng)

    def _varied(self, parts: Sequence[Part], slot: int, rng: Random, change: Change) -> Run:
        taken, run = parts[slot]
        left = [(place, *one) for place, layer in enumerate(self.slots[slot][taken]) for one in domains(layer)]
        if not left:
            return run
        place, key, domain = rng.choice(left)
        value = change(domain, domain.read(str(dict(run[place].options)[key])), rng)
        return (*run[:place], _set(run[place], key, str(value)), *run[place + 1 :])

    def cross(self, first: Architecture, second: Architecture, rng: Random) -> Architecture:
        """Take each slot from one parent or the other; of values left open in both, one of either or what crosses them."""
        pairs = zip(self.slots, self.parts(first), self.parts(second), strict=True)
        return self._join(_crossed(slot, one, other, rng) for slot, one, other in pairs)

    @cached_property
    def open_slots(self) -> tuple[int, ...]:
        """The slots with more than one alternative, or with a value left open."""
        return tuple(i for i, slot in enumerate(self.slots) if len(slot) > 1 or any(map(domains, slot[0])))

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Space.parse, (self.explicit(),)


@lru_cache(maxsize=4096)
def domains(layer: Layer) -> tuple[tuple[str, Domain], ...]:
    """Return the options of a layer of a space that are left open, and what can stand there."""
    found = ((key, left_open(layer.kind, key, value)) for key, value in layer.options)
    return tuple((key, domain) for key, domain in found if domain is not None)


@lru_cache(maxsize=4096)
def closed(run: Run) -> Run:
    """Return layers of a space with the usual value for each that is left open."""
    return tuple(_with(layer, layer, lambda domain, _: domain.usual) for layer in run)


def drawn(run: Run, rng: Random, usual: float = 0.0) -> Run:
    """Return layers of a space with a value drawn for each that is left open; usual: the probability of the usual one."""

    def draw(domain: Domain, _: str) -> Any:
        return domain.usual if usual and rng.random() < usual else domain.sample(rng)

    return tuple(_with(layer, layer, draw) for layer in run)


def _branches(slot: Sequence[Run]) -> tuple[Branch, ...]:
    groups: dict[Hashable, list[int]] = {}
    for taken, run in enumerate(slot):
        groups.setdefault(tuple(map(_mould, run)), []).append(taken)
    return tuple(
        Branch(tuple(group), tuple(map(_whole, zip(*(slot[taken] for taken in group), strict=True)))) for group in groups.values()
    )


def _mould(layer: Layer) -> Hashable:
    """Return what is the same for layers that can share weights."""
    return layer.kind, tuple(one for one in layer.options if one[0] not in KINDS[layer.kind].shared)


def _whole(layers: Sequence[Layer]) -> Layer:
    """Return the layer that has the weights of all of these, which have one mould."""
    whole = layers[0]
    for key, hold in KINDS[whole.kind].shared.items():
        values = [dict(layer.options)[key] for layer in layers]
        if len(set(values)) > 1 or left_open(whole.kind, key, values[0]):
            whole = _set(whole, key, hold(values))
    return whole


def _mutated(domain: Domain, value: Any, rng: Random) -> Any:
    return domain.mutate(value, rng)


def _set(layer: Layer, key: str, value: Value) -> Layer:
    return Layer(layer.kind, tuple((one, value if one == key else old) for one, old in layer.options))


def _with(layer: Layer, pattern: Layer, choose: Callable[[Domain, str], Any]) -> Layer:
    """Return a layer with other values where its pattern leaves them open; choose: takes the domain and the old text."""
    for key, domain in domains(pattern):
        layer = _set(layer, key, str(choose(domain, str(dict(layer.options)[key]))))
    return layer


def _fits(run: Run, layers: Run) -> bool:
    """Tell whether layers are an alternative of a slot, values left open aside."""
    return run == layers or (len(run) == len(layers) and all(map(_fits_one, run, layers)))


@lru_cache(maxsize=1 << 14)
def _fits_one(pattern: Layer, layer: Layer) -> bool:
    if layer.kind != pattern.kind or not domains(pattern):
        return layer == pattern
    wanted, had = dict(pattern.options), dict(layer.options)
    left = dict(domains(pattern))
    return all(left[key].read(str(had[key])) in left[key] if key in left else had[key] == value for key, value in wanted.items())


def _crossed(slot: tuple[Run, ...], one: Part, other: Part, rng: Random) -> Run:
    """Return what stands at a slot of the child of two."""
    (taken, run), (also, second) = one, other
    whole = rng.choice((run, second))
    if taken != also or run == second or rng.random() < 0.5:
        return whole
    return tuple(_crossed_layers(*three, rng) for three in zip(slot[taken], run, second, strict=True))


def _crossed_layers(pattern: Layer, one: Layer, other: Layer, rng: Random) -> Layer:
    for key, domain in domains(pattern):
        first, second = (domain.read(str(dict(layer.options)[key])) for layer in (one, other))
        one = _set(one, key, str(domain.cross(first, second, rng)))
    return one


def _read(text: str, word: Word, width: int) -> Layer:
    """Return the layer that a word spells, completed for this width; values left open stay so.

    Raises:
        TextError: pointing at the kind, option or value that does not fit.
    """
    try:
        left = {key: domain for key, value in word.options if (domain := left_open(word.kind, key, value))}
    except OptionError as error:
        raise TextError(str(error), text, word.values[str(error.key)]) from None
    usual = tuple((key, str(left[key].usual) if key in left else value) for key, value in word.options)
    layer = read_layer(text, word._replace(options=usual), width)
    for key, domain in left.items():
        layer = _set(layer, key, str(domain))
    return layer
