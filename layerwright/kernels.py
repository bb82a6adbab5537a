"""Faster forms of what a training step does most, for eager execution on CPU; elsewhere the plain expressions run.

Each function equals its plain form but for rounding and for which values dropout takes, and keeps less for the backward
pass.  Compiled, exported, under `torch.func`, on other devices, and inside `plain()`, which also allows second derivatives,
nothing here runs.
Measured on 2 cores (Zen 5, torch 2.13), in bf16, for 32 rows of 128 tokens, width 256, 4 heads; LOG.md tells what did not pay:

    noise        random bytes by hashing a counter: 0.24 ms for 2M values, where Bernoulli draws take 9 ms on one core
    attend       products and a softmax, forward and backward: 7 ms; `scaled_dot_product_attention` with dropout: 29 ms
    add_norm     dropout, sum and norm keep three bytes a value, not ten: 1.9 ms, not 6.0
    surprise     output layer, loss and draw for a few rows at a time, in 37 MB and not 220; the logits never exist as a whole
    convolve     products with banded matrices, linear in the length: 2.0 ms; shifted sums: 6.6 ms; `unfold`: 41 ms
    depthwise    channels stay last, so nothing is transposed: 2.9 ms; `conv1d`: 4.5 ms
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.autograd.function import Function, once_differentiable

LEVELS = 256  # steps of a probability: dropout decides by a byte
LONGEST = 1024  # tokens a row whose attention weights may be kept
ROWS = 128  # rows of logits worked on at a time
WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of the size of a number

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain() -> Iterator[None]:
    """Run the plain expressions inside: for second derivatives, and to compare."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def plainly() -> bool:
    """Return whether the plain expressions are wanted: compiled, traced, under `torch.func` and inside `plain`."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return True
    return _plain.get() or torch._C._are_functorch_transforms_active()


def fast(x: Tensor) -> bool:
    """Return whether the forms of this file serve this tensor."""
    return not plainly() and x.device.type == "cpu" and x.element_size() in WHOLE


def bare(module: nn.Module) -> bool:
    """Return whether a linear map or norm with a bias is no more than that: nobody has put anything around it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) in (nn.Linear, nn.LayerNorm) and module.bias is not None and not any(hooks)


def lower(x: Tensor) -> Tensor:
    """Cast to the precision of autocast, once instead of at each linear map that reads x."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if kind != "meta" and torch.is_autocast_enabled(kind) else x


def noise(shape: Size) -> Tensor:
    """Draw uniform bytes, fixed by torch's seed.

    A hash of a counter, as in SplitMix64: unlike a generator's, its words do not wait for one another.
    """
    count = math.prod(shape)
    words = _counter(-(-count // 8)) + torch.randint(-(2**62), 2**62, ())
    for factor in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):
        words = words.bitwise_xor_(words >> 32).mul_(factor)
    return words.view(torch.uint8)[:count].view(shape)


@lru_cache(maxsize=16)
def _counter(size: int) -> Tensor:
    return torch.arange(size).mul_(-0x61C8864680B583EB)


def kept(chance: Tensor, level: int, dtype: torch.dtype) -> Tensor:
    """Return 1 where the bytes say keep and 0 elsewhere, as integers of the size of `dtype`."""
    return torch.ge(chance, level, out=chance.new_empty(chance.shape, dtype=WHOLE[dtype.itemsize]))


def masked(x: Tensor, keep: Tensor) -> Tensor:
    """Return x with zeros where `keep` is 0: a product of bits, quicker than one of numbers or a selection."""
    return torch.mul(x.view(keep.dtype), keep).view(x.dtype)


def dropping(p: float) -> int | None:
    """Return a probability in steps of 1/256, None where only a finer one would do."""
    level = round(LEVELS * p)
    return level if p == 0 or 0 < level < LEVELS else None


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout, with the probability rounded to 1/256 and the scale made to fit."""
    level = dropping(p)
    if level is None or not fast(x):
        return F.dropout(x, p)
    return x if level == 0 else torch.as_tensor(run(_Drop, x.contiguous(), level))


def add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm, p: float) -> Tensor:
    """Return norm(x + dropout(y)): [B, L, D]."""
    level = dropping(p)
    if level is None or not fast(x) or x.shape != y.shape or not bare(norm):
        return torch.as_tensor(norm(x + F.dropout(y, p)))
    wide = x.to(torch.promote_types(x.dtype, norm.weight.dtype))
    return torch.as_tensor(run(_AddNorm, wide, y.contiguous(), norm.weight, norm.bias, norm.eps, level))


