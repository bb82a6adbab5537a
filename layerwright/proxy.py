"""Score candidates of a supernet after a few steps of training, each from the weights it inherits.

What a supernet's weights say of a candidate alone is unfair to one that was seldom trained; a few steps of its own tell more, at
their price (Gao et al. 2022 train each candidate before they judge it).
"""

from collections.abc import Sequence
from copy import deepcopy

from .architecture import Architecture
from .backbone import Backbone
from .batches import Batch
from .corpus import Corpus
from .recipe import Objective, PretrainSettings, score, stream_of
from .supernet import Supernet
from .train import Alone, make_optimizer, train


class Proxy:
    """The sub-networks of a supernet, each scored after a training of its own; the supernet stays as it is.

    A score is a function of the supernet and the architecture: all see the same batches and the same chance.
    training: the supernet's settings, with the plan of such a training, in steps.
    """

    def __init__(self, supernet: Objective, held: Sequence[Batch], corpus: Corpus, training: PretrainSettings) -> None:
        self.supernet, self.held, self.corpus, self.training = supernet, held, corpus, training

    def score(self, arch: Architecture) -> dict[str, float]:
        """Train an architecture, and return its mean loss and parts over the batches.

        Raises:
            FloatingPointError: its loss or gradient did not stay finite.
        """
        training = self.training.model_copy(update={"arch": arch.explicit()})
        learner, plan = inherit(self.supernet, arch), training.plan
        machine = Alone(next(learner.parameters()).device)
        stream = stream_of(training, self.corpus, 0)
        for _ in train(learner, stream, plan, make_optimizer(learner, plan), seed=training.seed, accelerator=machine):
            pass
        return score(learner, self.held, precision=plan.precision)


def inherit(objective: Objective, arch: Architecture) -> Objective:
    """Return an objective over one architecture of a supernet, with copies of its weights, and of all that judges it.

    Raises:
        ValueError: the objective trains no supernet, or it does not hold the architecture.
    """
    net = objective.backbone
    if not isinstance(net, Supernet):
        raise ValueError("only from a supernet can an architecture inherit weights")
    backbone = Backbone(arch, net.dropout)
    backbone.load_state_dict(net.weights_of(arch))
    backbone.to(next(net.parameters()).device)
    # A generator has parts of the supernet's embedding, and its copy has the same parts of this one.
    embedding = dict(backbone.embed.named_children())
    instead = {id(net): backbone} | {id(part): embedding[name] for name, part in net.embed.named_children()}
    return deepcopy(objective, instead)
