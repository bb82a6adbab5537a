"""Tasks that answer a question with a piece of a context (SQuAD), which is read in windows if it is long.

A window begins a stride after the one before it (Devlin et al. 2019, released code); what is not in it is learned, and where
answers may be missing predicted, as the first token. An answer is a piece of the context as it stands, by the characters of its
first and last token.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.heads import TokenHead
from layerwright.tasks.answers import answer_scores
from layerwright.tasks.examples import Examples, Span
from layerwright.tasks.lessons import HeadObjective, HeadShape
from layerwright.tasks.rows import Reader, Rows, Tokens, windows

QUESTION = 64  # most tokens of a question (Devlin et al. 2019, released code)


class Text(NamedTuple):
    """A context as tokens: their ids, and the characters where each begins and ends."""

    ids: "array[int]"
    begins: "array[int]"
    ends: "array[int]"


class Window(NamedTuple):
    """A row: of which question it is, which tokens of the context it has, and where in the row the first of them is."""

    question: int
    tokens: range
    at: int


class Found(NamedTuple):
    """The best answer in a window, as its first and last token in the context, its score, and that of no answer."""

    score: float
    first: int
    last: int
    none: float


@dataclass(frozen=True, kw_only=True)
class SpanRows(Rows):
    """The windows of questions."""

    examples: Examples[Span]
    texts: Sequence[Text]
    windows: Sequence[Window]


class Finding(HeadObjective):
    """Predict the first and the last token of an answer: logits [B, L, 2], labels [B, 2]."""

    def __init__(self, backbone: Backbone):
        super().__init__(backbone, TokenHead(backbone.arch, 2, 0.0))

    def loss(self, logits: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of both ends, over real tokens."""
        if batch.mask is not None:
            logits = logits.masked_fill(~batch.mask[..., None], torch.finfo(logits.dtype).min)
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class SpanForm:
    """Questions about contexts.

    stride: tokens from a window to the next.  longest: most tokens of an answer.  best: how many first and last tokens are
    combined.  missing: answers may be missing; then there is none if its score is above that of the best answer by more
    than the threshold, which `tuned` chooses so that the F1 of what is predicted is highest.
    """

    reader: Reader
    stride: int = 128
    longest: int = 30
    best: int = 20
    missing: bool = False
    threshold: float | Literal["tuned"] = 0.0
    head: str = "spans"

    def rows(self, examples: Examples[Span], *, learn: bool = False) -> SpanRows:
        """Turn questions into windows; learn: towards the first gold answer."""
        places: dict[str, int] = {}
        for row in examples.rows:
            places.setdefault(row.context, len(places))
        texts = [_text(one.ids, one.offsets) for one in self.reader.encode(list(places))]
        room = self.reader.room(self.reader.pair)
        most = min(QUESTION, room // 2)
        tokens: list[Tokens] = []
        found: list[Window] = []
        targets: list[tuple[int, int]] = []
        own: list[Text] = []
        cut = 0
        for number, (row, question) in enumerate(
            zip(examples.rows, self.reader.ids([row.question for row in examples.rows]), strict=True)
        ):
            cut += len(question) > most
            text = texts[places[row.context]]
            own.append(text)
            answer = _places(text, row) if learn else None
            for window in windows(len(text.ids), room - len(question[:most]), self.stride):
                at = len(self.reader.pair.before) + len(question[:most]) + len(self.reader.pair.between)
                tokens.append(self.reader.row(question[:most], text.ids[window.start : window.stop]))
                found.append(Window(number, window, at))
                shift = at - window.start
                inside = answer is not None and window.start <= answer[0] and answer[1] < window.stop
                targets.append((answer[0] + shift, answer[1] + shift) if answer and inside else (0, 0))
        labels = torch.tensor(targets) if learn else None
        return SpanRows(tokens, labels, self.reader.pad, cut=cut, examples=examples, texts=own, windows=found)

    def objective(self, backbone: Backbone, shape: HeadShape) -> Finding:
        """Return what learns it."""
        return Finding(backbone)

    def decode(self, logits: Tensor, rows: SpanRows, places: Sequence[int]) -> list[Found]:
        """Return the best answer in each window."""
        chosen = [rows.windows[place] for place in places]
        at = torch.tensor([[window.at, window.at + len(window.tokens)] for window in chosen])
        order = torch.arange(logits.shape[1])
        context = (order >= at[:, :1]) & (order < at[:, 1:])
        ends = logits.masked_fill(~context[..., None], -torch.inf).topk(min(self.best, logits.shape[1]), dim=1)
        scores = ends.values[:, :, None, 0] + ends.values[:, None, :, 1]
        tokens = ends.indices[:, None, :, 1] - ends.indices[:, :, None, 0]
        scores = scores.masked_fill((tokens < 0) | (tokens >= self.longest), -torch.inf).flatten(1)
        score, pair = scores.max(-1)
        first = ends.indices[..., 0].gather(1, (pair // ends.indices.shape[1])[:, None])[:, 0]
        last = ends.indices[..., 1].gather(1, (pair % ends.indices.shape[1])[:, None])[:, 0]
        shift = torch.tensor([window.tokens.start for window in chosen]) - at[:, 0]
        found = zip(score, first + shift, last + shift, logits[:, 0].sum(-1), strict=True)
        return [Found(float(score), int(first), int(last), float(none)) for score, first, last, none in found]

    def settled(self, rows: SpanRows, decoded: Sequence[Found]) -> "SpanForm":
        """Return the form with the threshold that suits these questions best, if it is to be tuned."""
        if self.threshold != "tuned":
            return self
        return replace(self, threshold=best_threshold(rows.examples.rows, *self._answers(rows, decoded)))

    def merge(self, rows: SpanRows, decoded: Sequence[Found]) -> list[str]:
        """Return the answer to each question, the best of its windows; the empty text where there is none."""
        texts, margins = self._answers(rows, decoded)
        if not self.missing:
            return texts
        assert self.threshold != "tuned", "settle the form first"
        return [text if margin <= self.threshold else "" for text, margin in zip(texts, margins, strict=True)]

    def _answers(self, rows: SpanRows, decoded: Sequence[Found]) -> tuple[list[str], list[float]]:
        """Return the best answer to each question, and by how much the score of no answer is above its own."""
        best: list[Found | None] = [None] * len(rows.examples.rows)
        none = [float("inf")] * len(best)
        for window, found in zip(rows.windows, decoded, strict=True):
            before = best[window.question]
            best[window.question] = found if before is None or found.score > before.score else before
            none[window.question] = min(none[window.question], found.none)
        texts, margins = [], []
        for number, (row, answer) in enumerate(zip(rows.examples.rows, best, strict=True)):
            known = answer is not None and answer.score > -float("inf")
            texts.append(_piece(row.context, rows.texts[number], answer) if known and answer else "")
            margins.append(none[number] - answer.score if known and answer else float("inf"))
        return texts, margins

    def written(self, prediction: Any) -> Any:
        """Return the text of an answer."""
        return prediction

    def config(self) -> dict[str, Any]:
        """Return how answers are found, whether they may be missing, and the threshold from which they are."""
        ways = {"answer_stride": self.stride, "answer_longest": self.longest, "answer_best": self.best}
        missing = {"no_answer_threshold": self.threshold} if self.missing else {}
        return ways | {"answers_may_be_missing": self.missing} | missing

    @classmethod
    def of(cls, reader: Reader, config: Any) -> "SpanForm":
        """Return the form that a configuration tells of; what it does not say is as usual."""
        stride, longest, best = (
            int(getattr(config, f"answer_{name}", usual))
            for name, usual in (("stride", cls.stride), ("longest", cls.longest), ("best", cls.best))
        )
        missing = bool(getattr(config, "answers_may_be_missing", False))
        return cls(reader, stride, longest, best, missing, float(getattr(config, "no_answer_threshold", 0.0)))

    def weights(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the same."""
        return head


def best_threshold(questions: Sequence[Span], texts: Sequence[str], margins: Sequence[float]) -> float:
    """Return the threshold at which the F1 of answers is highest: those whose margin is above it become no answer."""
    gains = []
    for question, text, margin in zip(questions, texts, margins, strict=True):
        given, none = (answer_scores([question], {question.key: answer})["answer_f1"] for answer in (text, ""))
        gains.append((margin, given - none))
    ordered = sorted(gains)
    best, total, threshold = 0.0, 0.0, min(ordered[0][0], 0.0) - 1.0
    for place, (margin, gain) in enumerate(ordered):
        total += gain
        last = place + 1 == len(ordered) or ordered[place + 1][0] > margin
        if last and total > best:
            best, threshold = total, margin
    return threshold


def _text(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Text:
    return Text(array("I", ids), array("I", [begin for begin, _ in offsets]), array("I", [end for _, end in offsets]))


def _places(text: Text, row: Span) -> tuple[int, int] | None:
    """Return the first and the last token that have characters of the first gold answer; None where there are none."""
    if not row.answers:
        return None
    start, end = row.answers[0].start, row.answers[0].start + len(row.answers[0].text)
    first, last = bisect_right(text.ends, start), bisect_left(text.begins, end) - 1
    return (first, last) if first <= last else None


def _piece(context: str, text: Text, found: Found) -> str:
    """Return the characters of the context from a token to another; tokens of some tokenizers begin with a blank."""
    return context[text.begins[found.first] : text.ends[found.last]].strip()
