"""Keep the memory of a process as a training wants it, where the C library is glibc, and tell how much it took.

What a step frees the next one takes again, at other sizes in another order.  A library that returned it to the system would
get it back as pages to be zeroed (2 % of a step, more with larger tensors); and a processor finds its way in few large pages
quicker than in many small ones (2 to 4 %).
"""

import ctypes
import os
from pathlib import Path

PAGE = 2 << 20  # bytes of a large page
TRIM_THRESHOLD, MMAP_MAX, MXFAST = -1, -4, 1  # of mallopt(3)
HUGE = 14  # of madvise(2)


def keep_memory() -> None:
    """Keep freed memory for the next step, and ask for large pages; the process holds its peak until it ends."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    for parameter, value in ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (MXFAST, 0)):
        libc.mallopt(parameter, value)
    # A block as large as half of the machine's memory, which is nowhere until it is written to.  Freed, it stays the end of
    # the heap, from which all that follows is taken, with the advice about its pages.
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    place = libc.malloc(ctypes.c_size_t(size))
    if place:
        libc.madvise(-(-place // PAGE) * PAGE, size - PAGE, HUGE)
        libc.free(place)


def release_memory() -> None:
    """Give back what is freed: to those who run after a training, what it kept is of no use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


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
