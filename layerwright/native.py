"""Build what is in `passes/` with the compiler of the machine, once: passes over memory, to call on tensors, and their memory.

The first call takes some seconds; what was built is kept in the cache folder of the user, under a name that depends on the
source, the compiler, the processor and PyTorch's version; the variable LAYERWRIGHT_NATIVE names another folder.  Where it is 0,
or there is no compiler, nothing here runs, and `kernels` computes the same from operations of PyTorch.  The passes share
PyTorch's threads.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

SOURCES, TORCH = Path(__file__).parent / "passes", Path(torch.__file__).parent
FLAGS = ("-std=c++20", "-O3", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
# Compilers take half of the width for processors of which they know that it once cost clock rate.
OF_MACHINE = {"aarch64": ["-mcpu=native"], "x86_64": ["-march=native", "-mprefer-vector-width=512"]}
FOLDER = "LAYERWRIGHT_NATIVE"
NUMBERS = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def serves(x: Tensor) -> bool:
    """Return whether the functions can be called on such a tensor here."""
    return x.dtype in NUMBERS and x.device.type == "cpu" and library() is not None


def offers(name: str, like: Tensor) -> bool:
    """Return whether a pass can be called for numbers like those of a tensor here: some want instructions that not all have."""
    return serves(like) and _address(name, like.dtype) is not None


def call(name: str, like: Tensor, *arguments: Tensor | int | float | None) -> None:
    """Call a pass for numbers like those of a tensor; the tensors must be contiguous."""
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    _function(name, like.dtype, tuple(map(type, values)))(*values)


@cache
def library(part: Literal["passes", "memory"] = "passes") -> ctypes.CDLL | None:
    """Return the functions of a part, building them where that was not done yet; None where it cannot be done.

    The memory of tensors is a part of its own: it alone wants PyTorch's headers, which some distributions leave out.
    """
    if os.environ.get(FOLDER) == "0" or platform.system() != "Linux":
        return None
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_built(compiler, part)))
    except (OSError, RuntimeError, subprocess.CalledProcessError):  # the second where a user has no home
        return None


def _built(compiler: str, part: str) -> Path:
    memory, flags = SOURCES / "memory.cpp", [*FLAGS, *OF_MACHINE.get(platform.machine(), ["-march=native"])]
    sources = [memory] if part == "memory" else sorted(set(SOURCES.iterdir()) - {memory})
    if part == "memory":
        flags += [f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-lc10"]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    texts = [source.read_bytes() for source in sources]
    known = [*texts, version, _processor().encode(), " ".join(flags).encode(), torch.__version__.encode()]
    mark = hashlib.sha256(b"\0".join(known)).hexdigest()[:16]
    named = os.environ.get(FOLDER)
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerwright"
    target = folder / f"{part}-{mark}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / target.name
            files = [str(source) for source in sources if source.suffix == ".cpp"]
            subprocess.run([compiler, *files, *flags, "-o", str(made)], capture_output=True, check=True)
            made.replace(target)
    return target


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


@cache
def _address(name: str, dtype: torch.dtype) -> int | None:
    passes = library()
    assert passes is not None
    try:
        return ctypes.c_void_p.in_dll(passes, f"{name}_{NUMBERS[dtype]}").value
    except ValueError:
        return None


@cache
def _function(name: str, dtype: torch.dtype, kinds: tuple[type, ...]) -> Callable[..., None]:
    address = _address(name, dtype)
    assert address is not None
    # A pointer is as long as a whole number, and None is the one that points nowhere.
    taken: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_double, type(None): ctypes.c_void_p}
    return ctypes.CFUNCTYPE(None, *(taken[kind] for kind in kinds))(address)
