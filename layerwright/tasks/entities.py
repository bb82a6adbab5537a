"""Score entities as seqeval does in its default mode: type and both ends must be right.

Predictions need not be legal: as in conlleval, an I- that cannot go on with what stands before it begins an entity of its own.
"""

from collections.abc import Iterable, Iterator, Sequence


def entity_scores(truth: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> dict[str, float]:
    """Return `entity_f1`, `entity_precision` and `entity_recall` over all entities; 0 where there is none to divide by."""
    right = expected = found = 0
    for one, other in zip(truth, predicted, strict=True):
        golds, guesses = set(entities(one)), set(entities(other))
        right, expected, found = right + len(golds & guesses), expected + len(golds), found + len(guesses)
    return {
        "entity_f1": 2 * right / (expected + found) if right else 0.0,
        "entity_precision": right / found if found else 0.0,
        "entity_recall": right / expected if expected else 0.0,
    }


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield type, first and last word of each entity of a sentence."""
    begun, kind = 0, ""
    for place, tag in enumerate((*tags, "O")):
        part, _, of = tag.partition("-")
        if kind and (part != "I" or of != kind):
            yield kind, begun, place - 1
            kind = ""
        if part != "O" and not kind:
            begun, kind = place, of
