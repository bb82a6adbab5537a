"""The convolutions of `fused`, and all of LV-BERT's convolution and of ConvBERT's mixed attention as one function each.

Composed of smaller ones, they would spend as much time between them as in some: gradients of what several read are added up,
parts are laid side by side, and each is a call from Python.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from . import kernels
from .fused import Drops, as_rows, even, lean, linear, look, looked, looking, project, ready, slopes_of, stacked, straight
from .kernels import run
from .native import call


class Maps(NamedTuple):
    """The maps of a layer that convolves: linear ones in the order in which they are taken, and the one of each channel.

    LV-BERT's are of value and gate, of the span, of the kernels and of what comes out; those of mixed attention are of query,
    key and both values, and then the same.
    """

    linear: tuple[nn.Linear, ...]
    depthwise: nn.Conv1d


def convolve(x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    """Mix each token's K neighbours by its own softmax weights: x [B, L, H*E], logits [B, L, H, K] -> [B, L, H*E].

    near: bool [B, L, K], which neighbours count.
    """
    if not ready(x):
        return kernels.convolve(x, logits, near)
    return torch.as_tensor(run(_Convolve, even(x), logits.to(x.dtype).contiguous(), counting(near, x)))


def depthwise(x: Tensor, weight: Tensor, near: Tensor | None) -> Tensor:
    """Convolve each channel with its own kernel: x [B, L, D], weight [D, 1, K] -> [B, L, D].

    near: bool [B, L, K], which neighbours count; only where a tensor is `ready`.
    """
    if not ready(x):
        return kernels.depthwise(x, weight)
    return torch.as_tensor(run(_Depthwise, x.contiguous(), weight, counting(near, x)))


def counting(near: Tensor | None, x: Tensor) -> Tensor | None:
    """Return which neighbours count, bool [B or 1, L, K], of each row of x [B, L, D], in one piece."""
    return None if near is None else near.expand(len(x), -1, -1).contiguous()


def shares(x: Tensor, logits: Tensor) -> Tensor:
    """Return the softmax over taps of logits [B, L, H, K] of the precision of x, in float32."""
    weights = logits.new_empty(logits.shape, dtype=torch.float32)
    call("softmax_of_taps", x, logits, weights, weights[..., 0].numel(), weights.shape[-1])
    return weights


def slide(x: Tensor, logits: Tensor, near: Tensor | None, to: Tensor) -> Tensor:
    """Convolve by softmax weights, write what comes out [B, L, H*E] into a tensor, and return the weights [B, L, H, K]."""
    weights = shares(x, logits)
    call("convolve", x, x, weights, near, to, *_sizes(x, weights), x.stride(1), to.stride(1))
    return weights


def slid(grad: Tensor, x: Tensor, weights: Tensor, near: Tensor | None, to: Tensor) -> Tensor:
    """Write the slope of x into a tensor, given that of what came out, and return the slope of the logits."""
    dlogits, steps = weights.new_empty(weights.shape, dtype=x.dtype), (grad.stride(1), x.stride(1), to.stride(1))
    call("convolve_backward", x, grad, x, weights, near, to, dlogits, *_sizes(x, weights), *steps)
    return dlogits


@lean
class _Convolve(Function):
    @staticmethod
    def forward(ctx, x, logits, near):  # type: ignore[no-untyped-def]
        y = x.new_empty(x.shape)
        ctx.save_for_backward(x, slide(x, logits, near, y), near)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        x, weights, near = saved
        dx = x.new_empty(x.shape)
        return dx, slid(straight(grad), x, weights, near, dx), None


def _sizes(x: Tensor, weights: Tensor) -> tuple[int, ...]:
    rows, length, heads, kernel = weights.shape
    return rows, length, heads, x.shape[-1] // heads, kernel


def separate(x: Tensor, weight: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolve each channel of x, in one piece; return what comes out, and the taps [K, D]."""
    taps, y = weight.detach()[:, 0].t().float().contiguous(), torch.empty_like(x)
    call("depthwise", x, x, taps, near, y, *x.shape, len(taps))
    return y, taps


