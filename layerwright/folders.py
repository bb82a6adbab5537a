"""Open a model folder: the model that it names, and the tokenizer that transformers loads from it."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from . import vocabulary
from .checkpoint import MANIFEST, verify_folder
from .configuration import LayerwrightConfig
from .errors import DataError, IntegrityError, nearest
from .guard import check_tokenizer, read_json
from .models import FACES, LayerwrightPreTrainedModel


def open_folder(folder: Path) -> LayerwrightPreTrainedModel:
    """Load a model folder as the class that it names, in float32, ready for evaluation.

    Raises:
        ValueError: it is none.
        IntegrityError: it is torn or altered.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    if (folder / MANIFEST).exists():
        verify_folder(folder)
    settings = read_json(folder, "config.json")
    try:
        kind, (name, *_) = settings["model_type"], settings["architectures"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{folder / 'config.json'} does not say which model this is (model_type, architectures)") from None
    if kind != "layerwright":
        raise ValueError(f"{folder} holds a {kind!r} of transformers: layerwright convert makes a model folder of it")
    classes: dict[str, Any] = {face.model.__name__: face.model for face in FACES.values()}
    if name not in classes:
        raise ValueError(f"{folder / 'config.json'} names no class of ours, but {name!r}{nearest(str(name), classes)}")
    try:
        model, loaded = classes[name].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder} cannot be loaded: {error}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise IntegrityError(f"{folder} lacks {len(missing)} weights of its architecture, such as {missing[0]}")
    if more := sorted(loaded["unexpected_keys"]):
        raise IntegrityError(f"{folder} holds {len(more)} weights that its architecture has not, such as {more[0]}")
    found: LayerwrightPreTrainedModel = model.eval()
    return found


def open_tokenizer(folder: Path, config: LayerwrightConfig) -> tuple[Tokenizer, dict[str, int | None]]:
    """Load the tokenizer of a folder, which neither cuts nor pads, and the ids of its pad, cls, sep and mask tokens.

    Raises:
        DataError: it is missing, cannot be used, or has more tokens or other special ones than the model of this configuration.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise DataError(f"there is no tokenizer {folder / 'tokenizer.json'}")
    try:
        check_tokenizer(folder)
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - tokenizers raises no narrower one
        raise DataError(f"the tokenizer of {folder} cannot be loaded: {error}") from None
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise DataError(f"{folder} has a tokenizer that the library tokenizers does not know")
    if (size := vocabulary.size(tokenizer)) > (vocab := config.arch.vocab):
        raise DataError(f"the tokenizer of {folder} has {size:,} tokens, and the model embeddings for {vocab:,}")
    ids = {name: getattr(loaded, f"{name}_token_id", None) for name in ("pad", "cls", "sep", "mask")}
    # What pads is never looked at, and a configuration of ConvBERT names another token for it; RoBERTa counts positions from it.
    for name in ("pad", "cls", "sep") if config.arch.offset else ("cls", "sep"):
        if None not in (learned := getattr(config, f"{name}_token_id"), ids[name]) and learned != ids[name]:
            raise DataError(f"the tokenizer of {folder} has the {name} token {ids[name]}, and the model learned with {learned}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, ids


def class_names(folder: Path, config: LayerwrightConfig) -> tuple[str, ...]:
    """Return the names of the classes of a model in order.

    Raises:
        DataError: id2label has gaps, or label2id says otherwise.
    """
    names: dict[Any, str] = dict(config.id2label or {})
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{folder / 'config.json'} has an id2label whose numbers are not 0 to {len(names) - 1}")
    for name, number in (config.label2id or {}).items():
        if names.get(number) != name:
            said = f"class {number} is {names[number]!r}" if number in names else f"there is no class {number}"
            raise DataError(
                f"{folder / 'config.json'} contradicts itself: by label2id {name!r} is class {number}, by id2label {said}"
            )
    return tuple(names[number] for number in sorted(names))
