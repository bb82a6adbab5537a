"""Text of an architecture or of a search space <-> plain tuples; errors point at the place.

    text   = [header ":"] item+
    header = integer (key "=" value)*            width first, then other settings
    item   = [integer "x"] (layer | group | choice)
    group  = "(" item+ ")"
    choice = "{" item* ("|" item*)* "}"          a space leaves this open
    layer  = name ["[" key "=" value ("|" value)* ("," ...)* "]"]
    value  = number | word | 'quoted text' | call | "*" [integer]     the last leaves the value open
    call   = word "(" balanced brackets ")"      such as a formula, taken as it stands

Every item becomes one slot: a list of alternatives, each a list of words.  An architecture is a text whose every
slot has a single alternative.  Reading goes through `parse`, writing through `fold` and `spell`.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from .errors import TextError
from .registry import Value

# Beyond these lies a slip of the keyboard: layers of a text, repeats and choices multiplied out; brackets in brackets; digits.
MOST, DEEPEST, LONGEST = 100_000, 30, 40

_TOKEN = re.compile(
    r"\s*(?:(?P<repeat>[0-9]+x)(?=[\s({A-Za-z])|(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)(?![A-Za-z0-9_])"
    r"|(?P<name>[A-Za-z][A-Za-z0-9_]*)|'(?P<quoted>[^'\n]*)'|(?P<open>\*[0-9]{0,4})(?![0-9])|(?P<mark>[:=()\[\]{}|,]))"
)
_PLAIN = re.compile(r"[a-z][a-z0-9_]*|\*[0-9]{0,4}")
_CLOSING = re.compile(r"[()=:\[\]{}|']")
_CALL = re.compile(r"[a-z][a-z0-9_]*\([a-z0-9_(),]*\)")


class Word(NamedTuple):
    """A layer as written: its kind, its options, and where in the text it, each option and each value stand."""

    kind: str
    options: tuple[tuple[str, Value], ...]
    place: int
    places: dict[str, int]
    values: dict[str, int]


Slot = list[list[Word]]


class Parsed(NamedTuple):
    """A text taken apart: the settings of its header, where they stand, and its slots."""

    settings: dict[str, Value]
    places: dict[str, int]
    slots: list[Slot]


def parse(text: str) -> Parsed:
    """Take a text apart.

    Raises:
        TextError: with a caret under the first token that does not fit.
    """
    return _Reader(text).whole()


def spell(value: Value) -> str:
    """Return the text of a value: words and calls bare, other strings in quotes.

    Raises:
        ValueError: a string that holds a quote.
    """
    if isinstance(value, str):
        if "'" in value or "\n" in value:
            raise ValueError(f"a value cannot hold a quote or a line break: {value!r}")
        bare = _PLAIN.fullmatch(value) or (_CALL.fullmatch(value) and _closes(value, value.index("(")) == len(value))
        return value if bare else f"'{value}'"
    return repr(value)


def _closes(text: str, place: int) -> int:
    """Return the place behind the bracket that closes the one at a place; 0 where none does, or a mark of ours comes before."""
    depth = 0
    for found in _CLOSING.finditer(text, place):
        if found[0] not in "()":
            return 0
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return 0


def spell_layer(kind: str, options: Iterable[tuple[str, Value]]) -> str:
    """Return the text of a layer: `conv[kernel=9]`, or the bare kind where there are no options."""
    inside = ",".join(f"{key}={spell(value)}" for key, value in options)
    return f"{kind}[{inside}]" if inside else kind


def fold(words: Sequence[str], longest: int = 48) -> str:
    """Join words, writing repeats as `3x(a b)`; of the folds at a place, take the one that covers most."""
    out: list[str] = []
    at = 0
    while at < len(words):
        period, times = 1, 1
        for size in range(1, min(longest, (len(words) - at) // 2) + 1):
            count = _repeats(words, at, size)
            if count > 1 and size * count > period * times:
                period, times = size, count
        if times == 1:
            out.append(words[at])
        else:
            block = fold(words[at : at + period], longest)
            out.append(f"{times}x{block}" if period == 1 else f"{times}x({block})")
        at += period * times
    return " ".join(out)


def _repeats(words: Sequence[str], at: int, size: int) -> int:
    """Count how often the `size` words at a place stand there in a row."""
    block, times = words[at : at + size], 1
    while words[at + size * times : at + size * (times + 1)] == block:
        times += 1
    return times


def _words(slots: Iterable[Slot]) -> int:
    """Count the layers of all alternatives; an empty one counts as well."""
    return sum(len(run) or 1 for slot in slots for run in slot)


class _Token(NamedTuple):
    sort: str
    word: str
    place: int


class _Reader:
    """Recursive descent over the tokens, one method a rule of the grammar."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = list(self.split())
        self.at = 0

    def split(self) -> Iterable[_Token]:
        place, end, depth, inside = 0, len(self.text.rstrip()), 0, False
        while place < end:
            found = _TOKEN.match(self.text, place)
            if not found or found.lastgroup is None:
                raise self.stray(place)
            token = _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))
            place = found.end()
            if token.sort == "name" and inside and self.text[place : place + 1] == "(":
                token, place = self.call(token, place)
            if token.sort == "mark":
                inside = token.word == "[" or (inside and token.word != "]")
                depth += (token.word in "({") - (token.word in ")}")
            if depth > DEEPEST:
                raise TextError(f"brackets more than {DEEPEST} deep", self.text, token.place)
            if token.sort in ("repeat", "number") and len(token.word) > LONGEST:
                raise TextError("a number of too many digits", self.text, token.place)
            yield token

    def call(self, name: _Token, place: int) -> tuple[_Token, int]:
        """Return a name with the brackets that begin at a place as one token, and the place behind it."""
        end = _closes(self.text, place)
        if not end:
            raise TextError("a bracket that does not close", self.text, place)
        return _Token("call", re.sub(r"\s", " ", self.text[name.place : end]), name.place), end

    def stray(self, place: int) -> TextError:
        """Return the error for what is no token."""
        rest = self.text[place:].lstrip()
        shown = re.split(r"\W", rest, maxsplit=1)[0][:20] or rest[0]
        fault = "a quote that does not close" if rest[0] == "'" else f"unexpected '{shown}'"
        return TextError(fault, self.text, len(self.text) - len(rest))

    def peek(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _Token("end", "", len(self.text.rstrip()))

    def take(self, *wanted: str, what: str | None = None) -> _Token:
        token = self.peek()
        if token.sort not in wanted and not (token.sort == "mark" and token.word in wanted):
            expected = what or " or ".join(f"'{w}'" for w in wanted)
            found = "the end of the text" if token.sort == "end" else f"'{token.word}'"
            raise TextError(f"expected {expected}, found {found}", self.text, token.place)
        self.at += 1
        return token

    def next_is(self, *marks: str) -> bool:
        token = self.peek()
        return token.sort == "mark" and token.word in marks

    def whole(self) -> Parsed:
        settings: dict[str, Value] = {}
        places: dict[str, int] = {}
        if self.peek().sort == "number":
            places["width"] = self.peek().place
            settings["width"], _ = self.value()
            while not self.next_is(":"):
                key = self.take("name", what="a setting, or ':' before the layers")
                self.take("=", what="'=' (a setting, such as embed=128; the layers come after ':')")
                if key.word in settings:
                    raise TextError(f"'{key.word}' is set twice", self.text, key.place)
                (settings[key.word], _), places[key.word] = self.value(), key.place
            self.take(":")
        slots = self.items()
        if self.peek().sort != "end":
            raise TextError(f"expected a layer, found '{self.peek().word}'", self.text, self.peek().place)
        if not slots:
            raise TextError("no layers", self.text, len(self.text.rstrip()))
        return Parsed(settings, places, slots)

    def items(self) -> list[Slot]:
        """Read items up to a closing mark or the end."""
        slots: list[Slot] = []
        total = 0
        while self.peek().sort in ("repeat", "name") or self.next_is("(", "{"):
            place, times = self.peek().place, 1
            if self.peek().sort == "repeat":
                times = int(self.take("repeat").word[:-1])
            item = self.item()
            if times < 1:
                raise TextError("a repeat is at least 1x", self.text, place)
            total += times * _words(item)
            self.limit(total, place)
            slots += item * times
        return slots

    def limit(self, total: int, place: int) -> None:
        if total > MOST:
            raise TextError(f"more than {MOST:,} layers, with every repeat and choice written out", self.text, place)

    def item(self) -> list[Slot]:
        if self.next_is("("):
            place = self.take("(").place
            slots = self.items()
            self.take(")", what="a layer or ')'")
            if not slots:
                raise TextError("an empty group", self.text, place)
            return slots
        return [self.choice() if self.next_is("{") else self.layer()]

    def choice(self) -> Slot:
        place = self.take("{").place
        alternatives: Slot = []
        total = 0
        while True:
            slots = self.items()
            paths = prod(len(slot) for slot in slots)
            total += max(paths, sum(_words([slot]) * (paths // len(slot)) for slot in slots))
            self.limit(total, place)
            alternatives += [[word for run in runs for word in run] for runs in product(*slots)]
            if self.take("|", "}", what="a layer, '|' or '}'").word == "}":
                return alternatives

    def layer(self) -> Slot:
        name = self.take("name", what="a layer")
        options: dict[str, list[tuple[Value, int]]] = {}
        places: dict[str, int] = {}
        if self.next_is("["):
            self.take("[")
            while True:
                key = self.take("name", what="an option")
                self.take("=")
                if key.word in options:
                    raise TextError(f"'{key.word}' is set twice", self.text, key.place)
                places[key.word], options[key.word] = key.place, [self.value()]
                while self.next_is("|"):
                    self.take("|")
                    options[key.word].append(self.value())
                if self.take(",", "]").word == "]":
                    break
        self.limit(prod(len(values) for values in options.values()), name.place)
        return [[self.word(name, places, dict(zip(options, chosen, strict=True)))] for chosen in product(*options.values())]

    def word(self, name: _Token, places: dict[str, int], chosen: dict[str, tuple[Value, int]]) -> Word:
        """Return a layer, given one value for each option and where it stands."""
        options = tuple((key, value) for key, (value, _) in chosen.items())
        return Word(name.word, options, name.place, places, {key: place for key, (_, place) in chosen.items()})

    def value(self) -> tuple[Value, int]:
        """Read a value, and return where it stands."""
        token = self.take("number", "name", "quoted", "call", "open", what="a value")
        if token.sort != "number":
            return token.word, token.place
        return float(token.word) if re.search(r"[.e]", token.word) else int(token.word), token.place
