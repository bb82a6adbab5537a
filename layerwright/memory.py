"""Keep the memory of a process as a training wants it, and tell how much it took.

What a step frees the next one takes again, at other sizes in another order.  A library that returned it to the system would
get it back as pages to be zeroed (2 % of a step, more with larger tensors); a processor finds its way in few large pages quicker
than in many small ones (2 to 4 %); and tensors want a place of their own (`passes/memory.cpp`).
"""

import ctypes
import os
from pathlib import Path
from typing import Any

from . import native

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)


def keep_memory() -> None:
    """Keep freed memory for the next step, and take tensors from large pages; the process holds its peak until `release_memory`.

    It does what the machine allows: the first wants glibc, the second what `native` builds.
    """
    libc, library = ctypes.CDLL(None), native.library("memory")
    _call(libc, "mallopt", TRIM_THRESHOLD, -1)
    _call(libc, "mallopt", MMAP_MAX, 0)
    # Addresses for half of the machine's memory; memory itself is taken when it is written to.
    _call(library, "keep_tensors", ctypes.c_int64(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2))


def release_memory() -> None:
    """Give back what is freed: to those who run after a training, what it kept is of no use."""
    _call(ctypes.CDLL(None), "malloc_trim", ctypes.c_size_t(0))
    _call(native.library("memory"), "release_tensors")


def _call(library: ctypes.CDLL | None, name: str, *values: Any) -> None:
    if hasattr(library, name):
        getattr(library, name)(*values)


def watch_memory() -> None:
    """Begin anew to note how much the process holds at most."""
    note = Path("/proc/self/clear_refs")
    if note.exists():
        note.write_text("5")


def most_memory() -> float | None:
    """Return how many MiB the process has held at most since `watch_memory`; None where the system does not say."""
    return resident("VmHWM")


def resident(what: str) -> float | None:
    """Return how many MiB of a process are in memory, now (VmRSS) or at most (VmHWM); None where Linux does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), None)
