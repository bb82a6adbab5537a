"""Layers as few passes over memory: products of PyTorch, and between them the passes of `native`.

Each function equals the plain expression but for rounding and for which values dropout takes, gradients included, and keeps
less for the backward pass: nothing of dropout but a seed, one copy of what several maps read, an activation but not what it
came to.  Where `native` does not serve, the forms of `kernels` run.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from . import kernels
from .kernels import run
from .native import call, offers, serves


def ready(x: Tensor, *maps: nn.Module) -> bool:
    """Return whether the functions of this file serve a tensor, and linear maps and norms that nobody has put anything around."""
    return kernels.fast(x) and serves(x) and all(map(kernels.bare, maps))


def project(x: Tensor, *maps: nn.Module) -> tuple[Tensor, ...]:
    """Send x [B, L, D] through several linear maps as one product: [B, L, S] each."""
    x = kernels.lower(x)
    if not ready(x, *maps):
        return tuple(each(x) for each in maps)
    weights, biases = ([getattr(each, name) for each in maps] for name in ("weight", "bias"))
    if not torch.is_grad_enabled():  # to stack weights for one product costs more than that saves
        rows = x.reshape(-1, x.shape[-1])
        pairs = zip(weights, biases, strict=True)
        return tuple(linear(rows, w.to(x.dtype), b.to(x.dtype)).view(*x.shape[:-1], -1) for w, b in pairs)
    found = run(_Project, x, len(maps), *weights, *biases)
    return found if isinstance(found, tuple) else (found,)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias for a matrix of rows [N, D] on a CPU.

    By oneDNN: in float32 its products take half the time of MKL's on AMD's processors (2 cores, Zen 5) and no longer elsewhere,
    and it adds a bias on the way, where `addmm` first writes it into every row (in bf16, 1 to 2 % of a step on AMX).
    """
    if (bias is not None or x.dtype == torch.float32) and _multiplies(x.dtype):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Return whether oneDNN does here: in bf16 it serves processors only that have instructions for it."""
    x = torch.zeros(1, 1, dtype=dtype, device="cpu")
    try:
        torch.ops.mkldnn._linear_pointwise(x, x, x[0], "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True


def feed_forward(x: Tensor, up: nn.Module, out: nn.Module) -> Tensor:
    """Return out(gelu(up(x))): [B, L, D]."""
    x = kernels.lower(x)
    if not ready(x, up, out):
        return torch.as_tensor(out(F.gelu(up(x))))
    return torch.as_tensor(run(_FeedForward, x, up.weight, up.bias, out.weight, out.bias))


def add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm, p: float) -> Tensor:
    """Return norm(x + dropout(y)), [B, L, D], in the precision of y."""
    x, level = x.to(y.dtype), kernels.dropping(p)
    if level is None or x.shape != y.shape or not ready(y, norm):
        return kernels.add_norm(x, y, norm, p)
    return torch.as_tensor(run(_AddNorm, x, y, norm.weight, norm.bias, norm.eps, level))


def attend(query: Tensor, key: Tensor, value: Tensor, *, heads: int, visible: Tensor | None, p: float) -> Tensor:
    """Return softmax(Q K^T / sqrt(E)) V of each head: three [B, L, H*E] -> [B, L, H*E].

    visible: bool, broadcast to [B, H, L, L], true where a token (third) sees another (fourth).  p: dropout of the weights.
    """
    level = looking(query, key.shape[1], visible, p)
    if level is None:
        return kernels.attend(query, key, value, heads=heads, visible=visible, p=p)
    return torch.as_tensor(run(_Attend, query, key, value, heads, visible, level))


def surprise(x: Tensor, matrix: Tensor, bias: Tensor, targets: Tensor, chance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the nats of targets [N] for logits x matrix^T + bias, and a token each: drawn by a uniform number, or the likeliest.

    x: [N, E]; matrix: [V, E]; bias: [V]; chance: [N] or None.

    Raises:
        IndexError: a target is not one of the V.
    """
    x = kernels.lower(x)
    if not ready(x):
        return kernels.surprise(x, kernels.lower(matrix), bias, targets, chance)
    targets = targets.long().contiguous()
    if (wrong := targets[(targets < 0) | (targets >= len(matrix))]).numel():
        raise IndexError(f"target {wrong[0]} is not one of {len(matrix):,} tokens")
    nats, tokens = run(_Surprise, x, matrix, bias, targets, chance)
    return nats, tokens


