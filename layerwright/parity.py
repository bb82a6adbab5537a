"""Run a model of transformers and ours side by side on random tokens, and say how far apart they are."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .errors import IntegrityError
from .models import LayerwrightForMultipleChoice, LayerwrightPreTrainedModel

TOLERANCE = 1e-4  # absolute, in float32, of every hidden state and logit
LAST_BITS, MARGIN = 2.0**-22, 32  # see `_rounding`
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
        IntegrityError: it is beyond `TOLERANCE` and more than rounding explains, with the place; or a weight is not finite.
    """
    # A sum takes no memory, and is not finite where one of its numbers is not.
    if sick := next((name for name, weight in theirs.named_parameters() if not weight.sum().isfinite()), None):
        raise IntegrityError(f"{sick} holds values that are not finite")
    chance, worst = torch.Generator().manual_seed(0), 0.0
    for length in lengths(min(most, ours.config.arch.positions)):
        batch = tokens(ours, theirs.config.pad_token_id, length, chance)
        found, wanted = _run(ours, batch, 2), _run(theirs, batch)
        distances = _distances(found, wanted)
        if not all(distance <= TOLERANCE for distance in distances.values()):
            moved = _rounding(theirs, batch, wanted)
            for place, distance in distances.items():
                allowed = max(TOLERANCE, MARGIN * moved[place])
                if not distance <= allowed:
                    raise IntegrityError(
                        f"the two models differ by {distance:.1e} in {place} at {length} tokens; {allowed:.0e} is allowed, and "
                        "nothing was written"
                    )
        worst = max(worst, *distances.values())
    return worst


def spelled(difference: float, where: str) -> str:
    """Return a difference in words, with what was allowed."""
    return f"{difference:.1e} at most {where} ({TOLERANCE:.0e} allowed, or what rounding explains)"


def _rounding(theirs: PreTrainedModel, batch: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, float]:
    """Return how far each output of a model moves where the last bits of its embeddings change.

    There are models, deep ones of copied layers above all, in which some tokens move a hundred times as far as in others.  What
    a change of the last bits does there tells, mostly within a factor of two, how far float32 is from float64.
    """
    chance = torch.Generator().manual_seed(1)

    def nudge(module: Any, given: Any, out: Tensor) -> Tensor:
        return out * (1 + LAST_BITS * (torch.rand(out.shape, generator=chance) - 0.5).sign())

    hook = theirs.get_input_embeddings().register_forward_hook(nudge)
    try:
        return _distances(outputs, _run(theirs, batch))
    finally:
        hook.remove()


def _run(model: PreTrainedModel, batch: dict[str, Tensor], layers: int = 1) -> dict[str, Tensor]:
    """Return the outputs of a model by name; layers: how many of them a block is."""
    found = model(**batch, output_hidden_states=True, return_dict=True)
    states = {
        f"the states after block {block}" if block else "the embeddings": state
        for block, state in enumerate(found.hidden_states[::layers])
    }
    return states | {name: found[name] for name in OUTPUTS if name in found}


def _distances(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Return how far two models are apart in each output that both have."""
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in ours if name in theirs}
