"""What a labelled task is made of: one class of rows for each kind of task, and the rows of a file with their labels' names.

Nothing here knows of files, tokens or models. A `key` names a row within its file: the id the file gives it, else its place from
0, which faulty rows keep. Predictions are stored and compared by it.
"""

from typing import Any, Generic, Literal, NamedTuple, TypeVar

Kind = Literal["classification", "regression", "choices", "spans", "tags"]
OnBadRow = Literal["stop", "skip"]


class Row(NamedTuple):
    """One text or two and their label: the place in `Examples.labels`, or the number to predict; None where it is not known.

    group: rows judged together, as the answers to one question of MultiRC.
    """

    key: str
    first: str
    second: str | None
    label: float | None
    group: str = ""


class Choice(NamedTuple):
    """A text and several that may go on from it; `label` is the place of the right one, None where it is not known."""

    key: str
    first: str
    options: tuple[str, ...]
    label: int | None


class Answer(NamedTuple):
    """A span of a context: `context[start : start + len(text)] == text`."""

    start: int
    text: str


class Span(NamedTuple):
    """A question about a context and its gold answers, any of which is right; none where it cannot be answered."""

    key: str
    question: str
    context: str
    answers: tuple[Answer, ...]


class Tagged(NamedTuple):
    """The words of a sentence and a tag for each, of entities in the scheme IOB2; None where they are not known."""

    key: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None


ExampleT = TypeVar("ExampleT", bound=Row | Choice | Span | Tagged)


class Examples(NamedTuple, Generic[ExampleT]):
    """The rows of a split or file, all of one class.

    source: where they are from, for messages.  labels: the classes, or the tags, in order; none where the label is a number, a
    place or a span.  skipped: why rows were left out, each with its row number.
    """

    source: str
    kind: Kind
    labels: tuple[str, ...]
    rows: tuple[ExampleT, ...]
    skipped: tuple[str, ...] = ()

    @property
    def pairs(self) -> bool:
        """Tell whether the rows hold two texts."""
        rows: tuple[Any, ...] = self.rows
        return self.kind in ("choices", "spans") or bool(rows and isinstance(rows[0], Row) and rows[0].second is not None)

    @property
    def labelled(self) -> bool:
        """Tell whether the rows have labels to learn from or to be scored by; questions always have."""
        first: Any = self.rows[0]
        return self.kind == "spans" or (first.tags if self.kind == "tags" else first.label) is not None
