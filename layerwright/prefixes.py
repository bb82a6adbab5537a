"""Run many sequences of choices, and what several of them begin with once.

Architectures that share weights and begin with the same layers have the same states there.  The sequences are visited in
depth-first order of the tree of their beginnings, so that a state is kept only while something that follows it is still to
come.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

State = TypeVar("State")
Choice = TypeVar("Choice", bound=Hashable)


def visit(
    sequences: Sequence[Sequence[Choice]], start: State, apply: Callable[[State, Choice], State]
) -> Iterator[tuple[int, State]]:
    """Yield the place of each sequence in `sequences` and the state it leads to from `start`.

    apply: returns the state after a choice, and leaves the one before as it was; it is called `applications(sequences)` times.
    The order is the same each time: a sequence comes before those that begin with it, and those that part at a choice come in
    the order of the first that makes it.  If the caller keeps none, at most as many states are alive as the longest sequence
    has choices, and two.

        >>> list(visit(["ab", "ac", "ab", ""], ">", str.__add__))
        [(3, '>'), (0, '>ab'), (2, '>ab'), (1, '>ac')]
    """
    # A state is held by those of its followers that are still to come, and goes with the last of them.
    coming = [(start, 0, list(range(len(sequences))))] if sequences else []
    del start
    while coming:
        state, depth, places = coming.pop()
        if depth:
            state = apply(state, sequences[places[0]][depth - 1])
        followers: dict[Choice, list[int]] = {}
        for place in places:
            if len(sequences[place]) == depth:
                yield place, state
            else:
                followers.setdefault(sequences[place][depth], []).append(place)
        coming += [(state, depth + 1, some) for some in reversed(followers.values())]
        del state


def applications(sequences: Sequence[Sequence[Hashable]]) -> int:
    """Return how many choices `visit` applies: the number of different beginnings of the sequences.

    >>> applications(["abc", "abd", "b"]), sum(map(len, ["abc", "abd", "b"]))
    (5, 7)
    """
    return len({tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)})
