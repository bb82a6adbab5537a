"""Measure how alike the tokens of a row become, layer by layer: networks that AutoBERT-Zero found are said to keep them apart.

Gao et al. 2022 argue with it that what was found is better than plain attention, whose tokens come to look the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backbone import Backbone, run
from .batches import Batch
from .geometry import uniformity
from .layers import Context
from .objectives import segments_of
from .supernet import Supernet


@torch.no_grad()
def by_layer(backbone: Backbone | Supernet, held: Sequence[Batch]) -> list[float]:
    """Return the mean cosine of two tokens of a row, before the first layer and after each, over batches as they are.

    Nothing is masked, since the tokens that are masked begin alike. States that are not the last are normed as the last one is.
    NaN where a state is not finite.

    Raises:
        ValueError: a supernet, which is not one stack of layers.
    """
    if isinstance(backbone, Supernet):
        raise ValueError("a supernet is many networks: measure one of them")
    was, device = backbone.training, next(backbone.parameters()).device
    backbone.eval()
    found: list[list[Tensor]] = [[] for _ in range(len(backbone.layers) + 1)]
    for batch in (one.to(device) for one in held):
        states: list[Tensor] = []
        embedded = backbone.embed(batch.ids, segments_of(backbone, batch))
        run(backbone.layers, backbone.norm, embedded, Context(batch.mask, batch.documents), states)
        real = torch.ones_like(batch.ids, dtype=torch.bool) if batch.mask is None else batch.mask
        for level, state in enumerate(states):
            normed = state if level == len(backbone.layers) else backbone.norm(state)
            found[level].append(uniformity(normed, real)[real.sum(1) > 1].cpu())
    backbone.train(was)
    return [float(torch.cat(parts).mean()) for parts in found]
