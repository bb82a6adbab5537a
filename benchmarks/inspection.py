"""Measure what a sweep over all ranges costs, against running each edited model whole.

    python -m benchmarks.inspection [--rows 4] [--length 64] [--rounds 2] [--threads 1]

The model has the shape of BERT-base (12 blocks, width 768, 30,522 tokens) under a head of masked tokens, with weights that nobody
trained, which cost the same.  Both sides measure the removal and the duplication of every range of blocks on the same rows,
predictions included, and all numbers must be equal to the last bit.  Layers run are counted, not estimated; seconds are of
processor time, which what else the machine does disturbs little.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks.speed import RESULTS, machine
from layerwright import sweep
from layerwright.inference import Opened
from layerwright.inspection import all_changes, order_of
from layerwright.models import LayerwrightConfig, LayerwrightForMaskedLM
from layerwright.presets import architecture
from layerwright.sweep import Effect, Order, Row

MASK = 103


def whole(sequences: Sequence[Order], start: Any, apply: Any) -> Iterator[tuple[int, Any]]:
    """Run each order from the embeddings on."""
    for place, sequence in enumerate(sequences):
        yield place, reduce(apply, sequence, start)


def made(rows: int, length: int) -> tuple[Opened, list[Row], list[Order]]:
    """Return the model, the rows and the orders: the model as it is, and each range of blocks removed and duplicated."""
    arch, chance = architecture("bert-base"), Random(0)
    torch.manual_seed(0)
    model = LayerwrightForMaskedLM(LayerwrightConfig(architecture=str(arch))).eval()
    tokens = [[chance.randrange(1_000, arch.vocab) for _ in range(length)] for _ in range(rows)]
    asked = [chance.sample(range(length), 2 * round(sweep.SHARE * length)) for _ in tokens]
    half = len(asked[0]) // 2
    drawn = [Row(ids, sorted(places[:half]), sorted(places[half:])) for ids, places in zip(tokens, asked, strict=True)]
    opened = Opened(Path("bert-base"), "mlm", model, Tokenizer(WordLevel()), {"pad": 0, "mask": MASK})
    orders = [tuple(range(len(arch))), *(order_of(one.edit) for one in all_changes(arch, "block"))]
    return opened, drawn, orders


def measured(opened: Opened, rows: list[Row], orders: list[Order], visit: Any) -> tuple[dict[Order, Effect], dict[str, float]]:
    """Return the effects, the layers run, and the seconds of processor time."""
    run = 0

    def count(*_: Any) -> None:
        nonlocal run
        run += 1

    hooks = [layer.register_forward_hook(count) for layer in cast(LayerwrightForMaskedLM, opened.model).backbone.layers]
    sweep.visit = visit
    processor = time.process_time()
    found, _ = sweep.measure(opened, rows, orders, batch=len(rows))
    spent = {"layers": run, "processor": time.process_time() - processor}
    for hook in hooks:
        hook.remove()
    return found, spent


def main() -> None:
    """Check, measure, print and write results/inspection.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "inspection.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    opened, rows, orders = made(asked.rows, asked.length)
    sides = {"shared": sweep.visit, "each whole": whole}
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(asked.rounds):
        found = {name: measured(opened, rows, orders, visit) for name, visit in sides.items()}
        assert found["shared"][0] == found["each whole"][0], "the numbers differ"
        rounds.append({name: spent for name, (_, spent) in found.items()})
        print(json.dumps(rounds[-1]), flush=True)
    share = {
        kind: statistics.median(one["shared"][kind] / one["each whole"][kind] for one in rounds) for kind in rounds[0]["shared"]
    }
    result = {
        "machine": machine() | {"threads": asked.threads},
        "models": len(orders),
        "rows": asked.rows,
        "length": asked.length,
    }
    result |= {"shared to whole": share, "numbers": "equal to the last bit", "rounds": rounds}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(share, indent=1))


if __name__ == "__main__":
    main()
