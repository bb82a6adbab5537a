"""Name what can go wrong, and the exit code each failure ends the command with.

What a user wrote wrongly is a plain ValueError; the classes here are the failures that need another exit code. Every
message names the thing at fault, and `nearest` adds what was probably meant.
"""

import difflib
import re
from collections.abc import Iterable


class TextError(ValueError):
    """A text cannot be read; the message shows the text with a caret under the place.

    fault: the message alone.  place: where in the text the caret stands.
    """

    def __init__(self, fault: str, text: str, place: int):
        line = re.sub(r"\s", " ", text)
        start = max(0, place - 60)
        shown = ("..." if start else "") + line[start : place + 60] + ("..." if place + 60 < len(line) else "")
        under = place - start + (3 if start else 0)
        super().__init__(f"{fault}\n    {shown}\n    {' ' * under}^")
        self.fault, self.place = fault, place


class DataError(ValueError):
    """Report a text, table or tokenizer that cannot be used."""


class IntegrityError(RuntimeError):
    """Report a checkpoint or model folder that is torn or altered."""


class RunInUse(RuntimeError):
    """Report a run folder that another process holds."""


class Interrupted(Exception):
    """Report a run that was asked to stop and did so after a checkpoint: the same command resumes it."""


# The first class that fits decides, so a subclass stands before what it inherits from.
EXIT_CODES: dict[type[BaseException], int] = {
    DataError: 3,
    ValueError: 2,
    IntegrityError: 4,
    FloatingPointError: 5,
    Interrupted: 75,
    KeyboardInterrupt: 130,
}


def exit_code(error: BaseException) -> int:
    """Choose the exit code of the command that `error` ended."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def nearest(word: str, known: Iterable[str]) -> str:
    """Complete a message about an unknown word: the known one most like it, or else all of them.

    >>> nearest("atn", ["attn", "ffn"])
    "; did you mean 'attn'?"
    >>> nearest("pool", ["attn", "ffn"])
    '; known: attn, ffn'
    """
    names = list(known)
    lowered = {name.lower(): name for name in names}
    if close := difflib.get_close_matches(word.lower(), lowered, n=1):
        return f"; did you mean {lowered[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
