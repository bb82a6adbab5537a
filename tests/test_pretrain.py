"""Pre-training runs: what they leave, that nothing that ends them changes the outcome, and what they refuse.

Processes that are killed come from a fork server which has imported everything once, so each begins within a tenth of a second.
"""

import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from itertools import islice
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from layerwright.architecture import Architecture
from layerwright.checkpoint import latest, verify_folder
from layerwright.corpus import Corpus, CorpusSettings, build
from layerwright.cost import parameters
from layerwright.errors import EXIT_CODES, DataError, IntegrityError, Interrupted, RunInUse, exit_code
from layerwright.learning import pretraining_page
from layerwright.pretrain import load, outlook, pretrain, seconds_per_step
from layerwright.recipe import PretrainSettings, held_out, make_objective, score, stream_of
from layerwright.supernet import Supernet
from layerwright.train import Plan, make_accelerator

HERE = Path(__file__).parent
# The package exports a function of the same name.
MODULE = sys.modules["layerwright.pretrain"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["layerwright.pretrain"])
STEPS = 24
ARCHES = {
    "mlm": "16 embed=8 vocab=300 positions=32: attn conv ffn",
    "rtd": "16 embed=8 vocab=300 positions=32: attn conv ffn",
    "supernet": "16 embed=8 vocab=300 positions=32: 3x{attn|conv|ffn}",
    "formulas": "16 embed=8 vocab=300 positions=32: 2x({lightconv[kernel=3|9]|formula[text=*7]} ffn)",
}


def settings_of(corpus, kind="mlm", *, plan=None, **changed):
    given = {"objective": "rtd" if kind == "rtd" else "mlm", "generator": "1/2", "batch": 4, "length": 24}
    given |= {"evaluate_rows": 8, "evaluate_every": 6, "save_every": 3}
    plan = Plan(**{"steps": STEPS, "rate": 3e-3, "warmup": 4, **(plan or {})})
    return PretrainSettings(**{"arch": ARCHES[kind], "corpus": corpus.folder, "plan": plan, **given, **changed})


