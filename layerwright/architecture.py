"""An architecture is a value: a few settings and a sequence of typed layers.

Equal architectures have interchangeable weights: the same names, shapes and function in evaluation.  So what
changes only training or speed (dropout, dtype, kernel implementation) is not part of one.

    >>> import layerwright.layers
    >>> bert = Architecture.parse("768: 12x(attn ffn)")
    >>> bert.layers[1]
    Layer.parse('ffn[inner=3072,act=gelu,groups=1]')
    >>> str(bert)
    '768: 12x(attn ffn)'
    >>> str(bert.narrow(1 / 4))
    '192 embed=768: 12x(attn ffn)'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import zip_longest

from . import grammar
from .errors import TextError, nearest
from .grammar import Word, fold, spell, spell_layer
from .registry import KINDS, LARGEST, OptionError, Value, complete, usual

LAYERS = 4_096  # far beyond any encoder that was ever trained: past it lies a slip, or someone who wants this machine's memory


@dataclass(frozen=True)
class Layer:
    """A kind of layer and its options, such as `conv[kernel=9]`."""

    kind: str
    options: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Layer:
        """Read one layer.

        Raises:
            TextError: not well formed, or more than one layer.
        """
        parsed = grammar.parse(text)
        if parsed.settings or len(parsed.slots) != 1 or len(parsed.slots[0]) != 1 or len(parsed.slots[0][0]) != 1:
            raise TextError("expected a single layer", text, 0)
        word = parsed.slots[0][0][0]
        return cls(word.kind, word.options)

    def at(self, width: int) -> Layer:
        """Return this layer with every option written out for this width.

        Raises:
            OptionError: unknown kind or option, or a value that does not fit this width.
        """
        return Layer(self.kind, tuple(complete(self.kind, width, dict(self.options)).items()))

    def short(self, width: int) -> str:
        """Return the text of this layer without the options that have their default at this width."""
        default = usual(self.kind, width)
        return spell_layer(self.kind, [(key, value) for key, value in self.options if default[key] != value])

    def narrow(self, width: int, to: int) -> Layer:
        """Return this layer for another width: options whose default follows the width are scaled with it.

        Each to the nearest value that fits the width and the other options.
        """
        kept, defaults = dict(self.options), KINDS[self.kind].defaults
        following = [key for key, value in self.options if callable(defaults[key]) and isinstance(value, int)]
        for key in following:
            kept[key] = max(1, round(int(kept[key]) * to / width))
        if _fits(self.kind, to, kept):
            return Layer(self.kind, tuple(kept.items()))
        for key in following:
            wanted = int(kept[key])
            below, above = range(wanted, 0, -1), range(wanted + 1, 2 * wanted + to)
            nearest_first = (other for pair in zip_longest(below, above) for other in pair if other is not None)
            kept[key] = next((other for other in nearest_first if _fits(self.kind, to, kept | {key: other})), wanted)
        return Layer(self.kind, tuple(kept.items()))

    def __str__(self) -> str:
        return spell_layer(self.kind, self.options)

    def __repr__(self) -> str:
        return f"Layer.parse({str(self)!r})"


@dataclass(frozen=True)
class Architecture:
    """A backbone, written as a value.

    width: size of the hidden states.  embed: size of the embeddings (0: the width).  vocab, positions, segments:
    rows of the three embedding tables; without segments there is no such table.  norm: "post" is norm(x + f(x)), "pre" is
    x + f(norm(x)).  eps: of every norm.  offset: further rows of the position table, before that of the first token.

    Raises:
        ValueError: an unknown kind or option, or a value that does not fit, with the nearest right one.
    """

    width: int
    layers: tuple[Layer, ...]
    embed: int = 0
    vocab: int = 30522
    positions: int = 512
    segments: int = 2
    norm: str = "post"
    eps: float = 1e-12
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "embed", self.embed or self.width)
        for name in ("width", "embed", "vocab", "positions", "segments", "offset"):
            value, least = getattr(self, name), int(name not in ("segments", "offset"))
            if type(value) is not int or not least <= value <= LARGEST:
                raise OptionError(f"{name}={value}: must be an integer from {least} to {LARGEST:,}", name)
        if self.norm not in ("post", "pre"):
            raise OptionError(f"norm={self.norm}: must be 'post' or 'pre'", "norm")
        if type(self.eps) not in (int, float) or not 0 < self.eps < 1:
            raise OptionError(f"eps={self.eps}: must be a number between 0 and 1", "eps")
        object.__setattr__(self, "eps", float(self.eps))
        object.__setattr__(self, "layers", tuple(layer.at(self.width) for layer in self.layers))
        if not self.layers:
            raise OptionError("an architecture needs at least one layer")

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Read an architecture.  `Architecture.parse(str(a)) == a` for every architecture.

        Raises:
            TextError: not well formed, an unknown name or value, or a choice left open; a caret shows the place.
        """
        parsed = grammar.parse(text)
        for slot in parsed.slots:
            if len(slot) != 1:
                place = next((word.place for run in slot for word in run), 0)
                raise TextError("this leaves a choice open: a space, where one architecture is wanted", text, place)
        settings = read_settings(text, parsed)
        layers = [read_layer(text, word, int(settings["width"])) for slot in parsed.slots for word in slot[0]]
        return build(text, parsed, layers)

    def __str__(self) -> str:
        return f"{self.header(explicit=False)}: {fold([layer.short(self.width) for layer in self.layers])}"

    def explicit(self) -> str:
        """Return the text with every setting and option written out: the form kept on disk."""
        return f"{self.header(explicit=True)}: {fold([str(layer) for layer in self.layers])}"

    def header(self, *, explicit: bool = False) -> str:
        """Return the text before the colon: the width and the settings, those at their default left out or not."""
        default = {field.name: field.default for field in fields(self)} | {"embed": self.width}
        shown = [name for name in SETTINGS[1:] if explicit or getattr(self, name) != default[name]]
        return " ".join([str(self.width), *(f"{name}={spell(getattr(self, name))}" for name in shown)])

    def with_layers(self, layers: Iterable[Layer]) -> Architecture:
        """Return the same settings with other layers."""
        return replace(self, layers=tuple(layers))

    def narrow(self, fraction: float) -> Architecture:
        """Return the same layers at a fraction of the width, with embeddings of the same size.

        The shape of a replaced-token-detection generator (Clark et al. 2020, section 3.2): heads and inner sizes
        shrink with the width, the depth and the embeddings do not.
        """
        width = max(1, round(self.width * fraction))
        return replace(self, width=width, layers=tuple(layer.narrow(self.width, width) for layer in self.layers))

    def __len__(self) -> int:
        return len(self.layers)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Architecture.parse, (self.explicit(),)


