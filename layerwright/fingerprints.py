"""Tell whether a formula is worth training, and which formulas compute the same, by trying them on a few fixed numbers.

All formulas see the same rows of random queries, keys and values; each row asks one question.  The outputs of the first
rows, rounded, are the fingerprint: AutoML-Zero's functional equivalence (Real et al. 2020) for formulas.  What 1 / sqrt(E)
is at one size of a head must not make formulas equal that differ at another, so here it is a number of no such size.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .formulas import Formula
from .operations import INPUTS, OPERATIONS

Numbers = NDArray[np.float64]

LENGTH, SIZE = 6, 4
DIGITS = 1e7  # of an output, relative to the largest: what differs by less counts as rounding
SAME = 1e-9  # changes of this size, relative to the largest output, are none
STEEPEST = 4  # power of its inputs beyond which a formula is not trained: what is long or wide would overflow
ROOT = 1 / 0.7390851332151607  # in place of sqrt(E); transcendental, so no sums or products of scales cancel by chance

# The rows: three of other numbers and sizes; the second with another q, k or v, or another last token; and enlarged.
_SIZES = (0.3, 0.7, 1.5)
_BEGUN, _TOKEN, _LARGE, _LARGER = 3, 6, 7, 8


class Judgement(NamedTuple):
    """What trying a formula told.  fault: why it is degenerate, empty where it is not; mark: the fingerprint."""

    fault: str
    mark: str


@lru_cache(maxsize=1)
def _rows() -> dict[str, Numbers]:
    rng = np.random.default_rng(65)
    base = rng.standard_normal((3, len(INPUTS), LENGTH, SIZE)) * np.array(_SIZES)[:, None, None, None]
    rows = np.concatenate([base, np.repeat(base[1:2], 6, 0)])
    for place in range(len(INPUTS)):
        rows[_BEGUN + place, place] = rng.standard_normal((LENGTH, SIZE))
    rows[_TOKEN, :, -1] = rng.standard_normal((len(INPUTS), SIZE))
    rows[_LARGE] *= 1e3
    rows[_LARGER] *= 1e4
    return {name: np.ascontiguousarray(rows[:, place]) for place, name in enumerate(INPUTS)}


def compute(formula: Formula, inputs: dict[str, Numbers], root: float) -> list[Numbers]:
    """Return the value of each step: inputs [..., L, E], root: sqrt(E)."""
    values: list[Numbers] = []
    for name, arguments, _ in formula.steps:
        if len(arguments) == 2:
            values.append(OPERATIONS[name].array(values[arguments[0]], values[arguments[1]]))
        elif not arguments:
            values.append(inputs[name])
        elif name == "scale":
            values.append(values[arguments[0]] / root)
        else:
            values.append(OPERATIONS[name].array(values[arguments[0]]))
    return values


@lru_cache(maxsize=1 << 16)
def judge(formula: Formula) -> Judgement:
    """Try a formula, and say whether it is degenerate; equal fingerprints mean that two formulas compute the same."""
    with np.errstate(all="ignore"):
        values = compute(formula, _rows(), ROOT)
        found = values[-1]
        peaks = np.abs(found).max((1, 2)).tolist()
        fault = _unfit(formula, found, peaks) or _constant(formula, values)
        return Judgement(fault, "" if fault else _mark(found[:_BEGUN], peaks[:_BEGUN]))


def _unfit(formula: Formula, found: Numbers, peaks: list[float]) -> str:
    if not all(0 <= peak < np.inf for peak in peaks):
        return "its outputs are not finite"
    differs = (np.abs(found - found[1]) > SAME * peaks[1]).any(-1)
    moved = differs.any(-1).tolist()
    for name in formula.inputs:
        if not moved[_BEGUN + INPUTS.index(name)]:
            return f"it ignores {name}"
    if not differs[_TOKEN, :-1].any():
        return "it does not mix tokens"
    if not (np.abs(found[1] - found[1, :1]) > SAME * peaks[1]).any():
        return "its output is the same at every token"
    if peaks[_LARGER] > peaks[_LARGE] * 10 ** (STEEPEST + 0.5):
        return f"it grows faster than the power {STEEPEST} of its inputs"
    return ""


def _constant(formula: Formula, values: list[Numbers]) -> str:
    """Name a step that is the same whatever the inputs; it would make formulas equal at one length or size alone."""
    for step, value in zip(formula.steps, values, strict=True):
        if abs(value[0, 0, 0] - value[2, 0, 0]) <= SAME and np.allclose(value[0], value[2], rtol=SAME, atol=SAME):
            return f"a constant: {step.name}"
    return ""


def _mark(found: Numbers, peaks: list[float]) -> str:
    rounded = np.rint(found * (DIGITS / np.array(peaks))[:, None, None]).astype(np.int64)
    sizes = ",".join(f"{peak:.7e}" for peak in peaks)
    return blake2b(rounded.tobytes() + sizes.encode(), digest_size=12).hexdigest()
