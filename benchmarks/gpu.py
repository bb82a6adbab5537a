"""Measure training steps, dynamic convolution and forward passes at base size on a CUDA device, beside transformers.

    python -m benchmarks.gpu [--rounds 7] [--times 1 8] [--models NAME ...] [--parts NAME ...]
    python -m benchmarks.gpu --device cpu --small        the same at toy size: says that it runs, not how fast it is

A step is all of it, as in benchmarks/speed.py: forward, backward, clipping, AdamW; replaced-token detection in 32 x 128 tokens,
BERT's masked language modelling in 8 x 512; bf16 autocast, dropout 0.1.  `--times` makes a batch so many times larger: a base
model does not fill a large device with 4,096 tokens.  Layerwright's side is `train`, as its users run it, and the same with a
compiled objective; transformers' runs eager and compiled.

Both sides must first compute the same (benchmarks/peers.py); so must the ways to convolve and the forward passes, compiled ones
included.  Sides take turns in one process, another first each round; a time ends when the device has done its work.  A ratio is
the median over the rounds of the ratio in a round.  The peak is that of bf16 matrix products in the same rounds.  Memory is what
a side holds and the most that a step adds to it.  Leaves results/gpu.json, written after each row.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.layers import shifted, unfolded
from benchmarks.peers import (
    RATE,
    SPECIAL,
    WEIGHT,
    MaskedPeer,
    Peer,
    compare,
    compare_first,
    copy_masked_weights,
    copy_weights,
    random_batch,
)
from benchmarks.speed import PLAN, RESULTS, machine
from layerwright import cost, presets
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.dynamic_convolution import expression
from layerwright.layers import Context, convolution
from layerwright.objectives import MaskedLM, ReplacedTokenDetection
from layerwright.settings import write_atomically
from layerwright.train import make_optimizer, train

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
PARTS = ("convolution", "forward", "training")
WARM = 3  # turns that do not count

Step = Callable[[], Any]


class Work(NamedTuple):
    """A model to train: its generator, None under masked language modelling; and whose classes its peer has, None without one."""

    arch: Architecture
    generator: Architecture | None
    family: str | None
    rows: int
    length: int


class Place(NamedTuple):
    """Where and at what size to measure.  repeats: of what takes microseconds, in one turn."""

    device: torch.device
    small: bool
    rounds: int
    repeats: int

    def compiled(self, what: Any) -> Any:
        """Compile a module or a function; at toy size no code is made of it, which takes minutes."""
        return torch.compile(what, backend="aot_eager" if self.small else "inductor")

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def held(self) -> float:
        """Return the MiB that tensors take now; NaN where nobody counts them."""
        return torch.cuda.memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else float("nan")

    def most(self, step: Step) -> float:
        """Run a step and return the MiB that it adds at its peak."""
        before = self.held()
        if self.device.type != "cuda":
            step()
            return before
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        return torch.cuda.max_memory_allocated(self.device) / 2**20 - before


class Side(NamedTuple):
    """One of those that take turns: what it does in a turn, and the MiB it holds between turns."""

    step: Step
    holds: float


def works(small: bool) -> dict[str, Work]:
    """Return the models by name; small ones have two or three layers."""
    if small:
        texts = {
            "electra-base": "attn ffn",
            "convbert-base": "mixed ffn",
            "lv-bert-base": "conv attn ffn",
            "bert-base": "attn ffn",
        }
        archs = {
            name: Architecture.parse(f"256 embed={256 if name == 'bert-base' else 64}: {text}") for name, text in texts.items()
        }
        narrow, shape, longer = 1 / 2, (4, 32), (2, 64)
    else:
        layers = " ".join(map(str, presets.architecture("lv-bert-small").layers))
        archs = {name: presets.architecture(name) for name in ("electra-base", "convbert-base")}
        archs |= {"lv-bert-base": Architecture.parse(f"768: {layers}"), "bert-base": presets.architecture("bert-base")}
        narrow, shape, longer = 1 / 3, (32, 128), (8, 512)
    return {
        "electra-base": Work(archs["electra-base"], archs["electra-base"].narrow(narrow), "electra-small", *shape),
        "convbert-base": Work(archs["convbert-base"], archs["convbert-base"].narrow(narrow), "convbert-small", *shape),
        "lv-bert-base": Work(archs["lv-bert-base"], archs["electra-base"].narrow(narrow), None, *shape),
        "bert-base": Work(archs["bert-base"], None, "bert-base", *longer),
    }


def our_objective(work: Work, dropout: float) -> MaskedLM | ReplacedTokenDetection:
    """Build our side."""
    net = Backbone(work.arch, dropout)
    if work.generator is None:
        return MaskedLM(net, SPECIAL, rate=RATE)
    generator = MaskedLM(Backbone(work.generator, dropout), SPECIAL, rate=RATE, masked=0.85, random=0.0)
    return ReplacedTokenDetection(net, generator, WEIGHT)


def their_objective(work: Work, dropout: float) -> nn.Module:
    """Build the peer."""
    assert work.family is not None
    if work.generator is None:
        return MaskedPeer(dropout, work.arch)
    return Peer(work.family, dropout, work.arch, work.generator)


def step_flops(work: Work) -> float:
    """Count the operations of a training step: three times those of the forward pass."""
    chosen, heads, predicts = round(RATE * work.length), 0, work.arch
    forward = cost.flops(work.arch, work.length)
    if work.generator is not None:
        predicts, heads = work.generator, work.length * work.arch.width**2
        forward += cost.flops(work.generator, work.length)
    heads += chosen * predicts.embed * (predicts.vocab + predicts.width)
    return 3.0 * work.rows * (forward + 2 * heads)


def our_step(work: Work, place: Place, compiled: bool) -> Step:
    """Return what takes a step of ours and returns the loss."""
    torch.manual_seed(0)
    ours = our_objective(work, 0.1).to(place.device)
    stream = cycle([random_batch(seed, work.rows, work.length) for seed in range(4)])
    accelerator = Accelerator(cpu=place.device.type == "cpu", mixed_precision="no")
    model = place.compiled(ours) if compiled else ours
    reports = train(model, stream, PLAN, make_optimizer(ours, PLAN), accelerator=accelerator)
    return lambda: next(reports).loss


def their_step(work: Work, place: Place, compiled: bool) -> Step:
    """Return what takes a step of the peer and returns the loss."""
    torch.manual_seed(0)
    peer = their_objective(work, 0.1).to(place.device).train()
    stream = cycle([random_batch(seed, work.rows, work.length) for seed in range(4)])
    run, optimizer = place.compiled(peer) if compiled else peer, make_optimizer(peer, PLAN)

    def step() -> float:
        batch = next(stream).to(place.device)
        with torch.autocast(place.device.type, torch.bfloat16):
            loss = run(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), PLAN.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def training(name: str, work: Work, place: Place) -> dict[str, Any]:
    """Check and measure the training steps of a model.

    Raises:
        SystemExit: the sides compute different things.
    """
    parity = {}
    makers = {"layerwright": partial(our_step, compiled=False), "layerwright, compiled": partial(our_step, compiled=True)}
    if work.family is not None:
        sides = (build(work, 0.0).to(place.device) for build in (our_objective, their_objective))
        parity = compare(name, *sides, random_batch(0, min(work.rows, 8), work.length).to(place.device))
        makers |= {
            "transformers": partial(their_step, compiled=False),
            "transformers, compiled": partial(their_step, compiled=True),
        }
    sides = {side: built(partial(make, work, place), place) for side, make in makers.items()}
    losses = {side: step() for side, (step, _) in sides.items()}
    compare_first(name, losses)
    found = measure(sides, place, work=work.rows * work.length, flops=step_flops(work))
    return {"rows": work.rows, "length": work.length, "architecture": str(work.arch), "parity": parity, **found}


def forward(work: Work, place: Place, precision: torch.dtype) -> dict[str, Any]:
    """Check and measure the states of a batch, without gradients.

    Raises:
        SystemExit: a side computes something else.
    """
    torch.manual_seed(0)
    ours, peer = (build(work, 0.0).to(place.device).eval() for build in (our_objective, their_objective))
    (copy_masked_weights if work.generator is None else copy_weights)(ours, peer)
    theirs = peer.model.bert if work.generator is None else peer.discriminator
    batch = random_batch(0, 2 * work.rows, work.length).to(place.device)

    def our_run(net: nn.Module) -> Callable[[], Tensor]:
        return lambda: net(batch.ids, None, batch.segments)

    def their_run(net: nn.Module) -> Callable[[], Tensor]:
        return lambda: net(batch.ids, token_type_ids=batch.segments).last_hidden_state

    runs = {"layerwright": our_run(ours.backbone), "layerwright, compiled": our_run(place.compiled(ours.backbone))}
    runs |= {"transformers": their_run(theirs), "transformers, compiled": their_run(place.compiled(theirs))}

    @torch.no_grad()
    def states(run: Callable[[], Tensor]) -> Tensor:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            return run()

    nets = {side: theirs if side.startswith("transformers") else ours.backbone for side in runs}
    sides = {side: Side(partial(states, run), _taken(nets[side], place)) for side, run in runs.items()}
    agree({side: [step()] for side, (step, _) in sides.items()}, TOLERANCE[precision])
    rows = len(batch.ids)
    return measure(sides, place, work=rows * work.length, flops=rows * cost.flops(work.arch, work.length))


def _taken(net: nn.Module, place: Place) -> float:
    """Return the MiB that the weights of a model take on a device; NaN where nobody counts what else is taken."""
    bytes_taken = sum(weight.nbytes for weight in (*net.parameters(), *net.buffers()))
    return bytes_taken / 2**20 if place.device.type == "cuda" else float("nan")


def convolutions(shape: tuple[int, int, int, int, int], place: Place, precision: torch.dtype) -> dict[str, Any]:
    """Check and measure ways to convolve dynamically, forward and backward.  shape: rows, length, heads, channels, taps.

    Raises:
        SystemExit: a way computes something else.
    """
    torch.manual_seed(0)
    rows, length, heads, size, taps = shape
    x, logits = (torch.randn(rows, length, *rest, device=place.device) for rest in ((heads * size,), (heads, taps)))
    x, logits = x.to(precision).requires_grad_(), logits.to(precision).requires_grad_()
    slope, quick = torch.randn_like(x), place.compiled(partial(expression, near=None))
    ways = {"layerwright": lambda x, logits: convolution.convolve(x, logits, Context())}
    ways |= {"shifted": shifted, "shifted, compiled": quick, "unfold": unfolded}

    def both(way: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        y = way(x, logits)
        return [y.detach(), *torch.autograd.grad(y, [x, logits], slope)]

    sides = {name: Side(partial(both, way), place.held()) for name, way in ways.items()}
    agree({name: step() for name, (step, _) in sides.items()}, TOLERANCE[precision])
    return measure(sides, place, work=rows * length, repeats=place.repeats)


def agree(found: dict[str, list[Tensor]], tolerance: float) -> None:
    """Hold all against the first.

    Raises:
        SystemExit: one differs.
    """
    (first, expected), *others = found.items()
    for name, values in others:
        for value, wanted in zip(values, expected, strict=True):
            gap = ((value.float() - wanted.float()).norm() / wanted.float().norm()).item()
            if not gap < tolerance:
                raise SystemExit(f"{name} differs from {first} by {gap:.2g} of the norm, in {wanted.dtype}")


def built(make: Callable[[], Step], place: Place) -> Side:
    """Build a side and see what it holds: weights, and the state of the optimizer."""
    before = place.held()
    return Side(make(), place.held() - before)


def clock(step: Step, place: Place, repeats: int = 1) -> float:
    """Return the seconds that a step takes until the device is done."""
    place.wait()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    place.wait()
    return (time.perf_counter() - began) / repeats


def measure(sides: dict[str, Side], place: Place, *, work: int, flops: float | None = None, repeats: int = 1) -> dict[str, Any]:
    """Let the sides take turns, and a product of matrices with them.  work: the tokens of a turn; flops: its operations."""
    size = 256 if place.small else 8192
    a = torch.randn(size, size, dtype=torch.bfloat16, device=place.device)
    peaks, products = {}, []
    for name, (step, holds) in sides.items():
        for _ in range(WARM):
            step()
        peaks[name] = holds + place.most(step)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(place.rounds):
        products.append(2 * size**3 / clock(lambda: a @ a, place, place.repeats))
        for name in [*sides, *sides][turn % len(sides) :][: len(sides)]:
            seconds[name].append(clock(sides[name].step, place, repeats))
    peak, first, table = statistics.median(products), next(iter(seconds.values())), {}
    for name, times in seconds.items():
        middle = statistics.median(times)
        ratios = [theirs / ours for theirs, ours in zip(times, first, strict=True)]
        table[name] = {
            "seconds": middle,
            "range": [min(times), max(times)],
            "tokens_per_second": work / middle,
            "time_over_ours": statistics.median(ratios),
            "time_over_ours_range": [min(ratios), max(ratios)],
            "share_of_matrix_peak": None if flops is None else flops / middle / peak,
            "peak_mib": peaks[name] if place.device.type == "cuda" else None,
        }
        show(name, table[name])
    return {"matrix_flops": peak, "matrix_range": [min(products), max(products)], "table": table}


def show(name: str, row: dict[str, Any]) -> None:
    """Print a line of the table."""
    spread = "{:.2f}-{:.2f}".format(*(1000 * value for value in row["range"]))
    ratio = "{:.2f} ({:.2f}-{:.2f})".format(row["time_over_ours"], *row["time_over_ours_range"])
    share, mib = row["share_of_matrix_peak"], row["peak_mib"]
    print(f"  {name:24}{1000 * row['seconds']:9.2f}{spread:>18}{row['tokens_per_second']:12.0f}{ratio:>20}", end="")
    print(f"{'' if share is None else f'{share:.1%}':>9}{'' if mib is None else f'{mib:.0f}':>10}", flush=True)


def headline(text: str) -> None:
    """Print what the next lines are of, and let go of what the last ones needed."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"{text:26}{'ms':>9}{'range':>18}{'tokens/s':>12}{'time / ours':>20}{'of peak':>9}{'MiB':>10}", flush=True)


