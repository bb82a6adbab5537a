"""Measure how many formulas of attention are drawn, mutated and tried in a second, on one core.

    python -m benchmarks.formulas [--count 4000] [--rounds 5]

Half of the formulas are drawn and half are mutants of these; every one is valid, in canonical form, and has its fingerprint.
Seconds are the processor's.  "grown to 8" draws formulas of as many operations as the bound, where a space draws any number
up to it; what is equal or shared is then counted once, so that on average they have fewer.  The last columns are the time that
one formula takes, and what of it is spent on computing it, on judging the outputs, and on the rest: growing it step by step,
putting it into canonical form, and what came to nothing.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.speed import RESULTS, machine
from layerwright.fingerprints import ROOT, _rows, compute, judge
from layerwright.formula_space import FormulaSpace
from layerwright.formulas import Formula

BOUNDS = (5, 8, 12, 20)


class Largest(Random):
    """A generator under which a space always draws as many operations as it may."""

    most: int

    def randint(self, a: int, b: int) -> int:
        """Return the bound where the number of operations is drawn."""
        return b if (a, b) == (2, self.most) else super().randint(a, b)


def walk(space: FormulaSpace, count: int, rng: Random) -> list[Formula]:
    """Draw formulas, each followed by a mutant of it."""
    found = []
    for _ in range(count // 2):
        found.append(space.sample(rng))
        found.append(space.mutate(found[-1], rng))
    return found


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return what a call takes of the processor, and its result."""
    begun = time.process_time()
    result = run()
    return time.process_time() - begun, result


def measure(space: FormulaSpace, count: int, rng: Random) -> dict[str, float]:
    """Measure one walk, and its parts on the formulas that it found."""
    judge.cache_clear()
    spent, found = seconds(lambda: walk(space, count, rng))
    distinct = list(dict.fromkeys(found))  # what a walk finds again it does not try again
    marks = {judge(formula).mark for formula in distinct}
    with np.errstate(all="ignore"):
        computed, _ = seconds(lambda: [compute(formula, _rows(), ROOT) for formula in distinct])
    judge.cache_clear()
    judged, _ = seconds(lambda: [judge(formula) for formula in distinct])
    return {
        "formulas a second": len(found) / spent,
        "fingerprints a second": len(marks) / spent,
        "operations": statistics.mean(map(len, found)),
        "microseconds": 1e6 * spent / len(found),
        "computing": 1e6 * computed / len(found),
        "judging": 1e6 * (judged - computed) / len(found),
        "rest": 1e6 * (spent - judged) / len(found),
    }


def main() -> None:
    """Measure, print and write results/formulas.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "formulas.json")
    asked = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    for most, grown in [*((most, False) for most in BOUNDS), (8, True)]:
        rounds = []
        for number in range(asked.rounds):
            rng = Largest(number) if grown else Random(number)
            if isinstance(rng, Largest):
                rng.most = most
            rounds.append(measure(FormulaSpace(most), asked.count, rng))
        name = f"grown to {most}" if grown else f"at most {most}"
        table[name] = {key: round(statistics.median(one[key] for one in rounds), 1) for key in rounds[0]}
    asked.out.write_text(json.dumps({"machine": machine(), "count": asked.count, "table": table}, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
