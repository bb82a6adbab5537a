"""Open a model of any family, or of ours, without reading its weights: they are named as ours and stay on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from . import parity, pieces
from .architecture import Architecture
from .checkpoint import MANIFEST, verify_folder
from .configuration import LayerwrightConfig
from .convert import Source, build_theirs, family_of, find, has_pooler, our_config, read_family, read_own
from .errors import DataError, IntegrityError
from .families import Family
from .folders import open_tokenizer
from .guard import Stored, stored
from .models import FACES
from .weights import FLOATS, match, match_own, shapes_of, their_name, ties, to_ours, to_theirs

LONGEST = 24  # tokens of a row to compare two models on, so that states take little memory beside weights


@dataclass(frozen=True)
class Original:
    """A model on disk.

    family: None where it is one of ours.  key: which head stands on the backbone.  named: the class that it says it is.
    config: ours.  weights: by our names, in our shapes.  others: what its files hold besides, by the names there; unused: which
    of these are no weights of its class, and why its files hold them.
    """

    given: Source
    family: Family | None
    key: str
    named: str
    config: LayerwrightConfig
    weights: Mapping[str, Stored]
    others: Mapping[str, Stored]
    unused: tuple[str, ...] = ()

    @property
    def arch(self) -> Architecture:
        """The architecture."""
        return self.config.arch

    @property
    def ties(self) -> list[list[int]]:
        """Groups of layers that share weights."""
        return [list(group) for group in self.config.tied_layers or ()]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first layer's weights, which new layers get."""
        name = next(name for name in self.weights if name.removeprefix("backbone.").startswith("layers.0."))
        return FLOATS[self.weights[name].dtype]


def open_original(source: str | Path) -> Original:
    """Open a folder, or a model of the Hub.

    Raises:
        ValueError: it is no model of a family that converts, and none of ours.
        IntegrityError: its weights are torn, altered, missing, misshapen, or there are more.
        OSError: it cannot be read.
    """
    given = find(source)
    if (given.folder / MANIFEST).exists():
        verify_folder(given.folder)
    family = family_of(given)
    return _own(given) if family is None else _of_family(given, family)


def _own(given: Source) -> Original:
    key, config = read_own(given)
    with torch.device("meta"):
        bare = FACES[key].model(config)
    found = stored(given.folder)
    places = match_own(shapes_of(lambda: bare), found, bare.all_tied_weights_keys)
    weights = {name: found[place] for name, place in places.items()}
    return Original(given, None, key, FACES[key].model.__name__, config, weights, {})


def _of_family(given: Source, family: Family) -> Original:
    key, named, head, config, arch = read_family(given, family)
    found = stored(given.folder)
    pooled = has_pooler(family, key, found)
    build = partial(build_theirs, family, head, config, pooled=pooled)
    places, unused = match(family, head, shapes_of(build), found)
    others = {name: piece for name, piece in found.items() if name not in places.values()}
    for tied, source in ties(family, head).items():
        if source in places and tied in places and not pieces.same(found[places[source]], found[places[tied]]):
            raise IntegrityError(f"{tied} differs from {source}, which it repeats in every model that we have")
        places.setdefault(source, places.get(tied, source))
    ours = our_config(family, key, config, arch, pooler=pooled)
    shapes = shapes_of(partial(FACES[key].model, ours))
    weights = {name: found[places[their_name(family, head, name)]]._replace(shape=shape) for name, shape in shapes.items()}
    return Original(given, family, key, named, ours, weights, others, tuple(unused))


def compare(original: Original, theirs: PreTrainedModel | None = None) -> float | None:
    """Run a family's model as transformers has it and as ours on the same memory; return how far apart they are.

    theirs: the model as transformers loads it, where it is at hand.  None where a comparison says nothing: the model is one of
    ours, or its weights have fewer bits than float32.

    Raises:
        IntegrityError: they are further apart than allowed.
    """
    family = original.family
    if family is None or any(piece.dtype != "F32" for piece in original.weights.values()):
        return None
    reading, shapes = read_family(original.given, family), {name: one.shape for name, one in original.weights.items()}
    if theirs is None:
        theirs = build_theirs(family, reading.head, reading.config, pooled=original.config.pooler)
        named = to_theirs(family, reading.head, pieces.mapped(original.weights), shapes_of(lambda: theirs))
        theirs.load_state_dict(named, assign=True)
    with torch.device("meta"):
        ours = FACES[original.key].model(original.config)
    ours.load_state_dict(to_ours(family, reading.head, theirs.state_dict(), shapes), assign=True)
    return parity.gap(nn.Module.eval(theirs), nn.Module.eval(ours), LONGEST)


def check_tokenizers(one: Original, other: Original) -> None:
    """Refuse two models whose tokenizers give a word different numbers; models without one are not looked at.

    Raises:
        DataError: naming the first token that differs, or a tokenizer cannot be used.
    """
    words = []
    for model in (one, other):
        if model.given.tokenizer() is None:
            return
        tokenizer, _ = open_tokenizer(model.given.folder, model.config)
        words.append({number: word for word, number in tokenizer.get_vocab().items()})
    for number in range(max(len(found) for found in words)):
        first, second = (found.get(number) for found in words)
        if first != second:
            raise DataError(
                f"{other.given.name} has another vocabulary than {one.given.name}: token {number} is {second!r} there, "
                f"and {first!r} here"
            )
