"""Dynamic convolution forward and backward as Triton kernels: linear in length, nothing unfolded, sums in float32.

Only for tensors of a device that the package triton compiles for; `dynamic_convolution` imports this file when one comes.
A program serves a block of tokens of one row and head.  For the backward pass one float32 a token and head is kept between
its two kernels: the logarithm of what the softmax divides by.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, CHANNELS = 32, 128  # of a program; fewer channels where heads are smaller


def forward(x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    """Mix each token's K neighbours by its own softmax weights: x [B, L, H*E], logits [B, L, H, K] -> [B, L, H*E].

    near: bool [B, L, K], which neighbours count.
    """
    x, logits, near = _even(x), logits.contiguous(), _bytes(near, x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, sizes = _grid(x, logits)
    with torch.cuda.device_of(x):
        _mix[grid](x, logits, near, y, x.stride(0), x.stride(1), *sizes)
    return y


def backward(grad: Tensor, x: Tensor, logits: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the slopes of x and of the logits, given those of the result [B, L, H*E]."""
    grad, x, logits, near = _even(grad), _even(x), logits.contiguous(), _bytes(near, x)
    dx, dlogits = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(logits)
    totals = torch.empty(logits.shape[:3], dtype=torch.float32, device=x.device)
    grid, (length, heads, size, taps, tokens, channels) = _grid(x, logits)
    with torch.cuda.device_of(x):
        strides = grad.stride(0), grad.stride(1), x.stride(0), x.stride(1)
        padded = triton.next_power_of_2(taps)
        _slopes_of_logits[grid[:2]](
            grad, x, logits, near, dlogits, totals, *strides, length, heads, size, taps, padded, tokens, channels
        )
        _mix_back[grid](grad, logits, near, totals, dx, *strides[:2], length, heads, size, taps, tokens, channels)
    return dx, dlogits


def _even(x: Tensor) -> Tensor:
    """Return x with its channels one behind the other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _bytes(near: Tensor | None, x: Tensor) -> Tensor | None:
    return None if near is None else near.expand(len(x), -1, -1).contiguous().view(torch.uint8)


def _grid(x: Tensor, logits: Tensor) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return how many programs, and the sizes that each of them knows."""
    rows, length, heads, taps = logits.shape
    size = x.shape[-1] // heads
    channels = min(CHANNELS, triton.next_power_of_2(size))
    grid = rows * triton.cdiv(length, TOKENS), heads, triton.cdiv(size, channels)
    return grid, (length, heads, size, taps, TOKENS, channels)


@triton.jit
def _mix(
    x, logits, near, y, x_row, x_token, length, heads, size, taps: tl.constexpr, tokens: tl.constexpr, channels: tl.constexpr
):
    blocks = tl.cdiv(length, tokens)
    row, head = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1)
    here = tl.program_id(0) % blocks * tokens + tl.arange(0, tokens)
    channel = tl.program_id(2) * channels + tl.arange(0, channels)
    inside, real = here < length, channel < size
    scores = logits + ((row * length + here) * heads + head) * taps
    most = tl.full((tokens,), float("-inf"), tl.float32)
    for tap in range(taps):
        most = tl.maximum(most, tl.load(scores + tap, mask=inside, other=0.0).to(tl.float32))
    total = tl.zeros((tokens,), tl.float32)
    mixed = tl.zeros((tokens, channels), tl.float32)
    for tap in range(taps):
        weight = tl.exp(tl.load(scores + tap, mask=inside, other=0.0).to(tl.float32) - most)
        total += weight
        there = here + tap - taps // 2
        counts = inside & (there >= 0) & (there < length)
        if near is not None:
            counts &= tl.load(near + (row * length + here) * taps + tap, mask=inside, other=0) != 0
        place = x + row * x_row + there[:, None].to(tl.int64) * x_token + head * size + channel[None, :]
        mixed += weight[:, None] * tl.load(place, mask=counts[:, None] & real[None, :], other=0.0).to(tl.float32)
    place = y + ((row * length + here) * heads + head)[:, None] * size + channel[None, :]
    tl.store(place, (mixed / total[:, None]).to(y.dtype.element_ty), mask=inside[:, None] & real[None, :])


