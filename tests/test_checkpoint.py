"""Checkpoints: whatever is killed, full or damaged, what is found afterwards is something that was saved, or a named error.

Run as a script, this file is the process that gets killed.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from layerwright import checkpoint
from layerwright.checkpoint import (
    Signals,
    appearing,
    append_line,
    flatten_optimizer,
    hold,
    latest,
    restore_optimizer,
    save,
    seal_folder,
    sealed,
    truncate_after,
    verify_folder,
)
from layerwright.errors import IntegrityError, RunInUse

NAMES = ["step-00000001", "step-00000002", "step-00000003"]


def contents(step, version=0):
    generator = torch.Generator().manual_seed(1000 * version + step)
    weight = torch.randn(30, 10, generator=generator)
    return {
        "model": {"embed.weight": weight, "head.weight": weight, "ids": torch.arange(step % 50)},
        "optimizer": {"0.exp_avg": torch.randn(30, 10, generator=generator).bfloat16(), "0.step": torch.tensor(float(step))},
    }


def keep_saving(run, step, *, version=0, keep=2):
    return save(run, contents(step, version), {"step": step, "version": version, "loss": step / 3}, keep)


def assert_saved(found):
    """Check that a checkpoint is to the bit the one that was saved at its step."""
    assert found.state == {"step": found.step, "version": found.state["version"], "loss": found.step / 3}
    for name, group in contents(found.step, found.state["version"]).items():
        read = found.tensors(name)
        assert read.keys() == group.keys()
        for key, tensor in group.items():
            assert read[key].dtype == tensor.dtype
            assert torch.equal(read[key], tensor)


@pytest.fixture
def run(tmp_path):
    for step in (1, 2, 3):
        keep_saving(tmp_path, step, keep=3)
    return tmp_path


def names(run):
    return sorted(os.listdir(run / "checkpoints"))


def test_an_empty_run_has_no_checkpoint(tmp_path):
    assert latest(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert latest(tmp_path) is None


def test_the_newest_is_found_and_all_but_two_are_removed(tmp_path):
    for step in (0, 99, 100, 100_000_000):
        keep_saving(tmp_path, step)
        found = latest(tmp_path)
        assert found.step == step
        assert_saved(found)
    assert names(tmp_path) == ["step-00000100", "step-100000000"]
    assert sorted(os.listdir(found.folder)) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_a_step_saved_again_replaces_what_was_there(run):
    keep_saving(run, 3, version=1)
    assert latest(run).state["version"] == 1
    assert_saved(latest(run))
    assert names(run) == NAMES[1:]


def test_the_same_contents_make_the_same_bytes(run, tmp_path):
    other = keep_saving(tmp_path / "other", 3)
    assert (other / "manifest.json").read_bytes() == (run / "checkpoints" / NAMES[2] / "manifest.json").read_bytes()


def test_files_are_as_open_to_others_as_their_folder(run):
    folder = run / "checkpoints" / NAMES[0]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {folder.stat().st_mode & 0o666}


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    weight = torch.randn(1000, 4)
    tied = {
        "embed": weight,
        "head": weight,
        "part": weight[10:20],
        "turned": weight.T,
        "none": torch.empty(0),
        "nil": torch.empty(0),
    }
    folder = save(tmp_path, {"model": tied}, {"step": 1})
    read = latest(tmp_path).tensors("model")
    assert read["head"] is read["embed"]
    assert all(torch.equal(read[name], tied[name]) for name in tied)
    assert load_file(folder / "model.safetensors").keys() == {"embed", "part", "turned", "none", "nil"}


def test_what_is_not_json_is_refused_and_leaves_nothing(run):
    with pytest.raises(TypeError):
        save(run, contents(4), {"step": 4, "seed": object()})
    assert names(run) == NAMES


def as_script(action, folder):
    """Say how to run this file as a process of its own, whether or not the package is installed."""
    path = Path(checkpoint.__file__).parents[1]
    return {"args": [sys.executable, __file__, action, folder], "env": {**os.environ, "PYTHONPATH": str(path)}, "text": True}


def test_a_save_cut_at_any_file_operation_leaves_the_old_one_or_the_new(tmp_path):
    report = subprocess.run(**as_script("cut", tmp_path), capture_output=True, timeout=200)
    assert report.returncode == 0, report.stderr
    # Fewer would mean that the operations are no longer seen.
    assert min(json.loads(report.stdout).values()) > 20


def test_kill_at_any_time_leaves_a_good_checkpoint(tmp_path):
    report = subprocess.run(**as_script("kill", tmp_path), capture_output=True, timeout=200)
    assert report.returncode == 0, report.stderr


def cut_everywhere(scratch):
    """Cut a save before each of its file operations in turn, in three situations; print how many there were."""
    counts = {}
    for situation, steps, keep in (("first", (), 2), ("next", (1, 2), 1), ("again", (1, 3), 2)):
        before = scratch / situation
        before.mkdir()
        for step in steps:
            keep_saving(before, step)
        for operation in range(1, 1000):
            run = scratch / f"{situation}-{operation}"
            shutil.copytree(before, run)
            child = os.fork()
            if child == 0:
                exit_before(operation, str(run))
                keep_saving(run, 3, version=1, keep=keep)
                os._exit(0)
            finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            found = latest(run)
            assert (found and found.step) in (steps[-1] if steps else None, 3)
            assert found or not finished
            if found:
                assert_saved(found)
                assert found.state["version"] == 1 or not finished
            keep_saving(run, 4)
            assert set(names(run)) <= {"step-00000002", "step-00000003", "step-00000003.old", "step-00000004"} | set(NAMES)
            assert len(names(run)) <= 2
            assert_saved(latest(run))
            if finished:
                counts[situation] = operation
                break
    print(json.dumps(counts))


def exit_before(operation, folder):
    """End this process, as a kill would, before its so-manieth operation on the files of a folder."""
    left = operation
    fsync = os.fsync

    def count(event, *_):
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "fsync"):
            left -= 1
            if left == 0:
                os._exit(9)

    def counted_fsync(descriptor):
        count("fsync")
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(count)


def kill_anywhere(run):
    """Kill a process that saves without end at random moments, each going on where the one before it got to."""
    began = time.monotonic()
    keep_saving(run, 1)
    moments, seconds = random.Random(0), time.monotonic() - began
    reached, kills = 1, 0
    while kills < 25 or reached < 5:
        kills += 1
        child = os.fork()
        if child == 0:
            step = latest(run).step
            while True:
                step += 1
                keep_saving(run, step)
        time.sleep(moments.uniform(0, 5 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = latest(run)
        assert_saved(found)
        assert found.step >= reached
        reached = found.step
    keep_saving(run, reached + 1)
    assert names(run) == [f"step-{reached:08}", f"step-{reached + 1:08}"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def swap(path):
    shutil.copy(path.parents[1] / NAMES[0] / path.name, path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, truncate, swap, os.remove])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(run, capsys, damage, name):
    damage(run / "checkpoints" / NAMES[2] / name)
    found = latest(run)
    assert found.step == 2
    assert_saved(found)
    said = capsys.readouterr().err
    assert NAMES[2] in said
    # A swapped manifest disagrees with the files, so they are what gets named.
    assert name in said or name == "manifest.json"


def test_checkpoints_under_each_others_names_are_noticed(run, capsys):
    os.rename(run / "checkpoints" / NAMES[2], run / "aside")
    os.rename(run / "checkpoints" / NAMES[0], run / "checkpoints" / NAMES[2])
    assert latest(run).step == 2
    assert "holds the checkpoint of step 1" in capsys.readouterr().err


def test_when_all_are_damaged_that_is_an_error_naming_them(run):
    for name in NAMES:
        truncate(run / "checkpoints" / name / "model.safetensors")
    with pytest.raises(IntegrityError) as failure:
        latest(run)
    assert all(f"{name}/model.safetensors" in str(failure.value) for name in NAMES)


def test_a_run_that_fell_back_saves_over_the_damaged_one_and_keeps_what_it_saved(run):
    truncate(run / "checkpoints" / NAMES[2] / "model.safetensors")
    shutil.rmtree(run / "checkpoints" / NAMES[1])
    assert latest(run).step == 1
    keep_saving(run, 2, version=1, keep=2)
    assert latest(run).step == 2
    assert names(run) == NAMES, "the damaged one does not count among those kept"
    keep_saving(run, 3, version=1, keep=1)
    assert_saved(latest(run))
    assert names(run) == NAMES[2:]


def test_a_sealed_folder_tells_what_became_of_it(tmp_path):
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    for name in ("config.json", "tokenizer/vocab.txt", ".hidden"):
        (folder / name).write_text(f"the content of {name}")
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        verify_folder(folder)
    seal_folder(folder)
    seal_folder(folder)
    verify_folder(folder)
    (folder / "README.md").write_text("an added file alters none")
    (folder / ".hidden").write_text("nor does a hidden one")
    verify_folder(folder)
    flip(folder / "tokenizer/vocab.txt")
    with pytest.raises(IntegrityError, match=r"tokenizer/vocab\.txt is not what was saved"):
        verify_folder(folder)
    (folder / "config.json").write_text("short")
    with pytest.raises(IntegrityError, match=r"config\.json has 5 bytes instead of 26"):
        verify_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(IntegrityError, match=r"config\.json is missing"):
        verify_folder(folder)


@pytest.mark.parametrize("manifest", ["", "[]", "3", '{"a": 1}', '{"a": {"bytes": "x", "sha256": ""}}', "\x00"])
def test_a_manifest_that_is_none_is_named(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(IntegrityError, match=r"manifest\.json is not a manifest"):
        verify_folder(tmp_path)


def test_a_folder_that_cannot_get_its_name_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda path, to: os.rename(path, tmp_path / "no" / "such" / to.name))
    with pytest.raises(OSError, match="model"), appearing(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_stays_that_what_replaces_it_cannot_get_the_name_of(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    rename = Path.rename

    def torn(path, to):
        if path.name == ".model.tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", torn)
    with pytest.raises(OSError, match="No space left"), appearing(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


@pytest.mark.parametrize("failing", ["fsync", "rename", "mkdir"])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(run, monkeypatch, failing):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match=r"cannot save .*step-00000004: .*No space left.*takes 0.0 MB, .* MB are free"):
            keep_saving(run, 4)
    assert names(run) == NAMES
    assert_saved(latest(run))
    keep_saving(run, 4)
    assert latest(run).step == 4


def test_a_file_that_may_not_grow_leaves_the_checkpoints_as_they_were(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"step-00000004: .*too large"):
            save(run, {"model": {"weight": torch.ones(5000)}}, {"step": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(run) == NAMES
    assert_saved(latest(run))


def test_a_really_full_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        keep_saving(tmp_path, 1)
        with pytest.raises(OSError, match="No space left on device"):
            save(tmp_path, {"model": {"weight": torch.ones(1_000_000)}}, {"step": 2})
        assert names(tmp_path) == NAMES[:1]
        assert_saved(latest(tmp_path))
        keep_saving(tmp_path, 2)
        assert latest(tmp_path).step == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def trained(seed, steps, *, unused=False):
    torch.manual_seed(seed)
    model = torch.nn.ModuleList([torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)])
    decayed, rest = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01)
    for _ in range(steps):
        step(model, optimizer, unused=unused)
    return model, optimizer


def step(model, optimizer, *, unused=False):
    optimizer.zero_grad()
    hidden = model[0](torch.randn(5, 4))
    (hidden if unused else model[1](hidden)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("unused", [False, True])
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path, unused):
    model, optimizer = trained(0, 3, unused=unused)
    flat = flatten_optimizer(optimizer)
    assert set(flat) == {
        f"{index}.{slot}" for index in ((0, 2) if unused else range(4)) for slot in ("step", "exp_avg", "exp_avg_sq")
    }
    save(tmp_path, {"model": model.state_dict(), "optimizer": flat}, {"step": 3})
    other, restored = trained(1, 0)
    other.load_state_dict(latest(tmp_path).tensors("model"))
    restore_optimizer(restored, latest(tmp_path).tensors("optimizer"))
    for either in ((model, optimizer), (other, restored)):
        torch.manual_seed(5)
        step(*either)
        step(*either, unused=unused)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_learning_rate_stays_as_the_optimizer_has_it():
    _, optimizer = trained(0, 2)
    _, other = trained(0, 0)
    other.param_groups[0]["lr"] = 0.5
    restore_optimizer(other, flatten_optimizer(optimizer))
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.01]


def test_factored_moments_fit():
    model = torch.nn.Linear(4, 3)
    optimizer, other = torch.optim.Adafactor(model.parameters()), torch.optim.Adafactor(model.parameters())
    model(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    flat = flatten_optimizer(optimizer)
    restore_optimizer(other, flat)
    assert flatten_optimizer(other).keys() == flat.keys()
    assert any(1 in tensor.shape for tensor in flat.values())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("0.exp_avg", (4, 3), r"0\.exp_avg is \[4, 3\], but its parameter is \[3, 4\]"),
        ("2.exp_avg", (5,), "2.exp_avg is"),
        ("9.step", (), "only 4 parameters"),
    ],
)
def test_optimizer_state_of_other_parameters_is_refused(name, shape, message):
    _, optimizer = trained(0, 1)
    with pytest.raises(IntegrityError, match=message):
        restore_optimizer(optimizer, {name: torch.zeros(shape)})


def test_optimizer_state_that_is_not_tensors_is_refused():
    _, optimizer = trained(0, 1)
    optimizer.state[optimizer.param_groups[0]["params"][0]]["count"] = 3
    with pytest.raises(TypeError, match=r"0\.count is int"):
        flatten_optimizer(optimizer)


def test_a_run_folder_has_one_process_and_its_death_frees_it(tmp_path):
    run = tmp_path / "new" / "run"
    with hold(run), pytest.raises(RunInUse, match=f"process {os.getpid()}$"), hold(run):
        pass
    child = subprocess.Popen(**as_script("hold", run), stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunInUse, match=f"run is in use by process {child.pid}$"), hold(run):
            pass
    finally:
        child.kill()
        child.communicate()
    with hold(run):
        assert (run / ".lock").read_text() == f"{os.getpid()}\n"


class Saving(BaseModel):
    every: int = 5
    where: str | None = None


class Plan(BaseModel):
    steps: int = 10
    keep: int = 2
    keeper: int = 1
    saving: Saving = Saving()


class Older(BaseModel):
    """The plan of a release that knew neither of two settings."""

    steps: int = 10
    saving: Saving = Saving()


def test_a_setting_that_came_later_had_its_default_before(tmp_path):
    sealed(tmp_path, Older(steps=12))
    with pytest.raises(ValueError, match=r"\n  keep: 2 -> 3$"):
        sealed(tmp_path, Plan(steps=12, keep=3))
    sealed(tmp_path, Plan(steps=12))


def test_a_run_remembers_its_settings(tmp_path):
    sealed(tmp_path, Plan())
    sealed(tmp_path, Plan())
    with pytest.raises(ValueError, match=r"begun with other settings; use them, or another --out") as failure:
        sealed(tmp_path, Plan(steps=11, keep=3, keeper=2, saving=Saving(every=6, where="x")), may_change=["keep", "saving.every"])
    assert str(failure.value).splitlines()[1:] == ["  steps: 10 -> 11", "  keeper: 1 -> 2", "  saving.where: not set -> x"]
    sealed(tmp_path, Plan(keep=3, saving=Saving(every=6, where="x")), may_change=["keep", "saving"])
    sealed(tmp_path, Plan(keep=3, saving=Saving(every=6, where="x")))
    with pytest.raises(ValueError, match="keep: 3 -> 2"):
        sealed(tmp_path, Plan())
    (tmp_path / "settings.toml").write_text("steps = ")
    with pytest.raises(ValueError, match=r"settings\.toml is not TOML"):
        sealed(tmp_path, Plan())


def test_lines_beyond_the_checkpoint_and_torn_ones_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    truncate_after(path, 3)
    assert not path.exists()
    for step in range(6):
        append_line(path, {"step": step, "loss": 0.1 + step})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "lo')
    truncate_after(path, 3)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])
    path.write_bytes(b'broken\n{"loss": 1}\n3\n{"step": "x"}\n' + whole + b'{"step": 1}')
    truncate_after(path, 100)
    assert path.read_bytes() == whole


def test_signals_ask_once_and_insist_on_the_second_interrupt():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert not signals.stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop
        signals.stop = False
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_interrupt_while_saving_leaves_no_trace(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "seal_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        keep_saving(run, 4)
    assert names(run) == NAMES


if __name__ == "__main__":
    action, place = sys.argv[1], Path(sys.argv[2])
    if action == "hold":
        with hold(place):
            print("held", flush=True)
            time.sleep(100)
    {"cut": cut_everywhere, "kill": kill_anywhere}[action](place)


def test_a_request_to_stop_reaches_the_outer_of_two_blocks() -> None:
    with Signals() as outer:
        with Signals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner.stop
        assert outer.stop
        with Signals() as later:
            pass
        assert outer.stop
        assert not later.stop
