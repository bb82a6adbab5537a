"""Run a model of transformers and ours side by side on random tokens, and say how far apart they are."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .errors import IntegrityError
from .models import LayerwrightForMultipleChoice, LayerwrightPreTrainedModel

TOLERANCE = 1e-4  # absolute, in float32, of every hidden state and logit
LONGEST = 4_096  # beyond it a row of attention probabilities is no longer checked in memory that everyone has
OUTPUTS = ("logits", "start_logits", "end_logits", "pooler_output")


def lengths(positions: int) -> list[int]:
    """Return the lengths to compare at, up to the maximum."""
    most = min(positions, LONGEST)
    return sorted({length for length in (1, 2, 5, 24, most // 2, most - 1, most) if 1 <= length <= most})


def tokens(model: LayerwrightPreTrainedModel, pad: int | None, length: int, chance: torch.Generator) -> dict[str, Tensor]:
    """Draw a batch of whole rows, none of which holds the padding token: RoBERTa counts positions by it."""
    arch = model.config.arch
    shape = (2, 2, length) if isinstance(model, LayerwrightForMultipleChoice) else (2, length)
    ids = torch.randint(max(1, arch.vocab - 1), shape, generator=chance)
    if pad is not None and arch.vocab > 1:
        ids = ids + (ids >= pad)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if arch.segments:
        batch["token_type_ids"] = torch.randint(arch.segments, shape, generator=chance)
    return batch


@torch.no_grad()
def gap(theirs: PreTrainedModel, ours: LayerwrightPreTrainedModel, most: int = LONGEST) -> float:
    """Return the largest difference between a model of transformers and ours, both in float32 and evaluation.

    Compared are the states before the first block, after each block, and all logits, over several lengths, to `most` tokens.

    Raises:
        IntegrityError: it is beyond `TOLERANCE`, or not a number; with the place.
    """
    chance, worst = torch.Generator().manual_seed(0), 0.0
    for length in lengths(min(most, ours.config.arch.positions)):
        batch = tokens(ours, theirs.config.pad_token_id, length, chance)
        found, wanted = (model(**batch, output_hidden_states=True, return_dict=True) for model in (ours, theirs))
        for place, distance in _distances(found, wanted).items():
            if not distance <= TOLERANCE:
                raise IntegrityError(
                    f"the two models differ by {distance:.1e} in {place} at {length} tokens; {TOLERANCE:.0e} is allowed, and "
                    "nothing was written"
                )
            worst = max(worst, distance)
    return worst


def _distances(found: Any, wanted: Any) -> dict[str, float]:
    """Return how far two outputs are apart at each place; a block of theirs is two layers of ours."""
    pairs = {
        f"the states after block {block}" if block else "the embeddings": (found.hidden_states[2 * block], states)
        for block, states in enumerate(wanted.hidden_states)
    }
    pairs |= {name: (found[name], wanted[name]) for name in OUTPUTS if name in found and name in wanted}
    return {place: float((ours - theirs).abs().max()) for place, (ours, theirs) in pairs.items()}
