"""Measure dynamic convolution beside other ways to compute it, and what layers cost as rows get longer and stacks deeper.

    python -m benchmarks.layers [--rounds 7] [--threads 2] [--longest 4096]

Convolution: forward and backward for 32 x 128 tokens, width 256, 4 heads, kernel 9.  The others are `unfold` and a product, as in
transformers' ConvBERT, and a sum of shifted rows, as in fairseq's and our plain form; all give the same, gradients included.

Growth: forward and backward of a layer with its residual and norm at width 256, in rows of 128 to 4,096 tokens, 4,096 tokens at
a time; and of stacks of 2 to 24 layers, in rows of 128.  bf16 autocast, dropout 0.1.  Sides take turns.
Leaves results/layers.json and the picture results/layers.html.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import RESULTS, machine
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone, run
from layerwright.drawings import Axis, Chart
from layerwright.kernels import plain
from layerwright.layers import Context, convolution
from layerwright.memory import keep_memory
from layerwright.page import compact, figure, legend, page, section

WIDTH, HEADS, KERNEL, TOKENS = 256, 4, 9, 4096
KINDS = {"attn": "attn", "conv": "conv", "mixed": "mixed"}
DEPTHS = (2, 6, 12, 24)
COLOURS = ("search", "sandwich", "held")

Step = Callable[[], None]


def unfolded(x: Tensor, logits: Tensor) -> Tensor:
    """Mix neighbours as transformers' ConvBERT does: every token's neighbours side by side, then one product."""
    rows, length, heads, kernel = logits.shape
    side_by_side = F.unfold(x.transpose(1, 2)[..., None], (kernel, 1), padding=(kernel // 2, 0)).transpose(1, 2)
    near = side_by_side.reshape(rows * length * heads, -1, kernel)
    return torch.matmul(near, logits.softmax(-1).view(-1, kernel, 1)).view(rows, length, -1)


def shifted(x: Tensor, logits: Tensor) -> Tensor:
    """Mix neighbours by adding up shifted rows."""
    with plain():
        return convolution.convolve(x, logits, Context())


def convolutions(precision: torch.dtype) -> dict[str, Step]:
    """Return every way, after they were found to agree.

    Raises:
        SystemExit: one differs.
    """
    torch.manual_seed(0)
    x = torch.randn(TOKENS // 128, 128, WIDTH).to(precision).requires_grad_()
    logits = torch.randn(TOKENS // 128, 128, HEADS, KERNEL).to(precision).requires_grad_()
    slope = torch.randn(x.shape).to(precision)
    ways = {"layerwright": lambda x, logits: convolution.convolve(x, logits, Context()), "shifted": shifted, "unfold": unfolded}

    def both(way: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        y = way(x, logits)
        return [y, *torch.autograd.grad(y, [x, logits], slope)]

    found = {name: both(way) for name, way in ways.items()}
    for name, values in found.items():
        for value, expected in zip(values, found["unfold"], strict=True):
            gap = ((value - expected).float().norm() / expected.float().norm()).item()
            if not gap < (1e-5 if precision == torch.float32 else 2e-2):
                raise SystemExit(f"{name} differs by {gap:.2g} of the norm in {precision}")
    return {name: lambda way=way: both(way) for name, way in ways.items()}  # type: ignore[misc]


def stack(text: str, length: int) -> Step:
    """Return a forward and backward pass through the layers of an architecture, embeddings left out."""
    torch.manual_seed(0)
    net = Backbone(Architecture.parse(f"{WIDTH} positions={length}: {text}"))
    x = torch.randn(TOKENS // length, length, WIDTH).requires_grad_()
    slope = torch.randn(x.shape)
    weights = list(net.layers.parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = run(net.layers, net.norm, x, Context(dropout=0.1))
        torch.autograd.grad(y, [x, *weights], slope.to(y.dtype), allow_unused=True)

    return step


def turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Let steps take turns, each once before they count: seconds by name and round."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median of each, and how much slower than the first it is: median, least and most of the rounds."""
    first, found = next(iter(seconds.values())), {}
    for name, times in seconds.items():
        slower = [time / own for time, own in zip(times, first, strict=True)]
        found[name] = {"seconds": statistics.median(times), "slower_than_ours": statistics.median(slower)}
        found[name]["slower_range"] = [min(slower), max(slower)]
        print(f"  {name:14}{1000 * found[name]['seconds']:8.2f} ms  {found[name]['slower_than_ours']:6.1f} x", flush=True)
    return found


def growth(rounds: int, longest: int) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Return seconds by kind and length, and by kind and depth."""
    lengths = [length for length in (128, 256, 512, 1024, 2048, 4096) if length <= longest]
    by_length: dict[str, dict[int, list[float]]] = {kind: {} for kind in KINDS}
    by_depth: dict[str, dict[int, list[float]]] = {kind: {} for kind in KINDS}
    for length in lengths:
        for kind, times in turns({kind: stack(text, length) for kind, text in KINDS.items()}, rounds).items():
            by_length[kind][length] = times
    for depth in DEPTHS:
        for kind, times in turns({kind: stack(f"{depth}x({text})", 128) for kind, text in KINDS.items()}, rounds).items():
            by_depth[kind][depth] = times
    return {"length": by_length, "depth": by_depth}


def picture(found: dict[str, dict[str, dict[int, list[float]]]]) -> str:
    """Draw tokens a second over the length and over the depth."""
    drawn = []
    for what, label in (("length", "tokens a row"), ("depth", "layers")):
        curves = {
            kind: [(float(size), TOKENS / statistics.median(times)) for size, times in rows.items()]
            for kind, rows in found[what].items()
        }
        points = [point for curve in curves.values() for point in curve]
        chart = Chart(Axis(label, 0, max(x for x, _ in points)), Axis("tokens a second", 0, 1.05 * max(y for _, y in points)))
        marks = [chart.curve(curve, kind, css) for (kind, curve), css in zip(curves.items(), COLOURS, strict=True)]
        marks += [
            chart.dot(point, f"{kind}, {point[0]:,.0f}: {compact(point[1])} tokens a second", css)
            for (kind, curve), css in zip(curves.items(), COLOURS, strict=True)
            for point in curve
        ]
        names = legend([(f"{css} line", kind) for kind, css in zip(curves, COLOURS, strict=True)])
        drawn.append(figure(f"Speed over {what}", chart.draw(marks, f"tokens a second over {label}"), names))
    facts = [f"width {WIDTH}", "forward and backward", "bf16", f"{TOKENS:,} tokens at a time"]
    return page("benchmark", "What layers cost", facts, section("Growth", *drawn))


def main() -> None:
    """Check, measure, print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--longest", type=int, default=4096, help="tokens a row")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_memory()
    result: dict[str, Any] = {"machine": machine() | {"threads": asked.threads}, "convolution": {}}
    for name, precision in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        print(f"dynamic convolution, forward and backward, {name}")
        result["convolution"][name] = ratios(turns(convolutions(precision), asked.rounds))
    result["growth"] = growth(asked.rounds, asked.longest)
    for what, kinds in result["growth"].items():
        print(f"tokens a second, by {what}")
        for kind, rows in kinds.items():
            print(
                f"  {kind:8}" + "".join(f"{size:>7}: {TOKENS / statistics.median(times):8,.0f}" for size, times in rows.items())
            )
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "layers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (asked.out / "layers.html").write_text(picture(result["growth"]), encoding="utf-8")
    print(f"written to {asked.out / 'layers.json'} and layers.html")


if __name__ == "__main__":
    main()
