"""Tasks that tag words, such as names of persons and places; a word has the tag of its first piece.

A sentence that is too long is read in windows that overlap, and each word is learned and predicted in the window where the
fewer of its neighbours are missing: so no word is cut off. A word of which the tokenizer makes nothing has no tag of its own; it
is counted, and predicted as the first tag, O.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.heads import TokenHead
from layerwright.tasks.classification import named
from layerwright.tasks.examples import Examples, Tagged
from layerwright.tasks.lessons import HeadObjective, HeadShape
from layerwright.tasks.rows import AT_ONCE, Reader, Rows, Tokens, cut, windows

IGNORED = -100  # the label of a token that has none


class Part(NamedTuple):
    """A window of a sentence: the words that are predicted in it, and where in the row the first piece of each is."""

    sentence: int
    words: "array[int]"
    places: "array[int]"


@dataclass(frozen=True, kw_only=True)
class TagRows(Rows):
    """The windows of sentences.

    tags: the numbers of the tags of each sentence; none where they are not known.  lost: words without any piece.
    """

    examples: Examples[Tagged]
    parts: Sequence[Part]
    tags: "Sequence[array[int]]"
    lost: int = 0

    def labels(self, places: Sequence[int], length: int) -> Tensor | None:
        """Return the tags [B, L] at first pieces, and -100 elsewhere."""
        if not self.tags:
            return None
        labels = torch.full((len(places), length), IGNORED)
        for at, part in enumerate(self.parts[place] for place in places):
            tags = self.tags[part.sentence]
            labels[at, list(part.places)] = torch.tensor([tags[word] for word in part.words], dtype=torch.int64)
        return labels


class Tagging(HeadObjective):
    """Predict the tag of each token: logits [B, L, classes], labels [B, L]."""

    def __init__(self, backbone: Backbone, classes: int, dropout: float = 0.1):
        super().__init__(backbone, TokenHead(backbone.arch, classes, dropout))

    def loss(self, logits: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        """Return the cross-entropy in nats a word."""
        # A window may have no word of its own; alone in a batch, its loss is 0.
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)


@dataclass(frozen=True)
class TagForm:
    """Sentences whose words have one of these tags.  stride: tokens from a window to the next, at most half a window."""

    reader: Reader
    labels: tuple[str, ...]
    stride: int = 128
    head: str = "tokens"

    def rows(self, examples: Examples[Tagged], *, learn: bool = False) -> TagRows:
        """Turn sentences into windows."""
        numbers = {tag: number for number, tag in enumerate(self.labels)}
        tags = [array("I", [numbers[tag] for tag in row.tags or ()]) for row in examples.rows] if learn else []
        tokens: list[Tokens] = []
        parts: list[Part] = []
        lost = long = 0
        spelled = spell(self.reader.tokenizer, [row.words for row in examples.rows])
        room, before = self.reader.room(self.reader.single), len(self.reader.single.before)
        for number, (row, (ids, words)) in enumerate(zip(examples.rows, spelled, strict=True)):
            firsts = {word: place for place, word in reversed(list(enumerate(words)))}
            lost += len(row.words) - len(firsts)
            found = windows(len(ids), room, self.stride)
            long += len(found) > 1
            own: list[list[tuple[int, int]]] = [[] for _ in found]
            for word, place in sorted(firsts.items()):
                middle = max(range(len(found)), key=lambda at: min(place - found[at].start, found[at].stop - 1 - place))
                own[middle].append((word, before + place - found[middle].start))
            for window, chosen in zip(found, own, strict=True):
                tokens.append(self.reader.row(ids[window.start : window.stop]))
                parts.append(Part(number, array("I", [word for word, _ in chosen]), array("I", [at for _, at in chosen])))
        return TagRows(tokens, None, self.reader.pad, cut=long, examples=examples, parts=parts, tags=tags, lost=lost)

    def objective(self, backbone: Backbone, shape: HeadShape) -> Tagging:
        """Return what learns it."""
        return Tagging(backbone, len(self.labels), shape.dropout)

    def decode(self, logits: Tensor, rows: TagRows, places: Sequence[int]) -> list[list[int]]:
        """Return the numbers of the tags of the words that belong to each window."""
        likeliest = logits.argmax(-1).tolist()
        return [[tags[at] for at in rows.parts[place].places] for tags, place in zip(likeliest, places, strict=True)]

    def settled(self, rows: TagRows, decoded: Sequence[Any]) -> "TagForm":
        """Return the same: there is nothing to choose."""
        return self

    def merge(self, rows: TagRows, decoded: Sequence[list[int]]) -> list[tuple[str, ...]]:
        """Return the tags of each sentence."""
        tags = [[self.labels[0]] * len(row.words) for row in rows.examples.rows]
        for part, numbers in zip(rows.parts, decoded, strict=True):
            for word, number in zip(part.words, numbers, strict=True):
                tags[part.sentence][word] = self.labels[number]
        return [tuple(sentence) for sentence in tags]

    def written(self, prediction: Any) -> Any:
        """Return the list of tags."""
        return list(prediction)

    def config(self) -> dict[str, Any]:
        """Return the names of the tags, and how far apart windows are."""
        return {**named(self.labels), "tag_stride": self.stride}

    def weights(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the same."""
        return head


def spell(tokenizer: Tokenizer, sentences: Sequence[Sequence[str]]) -> "list[tuple[array[int], array[int]]]":
    """Return the pieces of each sentence and the number of the word each is of, as if the words stood with blanks between."""
    spelled = []
    for part in cut(sentences, AT_ONCE):
        # The blank says to tokenizers of bytes that a word begins; others drop it.
        spaced = [[word if place == 0 else f" {word}" for place, word in enumerate(words)] for words in part]
        for one in tokenizer.encode_batch(spaced, is_pretokenized=True, add_special_tokens=False):
            spelled.append((array("I", one.ids), array("I", [0 if word is None else word for word in one.word_ids])))
    return spelled
