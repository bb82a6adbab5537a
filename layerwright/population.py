"""Score sub-networks of one supernet on the same batches, computing what they share once.

Their scores are those of `recipe.score`, bit for bit: the same operations on the same numbers.  The question of a batch is the
same for all, so a generator answers it once; and architectures that begin with the same layers share the states there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .architecture import Architecture
from .batches import Batch
from .layers import Context
from .objectives import Question, segments_of
from .prefixes import HALF, Beginnings, visit
from .recipe import Objective
from .space import Part
from .supernet import Supernet

Scores = dict[str, float]
Choice = tuple[int, int | Part]  # a slot and what stands there; or -1 and the number of a batch
ROOM = 2 << 30  # bytes


class Population:
    """The sub-networks of a supernet, scored one after another or many at once; its weights must stay as they are.

    room: bytes of states to keep from one architecture for the next.

    Raises:
        ValueError: the objective trains no supernet.
    """

    def __init__(self, objective: Objective, held: Sequence[Batch], *, precision: str = "float32", room: int = ROOM) -> None:
        if not isinstance(objective.backbone, Supernet):
            raise ValueError("an encoder is no population: score it with recipe.score")
        self.net, self.objective, self.precision = objective.backbone, objective, precision
        self.device = next(objective.parameters()).device
        self.layers = 0
        self._held = held
        self._questions: list[Question | None] = [None] * len(held)
        self._kept: Beginnings[Choice, Tensor | None] = Beginnings(room, _size, HALF * len(held))

    def score(self, arch: Architecture) -> Scores:
        """Return the mean loss and parts over the batches, as `recipe.score` does."""
        path: list[Choice] = list(enumerate(self.net.space.parts(arch)))
        found = []
        for number in range(len(self._held)):
            with self._evaluating():
                question, apply = self._asked(number)
                # A batch is the first choice, and its embedding the state after it.
                states = self._kept.run([(-1, number), *path], None, apply)
                found.append(self._judged(states, question))
        return _mean(found)

    def score_all(self, archs: Sequence[Architecture]) -> list[Scores]:
        """Return the scores of each of many; what is kept meanwhile is as deep as the deepest, whatever their number."""
        paths: list[list[Choice]] = [list(enumerate(self.net.space.parts(arch))) for arch in archs]
        found: list[list[Scores]] = [[] for _ in archs]
        for number in range(len(self._held)):
            with self._evaluating():
                question, apply = self._asked(number)
                for place, states in visit(paths, apply(None, (-1, number)), apply):
                    found[place].append(self._judged(states, question))
        return [_mean(scores) for scores in found]

    def _asked(self, number: int) -> tuple[Question, Callable[[Tensor | None, Choice], Tensor]]:
        """Return the question of a batch, and what leads from a state to the next."""
        question = self._questions[number]
        if question is None:
            question = self._questions[number] = self.objective.ask(self._held[number].to(self.device))
        batch, ids = question.batch, question.ids
        context = Context(batch.mask, batch.documents)

        def apply(state: Tensor | None, choice: Choice) -> Tensor:
            slot, part = choice
            if state is None or isinstance(part, int):
                return torch.as_tensor(self.net.embed(ids, segments_of(self.net, batch)))
            self.layers += len(part[1])
            return self.net.follow(state, slot, part, context)

        return question, apply

    def _judged(self, states: Tensor | None, question: Question) -> Scores:
        loss = self.objective.judge(self.net.norm(states), question)
        return {name: float(value) for name, value in {"loss": loss.total, **loss.parts}.items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was = self.objective.training
        if was:
            self.objective.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                yield
        finally:
            if was:
                self.objective.train()


def _mean(found: Sequence[Scores]) -> Scores:
    # In this order, as one number is added to the next elsewhere.
    sums: Scores = {}
    for scores in found:
        for name, value in scores.items():
            sums[name] = sums.get(name, 0.0) + value / len(found)
    return sums


def _size(state: Tensor | None) -> int:
    return 0 if state is None else state.nbytes