@pytest.fixture(scope="module")
def uninterrupted(tiny_corpus, tmp_path_factory):
    """Run folders of runs that nothing cut short, by kind."""
    folders = {}

    def run(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("uninterrupted") / kind
            pretrain(settings_of(tiny_corpus, kind), folders[kind])
        return folders[kind]

    return run


def records(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_outcome(ours, theirs):
    """Check that two finished runs hold the same bits, but for the time they took."""
    assert records(ours) == records(theirs)
    for name in ("model/model.safetensors", "generator/model.safetensors"):
        assert (ours / name).exists() == (theirs / name).exists()
        if (ours / name).exists():
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    found, expected = latest(ours), latest(theirs)
    assert found.step == expected.step
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (found.folder / name).read_bytes() == (expected.folder / name).read_bytes(), name
    result, expected = (json.loads((out / "result.json").read_text()) for out in (ours, theirs))
    assert result == expected | {name: result[name] for name in ("seconds", "waiting")}


def stop_after(monkeypatch, step, *numbers):
    """Send signals to this process while a run logs a step."""
    append = MODULE.append_line

    def append_and_stop(path, record):
        append(path, record)
        if record["step"] == step:
            for number in numbers:
                signal.raise_signal(number)

    monkeypatch.setattr(MODULE, "append_line", append_and_stop)


@pytest.mark.parametrize("kind", ["mlm", "rtd"])
def test_a_run_leaves_settings_metrics_checkpoints_a_result_and_a_model(tiny_corpus, uninterrupted, kind):
    out = uninterrupted(kind)
    kept = tomllib.loads((out / "settings.toml").read_text())
    assert Architecture.parse(kept["arch"]) == Architecture.parse(ARCHES[kind])
    assert (kept["corpus"], kept["batch"], kept["plan"]["rate"]) == (str(tiny_corpus.folder), 4, 3e-3)
    lines = records(out)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    assert [line["tokens"] for line in lines] == [step * 4 * 24 for step in range(1, STEPS + 1)]
    assert {"loss", "rate", "norm"} <= lines[0].keys()
    assert [line["step"] for line in lines if "held_out_loss" in line] == [6, 12, 18, 24]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert sorted(os.listdir(out / "checkpoints")) == [f"step-{step:08}" for step in (STEPS - 3, STEPS)]
    result = json.loads((out / "result.json").read_text())
    assert (result["steps"], result["tokens"]) == (STEPS, STEPS * 4 * 24)
    assert result["seconds"] > 0
    assert 0 < result["waiting"] < 1
    assert result["padding"] == 0
    assert result["arch"] == ARCHES[kind]
    assert result["parameters"] == parameters(Architecture.parse(ARCHES[kind]))
    assert result["score"] == {name: value for name, value in lines[-1].items() if name.startswith("held_out_")}
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        *("settings.toml", "metrics.jsonl", "checkpoints", "result.json", "model"),
        *(["generator"] if kind == "rtd" else []),
    }


@pytest.mark.parametrize("kind", ["mlm", "rtd"])
def test_transformers_loads_the_model_and_computes_the_same(tiny_corpus, uninterrupted, kind):
    out = uninterrupted(kind)
    verify_folder(out / "model")
    _, objective = load(out)
    ids = torch.randint(5, 170, (3, 12))
    model = (AutoModelForMaskedLM if kind == "mlm" else AutoModelForPreTraining).from_pretrained(out / "model")
    with torch.no_grad():
        states = objective.backbone(ids)
        ours = objective.head(states, objective.backbone.embed.token.weight) if kind == "mlm" else objective.head(states)
        torch.testing.assert_close(model(ids).logits, ours)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert len(tokenizer("The red house. " * 100, truncation=True)["input_ids"]) == model.config.arch.positions
    assert tokenizer.convert_ids_to_tokens(tokenizer("The red house.")["input_ids"])[0] == "[CLS]"
    card = (out / "model" / "README.md").read_text()
    assert ARCHES[kind] in card
    assert tiny_corpus.fingerprint[:16] in card
    assert f"{STEPS} steps of 4 x 24 tokens" in card


def test_the_generator_is_handed_over_too(uninterrupted):
    out = uninterrupted("rtd")
    _, objective = load(out)
    ids = torch.randint(5, 170, (3, 12))
    model = AutoModelForMaskedLM.from_pretrained(out / "generator")
    generator = objective.generator
    with torch.no_grad():
        ours = generator.head(generator.backbone(ids), objective.backbone.embed.token.weight)
        torch.testing.assert_close(model(ids).logits, ours)
    assert model.config.arch == Architecture.parse(ARCHES["rtd"]).narrow(1 / 2)


def test_convbert_trains_like_the_others(tiny_corpus, tmp_path):
    arch = "16 embed=8 vocab=300 positions=32: 2x(mixed[heads=2,kernel=3] ffn[groups=2])"
    pretrain(settings_of(tiny_corpus, "rtd", arch=arch, plan={"steps": 60}), tmp_path)
    losses = [line["loss"] for line in records(tmp_path) if "loss" in line]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "generator").config.arch == Architecture.parse(arch).narrow(1 / 2)


def test_a_supernet_leaves_weights_and_a_score_but_no_model(tiny_corpus, uninterrupted):
    out = uninterrupted("supernet")
    assert not (out / "model").exists()
    result = json.loads((out / "result.json").read_text())
    assert result.keys() == {"steps", "tokens", "seconds", "score", "skipped", "waiting", "padding"}
    settings, objective = load(out)
    held = held_out(tiny_corpus, settings)
    archs = [Architecture.parse(f"16 embed=8 vocab=300 positions=32: {layers}") for layers in ("3xattn", "conv ffn attn")]
    scores = [score(objective, held, arch) for arch in archs]
    assert scores[0]["loss"] != scores[1]["loss"]
    assert scores == [score(objective, held, arch) for arch in archs]


