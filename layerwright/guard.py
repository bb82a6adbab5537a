"""Refuse what a model folder from elsewhere must not hold, before anything is allocated, run or believed.

A folder is strings and numbers that someone else wrote.  Its configuration is read as JSON and never by code that could
follow it to other code; sizes are bounded; every file lies in the folder; the header of a weights file agrees with the file.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .architecture import LAYERS, Architecture, Layer
from .errors import IntegrityError
from .registry import KINDS

# As with `LAYERS`, past these lies a slip, or someone who wants this machine's memory.
WIDTH, TABLE, PARAMETERS = 65_536, 20_000_000, 20_000_000_000
JSON_BYTES, HEADER_BYTES, DIMENSIONS = 64_000_000, 100_000_000, 8

# Keys by which a configuration makes transformers run code that came with a folder, or fetch it.
CODE = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "kernel_config")
ELSEWHERE = "transformers_weights"  # and by which it reads other files for weights than those that are checked
KERNELS = re.compile(r"_?(attn|experts)_implementation(_internal)?|use_kernels?")

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


class Stored(NamedTuple):
    """A tensor as the header of its file describes it.

    start: the byte of the file at which it begins.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def check_keys(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that names code, however deep: modules of the folder, kernels of the Hub, files elsewhere.

    Raises:
        ValueError: naming the key.
    """
    for key, value in _entries(settings):
        if key in CODE and value not in (None, False, [], {}):
            raise ValueError(f"{where} has '{key}', by which a folder brings its own code or has it fetched: refused")
        if key == ELSEWHERE and value is not None:
            raise ValueError(f"{where} has '{key}', by which its weights come from another file than {WEIGHTS}: refused")
        if KERNELS.fullmatch(key) and not _is_builtin(value):
            raise ValueError(f"{where} has {key}={value!r}, which is no word for code of transformers itself: refused")
        if key.endswith("_file") and key != "special_tokens_map_file" and isinstance(value, str):
            _plain(value, where)


def check_architecture(arch: Architecture) -> None:
    """Refuse an architecture that no machine could hold, before a tensor of it exists.

    Raises:
        ValueError: naming the size that is too large.
    """
    sizes = {"layers": (len(arch), LAYERS), "width": (arch.width, WIDTH), "embed": (arch.embed, WIDTH)}
    sizes |= {name: (getattr(arch, name), TABLE) for name in ("vocab", "positions", "segments", "offset")}
    for name, (size, most) in sizes.items():
        if size > most:
            raise ValueError(f"an architecture of {name}={size:,}: more than {most:,} are refused")
    rows = arch.vocab + arch.positions + arch.offset + arch.segments
    total = rows * arch.embed + sum(count * _weights(layer, arch.width) for layer, count in Counter(arch.layers).items())
    if total > PARAMETERS:
        raise ValueError(f"an architecture of more than {PARAMETERS:,} parameters is refused")


def check_number(settings: Mapping[str, Any], name: str, most: float, least: float = 0) -> None:
    """Refuse a number of a configuration that is none, or out of range; a float may hold what an integer may not.

    Raises:
        ValueError: naming it.
    """
    if name not in settings:
        return
    value, whole = settings[name], isinstance(most, int)
    if (type(value) is not int and (whole or type(value) is not float)) or not least <= value <= most:
        sort = "an integer" if whole else "a number"
        raise ValueError(f"the configuration has {name}={repr(value)[:40]}: it must be {sort} from {least:,} to {most:,}")


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder; in the cache of the Hub, a link may lead to where the files of that model are.

    Raises:
        ValueError: the name is no plain one, or a link leads out of the folder.
    """
    _plain(name, str(folder))
    path, top = folder / name, folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not path.resolve().is_relative_to(top.resolve()):
        raise ValueError(f"{path} is a link that leads out of its folder, to {path.resolve()}: refused")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of a folder, and nothing that it names.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object, is too large, or names code.
    """
    path = inside(folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {name}")
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; more than {JSON_BYTES:,} are refused")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is JSON, but no object of it")
    check_keys(found, str(path))
    return found


def check_tokenizer(folder: Path) -> None:
    """Refuse the tokenizer of a folder that names code.

    Raises:
        ValueError: it does, or a file of it is not what it should be.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if inside(folder, name).is_file():
            read_json(folder, name)


def stored(folder: Path) -> dict[str, Stored]:
    """Return the tensors that the safetensors files of a folder hold, each file's header checked against the file.

    Raises:
        FileNotFoundError: there are no such files; a pickle is named and not opened.
        ValueError: the index names a file outside the folder.
        IntegrityError: a header lies, or index and files disagree.
    """
    if (folder / WEIGHTS).exists():  # which transformers, too, takes where there is an index beside it
        return read_header(inside(folder, WEIGHTS))
    if not (folder / INDEX).exists():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        why = "that is a pickle, which could run code, and is never loaded; transformers can save it as safetensors"
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}" + (f", but {pickles[0]}: {why}" if pickles else ""))
    parts = read_json(folder, INDEX).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise IntegrityError(f"{folder / INDEX} has no weight_map of names to files")
    found: dict[str, Stored] = {}
    for part in sorted(set(parts.values())):
        if not part.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX} names {part!r}, which is no safetensors file: refused")
        path = inside(folder, part)
        if not path.is_file():
            raise IntegrityError(f"{folder / INDEX} names {part}, which is missing")
        found |= {name: tensor for name, tensor in read_header(path).items() if parts.get(name) == part}
    if lost := parts.keys() - found.keys():
        raise IntegrityError(f"{folder / INDEX} places {min(lost)} in {parts[min(lost)]}, which does not hold it")
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """Read the header of a safetensors file: dtype, shape and place of each tensor, which must fill the file exactly.

    Raises:
        IntegrityError: it is torn, or its header disagrees with itself or the file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_BYTES):
            raise IntegrityError(f"{path} is no safetensors file, or cut short: {size:,} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{path} has a header that is not JSON") from None
    if not isinstance(header, dict):
        raise IntegrityError(f"{path} has a header that is no JSON object")
    header.pop("__metadata__", None)
    places, tensors = [], {}
    for name, entry in header.items():
        dtype, shape, start, end = _entry(path, name, entry)
        if end - start != prod(shape) * DTYPES[dtype]:
            raise IntegrityError(f"{path} says that {name} is {list(shape)} of {dtype} in {end - start:,} bytes, which is false")
        places.append((start, end, name))
        tensors[name] = Stored(path, dtype, shape, 8 + length + start)
    reached = 0
    for start, end, name in sorted(places):
        if start != reached:
            raise IntegrityError(f"{path} says that {name} begins at byte {start:,}, but the tensor before ends at {reached:,}")
        reached = end
    if reached != size - 8 - length:
        raise IntegrityError(f"{path} should hold {reached:,} bytes of tensors, and holds {size - 8 - length:,}")
    return tensors


def _weights(layer: Layer, width: int) -> int:
    """Count the weights of a layer on the meta device, where they take no memory."""
    try:
        with torch.device("meta"):
            return sum(weight.numel() for weight in KINDS[layer.kind].module(width, **dict(layer.options)).parameters())
    except RuntimeError:  # a tensor whose bytes no integer counts
        return PARAMETERS + 1


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, first and last byte of a header's entry."""
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise IntegrityError(f"{path} has a header that does not describe {name}") from None
    if dtype not in DTYPES:
        raise IntegrityError(f"{path} has {name} in the unknown dtype {str(dtype)[:20]!r}")
    numbers = [*shape, start, end] if isinstance(shape, list) and len(shape) <= DIMENSIONS else [None]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise IntegrityError(f"{path} has a header that gives {name} an impossible shape or place")
    return dtype, tuple(shape), start, end


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs as a dict; a name that comes twice would hide the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _entries(settings: object) -> Iterator[tuple[str, Any]]:
    """Go through all keys and values, those of inner objects too."""
    waiting = [settings]
    while waiting:
        top = waiting.pop()
        if isinstance(top, Mapping):
            yield from ((str(key), value) for key, value in top.items())
            waiting += top.values()
        elif isinstance(top, list | tuple):
            waiting += top


def _is_builtin(value: object) -> bool:
    """Whether an implementation is named by a plain word, which is transformers' own, and no repository."""
    if isinstance(value, Mapping):
        return all(_is_builtin(inner) for inner in value.values())
    return not value or (isinstance(value, str) and re.fullmatch(r"[a-z0-9_]+", value) is not None)


def _plain(name: str, where: str) -> None:
    """Refuse a file name that could lead elsewhere."""
    parts = re.split(r"[/\\]", name)
    if not name or parts[0] in ("", "~") or ".." in parts or re.match(r"[A-Za-z]:|[a-z]+://", name) or "\0" in name:
        raise ValueError(f"{where} names the file {name[:80]!r}, which lies outside its folder: refused")
