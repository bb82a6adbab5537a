"""Pack the tokens of documents into files that are memory-mapped later: one of tokens and one of starts a split.

Memory is bounded by the batch that is encoded and the one that is read meanwhile, whatever the length of the text.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from layerwright import vocabulary
from layerwright.console import track
from layerwright.documents import Source
from layerwright.errors import DataError

SPLITS = ("train", "validation")
BATCH = 1 << 20  # characters; larger ones are not faster

Ids = NDArray[np.unsignedinteger[Any]]


def pack(sources: Sequence[Source], tokenizer: Tokenizer, folder: Path, *, validation: float) -> None:
    """Write the tokens of every document into its split; `validation` is the share of documents held out.

    A hash of its text decides where a document goes, so it stays there when others come or go. Where that leaves a split
    empty, the last document moves there.
    Raises: DataError where there are no two documents.
    """
    sizes = [source.size for source in sources if source.size is not None]
    with ExitStack() as stack, track("tokenizing", sum(sizes) if len(sizes) == len(sources) else None) as advance:
        train, held = (
            _Split(*(stack.enter_context(open(folder / f"{split}.{kind}", "wb")) for kind in ("bin", "starts")))
            for split in SPLITS
        )
        before = 0
        for texts, done, tokens in _encoded(sources, tokenizer):
            for text, ids in zip(texts, tokens, strict=True):
                if len(ids):
                    (held if _is_held_out(text, validation) else train).append(ids)
            advance(done - before, tokens=train.end + held.end)
            before = done
        if train.documents + held.documents < 2:
            raise DataError("the text is a single document: give more, or put blank lines between its parts")
        for empty, other in ((train, held), (held, train)):
            if not empty.documents:
                empty.append(other.pop())


def token_type(vocab: int) -> type[np.unsignedinteger[Any]]:
    """Choose the smallest type on disk that holds every id below `vocab`."""
    return np.uint16 if vocab <= 1 << 16 else np.uint32


class _Split:
    """Write the documents of a split, and take back the last one."""

    def __init__(self, tokens: BinaryIO, starts: BinaryIO) -> None:
        self.documents = self.end = 0
        self._tokens, self._starts = tokens, starts
        self._last: Ids = np.empty(0, np.uint16)
        starts.write(np.int64(0).tobytes())

    def append(self, ids: Ids) -> None:
        self._last = ids
        self.documents += 1
        self.end += len(ids)
        self._tokens.write(ids.tobytes())
        self._starts.write(np.int64(self.end).tobytes())

    def pop(self) -> Ids:
        self.documents -= 1
        self.end -= len(self._last)
        self._tokens.truncate(self.end * self._last.itemsize)
        self._starts.truncate((self.documents + 1) * 8)
        return self._last


def _encoded(sources: Sequence[Source], tokenizer: Tokenizer) -> Iterator[tuple[list[str], int, list[Ids]]]:
    """Yield (documents, bytes read by then, ids of each), reading one batch while another is encoded."""
    tokenizer.encode_special_tokens = True  # a "[MASK]" in the text is text
    kind = token_type(vocabulary.size(tokenizer))
    waiting: deque[tuple[list[str], int, Future[list[Ids]]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for texts, done in _batches(sources):
            waiting.append((texts, done, thread.submit(_encode, texts, tokenizer, kind)))
            if len(waiting) > 1:
                texts, done, ids = waiting.popleft()
                yield texts, done, ids.result()
        for texts, done, ids in waiting:
            yield texts, done, ids.result()


def _batches(sources: Sequence[Source]) -> Iterator[tuple[list[str], int]]:
    texts: list[str] = []
    length = before = done = 0
    for source in sources:
        for text, so_far in source.read():
            texts.append(text)
            length += len(text)
            done = before + so_far
            if length >= BATCH:
                yield texts, done
                texts, length = [], 0
        before = done
    if texts:
        yield texts, done


def _encode(texts: list[str], tokenizer: Tokenizer, kind: type[np.unsignedinteger[Any]]) -> list[Ids]:
    # Paragraphs are small enough to keep every core busy to the end of a batch.
    paragraphs = [text.splitlines(keepends=True) for text in texts]
    flat = [paragraph for document in paragraphs for paragraph in document]
    encodings = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    return [np.concatenate([np.array(next(encodings).ids, kind) for _ in document]) for document in paragraphs]


def _is_held_out(text: str, share: float) -> bool:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) < share * 2**64
