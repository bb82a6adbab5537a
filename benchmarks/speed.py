"""Measure the training step of ELECTRA-small against the same model built from the classes of transformers.

    python -m benchmarks.speed [--rounds 9] [--threads 2]

A step is all of it: replaced-token detection forward, backward, clipping, AdamW; 32 x 128 tokens, bf16 autocast, dropout 0.1.
Every side is a process of its own, with its own memory, as its users run it; they take turns, one step each, so that
whatever else the machine does falls on all alike.  The ratio of two sides is the median over the rounds of the ratio in a round.

First both sides must compute the same: with weights copied across and the same corrupted input, logits, losses and
gradients agree.  The other side is a careful user's: fused AdamW, output layer on the chosen positions only, and tokens drawn
by one random number each (with torch.multinomial a step takes a fifth longer).  The row "memory kept" gives it our setting
of the C library's allocator as well.  Peak memory is that of the resident set (VmHWM) after the first steps, so that
compiling does not count.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

import layerwright
from layerwright import cost, presets
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.kernels import keep_memory, pick
from layerwright.objectives import MaskedLM, ReplacedTokenDetection, at, choose
from layerwright.space import Space
from layerwright.supernet import Supernet
from layerwright.train import Plan, make_optimizer, train
from layerwright.vocabulary import Special

ROWS, LENGTH, RATE, WEIGHT = 32, 128, 0.15, 50.0
SPECIAL = Special(pad=0, unk=100, cls=101, sep=102, mask=103)
PLAN = Plan(steps=10**9, precision="bf16", rate=1e-4)
RESULTS = Path(__file__).parent / "results"
SIDES = {
    "layerwright electra-small": "ours",
    "transformers eager": "eager",
    "transformers compiled": "compiled",
    "transformers eager, memory kept": "kept",
    "layerwright lv-bert-small": "path",
    "layerwright supernet, lv-bert-small's path": "supernet",
}


class Peer(nn.Module):
    """ELECTRA of transformers: generator and discriminator that share embeddings, as one objective."""

    def __init__(self, dropout: float = 0.1):
        super().__init__()
        sizes = {"vocab_size": 30522, "embedding_size": 128, "num_hidden_layers": 12}
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        small = ElectraConfig(hidden_size=64, num_attention_heads=1, intermediate_size=256, **sizes, **rates)
        large = ElectraConfig(hidden_size=256, num_attention_heads=4, intermediate_size=1024, **sizes, **rates)
        self.generator, self.discriminator = ElectraForMaskedLM(small), ElectraForPreTraining(large)
        shared = self.discriminator.electra.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
            setattr(self.generator.electra.embeddings, name, getattr(shared, name))
        self.generator.generator_lm_head.weight = shared.word_embeddings.weight

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss."""
        places = choose(batch, RATE, SPECIAL).places
        logits, nats = self.generate(batch, places, self.corrupt(batch, places))
        drawn = pick(logits.detach().float().softmax(-1), at(batch.dice, places)[..., 2].flatten())
        ids = batch.ids.scatter(1, places, drawn.view_as(places))
        return nats + WEIGHT * self.detect(batch, ids).loss

    def corrupt(self, batch: Batch, places: torch.Tensor) -> torch.Tensor:
        """Return what the generator reads: of the chosen tokens 85% masked."""
        masked = torch.where(at(batch.dice, places)[..., 1] < 0.85, SPECIAL.mask, batch.ids.gather(1, places))
        return batch.ids.scatter(1, places, masked)

    def generate(self, batch: Batch, places: torch.Tensor, ids: torch.Tensor, mean: str = "mean"):
        """Return the logits of the chosen tokens, and the loss."""
        states = self.generator.electra(ids, token_type_ids=batch.segments).last_hidden_state
        logits = self.generator.generator_lm_head(self.generator.generator_predictions(at(states, places).flatten(0, 1)))
        return logits, F.cross_entropy(logits, batch.ids.gather(1, places).flatten(), reduction=mean)

    def detect(self, batch: Batch, ids: torch.Tensor):
        """Return logits and loss of the discriminator."""
        return self.discriminator(ids, token_type_ids=batch.segments, labels=(ids != batch.ids).long())


def objective(net: Backbone | Supernet, dropout: float = 0.1) -> ReplacedTokenDetection:
    """Build our side: the generator is a quarter as wide as ELECTRA-small, whatever the backbone."""
    generator = Backbone(presets.architecture("electra-small").narrow(1 / 4), dropout)
    return ReplacedTokenDetection(net, MaskedLM(generator, SPECIAL, rate=RATE, masked=0.85, random=0.0), WEIGHT)


