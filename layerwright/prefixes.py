"""Run many sequences of choices, and what several of them begin with once.

Architectures that share weights and begin with the same layers have the same states there.  The sequences are visited in
depth-first order of the tree of their beginnings, so that a state is kept only while something that follows it is still to
come.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Generic, TypeVar

State = TypeVar("State")
Choice = TypeVar("Choice", bound=Hashable)
HALF = 140  # sequences; to count all uses alike, an evolution of 1,000 runs up to 4 % more layers where there is room for few


FORGOTTEN = 10  # half lives


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


class Beginnings(Generic[Choice, State]):
    """Run sequences that come one at a time, and keep the states after what most of them begin with.

    The states kept take at most `room` bytes, as `size` tells them.  One that was used less goes before one that was used more,
    the older first of two: what parents begin with, their children use again.  Parents change, so a use counts half as much as
    one `half` sequences later, and is forgotten when it counts less than a thousandth.
    """

    def __init__(self, room: int, size: Callable[[State], int], half: int = HALF) -> None:
        self.room, self.size, self.half = room, size, half
        self.taken = self.applied = 0
        self._kept: dict[tuple[Choice, ...], State] = {}
        self._least: list[tuple[float, int, tuple[Choice, ...]]] = []  # a heap: uses as they were, age, and of which beginning
        # Logarithms to the base of two.  A use counts more the later it is, instead of all others less: so these only grow.
        self._uses: dict[tuple[Choice, ...], float] = {}
        self._now = 0.0

    def run(self, sequence: Sequence[Choice], start: State, apply: Callable[[State, Choice], State]) -> State:
        """Return the state that a sequence leads to from `start`, always the same; it goes on from the longest beginning kept."""
        beginnings = [tuple(sequence[:end]) for end in range(1, len(sequence))]
        self._pass()
        for beginning in beginnings:
            before = self._uses.get(beginning, -math.inf)
            self._uses[beginning] = self._now + math.log2(1 + 2 ** (before - self._now))
        known = next((at for at in range(len(beginnings), 0, -1) if beginnings[at - 1] in self._kept), 0)
        state = self._kept[beginnings[known - 1]] if known else start
        for at in range(known, len(sequence)):
            state = apply(state, sequence[at])
            self.applied += 1
            if at < len(beginnings):
                self._keep(beginnings[at], state)
        return state

    def _pass(self) -> None:
        """Let the time of a sequence pass, and at every half life forget what has hardly been used."""
        before, self._now = self._now, self._now + 1 / self.half
        if int(before) < int(self._now):
            self._uses = {
                beginning: uses
                for beginning, uses in self._uses.items()
                if uses > self._now - FORGOTTEN or beginning in self._kept
            }

    def _keep(self, beginning: tuple[Choice, ...], state: State) -> None:
        self._kept[beginning] = state
        heappush(self._least, (self._uses[beginning], self.applied, beginning))
        self.taken += self.size(state)
        while self.taken > self.room:
            uses, age, least = heappop(self._least)
            if uses < self._uses[least]:
                heappush(self._least, (self._uses[least], age, least))
            else:
                self.taken -= self.size(self._kept.pop(least))
