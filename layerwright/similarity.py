"""Compare sentences by the states of a model that nobody trained for it, and hold that against what people say.

A sentence becomes one vector, the mean of the states of its tokens or that of its first token, and two sentences are as
similar as the cosine of their vectors (Reimers and Gurevych 2019, section 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from .console import track
from .encoder import LayerwrightPreTrainedModel
from .errors import DataError
from .inference import BATCH, Opened, by_length, check_choice, windows
from .tasks.examples import OnBadRow
from .tasks.metrics import measure
from .tasks.reading import read_file

Pool = Literal["mean", "cls"]
POOLS: tuple[str, ...] = get_args(Pool)
WINDOW = 4_096  # rows


class LayerResult(BaseModel):
    """How well the similarities of a layer agree with those that people gave; 0 is what enters the first layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    spearman: float
    pearson: float


class SimilarityResults(BaseModel):
    """What a model made of pairs of sentences with numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    arch: str
    source: str
    pool: Pool
    rows: int
    layers: tuple[LayerResult, ...]
    skipped: tuple[str, ...]


def judge_similarity(
    opened: Opened,
    source: Path,
    *,
    pool: Pool = "mean",
    layers: Sequence[int] = (-1,),
    batch: int = BATCH,
    on_bad_row: OnBadRow = "stop",
) -> SimilarityResults:
    """Correlate the similarity of pairs of sentences with the numbers in a table, such as those of STS-B or SICK-R.

    pool: `mean` over all real tokens, the special ones at both ends included, or `cls`, the first token.  layers: after
    which of them, one table for each: 0 before the first, -1 after the last; a block of BERT is two layers.

    Raises:
        ValueError: an unknown pool, or a layer that is not there.
        DataError: the table cannot be used, or has one sentence a row.
    """
    examples = read_file(source, "regression", on_bad_row=on_bad_row)
    if not examples.pairs:
        raise DataError(f"{source} has one sentence a row, and similarity is that of two")
    sides = [row.first for row in examples.rows], [row.second for row in examples.rows]
    firsts, seconds = (pooled(opened, texts, pool=pool, layers=layers, batch=batch) for texts in sides)
    truth = np.array([row.label for row in examples.rows])
    count = len(opened.model.config.arch) + 1
    found = []
    for layer, first, second in zip(layers, firsts, seconds, strict=True):
        scores = measure("regression", truth, F.cosine_similarity(first, second).numpy()).scores
        found.append(LayerResult(layer=layer % count, spearman=scores["spearman"], pearson=scores["pearson"]))
    return SimilarityResults(
        model=str(opened.folder),
        arch=str(opened.model.config.arch),
        source=str(source),
        pool=pool,
        rows=len(truth),
        layers=tuple(found),
        skipped=examples.skipped,
    )


def pooled(
    opened: Opened, sentences: Sequence[str], *, pool: Pool = "mean", layers: Sequence[int] = (-1,), batch: int = BATCH
) -> Tensor:
    """Return a vector for each layer and sentence, float32 [layers, N, D]; what is longer than the positions is cut.

    pool, layers: as `judge_similarity` has them.

    Raises:
        ValueError: an unknown pool, or a layer that is not there.
    """
    check_choice("pool", pool, POOLS)
    net: LayerwrightPreTrainedModel = getattr(opened.model, "backbone", opened.model)
    count = len(opened.model.config.arch) + 1
    for layer in layers:
        if not -count <= layer < count:
            raise ValueError(f"there is no layer {layer}: {opened.model.config.arch} has 0 to {count - 1}")
    found = torch.zeros(len(layers), len(sentences), opened.model.config.arch.width)
    with track("reading", len(sentences)) as advance:
        for window in windows(enumerate(sentences), WINDOW):
            encoded = opened.encode([text for _, text in window], opened.positions)
            for places in by_length([len(one.ids) for one in encoded], batch):
                inputs = opened.inputs([encoded[place].ids for place in places])
                with opened.running():
                    states = net(**inputs, output_hidden_states=list(layers)).hidden_states
                mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[..., None]
                for at, layer in enumerate(layers):
                    x = states[layer].float()
                    vectors = x[:, 0] if pool == "cls" else (x * mask).sum(1) / mask.sum(1)
                    found[at, [window[place][0] for place in places]] = vectors.cpu()
                advance(len(places))
    return found
