"""Judge models without training them: how likely they find sentences, and which sentence of a minimal pair they prefer.

A model of masked tokens predicts each token of a sentence from the others, and the sum of the log-probabilities is the
pseudo-log-likelihood (Salazar et al. 2020, equation 1).  A discriminator reads the sentence once, and the sum is of the
log-probabilities that each token is original.  Equal masked rows, which two sentences of a pair often share, run once, and
only masked tokens go through the output layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Encoding
from torch import Tensor, nn

from .backbone import run
from .dense import packed
from .errors import DataError
from .fused import surprise
from .heads import MaskedHead
from .inference import BATCH, Opened, by_length, check_choice, windows
from .layers import Context
from .models import LayerwrightForMaskedLM

Variant = Literal["original", "within_word_l2r"]
VARIANTS: tuple[str, ...] = get_args(Variant)
HEADS = ("mlm", "rtd")
WINDOW = 1 << 18  # tokens of masked rows held at a time


class Score(NamedTuple):
    """How likely a model finds a sentence: the sum of log-probabilities in nats, and of how many tokens."""

    total: float
    tokens: int


class Question(NamedTuple):
    """A token to predict: the row it is masked in, as bytes of int64, its place there, and the token itself."""

    row: bytes
    place: int
    token: int


class Answers(NamedTuple):
    """What a model of masked tokens says to questions: nats of each token, and whether it is the likeliest."""

    nats: list[float]
    right: list[bool]


def score_sentences(
    opened: Opened, sentences: Iterable[str], *, variant: Variant = "original", batch: int = BATCH
) -> Iterator[Score]:
    """Yield the score of each sentence, in order; the number of sentences in memory is limited.

    variant: `original` masks each token alone; `within_word_l2r` also those after it in its word, so that a long word in
    few pieces is not found likely for its own endings (Kauf and Ivanova 2023).  A discriminator has no variants.

    Raises:
        ValueError: an unknown variant, or a model without `mlm` or `rtd` head.
        DataError: a sentence has no tokens or more than the model has positions.
    """
    check_scoring(opened, variant)
    for window in windows(sentences, WINDOW, rows_cost):
        encoded = opened.encode(window)
        for text, one in zip(window, encoded, strict=True):
            check_length(opened, text, one)
        yield from score_encoded(opened, encoded, variant, batch)


def check_scoring(opened: Opened, variant: str) -> None:
    """Refuse a model that cannot say how likely a sentence is, and a variant that is none.

    Raises:
        ValueError: with what is known.
    """
    check_choice("variant", variant, VARIANTS)
    if opened.head not in HEADS:
        raise ValueError(f"{opened.folder} has the head '{opened.head}', and sentences are scored by 'mlm' or 'rtd'")
    if opened.head == "mlm" and "mask" not in opened.special:
        raise DataError(f"the tokenizer of {opened.folder} has no mask token")


def score_encoded(opened: Opened, encoded: Sequence[Encoding], variant: Variant, batch: int) -> list[Score]:
    """Return the scores of sentences whose tokens are known; equal ones get equal scores, to the last bit."""
    if opened.head == "rtd":
        return _originality(opened, encoded, batch)
    asked = [question for one in encoded for question in questions(opened, one, variant)]
    nats = iter(answer(opened, asked, batch).nats)
    scores = []
    for one in encoded:
        tokens = _count(one)
        scores.append(Score(-sum(next(nats) for _ in range(tokens)), tokens))
    return scores


def rows_cost(sentence: str) -> int:
    """Return about how many tokens the masked rows of a sentence have together."""
    return (len(sentence) // 4 + 2) ** 2


def check_length(opened: Opened, text: str, encoded: Encoding, where: str = "a sentence") -> None:
    """Refuse a sentence that the model cannot read whole.

    Raises:
        DataError: it has no tokens or more than the model has positions.
    """
    if not _count(encoded):
        raise DataError(f"{where} has no tokens: {text[:60]!r}")
    if len(encoded.ids) > opened.positions:
        raise DataError(f"{where} has {len(encoded.ids)} tokens, and the model {opened.positions} positions: {text[:60]!r}...")


def questions(opened: Opened, encoded: Encoding, variant: Variant) -> Iterator[Question]:
    """Yield a question for each token of a sentence."""
    ids, words = np.array(encoded.ids), encoded.word_ids
    for place, special in enumerate(encoded.special_tokens_mask):
        if special:
            continue
        end = place + 1
        if variant == "within_word_l2r" and words[place] is not None:
            while end < len(ids) and words[end] == words[place]:
                end += 1
        row = ids.copy()
        row[place:end] = opened.special["mask"]
        yield Question(row.tobytes(), place, int(ids[place]))


def answer(opened: Opened, asked: Sequence[Question], batch: int = BATCH) -> Answers:
    """Ask a model of masked tokens; a row that several questions share is read once.

    batch: rows at a time.
    """
    by_row: dict[bytes, list[int]] = {}
    for number, question in enumerate(asked):
        by_row.setdefault(question.row, []).append(number)
    rows = [np.frombuffer(row, np.int64) for row in by_row]
    numbers = list(by_row.values())
    nats, right = np.zeros(len(asked)), np.zeros(len(asked), bool)
    model = cast(LayerwrightForMaskedLM, opened.model)
    head = cast(MaskedHead, model.head)
    for places in by_length([len(row) for row in rows], batch):
        chosen = [(at, number) for at, place in enumerate(places) for number in numbers[place]]
        which = torch.tensor([[at, asked[number].place] for at, number in chosen], device=opened.device)
        tokens = torch.tensor([asked[number].token for _, number in chosen], device=opened.device)
        with opened.running():
            states = _states(model, opened.inputs([rows[place].tolist() for place in places]), which)
            features = head.features(states)
            found, likeliest = surprise(features, model.backbone.embed.token.weight, head.bias, tokens)
        order = [number for _, number in chosen]
        nats[order], right[order] = found.double().cpu().numpy(), (likeliest == tokens).cpu().numpy()
    return Answers(nats.tolist(), right.tolist())


def _states(model: LayerwrightForMaskedLM, inputs: dict[str, Tensor], which: Tensor) -> Tensor:
    """Return the states [N, D] at some places: which [N, 2] has the row and the place of each.

    The last layers, where they take each token by itself, run at those places only.
    """
    backbone, mask = model.backbone, inputs.get("attention_mask")
    alone = list(takewhile(lambda layer: layer.kind == "ffn", reversed(model.config.arch.layers)))
    cut = len(backbone.layers) - len(alone)
    ids, rows, places = inputs["input_ids"], *which.unbind(1)
    context = Context(None if mask is None else mask.bool())
    dense = packed(context.mask)
    x = backbone.embed(ids) if dense is None else backbone.embed(*dense.inputs(ids))
    if dense is not None:
        context, found = dense.context(context), dense.back[rows, places]
        rows, places = found // x.shape[1], found % x.shape[1]
    x = run(backbone.layers[:cut], nn.Identity(), x, context)
    return run(backbone.layers[cut:], backbone.norm, x[rows, None, places], Context(None))[:, 0]


def _originality(opened: Opened, encoded: Sequence[Encoding], batch: int) -> list[Score]:
    """Return the summed log-probabilities of a discriminator that the tokens of each sentence are original."""
    # Equal sentences run once: in batches of other lengths they would differ by rounding, and not tie.
    unique = {tuple(one.ids): one for one in encoded}
    kept = list(unique.values())
    found: dict[tuple[int, ...], Score] = {}
    for places in by_length([len(one.ids) for one in kept], batch):
        rows = [kept[place] for place in places]
        with opened.running():
            logits = opened.model(**opened.inputs([row.ids for row in rows])).logits
        original = F.logsigmoid(-logits.double()).cpu()
        for row, values in zip(rows, original, strict=True):
            real = [place for place, special in enumerate(row.special_tokens_mask) if not special]
            found[tuple(row.ids)] = Score(float(values[real].sum()), len(real))
    return [found[tuple(one.ids)] for one in encoded]


def _count(encoded: Encoding) -> int:
    return len(encoded.ids) - sum(encoded.special_tokens_mask)
