"""Measure training steps of ELECTRA-small, ConvBERT-small and BERT-base against the same models of transformers.

    python -m benchmarks.speed [--rounds 9] [--threads 2]

A step is all of it: forward, backward, clipping, AdamW; 32 x 128 tokens of replaced-token detection, for BERT-base 8 x 512 of
masked language modelling; bf16 autocast, dropout 0.1.
Every side is a process of its own, with its own memory, as its users run it; those of a model take turns, one step each, so
that whatever else the machine does falls on all alike.  The ratio of two sides is the median over the rounds of that in a round.

First both sides must compute the same (benchmarks/peers.py), and the first losses of all sides of a model, compiled ones
included, lie within a tenth of each other: their weights and dropout are drawn anew.  The row "memory kept" gives it our setting
of the C library's allocator as well.  Peak memory is that of the resident set (VmHWM) after the first steps: the peak of
compiling does not count, what it leaves in the process does.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random

import torch
import transformers
from torch import nn

import layerwright
from benchmarks.peers import (
    FAMILIES,
    LENGTH,
    RATE,
    ROWS,
    SHAPES,
    MaskedPeer,
    Peer,
    check_parity,
    compare_first,
    generator_of,
    masked_objective,
    objective,
    random_batch,
)
from layerwright import cost, presets
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.memory import keep_memory, resident, watch_memory
from layerwright.settings import differences, write_atomically
from layerwright.space import Space
from layerwright.supernet import Supernet
from layerwright.train import Plan, make_optimizer, train

Step = Callable[[], tuple[float, float]]
PLAN = Plan(steps=10**9, precision="bf16", rate=1e-4)
RESULTS = Path(__file__).parent / "results"
# What each side runs: a model, and how.  The first of a model is ours, and the others are compared with it.
SIDES = {
    "electra-small": ("electra-small", "ours"),
    "transformers, eager": ("electra-small", "eager"),
    "transformers, compiled": ("electra-small", "compiled"),
    "transformers, eager, memory kept": ("electra-small", "kept"),
    "convbert-small": ("convbert-small", "ours"),
    "transformers' ConvBERT, eager": ("convbert-small", "eager"),
    "transformers' ConvBERT, compiled": ("convbert-small", "compiled"),
    "lv-bert-small": ("lv-bert-small", "ours"),
    "supernet, the path lv-bert-small": ("lv-bert-small", "supernet"),
    "autobert-zero-read-small": ("autobert-zero-read-small", "ours"),
    "bert-base": ("bert-base", "ours"),
    "transformers' BERT, eager": ("bert-base", "eager"),
    "transformers' BERT, compiled": ("bert-base", "compiled"),
}
MODELS = tuple(dict.fromkeys(model for model, _ in SIDES.values()))


def stepper(model: str, how: str) -> Step:
    """Return a function that takes one step of a side, and returns its seconds and its loss."""
    torch.manual_seed(0)
    shape = SHAPES.get(model, (ROWS, LENGTH))
    stream = cycle([random_batch(seed, *shape) for seed in range(4)])
    if how in ("eager", "compiled", "kept"):
        if how == "kept":
            keep_memory()
        peer = Peer(model) if model in FAMILIES else MaskedPeer()
        run = torch.compile(peer) if how == "compiled" else peer
        return partial(_peer_step, run, usual_optimizer(peer), stream)
    if model == "bert-base":
        return train_side(masked_objective(), stream)
    arch = presets.architecture(model)
    net: Backbone | Supernet = Backbone(arch)
    if how == "supernet":
        space = Space.parse("256 embed=128: 24x{conv|attn|ffn}")
        net = Supernet(space)
        # Every other step takes a random path and does not count: as in training, not all is still in the cache.
        paths = (path for number in range(10**9) for path in (space.sample(Random(number)), arch))
        stream = (replace(batch, arch=path) for batch, path in zip(stream, paths, strict=False))
    return train_side(objective(net, model if model in FAMILIES else "electra-small"), stream, skip=int(how == "supernet"))


def usual_optimizer(peer: nn.Module) -> torch.optim.AdamW:
    """Return PyTorch's fused AdamW, as transformers' Trainer takes it, with its moments made already, like ours."""
    ours = make_optimizer(peer, PLAN)
    groups = [{name: group[name] for name in ("params", "weight_decay")} for group in ours.param_groups]
    theirs = torch.optim.AdamW(groups, lr=PLAN.rate, betas=PLAN.betas, eps=PLAN.epsilon, fused=True)
    theirs.state.update(ours.state)
    return theirs


def train_side(ours: nn.Module, stream: Iterable[Batch], skip: int = 0) -> Step:
    """Return a function that takes one step of our side, after so many that do not count."""
    return partial(_our_step, train(ours, stream, PLAN, make_optimizer(ours, PLAN)), skip=skip)


def _our_step(reports, skip: int) -> tuple[float, float]:
    for _ in range(skip):
        next(reports)
    began = time.perf_counter()
    loss = next(reports).loss
    return time.perf_counter() - began, loss


def _peer_step(peer: nn.Module, optimizer: torch.optim.Optimizer, stream) -> tuple[float, float]:
    batch = next(stream)
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = peer(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), PLAN.clip)
    optimizer.step()
    optimizer.zero_grad()
    told = loss.item()
    return time.perf_counter() - began, told


def serve(pipe, model: str, how: str, threads: int) -> None:
    """Send the first loss, take a step for every message and send its seconds, and at the end the peak memory in MiB."""
    torch.set_num_threads(threads)
    step = stepper(model, how)
    _, loss = step()
    for _ in range(2):
        step()
    watch_memory()
    pipe.send(loss)
    while pipe.recv():
        pipe.send(step()[0])
    peak = resident("VmHWM")
    pipe.send(float("nan") if peak is None else peak)


def matrix_product(threads: int, size: int = 2048) -> float:
    """Return FLOP/s of a product of two square bf16 matrices: the most the machine can do."""
    torch.set_num_threads(threads)
    a = torch.randn(size, size, dtype=torch.bfloat16)
    a @ a
    began = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * size**3 / (time.perf_counter() - began)


def step_flops(text: str) -> float:
    """Count the operations of a training step of our objective: three times those of the forward pass."""
    arch = presets.architecture(text)
    rows, length = SHAPES.get(text, (ROWS, LENGTH))
    if text == "bert-base":
        return 3 * rows * (cost.flops(arch, length) + 2 * round(RATE * length) * arch.embed * (arch.vocab + arch.width))
    small = generator_of(text if text in FAMILIES else "electra-small")
    chosen = round(RATE * LENGTH)
    heads = LENGTH * arch.width**2 + chosen * small.embed * (small.vocab + small.width)
    return 3 * ROWS * (cost.flops(arch, LENGTH) + cost.flops(small, LENGTH) + 2 * heads)


def measure(sides: dict[str, tuple[str, str]], rounds: int, threads: int) -> dict:
    """Let the sides of a model take turns: seconds by side and round, peaks by side, matrix products by round."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, losses = {}, [], {}
    for name, side in sides.items():
        pipes[name], end = context.Pipe()
        processes.append(context.Process(target=serve, args=(end, *side, threads), daemon=True))
        processes[-1].start()
        end.close()
        print(f"starting: {name}", flush=True)
        losses[name] = pipes[name].recv()
    compare_first("training steps", {name: loss for name, loss in losses.items() if SIDES[name][1] != "supernet"})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    products = []
    for number in range(rounds):
        products.append(matrix_product(threads))
        # Another first each time: what follows what must not matter.
        for name in [*sides, *sides][number % len(sides) :][: len(sides)]:
            pipes[name].send(True)
            seconds[name].append(pipes[name].recv())
        print(f"round {number + 1} of {rounds}: " + "  ".join(f"{times[-1]:.3f}" for times in seconds.values()), flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    mib = {name: pipe.recv() for name, pipe in pipes.items()}
    for process in processes:
        process.join()
    return {"seconds": seconds, "mib": mib, "matrix_flops": products}


def summarise(measured: dict) -> dict:
    """Return the numbers of the table, by side; ratios to our side of the same model, the first."""
    peak, table = statistics.median(measured["matrix_flops"]), {}
    ours = next(iter(measured["seconds"].values()))
    for name, times in measured["seconds"].items():
        model, middle = SIDES[name][0], statistics.median(times)
        ratios = sorted(theirs / mine for theirs, mine in zip(times, ours, strict=True))
        table[name] = {
            "seconds": middle,
            "range": [min(times), max(times)],
            "tokens_per_second": math.prod(SHAPES.get(model, (ROWS, LENGTH))) / middle,
            "slower_than_ours": statistics.median(ratios),
            "slower_range": [ratios[0], ratios[-1]],
            "peak_mib": measured["mib"][name],
            "share_of_matrix_peak": step_flops(model) / middle / peak,
        }
    return table


def begun_with(out: Path, numbers: dict) -> None:
    """Refuse a folder whose finished runs have other numbers than those to come; else write these into it.

    Raises:
        SystemExit: naming what differs.
    """
    kept = out / "numbers.json"
    if kept.exists() and (unlike := differences(json.loads(kept.read_text()), numbers)):
        raise SystemExit(f"{out} was begun with other numbers ({', '.join(unlike)}): give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(numbers))


def machine() -> dict:
    """Describe what this was measured on."""
    names = (line.split(":")[1].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name"))
    memory = next((int(line.split()[1]) // 2**20 for line in _read("/proc/meminfo") if line.startswith("MemTotal")), None)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    packages = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    system = {
        "cpu": next(names, platform.processor()),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "system": platform.platform(),
        "load": os.getloadavg()[0],
    }
    return system | packages | {"layerwright": layerwright.__version__, "commit": commit.stdout.strip()}


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def show(results: dict) -> None:
    """Print the tables of all models as one."""
    print(f"\n{'':34}{'ms':>7}{'range':>14}{'tokens/s':>10}{'time / ours':>22}{'peak MiB':>10}{'of peak':>9}")
    for result in results.values():
        for name, row in result["table"].items():
            spread = "{:.0f}-{:.0f}".format(*(1000 * value for value in row["range"]))
            ratio = "{:.2f} ({:.2f}-{:.2f})".format(row["slower_than_ours"], *row["slower_range"])
            print(f"{name:34}{1000 * row['seconds']:7.0f}{spread:>14}{row['tokens_per_second']:10.0f}{ratio:>22}", end="")
            print(f"{row['peak_mib']:10.0f}{row['share_of_matrix_peak']:9.0%}")
    for model, result in results.items():
        peak = f"{model}: matrix products in bf16 {statistics.median(result['matrix_flops']) / 1e9:.0f} GFLOP/s"
        parity = result["parity"]
        print(peak + (f", largest difference between the sides {max(parity.values()):.1e} of the norm" if parity else ""))


def main() -> None:
    """Check, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side that count")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="which models to measure; the others stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    results = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    # One after the other: all of them at once want more memory than many machines have.
    for model in dict.fromkeys(asked.models):
        measured = {"machine": machine() | {"threads": asked.threads}, "parity": {}}
        if model in FAMILIES or model in SHAPES:
            measured["parity"] = check_parity(model)
            print(f"{model}: both sides compute the same", flush=True)
        measured |= measure({name: side for name, side in SIDES.items() if side[0] == model}, asked.rounds, asked.threads)
        results[model] = measured | {"table": summarise(measured)}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
