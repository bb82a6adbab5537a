"""Move tensors between safetensors files as bytes: the memory that it takes is that of none of them.

What a file holds is known from its header (`guard`), which says at which byte each tensor begins.  So a tensor that stays as it
is never becomes one of torch, and the model that is edited may be larger than the memory.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from .guard import DTYPES, Stored
from .weights import FLOATS

CHUNK = 1 << 20  # bytes held at a time

Piece = Stored | Tensor


def write(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write a safetensors file, as safetensors itself orders it: the widest numbers first, then by name."""
    order = sorted(pieces, key=lambda name: (-DTYPES[dtype_of(pieces[name])], name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    reached = 0
    for name in order:
        piece, dtype = pieces[name], dtype_of(pieces[name])
        end = reached + prod(piece.shape) * DTYPES[dtype]
        header[name] = {"dtype": dtype, "shape": list(piece.shape), "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write(file, pieces[name])


def dtype_of(piece: Piece) -> str:
    """Return the dtype of a piece, as safetensors calls it."""
    if isinstance(piece, Stored):
        return piece.dtype
    return next(name for name, dtype in FLOATS.items() if dtype == piece.dtype)


def same(one: Stored, other: Stored) -> bool:
    """Return whether two stored tensors are the same, bit for bit."""
    if (one.dtype, prod(one.shape)) != (other.dtype, prod(other.shape)):
        return False
    return all(a == b for a, b in zip_longest(_chunks(one), _chunks(other)))


def mapped(pieces: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Return stored tensors of floats, which the machine reads from their files where they are used, and may forget again."""
    files: dict[Path, Tensor] = {}
    found = {}
    for name, piece in pieces.items():
        if piece.file not in files:
            files[piece.file] = torch.from_file(str(piece.file), shared=False, size=piece.file.stat().st_size, dtype=torch.uint8)
        whole = files[piece.file][piece.start : piece.start + _size(piece)]
        whole = whole if piece.start % DTYPES[piece.dtype] == 0 else whole.clone()
        found[name] = whole.view(FLOATS[piece.dtype]).view(piece.shape)
    return found


def tensor(piece: Piece) -> Tensor:
    """Return one tensor."""
    return mapped({"": piece})[""] if isinstance(piece, Stored) else piece


def _size(piece: Stored) -> int:
    return prod(piece.shape) * DTYPES[piece.dtype]


def _chunks(piece: Stored) -> Iterator[bytes]:
    left = _size(piece)
    with open(piece.file, "rb") as file:
        file.seek(piece.start)
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise OSError(f"{piece.file} was cut short while it was read")
            left -= len(chunk)
            yield chunk


def _write(file: IO[bytes], piece: Piece) -> None:
    if isinstance(piece, Stored):
        file.writelines(_chunks(piece))
    else:
        file.write(piece.detach().contiguous().flatten().view(torch.uint8).numpy().data)