def random_batch(seed: int) -> Batch:
    """Draw rows "[CLS] a [SEP] b [SEP]" of random tokens."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30522, (ROWS, LENGTH), generator=chance)
    middle = torch.randint(2, LENGTH - 2, (ROWS, 1), generator=chance)
    ids = ids.scatter(1, middle, SPECIAL.sep)
    ids[:, 0], ids[:, -1] = SPECIAL.cls, SPECIAL.sep
    segments = (torch.arange(LENGTH) > middle).long()
    return Batch(ids, segments=segments, dice=torch.rand(ROWS, LENGTH, 3, generator=chance))


def copy_weights(ours: ReplacedTokenDetection, peer: Peer) -> None:
    """Copy our weights into the peer."""

    def copy(to: nn.Module, source: nn.Module) -> None:
        to.load_state_dict(source.state_dict())

    def copy_backbone(to: nn.Module, source: nn.Module) -> None:
        names = ("token", "word"), ("position", "position"), ("segment", "token_type")
        for ours, theirs in names:
            copy(getattr(to.embeddings, f"{theirs}_embeddings"), getattr(source.embed, ours))
        copy(to.embeddings.LayerNorm, source.embed.norm)
        copy(to.embeddings_project, source.embed.widen)
        for index, layer in enumerate(to.encoder.layer):
            attn, ffn = source.layers[2 * index], source.layers[2 * index + 1]
            for name in ("query", "key", "value"):
                copy(getattr(layer.attention.self, name), getattr(attn.body, name))
            copy(layer.attention.output.dense, attn.body.out)
            copy(layer.attention.output.LayerNorm, attn.norm)
            copy(layer.intermediate.dense, ffn.body.up)
            copy(layer.output.dense, ffn.body.out)
            copy(layer.output.LayerNorm, ffn.norm)

    copy_backbone(peer.generator.electra, ours.generator.backbone)
    copy_backbone(peer.discriminator.electra, ours.backbone)
    copy(peer.generator.generator_predictions.dense, ours.generator.head.transform)
    copy(peer.generator.generator_predictions.LayerNorm, ours.generator.head.norm)
    peer.generator.generator_lm_head.bias.data.copy_(ours.generator.head.bias)
    copy(peer.discriminator.discriminator_predictions.dense, ours.head.hidden)
    copy(peer.discriminator.discriminator_predictions.dense_prediction, ours.head.replaced)


def check_parity() -> dict[str, float]:
    """Return the largest relative differences between the sides; the same weights and corrupted input for both.

    Raises:
        SystemExit: they compute different things.
    """
    torch.manual_seed(0)
    ours, peer, batch = objective(Backbone(presets.architecture("electra-small"), 0.0), 0.0), Peer(dropout=0.0), random_batch(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    copy_weights(ours, peer)
    found: dict[str, float] = {}
    for precision, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            sides = [_outcome(ours, peer, batch, side) for side in ("ours", "theirs")]
        for name, (a, b) in {name: (sides[0][name].float(), sides[1][name].float()) for name in sides[0]}.items():
            difference = ((a - b).norm() / b.norm()).item()
            found[f"{name}, {str(precision)[6:]}"] = difference
            if not difference < tolerance:
                raise SystemExit(f"the sides differ in {name}, {precision}, by {difference:.2g} of its norm")
    return found


def _outcome(ours: ReplacedTokenDetection, peer: Peer, batch: Batch, side: str) -> dict[str, torch.Tensor]:
    """Return logits, losses and gradients of a side, for tokens drawn by our generator in float32."""
    choice = choose(batch, RATE, SPECIAL)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        drawn = ours.generator.predict(batch, choice, at(batch.dice, choice.places)[..., 2].flatten())[1]
        ids, replaced = ours.fill(batch, choice, drawn)
    if side == "ours":
        nats = ours.generator.predict(batch, choice)[0]
        guesses = ours.head(ours.backbone(ids, None, batch.segments))
        detected = F.binary_cross_entropy_with_logits(guesses.float(), replaced.float())
        first, second = ours.backbone, ours.generator.backbone
        weights = [first.embed.token.weight, first.layers[0].body.query.weight, second.layers[1].body.up.weight]
    else:
        nats = peer.generate(batch, choice.places, peer.corrupt(batch, choice.places), "none")[1]
        output = peer.detect(batch, ids)
        guesses, detected = output.logits, output.loss
        first, second = peer.discriminator.electra, peer.generator.electra.encoder.layer[0]
        attention = first.encoder.layer[0].attention.self
        weights = [first.embeddings.word_embeddings.weight, attention.query.weight, second.intermediate.dense.weight]
    grads = torch.autograd.grad(nats.mean() + WEIGHT * detected, weights)
    named = {f"gradient {index}": grad for index, grad in enumerate(grads)}
    return {"masked losses": nats, "logits": guesses, "replaced loss": detected, **named}


def stepper(kind: str):
    """Return a function that takes one step of a side and returns its seconds."""
    torch.manual_seed(0)
    stream = cycle([random_batch(seed) for seed in range(4)])
    if kind in ("eager", "compiled", "kept"):
        if kind == "kept":
            keep_memory()
        peer = Peer()
        return partial(_peer_step, torch.compile(peer) if kind == "compiled" else peer, make_optimizer(peer, PLAN), stream)
    path = presets.architecture("lv-bert-small")
    if kind == "supernet":
        space = Space.parse("256 embed=128: 24x{conv|attn|ffn}")
        net: Backbone | Supernet = Supernet(space)
        # Every other step takes a random path and does not count: as in training, not all is still in the cache.
        paths = (arch for number in range(10**9) for arch in (space.sample(Random(number)), path))
        stream = (replace(batch, arch=arch) for batch, arch in zip(stream, paths, strict=False))
    else:
        net = Backbone(path if kind == "path" else presets.architecture("electra-small"))
    model = objective(net)
    return partial(_our_step, train(model, stream, PLAN, make_optimizer(model, PLAN)), skip=int(kind == "supernet"))


def _our_step(reports, skip: int) -> float:
    for _ in range(skip):
        next(reports)
    began = time.perf_counter()
    next(reports)
    return time.perf_counter() - began


def _peer_step(peer: nn.Module, optimizer: torch.optim.Optimizer, stream) -> float:
    batch = next(stream)
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = peer(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), PLAN.clip)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()
    return time.perf_counter() - began


def serve(pipe, kind: str, threads: int) -> None:
    """Take a step for every message; at the end send the peak memory in MiB."""
    torch.set_num_threads(threads)
    step = stepper(kind)
    for _ in range(3):
        step()
    _reset_peak()
    pipe.send("ready")
    while pipe.recv():
        pipe.send(step())
    pipe.send(_peak())


def _reset_peak() -> None:
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


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
    small = presets.architecture("electra-small").narrow(1 / 4)
    chosen = round(RATE * LENGTH)
    heads = LENGTH * arch.width**2 + chosen * small.embed * (small.vocab + small.width)
    return 3 * ROWS * (cost.flops(arch, LENGTH) + cost.flops(small, LENGTH) + 2 * heads)


def measure(sides: dict[str, str], rounds: int, threads: int) -> dict:
    """Let the sides take turns: seconds by side and round, peaks by side, matrix products by round."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name, kind in sides.items():
        pipes[name], end = context.Pipe()
        context.Process(target=serve, args=(end, kind, threads), daemon=True).start()
        end.close()
        print(f"starting: {name}", flush=True)
        assert pipes[name].recv() == "ready"
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
    return {"seconds": seconds, "peak_mib": {name: pipe.recv() for name, pipe in pipes.items()}, "matrix_flops": products}


