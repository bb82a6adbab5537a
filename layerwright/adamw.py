"""AdamW over all weights of a model in one pass over memory, and the length of their gradient in another.

PyTorch's optimizer calls a few operations for each weight and each bias, which takes some hundredths of a small model's step.
State and results are as there, and where `native` does not serve it does the work itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .native import call, serves

SLOTS = ("exp_avg", "exp_avg_sq", "step")


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) that can be told how long its gradient may be.

    bias_correction: false is Adam as BERT and ELECTRA have it.
    """

    _factor = 1.0  # of the gradient in the next step; of the class, since a copy of an optimizer has only what PyTorch's has

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, bias_correction: bool = True) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        # After 2^24 steps both corrections are 1, and a float32 counter grows no further.
        count = 0.0 if bias_correction else 2.0**24
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            # Made now: what stays must not lie in memory between what every step frees.
            moments = {slot: torch.zeros_like(parameter) for slot in SLOTS[:2]}
            self.state[parameter] = moments | {"step": torch.tensor(count, device=parameter.device)}

    def clip(self, most: float) -> Tensor:
        """Return the norm of the gradient, and have the next step take it no longer than `most`.

        The gradients themselves may change or not.
        """
        used = [parameter for group in self.param_groups for parameter in _used(group)]
        if not _served(used):
            return torch.nn.utils.clip_grad_norm_(used, most)
        grads, total = list(map(_grad, used)), torch.empty(1, dtype=torch.float64)
        call("squares", used[0], _places(grads), _sizes(used), total, len(used))
        norm = total[0].sqrt().float()
        self._factor = min(1.0, most / (float(norm) + 1e-6))  # as in PyTorch, of which norms of zero are the reason
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take a step, as PyTorch's does."""
        factor, self._factor = self._factor, 1.0
        groups = [(group, used) for group in self.param_groups if (used := _used(group))]
        known = all(len(self.state[parameter]) == len(SLOTS) for _, used in groups for parameter in used)
        if closure is not None or not known or not all(_served(used) for _, used in groups):
            if factor != 1.0:
                torch._foreach_mul_([_grad(parameter) for _, used in groups for parameter in used], factor)
            return super().step(closure)
        for group, used in groups:
            slots = [[self.state[parameter][slot] for parameter in used] for slot in SLOTS]
            arrays = [_places(some) for some in (used, list(map(_grad, used)), *slots)]
            numbers = map(float, (factor, group["lr"], group["weight_decay"], *group["betas"], group["eps"]))
            call("adamw", used[0], *arrays, _sizes(used), len(used), *numbers)
            torch.autograd.graph.increment_version([*used, *(one for some in slots for one in some)])
        return None


def _used(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _served(used: Sequence[Tensor]) -> bool:
    pairs = [*used, *map(_grad, used)]
    alike = all(one.dtype == torch.float32 and one.is_cpu and one.is_contiguous() for one in pairs)
    return bool(used) and alike and serves(used[0])


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _places(tensors: Sequence[Tensor]) -> Tensor:
    """Return where each begins."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors])


def _sizes(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([tensor.numel() for tensor in tensors])