def attend(query: Tensor, key: Tensor, value: Tensor, *, heads: int, visible: Tensor | None, p: float) -> Tensor:
    """Return softmax(Q K^T / sqrt(E)) V of each head: three [B, L, H*E] -> [B, L, H*E].

    visible: bool, broadcast to [B, H, L, L], true where a token (third) sees another (fourth).  p: dropout of the weights.
    """
    level = dropping(p)
    # PyTorch's own is as fast in float32 without dropout, twice as fast without gradients, and keeps no L x L weights.
    own = level == 0 and (query.element_size() > 2 or query.shape[1] > LONGEST or not torch.is_grad_enabled())
    if level is None or own or not fast(query):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=p).transpose(1, 2).flatten(-2)
    with torch.autocast("cpu", enabled=False):
        return torch.as_tensor(run(_Attend, query, key, value, heads, visible, level))


def surprise(x: Tensor, matrix: Tensor, bias: Tensor, targets: Tensor, chance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the nats of targets [N] for logits x matrix^T + bias, and a token each: drawn by a uniform number, or the likeliest.

    x: [N, E]; matrix: [V, E]; bias: [V]; chance: [N] or None.
    """
    if fast(x):
        with torch.autocast("cpu", enabled=False):
            nats, tokens = run(_Surprise, x, matrix, bias, targets, chance)
        return nats, tokens
    logits = F.linear(x, matrix, bias).float()
    tokens = logits.argmax(-1) if chance is None else pick(logits.detach().softmax(-1), chance)
    return F.cross_entropy(logits, targets, reduction="none"), tokens


def pick(chances: Tensor, uniform: Tensor, width: int = 256) -> Tensor:
    """Return the index at which the sum of the chances [N, V] passes a uniform number [N]: first the block, then in it."""
    size = chances.shape[-1]
    blocks = size // width
    whole = chances[:, : blocks * width].unflatten(-1, (blocks, width)).sum(-1)
    sums = torch.cat([whole, chances[:, blocks * width :].sum(-1, keepdim=True)], -1)
    below = sums.cumsum(-1)
    wanted = uniform[:, None] * below[:, -1:]
    block = _passes(below, wanted)
    columns = (block * width + torch.arange(width, device=block.device)).clamp(max=size - 1)
    place = _passes(chances.gather(1, columns).cumsum(-1), wanted - (below - sums).gather(1, block))
    return columns.gather(1, place)[:, 0]


def convolve(x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    """Mix each token's K neighbours by its own weights: x [B, L, H*E], logits [B, L, H, K] -> [B, L, H*E].

    near: bool [B, L, K], which neighbours count.
    """
    with torch.autocast("cpu", enabled=False):
        return torch.as_tensor(run(_Convolve, x, logits, near))


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each channel with its own kernel: x [B, L, D], weight [D, 1, K] -> [B, L, D]."""
    wide = torch.promote_types(x.dtype, torch.float32)  # the gradient of the weights is slower in bf16
    with torch.autocast("cpu", enabled=False):
        image, taps = x.to(wide).transpose(1, 2)[:, :, None], weight.to(wide)[:, :, None]
        taps = taps.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(image, taps, padding=(0, weight.shape[-1] // 2), groups=len(weight))
    return y[:, :, 0].transpose(1, 2).to(x.dtype)


class _Unrecorded:
    """What a function keeps where no gradients are wanted: nothing."""

    needs_input_grad = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass

    mark_non_differentiable = save_for_backward


def run(function: type[Function], *inputs: object) -> Any:
    """Call a function that has a gradient of its own; where none is wanted, only what it does forward."""
    return function.apply(*inputs) if torch.is_grad_enabled() else function.forward(_Unrecorded(), *inputs)


class _Drop(Function):
    @staticmethod
    def forward(ctx, x, level):  # type: ignore[no-untyped-def]
        chance = noise(x.shape)
        ctx.save_for_backward(chance)
        ctx.level = level
        return masked(x, kept(chance, level, x.dtype)).mul_(LEVELS / (LEVELS - level))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        keep = kept(ctx.saved_tensors[0], ctx.level, grad.dtype)
        return masked(grad.contiguous(), keep).mul_(LEVELS / (LEVELS - ctx.level)), None


class _AddNorm(Function):
    @staticmethod
    def forward(ctx, x, y, weight, bias, eps, level):  # type: ignore[no-untyped-def]
        chance = None
        if level:
            chance = noise(y.shape)
            y = masked(y, kept(chance, level, y.dtype))
        total = torch.add(x, y, alpha=LEVELS / (LEVELS - level))
        out, mean, scale = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        # Like all else that is kept, in the precision of the layer.
        ctx.save_for_backward(total.to(y.dtype), weight, bias, mean, scale, chance)
        ctx.level, ctx.lower = level, y.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        total, weight, bias, mean, scale, chance = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), total.to(grad.dtype), weight.shape, mean, scale, weight, bias, [True] * 3
        )
        if ctx.level == 0:
            return dx, dx.to(ctx.lower), dweight, dbias, None, None
        dy = torch.mul(dx, LEVELS / (LEVELS - ctx.level), out=dx.new_empty(dx.shape, dtype=ctx.lower))
        return dx, masked(dy, kept(chance, ctx.level, ctx.lower)), dweight, dbias, None, None


class _Attend(Function):
    @staticmethod
    def forward(ctx, query, key, value, heads, visible, level):  # type: ignore[no-untyped-def]
        q, k, v = (rows(x, heads) for x in (query, key, value))
        weights = dropped = _chances(product(q, k.transpose(1, 2), q.shape[-1] ** -0.5), visible, heads)
        chance = None
        if level:
            chance = noise(weights.shape)
            dropped = masked(weights, kept(chance, level, q.dtype))
        ctx.save_for_backward(q, k, v, weights, chance)
        ctx.heads, ctx.level = heads, level
        return merged(product(dropped, v, LEVELS / (LEVELS - level)), heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, weights, chance = ctx.saved_tensors
        small, large = q.shape[-1] ** -0.5, LEVELS / (LEVELS - ctx.level)
        g = rows(grad, ctx.heads)
        dweights, dropped = product(g, v.transpose(1, 2), large), weights
        if ctx.level:
            keep = kept(chance, ctx.level, q.dtype)
            dweights, dropped = masked(dweights, keep), masked(weights, keep)
        dv = product(dropped.transpose(1, 2), g, large)
        dscores = torch._softmax_backward_data(dweights, weights, -1, q.dtype)
        dq, dk = product(dscores, k, small), product(dscores.transpose(1, 2), q, small)
        return *(merged(d, ctx.heads) for d in (dq, dk, dv)), None, None, None


class _Surprise(Function):
    @staticmethod
    def forward(ctx, x, matrix, bias, targets, chance):  # type: ignore[no-untyped-def]
        wide = torch.promote_types(x.dtype, torch.float32)
        nats, tokens = x.new_empty(len(x), dtype=wide), torch.empty_like(targets)
        slope = x.new_empty(len(x), len(matrix)) if any(ctx.needs_input_grad) else None
        for at in range(0, len(x), ROWS):
            here = slice(at, at + ROWS)
            row, target = F.linear(x[here], matrix).to(wide).add_(bias), targets[here, None]
            chances = row.softmax(-1)
            # The likeliest token has the chance 1 / sum(exp(row - row.max)).
            nats[here] = row.amax(-1) - chances.amax(-1).log() - row.gather(1, target)[:, 0]
            tokens[here] = row.argmax(-1) if chance is None else pick(chances, chance[here])
            if slope is not None:
                slope[here] = chances.scatter_add_(1, target, chances.new_full(target.shape, -1))
        ctx.save_for_backward(x, matrix, slope)
        ctx.mark_non_differentiable(tokens)
        return nats, tokens

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        return surprised(grad, *ctx.saved_tensors)


class _Convolve(Function):
    @staticmethod
    def forward(ctx, x, logits, near):  # type: ignore[no-untyped-def]
        length, heads, taps = logits.shape[1:]
        size = max(32, taps - 1)  # of blocks: small, to multiply few zeros
        # The last dimension of a softmax may be long but not short: taps go first.
        chances = logits.permute(3, 0, 2, 1).to(torch.promote_types(x.dtype, torch.float32)).contiguous().softmax(0)
        counted = chances if near is None else chances * near.permute(2, 0, 1)[:, :, None]
        weights = F.pad(counted.to(x.dtype), (0, -length % size)).permute(1, 2, 3, 0).reshape(-1, size, taps)
        padded = F.pad(x, (0, 0, taps // 2, taps // 2 + -length % size)).unflatten(-1, (heads, -1))
        blocks = padded.unfold(1, size + taps - 1, size).permute(0, 2, 1, 4, 3).flatten(0, 2)
        ctx.save_for_backward(chances, near, weights, blocks)
        ctx.heads, ctx.length = heads, length
        y = torch.bmm(_band(weights), blocks).unflatten(0, (len(x), heads, -1)).flatten(2, 3)
        return y[:, :, :length].transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        chances, near, weights, blocks = ctx.saved_tensors
        (rows, length, _), (_, size, taps), heads = grad.shape, weights.shape, ctx.heads
        g = F.pad(grad, (0, 0, 0, -length % size)).unflatten(-1, (heads, -1)).transpose(1, 2).reshape(len(weights), size, -1)
        parts = torch.bmm(_band(weights).transpose(1, 2), g).unflatten(0, (rows, heads, -1)).permute(0, 2, 3, 1, 4)
        count = parts.shape[1]
        dx = g.new_zeros(rows, count + 1, size, *parts.shape[3:])
        dx[:, :count] = parts[:, :, :size]
        dx[:, 1:, : taps - 1] += parts[:, :, size:]
        dweights = _diagonals(torch.bmm(g, blocks.transpose(1, 2)), taps).unflatten(0, (rows, heads, count)).flatten(2, 3)
        dchances = dweights[:, :, :length].permute(3, 0, 1, 2).to(chances.dtype).contiguous()
        if near is not None:
            dchances *= near.permute(2, 0, 1)[:, :, None]
        dlogits = torch._softmax_backward_data(dchances, chances, 0, chances.dtype)
        dx = dx.flatten(1, 2)[:, taps // 2 : taps // 2 + length].flatten(2)
        return dx, dlogits.permute(1, 3, 2, 0).to(grad.dtype), None


def slopes_of(grad: Tensor, x: Tensor, *, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes of weight and bias of a linear map, given those of what came out [N, S] and what went in [N, D].

    shares: [N], what each row counts in that of the bias.
    """
    return grad.t() @ x, shares @ grad


def surprised(
    grad: Tensor, x: Tensor, matrix: Tensor, slope: Tensor, add_up: Callable[..., tuple[Tensor, Tensor]] = slopes_of
) -> tuple[Tensor | None, ...]:
    """Return the gradients behind `surprise`, of whose logits `slope` [N, V] is the one."""
    most = grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny)  # what all rows share is not rounded
    share = (grad / most).to(x.dtype)
    dx, weighed = (slope @ matrix).mul_(grad[:, None]), (x * grad[:, None]).to(x.dtype)
    dmatrix, dbias = add_up(slope, weighed, shares=share)
    return dx, dmatrix, dbias.to(grad.dtype) * most, None, None


def _passes(below: Tensor, wanted: Tensor) -> Tensor:
    """Return where sums [N, M] pass a number [N, 1]: at the last, where rounding put it past that one, or they are none."""
    last = torch.nextafter(below[:, -1:], torch.zeros_like(wanted))
    return torch.searchsorted(below, wanted.minimum(last), right=True).clamp(max=below.shape[1] - 1)


def product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return scale * a b for each of the matrices, the scale at no cost."""
    return torch.baddbmm(a.new_zeros(()), a, b, beta=0, alpha=scale)


def _chances(scores: Tensor, visible: Tensor | None, heads: int) -> Tensor:
    """Softmax of scores [B*H, L, L] over what is visible; zeros where nothing is, as in `scaled_dot_product_attention`."""
    if visible is None:
        return scores.softmax(-1)
    barred = torch.zeros(visible.shape, dtype=scores.dtype).masked_fill_(~visible, torch.finfo(scores.dtype).min)
    scores.unflatten(0, (-1, heads)).add_(barred)
    chances = scores.softmax(-1)
    blind = ~visible.any(-1, keepdim=True)
    if blind.any():
        chances.unflatten(0, (-1, heads)).masked_fill_(blind, 0.0)
    return chances


def rows(x: Tensor, heads: int) -> Tensor:
    """[B, L, H*E] -> [B*H, L, E], in one piece."""
    return torch.flatten(x.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous(), 0, 1)


def merged(x: Tensor, heads: int) -> Tensor:
    """[B*H, L, E] -> [B, L, H*E]."""
    return torch.flatten(x.unflatten(0, (-1, heads)).transpose(1, 2), 2)


def _band(weights: Tensor) -> Tensor:
    """[N, T, K] -> matrices [N, T, T + K - 1] with row t's weights from column t on."""
    count, size, taps = weights.shape
    matrices = weights.new_zeros(count, size, size + taps - 1)
    _diagonals(matrices, taps).copy_(weights)
    return matrices


def _diagonals(matrices: Tensor, taps: int) -> Tensor:
    """Return the view of matrices [N, T, T + K - 1] that `_band` fills: [N, T, K]."""
    count, size, wide = matrices.shape
    return matrices.as_strided((count, size, taps), (size * wide, wide + 1, 1))