@pytest.fixture
def overflowing(monkeypatch):
    """Let every convolution at the first slot of a supernet overflow."""
    follow = Supernet.follow

    def overflow(net, x, slot, part, context):
        found = follow(net, x, slot, part, context)
        return found * math.inf if slot == 0 and part[1][0].kind == "lightconv" else found

    monkeypatch.setattr(Supernet, "follow", overflow)


def test_an_architecture_that_overflows_neither_ends_a_supernet_nor_spoils_it(
    tiny_corpus, tmp_path, monkeypatch, overflowing, capsys
):
    settings = settings_of(tiny_corpus, "formulas", evaluate_every=0)
    pretrain(settings, tmp_path / "whole")
    lines = records(tmp_path / "whole")
    paths = [batch.arch.layers[0].kind for batch in islice(stream_of(settings, tiny_corpus, 0), STEPS)]
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    assert (
        ["skipped" in line for line in lines] == ["loss" not in line for line in lines] == [kind == "lightconv" for kind in paths]
    )
    json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    result = json.loads((tmp_path / "whole" / "result.json").read_text(), parse_constant=pytest.fail)
    assert STEPS > result["skipped"] == paths.count("lightconv") > 0
    assert math.isfinite(result["score"]["held_out_loss"])
    warning = f"{result['skipped']} of 24 steps drew an architecture whose loss or gradient was not finite"
    assert warning in " ".join(capsys.readouterr().err.split())
    page = pretraining_page(tmp_path / "whole")
    assert "steps skipped" in page
    assert "not finite: they changed nothing" in page
    stop_after(monkeypatch, 8, signal.SIGTERM)
    with pytest.raises(Interrupted):
        pretrain(settings, tmp_path / "cut")
    pretrain(settings, tmp_path / "cut")
    assert_same_outcome(tmp_path / "cut", tmp_path / "whole")


def test_a_supernet_of_which_nothing_is_finite_ends_at_the_next_score(tiny_corpus, tmp_path, monkeypatch):
    follow = Supernet.follow
    monkeypatch.setattr(Supernet, "follow", lambda *given: follow(*given) * math.inf)
    with pytest.raises(FloatingPointError, match="the held-out loss is nan"):
        pretrain(settings_of(tiny_corpus, "formulas"), tmp_path)
    assert logged(tmp_path) == 5
    assert not (tmp_path / "result.json").exists()


def test_a_finished_run_is_read_and_not_trained_again(tiny_corpus, uninterrupted, monkeypatch):
    out = uninterrupted("mlm")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    monkeypatch.setattr(MODULE, "train", None)
    objective = pretrain(settings_of(tiny_corpus), out)
    assert not objective.training
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    saved = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(objective.state_dict()[name], value) for name, value in saved.items())


def test_the_score_is_the_same_in_one_batch_or_several_and_leaves_the_mode(tiny_corpus, uninterrupted):
    settings, objective = load(uninterrupted("rtd"))
    held = held_out(tiny_corpus, settings)
    assert [len(batch.ids) for batch in held] == [8]
    objective.train()
    found = score(objective, held)
    assert objective.training
    assert found == score(objective, held)
    assert found.keys() == {"loss", "masked", "replaced", "accuracy"}
    parts = score(objective, held[0].split(4))
    assert parts == pytest.approx(found, rel=1e-5)
    many = held_out(tiny_corpus, settings.model_copy(update={"evaluate_rows": 130}))
    assert [len(batch.ids) for batch in many] == [64, 64, 64]


def test_tensorboard_gets_the_metrics_too(tiny_corpus, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pretrain(settings_of(tiny_corpus, plan={"steps": 4}, trackers=("tensorboard",)), tmp_path)
    (file,) = (tmp_path / "layerwright").rglob("events.out.*")
    found = events.EventAccumulator(str(file))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in records(tmp_path)]


