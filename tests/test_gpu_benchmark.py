"""The benchmark for CUDA devices: it says where there is none, runs at toy size without one, and trusts nobody's sums."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from layerwright import presets

ROOT = Path(__file__).parent.parent
PLACE = gpu.Place(torch.device("cpu"), small=True, rounds=1, repeats=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_it_says_so_in_a_line():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "benchmarks.gpu: there is no CUDA device here; --device cpu --small runs the same at toy size\n"


@pytest.mark.parametrize("model", ["convbert-base", "lv-bert-base", "bert-base"])
def test_at_toy_size_all_of_it_runs(model, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--small", "--rounds", "1", "--times", "1", "--models", model, "--out", str(out)]
    assert gpu.main(asked) == 0
    assert f"written to {out}" in capsys.readouterr().out
    found = json.loads(out.read_text())
    sides = ["layerwright", "layerwright, compiled", "transformers", "transformers, compiled"]
    (training,) = found["training"].values()
    assert list(training["table"]) == (sides[:2] if model == "lv-bert-base" else sides)
    assert all(list(forward["table"]) == sides for forward in found["forward"].values())
    assert len(found["forward"]) == (0 if model == "lv-bert-base" else 2)
    assert all(
        list(ways["table"]) == ["layerwright", "shifted", "shifted, compiled", "unfold"] for ways in found["convolution"].values()
    )
    for part in (training, *found["forward"].values(), *found["convolution"].values()):
        assert all(row["seconds"] > 0 and row["peak_mib"] is None for row in part["table"].values())


def test_the_models_are_those_of_the_papers_at_base_size():
    works = gpu.works(small=False)
    assert [str(works[name].arch) for name in ("electra-base", "convbert-base", "bert-base")] == [
        presets.PRESETS[name] for name in ("electra-base", "convbert-base", "bert-base")
    ]
    assert len(works["lv-bert-base"].arch) == 24
    assert works["lv-bert-base"].arch.width == 768
    assert works["electra-base"].generator.width == 256
    # 6 operations a weight and token, and those of attention, but none for looking up embeddings.
    assert gpu.step_flops(works["bert-base"]) == pytest.approx(8 * 512 * (6 * 85.1e6 + 12 * 12 * 512 * 768) * 1.03, rel=0.1)


def test_a_way_that_computes_something_else_ends_it(monkeypatch):
    monkeypatch.setattr(gpu, "unfolded", lambda x, logits: 1.1 * gpu.shifted(x, logits))
    with pytest.raises(SystemExit, match=r"unfold differs from layerwright by 0\.1 of the norm"):
        gpu.convolutions((1, 8, 2, 4, 3), PLACE, torch.float32)


def test_a_peer_that_computes_something_else_ends_it(monkeypatch):
    monkeypatch.setattr(gpu.MaskedPeer, "forward", lambda self, batch: 1.01 * self.generate(batch, batch.ids[:, :2] * 0)[1])
    with pytest.raises(SystemExit, match="bert-base: the sides differ in masked loss"):
        gpu.training("bert-base", gpu.works(small=True)["bert-base"], PLACE)


def test_a_step_of_another_loss_ends_it(monkeypatch):
    monkeypatch.setattr(gpu, "their_step", lambda work, place, compiled: lambda: 1.0)
    with pytest.raises(SystemExit, match="the first loss of transformers is 1, that of layerwright"):
        gpu.training("bert-base", gpu.works(small=True)["bert-base"], PLACE)
