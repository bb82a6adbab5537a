"""Keep a run folder that survives kills, full disks and damaged files, and that a person can read.

Two ideas. A folder counts only if its manifest, which holds the SHA-256 of every other file and is written last, verifies.
And nothing appears under its final name before it is wholly on the disk. There is no pickle anywhere: tensors are
safetensors, the rest is JSON and TOML.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from .console import warn
from .errors import IntegrityError, RunInUse
from .settings import differences, sync_folder, write, write_atomically

MANIFEST, CARD = "manifest.json", "README.md"


@dataclass(frozen=True)
class Checkpoint:
    """Hold what a verified checkpoint folder says; its tensors are read when asked for."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Count the steps taken before this checkpoint."""
        return int(self.state["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read one saved group of tensors, on the CPU; those that were one tensor are one again."""
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            aliases = json.loads(file.metadata()["aliases"])
        return saved | {alias: saved[key] for alias, key in aliases.items()}


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that takes the name of `folder` at the end of the block, or goes if that fails.

    What has that name already is replaced, and stays if the block or the renaming fails; a link stays one, to the new folder.
    """
    if folder.is_symlink():
        folder = folder.resolve()
        if Path.cwd().is_relative_to(folder):
            raise FileExistsError(f"{folder} is the current folder, or one that it lies in: it would go")
    unfinished, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("tmp", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)
    moved = False
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
            moved = True
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if moved:
            with suppress(OSError):
                replaced.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def save(run: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write run/checkpoints/step-N, N being state["step"]: NAME.safetensors for each group of tensors, and state.json.

    Whenever it is cut short, `latest` finds the checkpoint before it or this one. Of the older ones all but `keep` - 1 go.
    Raises: OSError, naming the folder and the space left, when it cannot be written; the older ones stay.
    """
    target = run / "checkpoints" / f"step-{state['step']:08}"
    unfinished, replaced = target.with_name(f".{target.name}.tmp"), target.with_name(f"{target.name}.old")
    try:
        for orphan in target.parent.glob(".step-*.tmp"):
            shutil.rmtree(orphan)
        unfinished.mkdir(parents=True)
        for name, group in tensors.items():
            _write_tensors(unfinished / f"{name}.safetensors", group)
        (unfinished / "state.json").write_text(json.dumps(state, indent=1))
        seal_folder(unfinished)
        if target.exists():
            # No folder replaces another in one move, so `latest` knows the old one by this name too.
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(target, replaced)
        os.rename(unfinished, target)
        sync_folder(target.parent)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not isinstance(error, OSError | SafetensorError):
            raise
        needed = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        free = shutil.disk_usage(next(folder for folder in (run, *run.parents) if folder.exists())).free
        message = f"cannot save {target}: {error} (it takes {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free)"
        raise OSError(message) from error
    # A newer one is damaged, or this run would have gone on from it; it is replaced when the run gets there.
    older = [folder for step, folder in _checkpoints(run) if step <= state["step"] and folder not in (target, replaced)]
    for folder in (replaced, *older[max(keep - 1, 0) :]):
        shutil.rmtree(folder, ignore_errors=True)
    return target


def latest(run: Path) -> Checkpoint | None:
    """Find the newest checkpoint that verifies, warning of each damaged one it passes over; None if there is none yet.

    Raises: IntegrityError when all are damaged.
    """
    damages = []
    for step, folder in _checkpoints(run):
        try:
            verify_folder(folder)
            checkpoint = Checkpoint(folder, json.loads((folder / "state.json").read_text()))
            if checkpoint.step != step:
                raise IntegrityError(f"{folder} holds the checkpoint of step {checkpoint.step}")
        except (IntegrityError, OSError) as error:
            damages.append(str(error))
            warn(f"passing over a damaged checkpoint: {error}")
        else:
            return checkpoint
    if damages:
        raise IntegrityError(f"no checkpoint of {run} is good: {'; '.join(damages)}")
    return None


def seal_folder(folder: Path) -> None:
    """Write the manifest of a folder, made durable first: the size and SHA-256 of every file below it.

    But hidden ones, and its README.md, which people edit.
    """
    manifest = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path not in (folder / MANIFEST, folder / CARD) and not path.name.startswith("."):
            # As open to others as its folder is; safetensors makes every file private.
            path.chmod(folder.stat().st_mode & 0o666)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            manifest[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))


def verify_folder(folder: Path) -> None:
    """Check every file of a sealed folder against its manifest.

    Raises: IntegrityError naming the first file that is missing, of another size, or altered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items() if name != CARD}
    except FileNotFoundError:
        raise IntegrityError(f"{folder / MANIFEST} is missing") from None
    except (ValueError, TypeError, AttributeError, KeyError):
        raise IntegrityError(f"{folder / MANIFEST} is not a manifest") from None
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing")
        if path.stat().st_size != size:
            found = f"{path} has {path.stat().st_size:,} bytes instead of {size:,}"
            raise IntegrityError(f"{found} (if you changed it, delete {MANIFEST})")
        if _digest(path) != digest:
            raise IntegrityError(f"{path} is not what was saved: its SHA-256 differs (if you changed it, delete {MANIFEST})")


def flatten_optimizer(optimizer: Optimizer) -> dict[str, Tensor]:
    """Turn an optimizer's state into tensors named INDEX.SLOT; parameters that have none yet, as in a supernet, have no key.

    Raises: TypeError for state that is not tensors, which could not be put back as it was.
    """
    state = optimizer.state_dict()["state"]
    flat = {f"{index}.{slot}": value for index, slots in state.items() for slot, value in slots.items() if value is not None}
    for name, value in flat.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"optimizer state {name} is {type(value).__name__}, not a tensor")
    return flat


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `flatten_optimizer` took; learning rates and the like stay as the optimizer has them.

    Raises: IntegrityError naming the tensor that does not belong to these parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, slot = name.partition(".")
        if int(index) >= len(parameters):
            raise IntegrityError(f"there is optimizer state {name}, but there are only {len(parameters)} parameters")
        found, shape = list(tensor.shape), list(parameters[int(index)].shape)
        # Factored moments have 1 where their parameter has more, counters have no dimension at all.
        if found and (len(found) != len(shape) or any(size not in (1, whole) for size, whole in zip(found, shape, strict=True))):
            raise IntegrityError(f"optimizer state {name} is {found}, but its parameter is {shape}")
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keep other processes out of a run folder, made if need be, until the block or this process ends.

    Of a distributed run only the main process holds it. Raises: RunInUse naming the process that has it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunInUse(f"{run} is in use by process {lock.read().strip() or 'unknown'}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def sealed(run: Path, settings: BaseModel, may_change: Collection[str] = ()) -> None:
    """Write settings.toml into a new run folder; in an old one check that the settings are those it began with.

    `may_change` names settings, or whole groups of them, that do not alter what a run computes.
    Raises: ValueError listing what differs.
    """
    path = run / "settings.toml"
    if path.exists():
        try:
            before = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
        with suppress(ValidationError):
            # A setting that came later had its default before.
            before = type(settings).model_validate(before).model_dump(mode="json", exclude_none=True)
        names = re.compile("|".join(rf"{re.escape(name)}[.:]" for name in may_change) or r"(?!)")
        if changed := [line for line in differences(before, settings) if not names.match(line)]:
            listed = "".join(f"\n  {line}" for line in changed)
            raise ValueError(f"{run} was begun with other settings; use them, or another --out:{listed}")
    write(settings, path)


class Signals:
    """Note within a `with` block that the process was asked to stop, so that a loop can save and raise Interrupted.

    SIGTERM and the first SIGINT set `stop`; a second SIGINT raises KeyboardInterrupt at once. Of two blocks, one in the
    other, both are told. For the main thread only.
    """

    def __init__(self) -> None:
        self.stop = False
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Signals):
                outer.stop |= self.stop

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self.stop = True
        self._interrupted |= number == signal.SIGINT
        # Not through the console: a signal may come in the middle of its own printing.
        with suppress(OSError):
            os.write(2, b"\nstopping after a checkpoint; interrupt again to stop at once\n")


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file of JSON lines in one write, so that a kill tears at most the last line."""
    with open(path, "ab") as file:
        file.write(json.dumps(record).encode() + b"\n")


def truncate_after(path: Path, step: int) -> None:
    """Drop the lines of a file of JSON records beyond a step, and any that a kill tore; no file is an empty one."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        write_atomically(path, b"".join(line for line in lines if _is_until(line, step)))


def _is_until(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, TypeError, KeyError):
        return False


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """List the checkpoints of a run, damaged ones too, newest first; one being replaced follows its replacement."""
    names = ((re.fullmatch(r"step-(\d+)(\.old)?", path.name), path) for path in (run / "checkpoints").glob("step-*"))
    found = [(int(match[1]), not match[2], path) for match, path in names if match]
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, each distinct one once: safetensors knows no sharing, and tied embeddings are one tensor by two names."""
    first: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    saved, aliases = {}, {}
    for name, tensor in sorted(tensors.items()):
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        storage = tensor.untyped_storage().data_ptr()
        # Two different views of one memory are two tensors on disk.
        saved[name] = (tensor.detach().clone() if storage in storages else tensor.detach()).contiguous()
        storages.add(storage)
    save_file(saved, path, metadata={"aliases": json.dumps(aliases)})


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