def attempt(settings, out, small_files_after=None):
    """Train, and exit with the code of what went wrong; from a step on, files cannot grow, as on a full disk."""
    torch.set_num_threads(1)
    if small_files_after is not None:
        append = MODULE.append_line

        def append_and_fill(path, record):
            append(path, record)
            if record["step"] == small_files_after:
                resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        MODULE.append_line = append_and_fill
    try:
        pretrain(settings, out)
    except (*EXIT_CODES, OSError) as error:
        out.with_suffix(".error").write_text(str(error))
        sys.exit(exit_code(error))


def start(settings, out, **given) -> ForkServerProcess:
    process = CONTEXT.Process(target=attempt, args=(settings, out), kwargs=given)
    process.start()
    return process


def ended(process):
    """The exit code of a process."""
    process.join(60)
    return process.exitcode


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.002)


def logged(out):
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


def kill_at_random(settings, folder, *, kills, chance):
    """Kill runs at random moments, each until it ends, and check how; return after how many steps they were killed."""
    whole, out, steps = folder / "whole", folder / "killed", []
    assert ended(start(settings.model_copy(update={"plan": Plan(steps=1)}), folder / "first")) == 0
    began = time.monotonic()
    assert ended(start(settings, whole)) == 0
    seconds = time.monotonic() - began
    while len(steps) < kills:
        process = start(settings, out)
        process.join(chance.uniform(0, seconds))
        process.kill()
        if ended(process) == -signal.SIGKILL:
            steps.append(logged(out))
        else:
            assert process.exitcode == 0
            assert_same_outcome(out, whole)
            shutil.rmtree(out)
    assert ended(start(settings, out)) == 0
    assert_same_outcome(out, whole)
    return sorted(steps)


