"""The memory of tensors: what is taken does not overlap, what is given back grows together again, and pages go back."""

import os
import subprocess
import sys
from itertools import pairwise
from random import Random
from threading import Thread

import pytest
import torch
from torch.profiler import profile

from layerwright import native
from layerwright.memory import keep_memory, release_memory, resident

needs_compiler = pytest.mark.skipif(native.library("memory") is None, reason="there is no compiler, or no PyTorch headers")


def script(text: str) -> str:
    """Run Python in a process of its own, whose tensors are `before` and those of the text, and return what it printed."""
    return alone("import torch\nfrom layerwright.memory import keep_memory\nbefore = torch.ones(1 << 16)\nkeep_memory()\n" + text)


def alone(text: str, **environment: str) -> str:
    """Run Python in a process of its own, and return what it printed."""
    given = os.environ | environment
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, env=given).stdout


def draw(rng: Random, rounds: int) -> list[tuple[torch.Tensor, int]]:
    """Take and give back tensors of many sizes in any order; return those that remain, and what each is full of."""
    held: list[tuple[torch.Tensor, int]] = []
    for number in range(rounds):
        while held and rng.random() < 0.5:
            tensor, value = held.pop(rng.randrange(len(held)))
            assert (tensor == value).all()
        held.append((torch.full((int(2 ** rng.uniform(0, 17)),), number, dtype=torch.int32), number))
    return held


@needs_compiler
def test_tensors_keep_what_is_written_to_them():
    keep_memory()
    held = draw(Random(0), 3_000)
    assert len(held) > 1
    assert all((tensor == value).all() for tensor, value in held)
    ends = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor, _ in held)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))


@needs_compiler
def test_threads_take_tensors_at_once():
    keep_memory()
    found: dict[int, bool] = {}

    def work(seed: int) -> None:
        found[seed] = all((tensor == value).all().item() for tensor, value in draw(Random(seed), 1_000))

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


@needs_compiler
def test_what_is_given_back_in_any_order_is_one_block_again():
    told = script("""
from random import Random
first = torch.empty(1 << 20).data_ptr()
rng = Random(1)
held = [torch.empty(int(2 ** rng.uniform(10, 20))) for _ in range(2_000)]
rng.shuffle(held)
whole = max(tensor.data_ptr() + tensor.nbytes for tensor in held) - first
while held:
    held.pop()
print(torch.empty(whole, dtype=torch.uint8).data_ptr() == first, whole > 1 << 24)
""")
    assert told.split() == ["True", "True"]


@needs_compiler
def test_the_smallest_block_that_is_large_enough_is_taken():
    told = script("""
blocks = [torch.empty(size << 12, dtype=torch.uint8) for size in (9, 1, 3, 1, 5, 1)]
places = [block.data_ptr() for block in blocks]
del blocks[4], blocks[2], blocks[0]
taken = [torch.empty(size << 12, dtype=torch.uint8) for size in (2, 4, 6)]
print([places.index(tensor.data_ptr()) for tensor in taken])
""")
    assert told.strip() == "[2, 4, 0]"


@needs_compiler
def test_pages_of_what_is_free_go_back():
    keep_memory()
    large, kept = torch.ones(64 << 20), torch.arange(1 << 20)
    held = resident("VmRSS")
    del large
    release_memory()
    left = resident("VmRSS")
    assert held is not None
    assert left is not None
    assert held - left > 200  # of 256 MiB
    assert torch.equal(kept, torch.arange(1 << 20))
    assert torch.zeros(64 << 20).sum() == 0


@needs_compiler
def test_what_was_there_before_is_given_back_where_it_came_from():
    told = script("""
before.untyped_storage().resize_(1 << 20)
small = [torch.ones(8) for _ in range(100)]
storage = torch.ones(1 << 16).untyped_storage()
storage.resize_(1 << 20)
storage.resize_(16)
del before, small, storage
print(torch.ones(1 << 16).sum().item())
""")
    assert float(told) == 1 << 16


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_child_goes_on_with_tensors_of_its_own():
    told = script("""
import os
kept = torch.arange(1 << 16)
read, write = os.pipe()
if os.fork() == 0:
    kept.zero_()
    mine = torch.ones(1 << 18)
    os.write(write, str(int(mine.sum() + kept.sum())).encode())
    os._exit(0)
print(os.read(read, 100).decode(), int(kept.sum()))
os.wait()
""")
    assert told.split() == [str(1 << 18), str((1 << 16) * ((1 << 16) - 1) // 2)]


@needs_compiler
def test_the_profiler_is_told():
    keep_memory()
    with profile(profile_memory=True) as profiler:
        torch.empty(1 << 20)
    sizes = [event.self_cpu_memory_usage for event in profiler.events() if event.name == "aten::empty"]
    assert sizes == [4 << 20]


@needs_compiler
def test_more_than_the_stretch_has_comes_from_elsewhere():
    told = script("""
import os
half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
first = torch.empty(half - (1 << 20), dtype=torch.uint8)
second = torch.ones(1 << 20)
print(second.sum().item(), not first.data_ptr() <= second.data_ptr() < first.data_ptr() + half)
""")
    assert told.split() == [str(float(1 << 20)), "True"]


@needs_compiler
@pytest.mark.parametrize("size", [-1, -100, 1 << 62])
def test_what_nobody_has_is_an_error_and_no_block_is_given_twice(size: int):
    keep_memory()
    storage = torch.ones(1 << 12).untyped_storage()
    with pytest.raises(RuntimeError):
        storage.resize_(size)
    one, other = torch.zeros(1 << 12), torch.ones(1 << 12)
    assert one.sum() == 0
    assert other.sum() == 1 << 12


@needs_compiler
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_where_addresses_are_limited_none_are_set_aside(limit: str):
    text = """
import resource, torch
from layerwright.memory import keep_memory, resident
before = resident("VmSize")
resource.setrlimit(resource.{}, (1 << 40, resource.RLIM_INFINITY))
keep_memory()
print(resident("VmSize") - before, torch.ones(1 << 20).sum().item())
"""
    grown, total = alone(text.format(limit)).split()
    assert float(grown) < 256  # MiB
    assert float(total) == 1 << 20


def test_without_a_compiler_memory_is_that_of_the_c_library():
    text = (
        "import torch; from layerwright.memory import *; keep_memory(); print(torch.ones(1 << 20).sum().item()); release_memory()"
    )
    assert float(alone(text, LAYERWRIGHT_NATIVE="0")) == 1 << 20