def separated(grad: Tensor, x: Tensor, taps: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the slopes of x and of the weight, given that of what came out, in one piece."""
    dx, dtaps = torch.empty_like(x), torch.empty_like(taps)
    call("depthwise_backward", x, grad, x, taps, near, dx, dtaps, *x.shape, len(taps))
    return dx, dtaps.t()[:, None]


@lean
class _Depthwise(Function):
    @staticmethod
    def forward(ctx, x, weight, near):  # type: ignore[no-untyped-def]
        y, taps = separate(x, weight, near)
        ctx.save_for_backward(x, taps, near)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        x, taps, near = saved
        return *separated(grad.contiguous(), x, taps, near), None


def chain(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Send x [B, L, D] through two linear maps, one after the other; as the one they come to, where that is less to do."""
    x = kernels.lower(x)
    if not ready(x, first, second) or x.numel() <= x.shape[-1] * len(second.weight):
        return project(project(x, first)[0], second)[0]
    return torch.as_tensor(run(_Chain, x, first.weight, first.bias, second.weight, second.bias))


@lean
class _Chain(Function):
    @staticmethod
    def forward(ctx, x, *parameters):  # type: ignore[no-untyped-def]
        rows, (weight, bias) = x.reshape(-1, x.shape[-1]), composed(parameters, x.dtype)
        ctx.save_for_backward(rows, weight, *parameters[:3])
        ctx.shape = x.shape
        return linear(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        rows, weight, *parameters = saved
        grad, wanted = as_rows(grad), ctx.needs_input_grad
        dx = linear(grad, weight.t()).view(ctx.shape) if wanted[0] else None
        return dx, *(taken_apart(*slopes_of(grad, rows), parameters) if any(wanted[1:]) else (None,) * 4)


def composed(parameters: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the linear map that two come to, given those of both."""
    first, first_bias, second, second_bias = (each.detach().float() for each in parameters)
    with torch.autocast("cpu", enabled=False):
        weight, bias = torch.mm(second, first), torch.addmv(second_bias, second, first_bias)
    return weight.to(dtype), bias.to(dtype)


def taken_apart(dweight: Tensor, dbias: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the slopes of weights and biases of two maps, given those of the one that they come to.

    parameters: weight and bias of the first, weight of the second.
    """
    first, first_bias, second, dweight, dbias = (each.detach().float() for each in (*parameters, dweight, dbias))
    with torch.autocast("cpu", enabled=False):
        dsecond = torch.addr(torch.mm(dweight, first.t()), dbias, first_bias)
        return torch.mm(second.t(), dweight), torch.mv(second.t(), dbias), dsecond, dbias


def gated(x: Tensor, maps: Maps, *, heads: int, near: Tensor | None) -> Tensor | None:
    """Return what LV-BERT's convolution makes of x [B, L, D], or None where it has to be composed.

    near: bool [B, L, K].
    """
    x = kernels.lower(x)
    if not ready(x, *maps.linear):
        return None
    return torch.as_tensor(run(_Gated, straight(x), heads, counting(near, x), maps.depthwise.weight, *_parameters(maps)))


def _parameters(maps: Maps) -> list[Tensor]:
    return [getattr(one, name) for one in maps.linear for name in ("weight", "bias")]


@lean
class _Gated(Function):
    @staticmethod
    def forward(ctx, x, heads, near, depthwise, *parameters):  # type: ignore[no-untyped-def]
        weights, biases, (rows, length, width) = parameters[::2], parameters[1::2], x.shape
        (narrow, bias), out = composed(parameters[4:8], x.dtype), weights[4].detach().to(x.dtype)
        whole = stacked(weights[:2], x.dtype)
        two = linear(x.view(-1, width), whole, stacked(biases[:2], x.dtype))
        u, convolved = torch.empty_like(x), torch.empty_like(x)
        call("gate", x, two, u, len(two), width)
        span, taps = separate(u, depthwise, near)
        logits = linear(span.view(-1, width), narrow, bias).view(rows, length, heads, -1)
        kernel = slide(u, logits, near, convolved)
        ctx.save_for_backward(x, whole, two, u, span, taps, narrow, kernel, convolved, out, near, *parameters[4:7])
        return linear(convolved.view(-1, width), out, biases[4].to(x.dtype)).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        x, whole, two, u, span, taps, narrow, kernel, convolved, out, near, *chained = saved
        width, grad, du = x.shape[-1], as_rows(grad), torch.empty_like(x)
        dlogits = slid(linear(grad, out.t()).view(x.shape), u, kernel, near, du).view(len(grad), -1)
        more, ddepthwise = separated(linear(dlogits, narrow.t()).view(x.shape), u, taps, near)
        slopes = torch.empty_like(two)
        call("gate_backward", x, two, du, more, slopes, len(two), width)
        dx = linear(slopes, whole.t()).view(x.shape)
        *found, dnarrow, dbias, dout, dout_bias = _slopes([(slopes, x), (dlogits, span), (grad, convolved)], width)
        return dx, None, None, ddepthwise, *found, *taken_apart(dnarrow, dbias, chained), dout, dout_bias


def _slopes(pairs: Sequence[tuple[Tensor, Tensor]], size: int) -> list[Tensor]:
    """Return the slopes of weight and bias of each map, given those of what came out and what went in; the first are several."""
    whole, *others = (slopes_of(slope, states.flatten(0, -2)) for slope, states in pairs)
    parts = zip(*(slopes.split(size) for slopes in whole), strict=True)
    return [one for pair in (*parts, *others) for one in pair]


def mixed(x: Tensor, maps: Maps, *, heads: int, visible: Tensor | None, near: Tensor | None, p: float) -> Tensor | None:
    """Return what mixed attention makes of x [B, L, D], or None where it has to be composed.

    visible: bool, as `fused.attend` takes it; near: bool [B, L, K]; p: dropout of the weights of attention.
    """
    x = kernels.lower(x)
    level = looking(x, x.shape[1], visible, p)
    if level is None or not ready(x, *maps.linear):
        return None
    given = x.contiguous(), heads, visible, counting(near, x), level
    return torch.as_tensor(run(_Mixed, *given, maps.depthwise.weight, *_parameters(maps)))


@lean
class _Mixed(Function):
    @staticmethod
    def forward(ctx, x, heads, visible, near, level, depthwise, *parameters):  # type: ignore[no-untyped-def]
        weights, biases, (rows, length) = parameters[::2], parameters[1::2], x.shape[:2]
        flat, size = x.view(rows * length, -1), len(weights[0])
        pointwise, narrow, out = (weight.detach().to(x.dtype) for weight in weights[4:])
        whole = stacked(weights[:4], x.dtype)
        four = linear(flat, whole, stacked(biases[:4], x.dtype)).view(rows, length, 4 * size)
        query, key, value, own = four.split(size, -1)
        span, taps = separate(x, depthwise, near)
        span_key = linear(span.view_as(flat), pointwise, biases[4].to(x.dtype))
        product = torch.empty_like(span_key)
        call("times", x, query, span_key, product, *span_key.shape, query.stride(1))
        logits = linear(product, narrow, biases[5].to(x.dtype)).view(rows, length, heads, -1)
        both, ctx.drops = x.new_empty(rows, length, 2 * size), Drops.of(level)
        attended, convolved = both.split(size, -1)
        nats = look(query, key, value, attended, heads=heads, visible=visible, drops=ctx.drops)
        kernel = slide(own, logits, near, convolved)
        ctx.save_for_backward(
            x, whole, four, span, taps, pointwise, span_key, product, narrow, nats, kernel, both, out, near, visible
        )
        ctx.heads = heads
        return linear(both.view(rows * length, -1), out, biases[6].to(x.dtype)).view(rows, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad):  # type: ignore[no-untyped-def]
        x, whole, four, span, taps, pointwise, span_key, product, narrow, nats, kernel, both, out, near, visible = saved
        size, count = span_key.shape[1], len(span_key)
        grad, slopes = as_rows(grad), torch.empty_like(four)
        query, key, value, own = four.split(size, -1)
        dboth = linear(grad, out.t()).view(both.shape)
        dattended, dconvolved = dboth.split(size, -1)
        inputs, places = (query, key, value), slopes.split(size, -1)[:3]
        looked(dattended, inputs, (both[..., :size], nats), places, heads=ctx.heads, visible=visible, drops=ctx.drops)
        dlogits = slid(dconvolved, own, kernel, near, slopes[..., 3 * size :]).view(count, -1)
        dproduct = linear(dlogits, narrow.t())
        flat, dspan_key = slopes.view(count, -1), torch.empty_like(span_key)
        call("times_backward", x, dproduct, query, span_key, slopes, dspan_key, count, size, query.stride(1))
        dspan = linear(dspan_key, pointwise.t()).view(x.shape)
        dx, ddepthwise = separated(dspan, x, taps, near)
        dx = torch.addmm(dx.view(count, -1), flat, whole).view(x.shape)
        found = _slopes([(flat, x), (dspan_key, span), (dlogits, product), (grad, both)], size)
        return dx, None, None, None, None, ddepthwise, *found