@pytest.mark.parametrize("kind", ARCHES)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tiny_corpus, tmp_path, kind):
    kill_at_random(settings_of(tiny_corpus, kind), tmp_path, kills=4, chance=Random(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHES)
def test_twenty_kills_at_random_moments_change_nothing(tiny_corpus, tmp_path, kind):
    settings = settings_of(tiny_corpus, kind, plan={"steps": 200}, save_every=7)
    steps = kill_at_random(settings, tmp_path, kills=20, chance=Random(kind))
    print(f"{kind}: killed after steps {steps} of 200; the same bits each time")


def test_a_run_asked_to_stop_saves_exits_with_75_and_goes_on(tiny_corpus, tmp_path, uninterrupted):
    settings, out = settings_of(tiny_corpus, "rtd", save_every=1_000), tmp_path / "run"
    process = start(settings, out)
    wait_for(lambda: logged(out) >= 2)
    process.terminate()
    assert ended(process) == 75
    step = latest(out).step
    assert 2 <= step < STEPS
    assert f"stopped after step {step} of {STEPS}" in (tmp_path / "run.error").read_text()
    assert not (out / "result.json").exists()
    pretrain(settings, out)
    assert_same_outcome(out, uninterrupted("rtd"))


def test_one_interrupt_stops_after_a_checkpoint(tiny_corpus, tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 8, signal.SIGINT)
        with pytest.raises(Interrupted, match=f"stopped after step 8 of {STEPS}; the same command goes on"):
            pretrain(settings_of(tiny_corpus), tmp_path)
    assert latest(tmp_path).step == 8
    assert [line["step"] for line in records(tmp_path)] == [*range(1, 9)]
    pretrain(settings_of(tiny_corpus), tmp_path)
    assert_same_outcome(tmp_path, uninterrupted("mlm"))


def test_two_interrupts_stop_at_once_and_lose_nothing_before_the_checkpoint(tiny_corpus, tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 8, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings_of(tiny_corpus), tmp_path)
    assert latest(tmp_path).step == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pretrain(settings_of(tiny_corpus), tmp_path)
    assert_same_outcome(tmp_path, uninterrupted("mlm"))


def test_a_run_cut_off_between_its_last_checkpoint_and_its_result_ends_without_training(
    tiny_corpus, tmp_path, uninterrupted, monkeypatch
):
    shutil.copytree(uninterrupted("rtd"), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "generator")
    pretrain(settings_of(tiny_corpus, "rtd"), tmp_path / "run")
    assert_same_outcome(tmp_path / "run", uninterrupted("rtd"))


def flip(path, at=-9):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_and_its_steps_are_taken_again(
    tiny_corpus, tmp_path, uninterrupted, damage, file, capsys
):
    shutil.copytree(uninterrupted("mlm"), tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08}" / file)
    with pytest.raises(FileNotFoundError, match="holds no finished run, or only an earlier checkpoint of one"):
        load(tmp_path / "run")
    pretrain(settings_of(tiny_corpus), tmp_path / "run")
    assert file in re.sub(r"\s+", "", capsys.readouterr().err)
    assert_same_outcome(tmp_path / "run", uninterrupted("mlm"))


def test_a_run_all_of_whose_checkpoints_are_damaged_is_not_trained_on(tiny_corpus, tmp_path, uninterrupted):
    shutil.copytree(uninterrupted("mlm"), tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        flip(folder / "model.safetensors")
    for run in (lambda: pretrain(settings_of(tiny_corpus), tmp_path / "run"), lambda: load(tmp_path / "run")):
        with pytest.raises(IntegrityError, match=r"no checkpoint of .* is good"):
            run()


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(tiny_corpus, tmp_path, uninterrupted):
    settings, out = settings_of(tiny_corpus), tmp_path / "run"
    assert ended(start(settings, out, small_files_after=8)) == 1
    message = (tmp_path / "run.error").read_text()
    assert f"cannot save {out / 'checkpoints' / 'step-00000009'}" in message
    assert latest(out).step == 6
    assert sorted(os.listdir(out / "checkpoints")) == ["step-00000003", "step-00000006"]
    pretrain(settings, out)
    assert_same_outcome(out, uninterrupted("mlm"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evaluate_every": 50, "save_every": 50}, "step 2: loss nan"),
        ({"evaluate_every": 1, "save_every": 50}, "the held-out loss is nan"),
        ({"evaluate_every": 50, "save_every": 1, "rate": 1e39}, "step 1 left .* not finite"),
    ],
)
def test_what_is_not_finite_is_neither_saved_nor_handed_over(tiny_corpus, tmp_path, changed, message):
    plan = {"rate": changed.pop("rate", 1e38), "warmup": 0, "steps": 60}
    with pytest.raises(FloatingPointError, match=message):
        pretrain(settings_of(tiny_corpus, plan=plan, **changed), tmp_path)
    assert latest(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", "settings.toml", "metrics.jsonl"}
    assert logged(tmp_path) <= 1


def test_a_run_of_other_settings_is_refused_and_they_are_named(tiny_corpus, tmp_path, uninterrupted):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted("mlm"), out)
    for finished in (True, False):
        with pytest.raises(ValueError, match="begun with other settings") as caught:
            pretrain(settings_of(tiny_corpus, plan={"rate": 1e-4}, seed=3), out)
        assert "plan.rate: 0.003 -> 0.0001" in str(caught.value)
        assert "seed: 0 -> 3" in str(caught.value)
        if finished:
            (out / "result.json").unlink()
    (out / "result.json").write_bytes((uninterrupted("mlm") / "result.json").read_bytes())
    assert_same_outcome(out, uninterrupted("mlm"))


def test_how_often_to_save_and_evaluate_may_change_and_the_corpus_may_move(tiny_corpus, tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 8, signal.SIGTERM)
        with pytest.raises(Interrupted):
            pretrain(settings_of(tiny_corpus), tmp_path / "run")
    shutil.copytree(tiny_corpus.folder, tmp_path / "elsewhere")
    moved = Corpus.open(tmp_path / "elsewhere")
    pretrain(settings_of(moved, save_every=5, evaluate_every=6), tmp_path / "run")
    assert load(tmp_path / "run")[0].corpus == tmp_path / "elsewhere"
    ours, theirs = (out / "model" / "model.safetensors" for out in (tmp_path / "run", uninterrupted("mlm")))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_corpus_named_from_elsewhere_is_still_found(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_corpus.folder.parent)
    given = settings_of(tiny_corpus, plan={"steps": 1}).model_dump()
    settings = PretrainSettings(**given | {"corpus": Path(tiny_corpus.folder.name)})
    pretrain(settings, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "run")[0].corpus == tiny_corpus.folder


def test_a_run_does_not_go_on_with_another_corpus(tiny_corpus, tmp_path, uninterrupted):
    text = (tiny_corpus.folder.parent / "sentences.txt").read_text().replace("quick", "slow")
    (tmp_path / "text.txt").write_text(text)
    other = build([str(tmp_path / "text.txt")], tmp_path / "other", CorpusSettings(vocab=300, validation=0.1))
    shutil.copytree(uninterrupted("mlm"), tmp_path / "run")
    for unfinished in (False, True):
        if unfinished:
            (tmp_path / "run" / "result.json").unlink()
        with pytest.raises(
            ValueError, match=f"begun with another corpus .* {tiny_corpus.fingerprint[:16]} -> {other.fingerprint[:16]}"
        ):
            pretrain(settings_of(other), tmp_path / "run")


def test_a_run_folder_is_for_one_process(tiny_corpus, tmp_path):
    settings, out = settings_of(tiny_corpus, plan={"steps": 100_000}, evaluate_every=100_000), tmp_path / "run"
    process = start(settings, out)
    try:
        wait_for(lambda: latest(out) is not None)
        with pytest.raises(RunInUse, match=f"{out} is in use by process {process.pid}"):
            pretrain(settings, out)
        assert process.exitcode is None
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (
            {"arch": "16 vocab=100: attn"},
            DataError,
            "the corpus has 170 word pieces and the architecture vocab=100: write vocab=170",
        ),
        ({"arch": "16 vocab=170 positions=16: attn"}, ValueError, "rows of 24 tokens need positions=24; the architecture has 16"),
        ({"arch": "16 vocab=170: atn"}, ValueError, "did you mean 'attn'"),
        ({"arch": "16 vocab=170: attn", "generator": "3/2"}, ValueError, "generator=3/2: a fraction of the width, at most 1"),
        ({"arch": "16 vocab=170: attn", "generator": "8 vocab=170: atn"}, ValueError, "did you mean 'attn'"),
        ({"arch": "16 vocab=170: attn", "generator": "8 vocab=170: attn"}, ValueError, "its embed is 8, the backbone's 16"),
        ({"trackers": ("tensorbord",)}, ValueError, "did you mean 'tensorboard'"),
        ({"length": 1_000, "arch": "16 vocab=170 positions=1000: attn"}, DataError, "the validation split has .* too few"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tiny_corpus, tmp_path, changed, kind, message):
    settings = settings_of(tiny_corpus, "rtd", **changed)
    with pytest.raises(kind, match=message):
        pretrain(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plan": {"steps": None}}, "how long"),
        ({"plan": {"accumulate": 3}}, "plan.accumulate=3 does not divide batch=4"),
        ({"seed": -1}, "seed"),
        ({"dropout": 1.0}, "dropout"),
        ({"objective": "clm"}, "objective"),
        ({"archs": "16: attn"}, "archs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_corpus, changed, message):
    with pytest.raises(ValueError, match=message):
        settings_of(tiny_corpus, **changed)


@pytest.mark.parametrize(("tokens", "steps"), [(1_000, 10), (959, 9), (1, 1)])
def test_a_budget_in_tokens_is_the_whole_steps_within_it(tiny_corpus, tmp_path, tokens, steps):
    pretrain(settings_of(tiny_corpus, plan={"steps": None, "tokens": tokens}), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == steps
    assert records(tmp_path)[-1]["rate"] > 0


def test_a_budget_in_minutes_is_measured_once_and_kept(tiny_corpus, tmp_path, monkeypatch):
    settings = settings_of(tiny_corpus, plan={"steps": None, "minutes": 0.001})
    monkeypatch.setattr(MODULE, "seconds_per_step", lambda *given: 0.06 / 9.5)
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped after step 4 of 9"):
            pretrain(settings, tmp_path)
    # Slower by now, which must not change what the run is.
    monkeypatch.setattr(MODULE, "seconds_per_step", lambda *given: 0.06)
    pretrain(settings, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 9


@pytest.mark.parametrize("kind", ["mlm", "supernet"])
def test_measuring_a_step_changes_nothing_of_the_run(tiny_corpus, tmp_path, uninterrupted, kind):
    settings = settings_of(tiny_corpus, kind)
    objective = make_objective(settings, tiny_corpus)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    assert 0 < seconds_per_step(settings, tiny_corpus, objective, make_accelerator()) < 60
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert all(value.grad is None for value in objective.parameters())


def test_a_dry_run_tells_sizes_and_times_and_writes_nothing(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = dict(outlook(settings_of(tiny_corpus, "rtd", plan={"steps": None, "tokens": 96_000})))
    assert told["architecture"] == ARCHES["rtd"]
    assert told["generator"].startswith("8 vocab=300")
    assert (told["steps"], told["tokens"]) == ("1,000", "96,000")
    assert "tokens a second" in told["expected time"]
    assert float(told["epochs of the corpus"]) == pytest.approx(96_000 / len(tiny_corpus.tokens("train")), abs=0.01)
    told = dict(outlook(settings_of(tiny_corpus, "supernet")))
    assert told["supernet of"] == ARCHES["supernet"]
    assert not any(tmp_path.iterdir())


TWO = """
import sys
from pathlib import Path
from layerwright.pretrain import pretrain
from layerwright.settings import read
from layerwright.recipe import PretrainSettings

for file in sys.argv[1:]:
    pretrain(read(PretrainSettings, Path(file)), Path(file).with_suffix(""))
"""


def test_two_processes_learn_as_one_with_the_same_global_batch(tiny_corpus, tmp_path):
    files = []
    for kind, accumulate in (("mlm", 1), ("rtd", 1), ("supernet", 1), ("formulas", 1), ("rtd", 2)):
        plan = {"steps": 6, "accumulate": accumulate, "warmup": 0, "rate": 1e-2}
        settings = settings_of(tiny_corpus, kind, plan=plan, dropout=0.0, batch=8)
        pretrain(settings, tmp_path / "one" / f"{kind}-{accumulate}")
        files.append(tmp_path / f"{kind}-{accumulate}.toml")
        shutil.copy(tmp_path / "one" / files[-1].stem / "settings.toml", files[-1])
    (tmp_path / "two.py").write_text(TWO)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
    ]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run([*launch, tmp_path / "two.py", *files], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for file in files:
        ours, theirs = records(file.with_suffix("")), records(tmp_path / "one" / file.stem)
        assert len(ours) == 6
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    # Sums in another order show that there were two.
    assert any(records(file.with_suffix("")) != records(tmp_path / "one" / file.stem) for file in files)
    assert done.stderr.count("pretraining") == len(files)


def test_pieces_that_do_not_divide_the_share_of_a_process_are_refused_before_anything_is_written(
    tiny_corpus, tmp_path, monkeypatch
):
    machine = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu"), is_main_process=True)
    monkeypatch.setattr(MODULE, "make_accelerator", lambda **_: machine)
    settings = settings_of(tiny_corpus, "mlm", batch=8, plan={"steps": 2, "accumulate": 8})
    with pytest.raises(ValueError, match=r"plan\.accumulate=8 does not divide the 4 rows that each process has of batch=8"):
        pretrain(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
