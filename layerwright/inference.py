"""Open a model folder to use it, and send rows of tokens through it.

Nothing here learns: rows come from an iterator, answers leave by one, and between them is a window of rows, sorted by
length, so that memory does not grow with their number and little is computed for padding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .dense import packing
from .errors import nearest
from .folders import open_folder, open_tokenizer
from .fused import linear
from .models import FACES, LayerwrightPreTrainedModel

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
BATCH = 64  # rows
PADDING = 0.05  # of the tokens of a batch
ENOUGH = 4096  # tokens, below which a batch of a model that packs its rows takes no more time for them than one of less

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """A model ready to answer, with the tokenizer that transformers loads from its folder.

    head: a name of FACES.  bf16: multiply matrices in 16 bits, where the device can.
    """

    folder: Path
    head: str
    model: LayerwrightPreTrainedModel
    tokenizer: Tokenizer
    special: dict[str, int]
    bf16: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def positions(self) -> int:
        """How many tokens a row can have, special ones included."""
        return self.model.config.arch.positions

    @contextmanager
    def running(self) -> Iterator[None]:
        """Compute in the precision asked for, without gradients; on a CPU with the faster of two libraries, and no padding.

        What comes out at padding means nothing.
        """
        faster = _OneDnn(self.device.type == "cpu" and not self.bf16 and torch.backends.mkldnn.is_available())
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16), faster, packing():
            yield

    def encode(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        length: int | None = None,
        stride: int = 0,
        cut: str = "longest_first",
    ) -> list[Encoding]:
        """Turn texts or pairs into tokens, special ones around them; what looks like a special token in a text is text.

        length: most tokens of a row.  What does not fit is in the rows `overflowing`, which begin with the last `stride`
        tokens of the one before.  cut: which of two texts, `longest_first` or `only_second`.
        """
        self.tokenizer.encode_special_tokens = True
        if length is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(length, stride=stride, strategy=cut)
        return self.tokenizer.encode_batch(list(texts))

    def inputs(self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None) -> dict[str, Tensor]:
        """Return rows as inputs of the model [B, L], padded to the longest; no mask where none is padded."""
        found = {"input_ids": _padded(rows, self.special.get("pad", 0))}
        lengths = torch.tensor([len(row) for row in rows])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        if not real.all():
            found["attention_mask"] = real.long()
        # A model of one segment takes pairs all the same, as it does in fine-tuning.
        if segments is not None and self.model.config.arch.segments > 1:
            found["token_type_ids"] = _padded(segments, 0)
        return {name: x.to(self.device) for name, x in found.items()}


def open_model(folder: Path, heads: Sequence[str], *, precision: Precision = "float32") -> Opened:
    """Load a model folder whose head is one of these, on the accelerator if there is one.

    Raises:
        ValueError: it is none, or has another head, or an unknown precision.
        IntegrityError: it is torn or altered.
        DataError: the tokenizer is missing, cannot be used, or does not fit the model.
    """
    check_choice("precision", precision, PRECISIONS)
    model = open_folder(folder)
    head = next(name for name, face in FACES.items() if face.model is type(model))
    if head not in heads:
        raise ValueError(f"{folder} has the head '{head}', and this needs {' or '.join(repr(name) for name in heads)}")
    tokenizer, ids = open_tokenizer(folder, model.config)
    if precision == "bf16":
        # Once, where autocast would do it at every batch.
        for part in model.modules():
            if type(part) is nn.Linear:
                part.to(torch.bfloat16)
    special = {name: number for name, number in ids.items() if number is not None}
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    return Opened(folder, head, model, tokenizer, special, precision == "bf16")


def by_length(lengths: Sequence[int], size: int, enough: int = ENOUGH) -> list[list[int]]:
    """Return the places of rows in batches of about one length, the longest first, so that memory is enough for all or for none.

    A batch has at most `size` rows, and ends earlier where it has `enough` tokens, padding included, and with one row more
    too many of padding.

    >>> by_length([3, 9, 4, 9], 2)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    batches: list[list[int]] = []
    padding = 0
    for place in order:
        if batches:
            longest, count = lengths[batches[-1][0]], len(batches[-1])
            more = padding + longest - lengths[place]
            if count < size and (count * longest < enough or more <= PADDING * longest * (count + 1)):
                batches[-1].append(place)
                padding = more
                continue
        batches.append([place])
        padding = 0
    return batches


def windows(rows: Iterable[T], most: int, cost: Callable[[T], int] = lambda row: 1) -> Iterator[list[T]]:
    """Cut rows into lists of at least one row, the costs in a list adding up to at most `most`.

    >>> list(windows("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    held: list[T] = []
    spent = 0
    for row in rows:
        price = cost(row)
        if held and spent + price > most:
            yield held
            held, spent = [], 0
        held.append(row)
        spent += price
    if held:
        yield held


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a setting that is none of those known.

    Raises:
        ValueError: with the nearest one.
    """
    if value not in known:
        raise ValueError(f"no {name} '{value}'{nearest(value, known)}")


class _OneDnn(TorchFunctionMode):
    """Send the linear maps of heads the way that those of layers go."""

    def __init__(self, enabled: bool):
        super().__init__()
        self.enabled = enabled

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and self.enabled and not kwargs and args[0].dtype == torch.float32:
            x, matrix, bias = (*args, None)[:3]
            return linear(x.flatten(0, -2), matrix, bias).unflatten(0, x.shape[:-1])
        return func(*args, **(kwargs or {}))


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (length - len(row))] for row in rows])