def summarise(measured: dict) -> dict:
    """Return the numbers of the table, by side."""
    ours, peak = measured["seconds"]["layerwright electra-small"], statistics.median(measured["matrix_flops"])
    table = {}
    for name, times in measured["seconds"].items():
        middle = statistics.median(times)
        ratios = sorted(theirs / mine for theirs, mine in zip(times, ours, strict=True))
        flops = step_flops("electra-small" if "lv-bert" not in name else "lv-bert-small")
        table[name] = {
            "seconds": middle,
            "range": [min(times), max(times)],
            "tokens_per_second": ROWS * LENGTH / middle,
            "slower_than_ours": statistics.median(ratios),
            "slower_range": [ratios[0], ratios[-1]],
            "peak_mib": measured["peak_mib"][name],
            "share_of_matrix_peak": flops / middle / peak,
        }
    return table


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


def show(result: dict) -> None:
    """Print the table."""
    print(f"\n{'':44}{'ms':>7}{'range':>14}{'tokens/s':>10}{'time / ours':>22}{'peak MiB':>10}{'of peak':>9}")
    for name, row in result["table"].items():
        spread = "{:.0f}-{:.0f}".format(*(1000 * value for value in row["range"]))
        ratio = "{:.2f} ({:.2f}-{:.2f})".format(row["slower_than_ours"], *row["slower_range"])
        print(f"{name:44}{1000 * row['seconds']:7.0f}{spread:>14}{row['tokens_per_second']:10.0f}{ratio:>22}", end="")
        print(f"{row['peak_mib']:10.0f}{row['share_of_matrix_peak']:9.0%}")
    print(f"\nmatrix products in bf16: {statistics.median(result['matrix_flops']) / 1e9:.0f} GFLOP/s")
    print(f"a supernet's step takes {result['supernet_over_plain']:.2f} times that of the same path alone")
    print(f"largest difference between the sides: {max(result['parity'].values()):.1e} of the norm")


def main() -> None:
    """Check, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side that count")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    result = {"machine": machine() | {"threads": asked.threads}, "parity": check_parity()}
    print("both sides compute the same", flush=True)
    result |= measure(SIDES, asked.rounds, asked.threads)
    plain, shared = (result["seconds"][name] for name in list(SIDES)[-2:])
    over = [a / b for a, b in zip(shared, plain, strict=True)]
    result |= {"table": summarise(result), "supernet_over_plain": statistics.median(over), "supernet_over_plain_rounds": over}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