def _fits(kind: str, width: int, options: Mapping[str, Value]) -> bool:
    try:
        complete(kind, width, dict(options))
    except OptionError:
        return False
    return True


SETTINGS = ["width", *(field.name for field in fields(Architecture) if field.name not in ("width", "layers"))]


def read_settings(text: str, parsed: grammar.Parsed) -> dict[str, Value]:
    """Return the settings of a header, their names checked.

    Raises:
        TextError: no width, or an unknown setting, with the nearest known one.
    """
    if "width" not in parsed.settings:
        raise TextError("a text starts with the width, such as '256: 12x(attn ffn)'", text, 0)
    for key in parsed.settings:
        if key not in SETTINGS:
            raise TextError(f"no setting '{key}'{nearest(key, SETTINGS)}", text, parsed.places[key])
    width = parsed.settings["width"]
    if type(width) is not int or not 1 <= width <= LARGEST:
        raise TextError(f"the width must be an integer from 1 to {LARGEST:,}", text, parsed.places["width"])
    return parsed.settings


def read_layer(text: str, word: Word, width: int) -> Layer:
    """Return the layer that a word spells, completed for this width.

    Raises:
        TextError: pointing at the kind or the option that does not fit.
    """
    try:
        return Layer(word.kind, word.options).at(width)
    except OptionError as error:
        place = word.places.get(error.key, word.place) if error.key else word.place
        if error.key in word.values and error.at is not None:
            place = word.values[error.key] + error.at
        raise TextError(str(error), text, place) from None


def build(text: str, parsed: grammar.Parsed, layers: Iterable[Layer]) -> Architecture:
    """Return the architecture of a header and layers.

    Raises:
        TextError: pointing at the setting that does not fit.
    """
    try:
        return Architecture(**parsed.settings, layers=tuple(layers))  # type: ignore[arg-type]
    except OptionError as error:
        raise TextError(str(error), text, parsed.places.get(error.key or "width", 0)) from None
