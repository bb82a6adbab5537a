"""The table of layer kinds: name -> module class and its options.

A kind is declared once, by the decorator above its class.  The declaration is the grammar of that kind: its
option names, their types and their defaults.  A default may be a function of the width.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol, TypeVar

from .errors import nearest

LARGEST = 100_000_000  # of any number in a text: beyond it lies a slip of the keyboard

Value = int | float | str
Default = Value | Callable[[int], Value]
Module = TypeVar("Module", bound=type)


class Domain(Protocol):
    """The values of an option that a text leaves open, such as all formulas of at most 8 operations.

    Its values can be compared, and `str` gives the text of one; so does `str` of the domain.
    """

    def read(self, text: str) -> Any:
        """Read a value."""

    def __contains__(self, value: Any) -> bool: ...

    @property
    def size(self) -> int:
        """How many values there are, at least roughly."""

    @property
    def usual(self) -> Any:
        """A value that is surely in it."""

    def key(self, value: Any) -> str:
        """Return what is the same for values that mean the same."""

    def sample(self, rng: Random) -> Any:
        """Draw a value."""

    def mutate(self, value: Any, rng: Random) -> Any:
        """Return another value that is much like one."""

    def cross(self, first: Any, second: Any, rng: Random) -> Any:
        """Return a value with something of both."""


class Kind(NamedTuple):
    """One kind of layer, as declared.

    open: makes the domains of the options that can be left open from their texts.  shared, part: how layers that differ in
    some options share their weights.
    """

    name: str
    module: type[Any]
    defaults: Mapping[str, Default]
    check: Callable[..., Mapping[str, Value] | None] | None
    open: Mapping[str, Callable[[str], Domain]]
    shared: Mapping[str, Callable[[Sequence[Any]], Value]]
    part: Callable[..., dict[str, Any]]


class OptionError(ValueError):
    """An option of a layer is unknown or has a value it cannot have.

    key: its name, if one is to blame.  at: where in its value, if one place is.
    """

    def __init__(self, message: str, key: str | None = None, at: int | None = None):
        super().__init__(message)
        self.key, self.at = key, at


KINDS: dict[str, Kind] = {}


def layer(name: str, **defaults: Default) -> Callable[[Module], Module]:
    """Register a module class as the layer kind `name`, with these options and defaults.

    The class takes exactly `(width, <options>)` and obeys the layer contract (`layerwright.layers`).  A static
    method `check(width, <options>)` of the class, if there is one, raises ValueError for values that do not fit (an
    OptionError names the option to blame), and may return options to be spelled otherwise: the one text of several that
    mean the same.  An attribute `open` of the class, if there is one, makes of the text `*...` of an option its domain.

    An attribute `shared` names options that layers may differ in and still share weights, in a slot of a supernet; each with a
    function of their values (or texts left open), which gives that of the layer that has the weights of all.  The static method
    `part(whole, <shared options>)` takes the tensors of that one by name and returns those of a layer with these options.

    Raises:
        TypeError: the constructor's parameters differ from the declared options, no text can spell the name or a default, or
            what is shared is no option, or has no `part`.
        ValueError: the name is taken.
    """
    for word in (name, *defaults):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", word):
            raise TypeError(f"'{word}' is not a word that a text can hold")
    for key, base in defaults.items():
        if not callable(base) and type(base) not in _SORTS:
            raise TypeError(f"{name}[{key}]: a default is an int, a float, a str, or a function of the width; {base!r} is none")

    def register(module: Module) -> Module:
        takes = list(inspect.signature(module).parameters)
        if takes != ["width", *defaults]:
            raise TypeError(f"{module.__name__} takes {takes}, but '{name}' declares {['width', *defaults]}")
        if name in KINDS:
            raise ValueError(f"layer kind '{name}' is already registered by {KINDS[name].module.__name__}")
        shared, part = getattr(module, "shared", {}), getattr(module, "part", dict)
        if not shared.keys() <= defaults.keys() or (shared and part is dict):
            raise TypeError(f"{module.__name__} shares {[*shared]}: what is shared are options, and `part` tells the tensors")
        opened = getattr(module, "open", {})
        KINDS[name] = Kind(name, module, defaults, getattr(module, "check", None), opened, shared, part)
        return module

    return register


def usual(name: str, width: int) -> dict[str, Value]:
    """Return every option of a kind at its default for this width.

    Raises:
        OptionError: unknown kind, with the nearest known name.
    """
    if name not in KINDS:
        raise OptionError(f"no layer kind '{name}'{nearest(name, KINDS)}")
    return {key: base(width) if callable(base) else base for key, base in KINDS[name].defaults.items()}


def complete(name: str, width: int, given: Mapping[str, Value]) -> dict[str, Value]:
    """Return every option of a layer, in the order declared: those given, and the defaults at this width.

    Raises:
        OptionError: unknown kind or option (with the nearest known name), or a value that does not fit.
    """
    base = usual(name, width)
    for key in given:
        if key not in base:
            raise OptionError(f"layer kind '{name}' has no option '{key}'{nearest(key, base)}", key)
    options = {key: _fitting(name, key, given.get(key, base[key]), base[key]) for key in base}
    check = KINDS[name].check
    if check is not None:
        try:
            options |= check(width, **options) or {}
        except ValueError as error:
            raise OptionError(f"{name}: {error}", getattr(error, "key", None), getattr(error, "at", None)) from None
    return options


def left_open(name: str, key: str, value: Value) -> Domain | None:
    """Return the domain that the value of an option leaves open; None where it is one value.

    Raises:
        OptionError: it is written wrongly.
    """
    if not (isinstance(value, str) and value.startswith("*") and name in KINDS and key in KINDS[name].open):
        return None
    try:
        return KINDS[name].open[key](value)
    except ValueError as error:
        raise OptionError(f"{name}: {error}", key) from None


def _fitting(name: str, key: str, value: Value, base: Value) -> Value:
    """Return a value as the type of its default; counts are at least 1."""
    if type(value) is not type(base) and not (type(base) is float and type(value) is int):
        raise OptionError(f"{name}[{key}={value}]: expected {_SORTS[type(base)]}", key)
    if isinstance(value, str):
        return value
    if type(base) is int and value < 1:
        raise OptionError(f"{name}[{key}={value}]: must be at least 1", key)
    if not -LARGEST <= value <= LARGEST:
        raise OptionError(f"{name}[{key}={value}]: must be at most {LARGEST:,}", key)
    return type(base)(value)


_SORTS: dict[type, str] = {int: "an integer", float: "a number", str: "a word"}
