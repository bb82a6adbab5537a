"""Carry tensors between files of safetensors, the names of a family of transformers, and ours; every tensor keeps its bits."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .errors import IntegrityError
from .families import Family, Head
from .guard import Stored

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Shapes = dict[str, tuple[int, ...]]
NAMED = 20  # of missing weights, in a message


def shapes_of(build: Callable[[], nn.Module]) -> Shapes:
    """Return the shapes of the weights of a model, which is built without memory for them."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in build().state_dict().items()}


def their_name(family: Family, head: Head, ours: str) -> str:
    """Return what a weight of a model of ours is called in a family's model with the same head."""
    if ours.startswith("head."):
        return _look_up(head.names, ours)
    inner = ours.removeprefix("backbone.")
    base = "" if inner == ours else f"{family.name}."
    if not inner.startswith("layers."):
        return base + _look_up(family.names, inner)
    _, index, rest = inner.split(".", 2)
    block, place = divmod(int(index), 2)
    return f"{base}{family.block}.{block}.{_look_up(family.block_names, f'{place}.{rest}')}"


def _look_up(names: Mapping[str, str], name: str) -> str:
    """Translate a weight by the entry for itself, or for the module that holds it."""
    module, _, last = name.rpartition(".")
    return names[name] if name in names else f"{names[module]}.{last}"


def to_theirs(family: Family, head: Head, weights: Mapping[str, Tensor], wanted: Shapes) -> dict[str, Tensor]:
    """Return the weights of a model of ours under a family's names and in its shapes, those that repeat another included."""
    found = {their_name(family, head, name): weight for name, weight in weights.items()}
    found |= {tied: found[source] for tied, source in ties(family, head).items()}
    return {name: weight.reshape(wanted[name]) for name, weight in found.items()}


def to_ours(family: Family, head: Head, weights: Mapping[str, Tensor], wanted: Shapes) -> dict[str, Tensor]:
    """Return the weights of a family's model under our names and in our shapes."""
    return {name: weights[their_name(family, head, name)].reshape(shape) for name, shape in wanted.items()}


def ties(family: Family, head: Head) -> dict[str, str]:
    """Return the weights of a family's class that repeat another, and which."""
    names = {tied: ours if ours.startswith("head.") else f"backbone.{ours}" for tied, ours in head.tied.items()}
    return {tied: their_name(family, head, ours) for tied, ours in names.items()}


def match(family: Family, head: Head, wanted: Shapes, found: Mapping[str, Stored]) -> tuple[dict[str, str], list[str]]:
    """Return where each weight of a family's class stands in its files, and what else these hold that has no place.

    Old files call weights of norms gamma and beta, and a class finds weights with and without the name of its base model.

    Raises:
        IntegrityError: a weight is missing, of another shape or no float, or the files hold one that no class has.
    """
    places: dict[str, str] = {}
    dropped: defaultdict[str, list[str]] = defaultdict(list)
    for stored_name in found:
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", stored_name))
        bare = name.removeprefix(f"{family.name}.")
        own = next((one for one in (name, bare, f"{family.name}.{name}") if one in wanted), None)
        if own is None:
            dropped[_why_dropped(family, head, found[stored_name].file, stored_name, bare)].append(stored_name)
        elif own in places:
            raise IntegrityError(f"{own} is there twice, as {places[own]} and as {stored_name}")
        else:
            places[own] = stored_name
    tied = ties(family, head)
    given = places.keys() | {source for name, source in tied.items() if name in places} | tied.keys()
    _check(wanted, {own: found[name] for own, name in places.items()}, wanted.keys() - given)
    return places, [f"{', '.join(names)}: {why}" for why, names in dropped.items()]


def match_own(wanted: Shapes, found: Mapping[str, Stored], tied: Mapping[str, str]) -> dict[str, str]:
    """Return where each weight of a model of ours stands in its files: under its own name, or that of the one it is tied to.

    Raises:
        IntegrityError: a weight is missing, too many, of another shape or no float.
    """
    places = {name: tied.get(name, name) for name in wanted}
    if extra := sorted(found.keys() - places.values()):
        raise IntegrityError(f"{found[extra[0]].file} holds {extra[0]}, of which the architecture knows nothing")
    _check(wanted, found, places.values() - found.keys())
    return places


def _check(wanted: Shapes, found: Mapping[str, Stored], missing: Iterable[str]) -> None:
    if lost := sorted(missing):
        where = next((f"{tensor.file.parent}: " for tensor in found.values()), "")
        more = f", and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        raise IntegrityError(f"{where}the weights lack {', '.join(lost[:NAMED])}{more}")
    for name, tensor in found.items():
        if tensor.shape != wanted[name]:
            raise IntegrityError(f"{tensor.file}: {name} is {list(tensor.shape)}, but config.json makes it {list(wanted[name])}")
        if tensor.dtype not in FLOATS:
            raise IntegrityError(f"{tensor.file}: {name} is of {tensor.dtype}, and a weight is one of {', '.join(FLOATS)}")


def _why_dropped(family: Family, head: Head, file: Path, stored_name: str, bare: str) -> str:
    """Return what a weight is that a class has no place for.

    Raises:
        IntegrityError: none that we know of.
    """
    for pattern, what in family.dropped.items():
        if re.fullmatch(pattern, bare):
            return what
    for other in family.heads.values():
        if any(stored_name == module or stored_name.startswith(f"{module}.") for module in (*other.names.values(), *other.tied)):
            return f"the head of {other.model}"
    raise IntegrityError(f"{file} holds {stored_name}, for which {head.model} has no place")


def read(places: Mapping[str, str], found: Mapping[str, Stored]) -> tuple[dict[str, Tensor], torch.dtype]:
    """Read tensors, under the names that they are wanted by, and the one dtype they have; float32 where there are several."""
    files: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for own, name in places.items():
        files[str(found[name].file)].append((own, name))
    weights: dict[str, Tensor] = {}
    for file, names in files.items():
        with safe_open(file, framework="pt") as opened:
            weights |= {own: opened.get_tensor(name) for own, name in names}
    dtypes = {weight.dtype for weight in weights.values()}
    return weights, dtypes.pop() if len(dtypes) == 1 else torch.float32


def settle(family: Family, head: Head, weights: dict[str, Tensor]) -> None:
    """Give each weight that repeats another, or the other, its value.

    Raises:
        IntegrityError: both are there, and they differ.
    """
    for tied, source in ties(family, head).items():
        given = [weights[name] for name in (source, tied) if name in weights]
        if len(given) == 2 and not torch.equal(*given):
            raise IntegrityError(f"{tied} differs from {source}, which it repeats in every model that we have")
        weights[tied] = weights[source] = given[0]