class Drops(NamedTuple):
    """What dropout takes: of 256 values so many, by a hash of a seed."""

    level: int
    seed: int

    @classmethod
    def of(cls, level: int) -> "Drops":
        """Draw a seed, where there is anything to drop."""
        return cls(level, int(torch.randint(-(2**62), 2**62, ())) if level else 0)


def stacked(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return matrices one below the other, in another precision: cast and stacked in one pass."""
    if len(weights) == 1:
        return weights[0].detach().to(dtype)
    stack = weights[0].new_empty(sum(map(len, weights)), *weights[0].shape[1:], dtype=dtype)
    torch._foreach_copy_(list(stack.split([len(weight) for weight in weights])), [weight.detach() for weight in weights])
    return stack


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors side by side; copied only where they do not lie so already, as what `_Attend` gives does."""
    first, wide = parts[0], sum(part.shape[-1] for part in parts)
    if len(parts) == 1:
        return first
    place = first.data_ptr()
    for part in parts:
        if part.dim() != 3 or part.data_ptr() != place or part.stride() != (part.shape[1] * wide, wide, 1):
            return torch.cat(list(parts), -1)
        place += part.shape[-1] * part.itemsize
    return first.as_strided((*first.shape[:2], wide), first.stride())


def _small(weight: Tensor, bias: Tensor) -> bool:
    """Return whether each bias is less than four times its weight."""
    answer = weight.new_empty(1, dtype=torch.int64)
    call("small", weight, weight, bias, answer, len(weight))
    return answer.item() == 1


def straight(x: Tensor) -> Tensor:
    """Return a tensor in one piece, its strides as its shape says: where a dimension is one, a piece may have any."""
    return x.contiguous().view(-1).view(x.shape)


def as_rows(x: Tensor) -> Tensor:
    """Return the rows of a tensor as a matrix in one piece: slopes may have any strides, and those of a sum are zeros."""
    return x.flatten(0, -2).contiguous()


def sums(x: Tensor) -> Tensor:
    """Add up the rows of a matrix in one piece, in float32."""
    sums = x.new_empty(x.shape[1], dtype=torch.float32)
    call("column_sums", x, x, sums, *x.shape)
    return sums


def slopes_of(grad: Tensor, x: Tensor, bias: Tensor | None = None, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the slopes of weight and bias of a linear map, given those of what came out [N, S] and what went in [N, D].

    The first in one piece.  bias: the slope of the bias, where it is known already.  shares: [N], what each row counts in it.
    """
    if not offers("slopes", grad):
        if shares is not None:
            return kernels.slopes_of(grad, x, shares=shares)
        return linear(grad.t(), x.t()), sums(grad) if bias is None else bias
    # In float32, as the weight wants them: rounded, they would have to be copied once more.
    weight, found = (grad.new_empty(grad.shape[1], *more, dtype=torch.float32) for more in ([x.shape[1]], []))
    call("slopes", grad, grad, x.contiguous(), shares, weight, found if bias is None else None, *grad.shape, x.shape[1])
    return weight, found if bias is None else bias


def lean(function: type[Function]) -> type[Function]:
    """Run both directions below autograd: of what they do it keeps no record, so that it need not look at each operation.

    What was saved is an argument of `backward`, taken out before: to get it may mean to compute it again (checkpointing).
    """
    forward, backward = function.forward, function.backward

    def run_forward(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return forward(*inputs)

    def run_backward(ctx: Any, *grads: Any) -> Any:
        saved = ctx.saved_tensors
        with torch._C._AutoDispatchBelowAutograd():
            return backward(ctx, saved, *grads)

    setattr(function, "forward", staticmethod(run_forward))  # noqa: B010
    setattr(function, "backward", staticmethod(run_backward))  # noqa: B010
    return function


@lean
class _Project(Function):
    @staticmethod
    def forward(ctx, x, count, *parameters):  # type: ignore[no-untyped-def]
        weight, bias = (stacked(part, x.dtype) for part in (parameters[:count], parameters[count:]))
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        ctx.shape, ctx.sizes = x.shape, [len(part) for part in parameters[:count]]
        y = linear(rows, weight, bias).view(*x.shape[:-1], -1)
        return y if count == 1 else y.split(ctx.sizes, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, *grads):  # type: ignore[no-untyped-def]
        rows, weight = saved
        wanted, count = ctx.needs_input_grad, len(ctx.sizes)
        grad = as_rows(_joined(grads))
        dx = linear(grad, weight.t()).view(ctx.shape) if wanted[0] else None
        dweights = dbiases = (None,) * count
        if any(wanted[2 : 2 + count]):
            dweights, dbiases = (slope.split(ctx.sizes) for slope in slopes_of(grad, rows))
        elif any(wanted[2 + count :]):
            dbiases = sums(grad).split(ctx.sizes)
        return dx, None, *dweights, *dbiases


@lean
class _FeedForward(Function):
    @staticmethod
    def forward(ctx, x, up, up_bias, out, out_bias):  # type: ignore[no-untyped-def]
        rows, narrow, wide = x.reshape(-1, x.shape[-1]), up.detach().to(x.dtype), out.detach().to(x.dtype)
        inner, up_bias = linear(rows, narrow), up_bias.detach().float()
        active = torch.empty_like(inner) if any(ctx.needs_input_grad) else inner
        call("gelu", x, inner, up_bias, active, *inner.shape)
        ctx.save_for_backward(rows, narrow, up_bias, wide, inner)
        ctx.shape = x.shape
        return linear(active, wide, out_bias.to(x.dtype)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        rows, narrow, up_bias, wide, inner = saved
        grad = as_rows(grad)
        slope = linear(grad, wide.t())
        active, dup_bias = torch.empty_like(slope), torch.empty_like(up_bias)
        call("gelu_backward", grad, inner, up_bias, slope, active, dup_bias, *slope.shape)
        dx = linear(slope, narrow.t()).view(ctx.shape)
        return dx, *slopes_of(slope, rows, dup_bias), *slopes_of(grad, active)


@lean
class _AddNorm(Function):
    @staticmethod
    def forward(ctx, x, y, weight, bias, eps, level):  # type: ignore[no-untyped-def]
        x, y, ctx.drops = x.contiguous(), y.contiguous(), Drops.of(level)
        weight, bias = weight.detach().float(), bias.detach().float()
        out, (mean, scale) = torch.empty_like(y), weight.new_empty(2, y.numel() // y.shape[-1])
        # The next layer keeps the result too. What went into it can be found again unless the norm all but hides it.
        again = _small(weight, bias)
        total = None if again else torch.empty_like(y)
        call("add_norm", y, x, y, weight, bias, out, total, mean, scale, len(mean), y.shape[-1], eps, *ctx.drops)
        ctx.save_for_backward(out if again else total, weight, bias if again else None, mean, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        kept, weight, bias, mean, scale = saved
        dx = torch.empty_like(kept)
        dy = torch.empty_like(kept) if ctx.drops.level else dx
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        sizes = len(mean), kept.shape[-1], *ctx.drops
        call("add_norm_backward", dx, grad.contiguous(), kept, weight, bias, mean, scale, dx, dy, dweight, dbias, *sizes)
        return dx, dy, dweight, dbias, None, None


def looking(query: Tensor, length: int, visible: Tensor | None, p: float) -> int | None:
    """Return the steps of dropout with which `look` serves; None where it does not, or PyTorch is as quick.  length: of keys."""
    level = kernels.dropping(p)
    alike = visible is None or (visible.shape[1] == 1 and visible.shape[3] == length)
    if level is None or not alike or not ready(query):
        return None
    quicker = query.dtype == torch.bfloat16 and (torch.is_grad_enabled() or offers("tiles", query))
    return level if level or visible is not None or quicker else None


def look(query: Tensor, key: Tensor, value: Tensor, to: Tensor, *, heads: int, visible: Tensor | None, drops: Drops) -> Tensor:
    """Attend, write what comes out [B, L, H*E] into a tensor, and return the logarithm of each softmax's sum, [B*H, L]."""
    seen, *steps = _seen(visible)
    parts = [even(x) for x in (query, key, value)]
    nats = query.new_empty(len(query) * heads, query.shape[1], dtype=torch.float32)
    apart = [x.stride(1) for x in (*parts, to)]
    call("attend", query, *parts, to, nats, seen, *_sizes(query, heads), *apart, *steps, *drops)
    return nats


def looked(
    grad: Tensor,
    inputs: Sequence[Tensor],
    found: tuple[Tensor, Tensor],
    to: Sequence[Tensor],
    *,
    heads: int,
    visible: Tensor | None,
    drops: Drops,
) -> None:
    """Write the slopes of query, key and value into tensors that lie alike, given that of what came out.

    found: what came out, and what `look` returned.
    """
    parts = [even(x) for x in (grad, *inputs, found[0])]
    apart = [x.stride(1) for x in (*parts, to[0])]
    seen, *steps = _seen(visible)
    call("attend_backward", grad, *parts, found[1], *to, seen, *_sizes(grad, heads), *apart, *steps, *drops)


def even(x: Tensor) -> Tensor:
    """Return [B, L, D] with its channels side by side and its tokens evenly apart, as parts of a wider product have them."""
    return x if x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1) else straight(x)


def _sizes(x: Tensor, heads: int) -> tuple[int, int, int, int]:
    return *x.shape[:2], heads, x.shape[2] // heads


def _seen(visible: Tensor | None) -> tuple[Tensor | None, int, int]:
    """Return which keys a query sees, in one piece, and how far the next row and the next query lie; 0 where it is the same."""
    if visible is None:
        return None, 0, 0
    visible = visible.contiguous()
    return visible, visible[0].numel() if len(visible) > 1 else 0, visible.shape[3] if visible.shape[2] > 1 else 0


@lean
class _Attend(Function):
    @staticmethod
    def forward(ctx, query, key, value, heads, visible, level):  # type: ignore[no-untyped-def]
        ctx.heads, ctx.drops = heads, Drops.of(level)
        mixed = value.new_empty(*query.shape[:2], value.shape[2])
        nats = look(query, key, value, mixed, heads=heads, visible=visible, drops=ctx.drops)
        ctx.save_for_backward(query, key, value, mixed, nats, visible)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        *inputs, mixed, nats, visible = saved
        sizes = [x.shape[2] for x in inputs]
        # Side by side, as the maps that gave query, key and value want them.
        slopes = grad.new_empty(*grad.shape[:2], sum(sizes)).split(sizes, -1)
        looked(grad, inputs, (mixed, nats), slopes, heads=ctx.heads, visible=visible, drops=ctx.drops)
        return *slopes, None, None, None


@lean
class _Surprise(Function):
    @staticmethod
    def forward(ctx, x, matrix, bias, targets, chance):  # type: ignore[no-untyped-def]
        nats, tokens, slopes = x.new_empty(len(x), dtype=torch.float32), torch.empty_like(targets), any(ctx.needs_input_grad)
        matrix, bias = matrix.detach().to(x.dtype), bias.detach().float()
        chance = None if chance is None else chance.float().contiguous()
        # For slopes all of the logits are wanted at once, and become them in place; else so many as stay in the cache.
        logits = x.new_empty(len(x) if slopes else min(len(x), kernels.ROWS), len(matrix))
        for at in range(0, len(x), max(1, len(logits))):
            here = slice(at, at + len(logits))
            some = torch.mm(x[here], matrix.t(), out=logits[: len(x[here])])
            drawn = None if chance is None else chance[here]
            call("surprise", x, some, bias, targets[here], drawn, nats[here], tokens[here], *some.shape, int(slopes))
        ctx.save_for_backward(x, matrix, logits)
        ctx.mark_non_differentiable(tokens)
        return nats, tokens

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad, _):  # type: ignore[no-untyped-def]
        x, matrix, slope = saved
        return kernels.surprised(grad, x, matrix, slope, slopes_of)