def measure_all(
    place: Place, models: Sequence[str], times: Sequence[int], parts: Sequence[str], keep: Callable[[str, str, Any], None]
) -> None:
    """Measure these parts, and hand over each result as it comes."""
    known = works(place.small)
    shapes = (
        [(2, 16, 2, 8, 3)]
        if place.small
        else [(32, 128, 4, 64, 9), (32, 128, 12, 64, 9), (8, 512, 12, 64, 9), (1, 4096, 12, 64, 9)]
    )

    def part(kind: str, name: str, measure: Callable[[], Any]) -> None:
        headline(name)
        try:
            keep(kind, name, measure())
        except SystemExit as error:  # two sides differ: that row is none, and the others are
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            keep(kind, name, {"failed": str(error)})

    with_peers = [model for model in models if known[model].family is not None]
    for precision in (torch.float32, torch.bfloat16):
        said = str(precision)[6:]
        if "convolution" in parts:
            for shape in shapes:
                name = "{} x {}, {} heads of {}, kernel {}".format(*shape) + f", {said}"
                part("convolution", name, partial(convolutions, shape, place, precision))
        if "forward" in parts:
            for model in with_peers:
                part("forward", f"{model}, {said}", partial(forward, known[model], place, precision))
    if "training" in parts:
        for model, factor in product(models, times):
            work = known[model]._replace(rows=factor * known[model].rows)
            part("training", f"{model}, {work.rows} x {work.length}", partial(training, model, work, place))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print and write; return 2 where there is no such device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes: to see that all of it runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 8], help="how many times larger than the usual a batch is")
    parser.add_argument("--models", nargs="+", choices=list(works(False)), default=list(works(False)))
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; what was measured before stays"
    )
    parser.add_argument("--out", type=Path, help="results/gpu.json, but for toys and CPUs")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no CUDA device here; --device cpu --small runs the same at toy size", file=sys.stderr)
        return 2
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, on both sides
    place = Place(device, asked.small, asked.rounds, 20 if device.type == "cuda" else 1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    out = asked.out or (RESULTS / "gpu.json" if device.type == "cuda" and not asked.small else None)
    result: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    result["machine"] = machine() | {"device": name, "cuda": torch.version.cuda}
    for kind in asked.parts:
        result.setdefault(kind, {})
    failed = []

    def keep(kind: str, name: str, found: Any) -> None:
        """Write what is known so far: a run may be cut short, and taken up with the parts that are missing."""
        result[kind][name] = found
        if "failed" in found:
            failed.append(name)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, json.dumps(result, indent=1) + "\n")

    measure_all(place, asked.models, asked.times, asked.parts, keep)
    if out is not None:
        print(f"written to {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
