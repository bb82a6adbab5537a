"""Carry out an edit: write the result tensor by tensor, as bytes from file to file.

What is written is read again before it gets its name: by the class that a user loads it with, and, where it is a model of a
family, by ours beside it.
"""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from . import pieces
from .convert import build_theirs, reload
from .editing import Operation, refuse_existing
from .express import wording
from .families import Family
from .fresh import Moments, moments, weights_of
from .handover import markdown_table, model_card, write_model
from .models import FACES
from .originals import compare, open_original
from .pieces import Piece
from .surgery import carry
from .weights import shapes_of, their_name, ties


class Written(NamedTuple):
    """What was written.

    result: the class that loads it.  difference: how far a family's model, the result or else the original, is from ours at
    most; None where none was compared.
    """

    folder: Path
    result: str
    difference: float | None


def write(operation: Operation, out: Path) -> Written:
    """Write the result of an edit as a model folder, which has its name once it is whole and has been loaded.

    Raises:
        FileExistsError: there is something of this name.
        IntegrityError: what was written cannot be loaded, or does not compute what ours does.
        OSError: it cannot be written.
    """
    refuse_existing(out)
    original, target = operation.original, operation.target
    found: list[float | None] = []

    def check(folder: Path) -> None:
        if target.family is None:
            found.append(compare(original))
            reload(FACES[original.key].model, folder, {}, dtype=original.dtype)
        else:
            more = {"add_pooling_layer": operation.config.pooler} if _has_poolers(operation) else {}
            theirs = reload(getattr(transformers, target.named), folder, more, dtype=original.dtype, also=original.others)
            found.append(compare(open_original(folder), theirs))

    put = partial(_write, operation)
    write_model(out, put, tokenizer=original.given.tokenizer(), card=_card(operation), check=check)
    return Written(out, target.named, found[0])


def weights(operation: Operation) -> dict[str, Piece]:
    """Return the weights of the result by our names: where they are on disk, or those drawn for new layers.

    Layers of a model of another precision are brought to that of the original.
    """
    original, prefix = operation.original, _prefix(operation)
    carried = carry(operation.edit, original.weights, {name: other.weights for name, other in operation.grafts.items()})
    known = {piece.dtype for piece in original.weights.values()}
    found: dict[str, Piece] = {}
    for name, piece in carried.items():
        found[name] = piece if piece.dtype in known else pieces.tensor(piece).to(original.dtype)
    arch = operation.edit.result
    for place in operation.new:
        behind = _moments(found, place, prefix) if operation.near else None
        drawn = weights_of(arch.layers[place], arch, seed=operation.seed + place, behind=behind)
        found |= {f"{prefix}layers.{place}.{rest}": weight.to(original.dtype) for rest, weight in drawn.items()}
    return found


def _prefix(operation: Operation) -> str:
    return "" if operation.original.key == "backbone" else "backbone."


def _moments(found: Mapping[str, Piece], place: int, prefix: str) -> Moments:
    """Return what the states are like that reach a place."""

    def read(module: str) -> dict[str, Tensor]:
        return {name: pieces.tensor(found[f"{prefix}{module}.{name}"]) for name in ("weight", "bias")}

    if place:
        return moments(read(f"layers.{place - 1}.norm"))
    return moments(read("embed.norm"), read("embed.widen") if f"{prefix}embed.widen.weight" in found else None)


def _write(operation: Operation, folder: Path) -> None:
    """Write configuration and weights, and what makes of states the vector of a sentence."""
    original, family = operation.original, operation.target.family
    named: Mapping[str, Piece] = weights(operation)
    if family is None:
        gone = tuple(f"{_prefix(operation)}layers.{place}." for place in operation.repeated)
        named = {name: piece for name, piece in named.items() if not name.startswith(gone)}
    else:
        named = {**_theirs(operation, family, named), **(original.others if family is original.family else {})}
    pieces.write(folder / "model.safetensors", named)
    told = json.dumps(_settings(operation), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(told, encoding="utf-8")
    for name in original.given.of_sentences() if family is original.family else ():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(original.given.folder / name, folder / name)


def _theirs(operation: Operation, family: Family, named: Mapping[str, Piece]) -> dict[str, Piece]:
    """Return weights under a family's names and in its shapes."""
    head = family.heads[operation.original.key]
    config = getattr(transformers, family.config)(**operation.target.fields)
    pooled = _has_poolers(operation) and operation.config.pooler
    wanted = shapes_of(partial(build_theirs, family, head, config, pooled=pooled))
    found = {their_name(family, head, name): piece for name, piece in named.items()}
    assert found.keys() == wanted.keys() - ties(family, head).keys()
    return {name: _shaped(piece, wanted[name]) for name, piece in found.items()}


def _shaped(piece: Piece, shape: tuple[int, ...]) -> Piece:
    assert prod(piece.shape) == prod(shape)
    return piece.reshape(shape) if isinstance(piece, Tensor) else piece._replace(shape=shape)


def _has_poolers(operation: Operation) -> bool:
    """Return whether the class of the result takes a pooler or leaves it out."""
    family = operation.target.family
    return family is not None and family.pooler and operation.original.key == "backbone"


def _settings(operation: Operation) -> dict[str, Any]:
    """Return the config.json of the result: that of the original with what changes, where both are of one kind."""
    original, target = operation.original, operation.target
    if target.family is original.family:
        settings = dict(original.given.settings)
        if target.family is None:
            told = {"architecture": operation.edit.result.explicit(), "tied_layers": operation.config.tied_layers}
            return settings | {name: value for name, value in told.items() if value is not None or name in settings}
        before = wording(target.family, original.key, original.config).fields
        return settings | {name: value for name, value in target.fields.items() if before.get(name) != value}
    config = getattr(transformers, target.family.config)(**target.fields) if target.family else operation.config
    config.architectures, config.dtype = [target.named], original.dtype
    told = config.to_dict()
    told.pop("_name_or_path", None)
    return json.loads(config.__class__.from_dict(told).to_json_string())  # type: ignore[no-any-return]


def _card(operation: Operation) -> str:
    """Return the model card."""
    original, target = operation.original, operation.target
    rows = [(row.place, f"`{row.layer}`", row.origin, row.state) for row in operation.rows()]
    table = "\n".join(markdown_table(("layer", "what", "from", "weights"), rows))
    made = f"## Edit\n\nFrom {original.given.name}, `{original.arch}`.\n\n{table}\n"
    if target.family is not None:
        told = f"`{target.named}` of transformers, edited by Layerwright to\n\n```text\n{operation.edit.result}\n```"
        return f"# {original.given.name}, edited\n\n{told}\n\n{made}"
    with torch.device("meta"):
        model = FACES[original.key].model(operation.config)
    return model_card(model, f"{original.given.name}, edited", facts={}, scores={}) + "\n" + made
