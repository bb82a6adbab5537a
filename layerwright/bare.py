"""Make modules that have shapes but no memory, and draw no weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def bare() -> Iterator[None]:
    """Make what is built within the block on the meta device, and leave its weights, and every random state, alone."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leave weights as they are: the meta device has none, and to draw some there imports the compiler of torch."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        named = named or {}
        drawn = function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", "") == nn.init.__name__
        return (args[0] if args else named["tensor"]) if drawn else function(*args, **named)