@triton.jit
def _slopes_of_logits(
    grad,
    x,
    logits,
    near,
    dlogits,
    totals,
    grad_row,
    grad_token,
    x_row,
    x_token,
    length,
    heads,
    size,
    taps: tl.constexpr,
    padded: tl.constexpr,
    tokens: tl.constexpr,
    channels: tl.constexpr,
):
    blocks = tl.cdiv(length, tokens)
    row, head = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1)
    here, column = tl.program_id(0) % blocks * tokens + tl.arange(0, tokens), tl.arange(0, padded)
    inside, token = here < length, row * length + here
    known = inside[:, None] & (column < taps)[None, :]
    place = (token * heads + head)[:, None] * taps + column[None, :]
    # Columns past the taps weigh nothing; rows past the length are finite and never stored.
    scores = tl.load(logits + place, mask=known, other=0.0).to(tl.float32)
    scores = tl.where((column < taps)[None, :], scores, float("-inf"))
    most = tl.max(scores, 1)
    total = most + tl.log(tl.sum(tl.exp(scores - most[:, None]), 1))
    slopes = tl.zeros((tokens, padded), tl.float32)
    for first in range(0, size, channels):
        channel = first + tl.arange(0, channels)
        real = (channel < size)[None, :]
        at = head * size + channel[None, :]
        wanted = tl.load(
            grad + row * grad_row + here[:, None].to(tl.int64) * grad_token + at, mask=inside[:, None] & real, other=0.0
        ).to(tl.float32)
        for tap in range(taps):
            there = here + tap - taps // 2
            counts = inside & (there >= 0) & (there < length)
            found = tl.load(
                x + row * x_row + there[:, None].to(tl.int64) * x_token + at, mask=counts[:, None] & real, other=0.0
            ).to(tl.float32)
            slopes += tl.where((column == tap)[None, :], tl.sum(wanted * found, 1)[:, None], 0.0)
    if near is not None:
        slopes *= tl.load(near + token[:, None] * taps + column[None, :], mask=known, other=0).to(tl.float32)
    weights = tl.exp(scores - total[:, None])
    slopes = weights * (slopes - tl.sum(weights * slopes, 1)[:, None])
    tl.store(dlogits + place, slopes.to(dlogits.dtype.element_ty), mask=known)
    tl.store(totals + token * heads + head, total, mask=inside)


@triton.jit
def _mix_back(
    grad,
    logits,
    near,
    totals,
    dx,
    grad_row,
    grad_token,
    length,
    heads,
    size,
    taps: tl.constexpr,
    tokens: tl.constexpr,
    channels: tl.constexpr,
):
    blocks = tl.cdiv(length, tokens)
    row, head = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1)
    here = tl.program_id(0) % blocks * tokens + tl.arange(0, tokens)
    channel = tl.program_id(2) * channels + tl.arange(0, channels)
    inside, real = here < length, channel < size
    mixed = tl.zeros((tokens, channels), tl.float32)
    for tap in range(taps):
        # The token that found this one at its tap.
        there = here - tap + taps // 2
        counts = inside & (there >= 0) & (there < length)
        token = row * length + there
        score = tl.load(logits + (token * heads + head) * taps + tap, mask=counts, other=0.0).to(tl.float32)
        weight = tl.exp(score - tl.load(totals + token * heads + head, mask=counts, other=0.0))
        if near is not None:
            weight *= tl.load(near + token * taps + tap, mask=counts, other=0).to(tl.float32)
        place = grad + row * grad_row + there[:, None].to(tl.int64) * grad_token + head * size + channel[None, :]
        mixed += weight[:, None] * tl.load(place, mask=counts[:, None] & real[None, :], other=0.0).to(tl.float32)
    place = dx + ((row * length + here) * heads + head)[:, None] * size + channel[None, :]
    tl.store(place, mixed.to(dx.dtype.element_ty), mask=inside[:, None] & real[None, :])
