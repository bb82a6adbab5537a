"""The optimizer of one pass against PyTorch's, and the norm of its gradient."""

from random import Random

import pytest
import torch
from torch import Tensor

from layerwright import native
from layerwright.adamw import AdamW

SHAPES = ((7, 5), (3,), (1,), (400, 300), (2, 3, 4), (70_000,))


def both(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    ours = [torch.randn(shape, generator=draw).requires_grad_() for shape in SHAPES]
    return ours, [parameter.detach().clone().requires_grad_() for parameter in ours]


def groups(parameters: list[Tensor]) -> list[dict[str, object]]:
    return [{"params": parameters[:3], "weight_decay": 0.1}, {"params": parameters[3:], "weight_decay": 0.0}]


@pytest.mark.parametrize("seed", range(5))
def test_steps_are_those_of_pytorch_with_weights_that_have_no_gradient_now_and_then(seed):
    ours, theirs = both(seed)
    rng, numbers = Random(seed), {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6}
    mine, other = AdamW(groups(ours), **numbers), torch.optim.AdamW(groups(theirs), **numbers)
    for step in range(6):
        for one, also in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape) * 10 ** rng.uniform(-3, 1) if step == 0 or rng.random() < 0.7 else None
            also.grad = None if one.grad is None else one.grad.clone()
        mine.param_groups[1]["lr"] = other.param_groups[1]["lr"] = 1e-3 / (step + 1)
        versions = [one._version for one in ours]
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.5)
        torch.testing.assert_close(mine.clip(1.5), norm, rtol=1e-6, atol=0)
        mine.step()
        other.step()
        assert all((one._version > before) == (one.grad is not None) for one, before in zip(ours, versions, strict=True))
    for one, also in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, also, rtol=1e-5, atol=1e-6)
        for slot, value in other.state[also].items():
            torch.testing.assert_close(mine.state[one][slot], value, rtol=1e-5, atol=1e-7)


def test_a_short_gradient_is_left_alone_and_a_limit_holds_for_one_step_only():
    ours, theirs = both(0)
    mine, other = (AdamW(groups(some), lr=1e-2, betas=(0.9, 0.999), eps=1e-6) for some in (ours, theirs))
    for limit in (1e9, 1e-3, None):
        for one, also in zip(ours, theirs, strict=True):
            one.grad = torch.full_like(one, 0.5)
            also.grad = torch.full_like(also, 0.5)
        if limit is not None:
            norm = float(mine.clip(limit))
            for also in theirs:
                also.grad *= min(1.0, limit / norm)
        mine.step()
        other.step()
    for one, also in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, also, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_has_no_finite_norm(value):
    ours, _ = both(0)
    mine = AdamW(groups(ours), lr=1e-2, betas=(0.9, 0.999), eps=1e-6)
    for one in ours:
        one.grad = torch.zeros_like(one)
    ours[3].grad[399, 299] = value
    assert not torch.isfinite(mine.clip(1.0))


@pytest.mark.skipif(native.library() is None, reason="no compiler: PyTorch's own optimizer runs")
def test_the_same_bits_with_any_number_of_threads():
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            ours, _ = both(3)
            mine = AdamW(groups(ours), lr=1e-2, betas=(0.9, 0.999), eps=1e-6)
            for one in ours:
                one.grad = one.detach().sin()
            for _ in range(3):
                mine.clip(0.7)
                mine.step()
            found.append([one.detach().clone() for one in ours])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
