"""A tiny pre-trained model with a tokenizer of whole words, and what tests of fine-tuning do with it."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from layerwright import vocabulary
from layerwright.architecture import Architecture
from layerwright.configuration import LayerwrightConfig
from layerwright.handover import save_model
from layerwright.models import LayerwrightForPreTraining
from layerwright.tasks import finetune as module
from layerwright.tasks.finetune import FinetuneResults, FinetuneSettings, finetune
from layerwright.tasks.rows import Reader

WORDS = ["good", "bad", *(f"w{number}" for number in range(40))]
ARCH = Architecture.parse("32 embed=16 vocab=64 positions=32: conv attn ffn")


def make_model(folder: Path, arch: Architecture = ARCH) -> Path:
    folder.parent.mkdir(exist_ok=True)
    words = folder.with_name("vocab.txt")
    words.write_text("\n".join([*vocabulary.SPECIAL, *WORDS, "[", "]", "sep"]))
    vocabulary.save(vocabulary.load(words, lowercase=True), folder.with_name("tokenizer"))
    torch.manual_seed(1)
    pretrained = LayerwrightForPreTraining(LayerwrightConfig(architecture=str(arch)))
    save_model(folder, pretrained, tokenizer=folder.with_name("tokenizer"))
    return folder


def sentence(chance: Random, *extra: str) -> str:
    words = [*chance.choices(WORDS[2:], k=chance.randint(2, 12)), *extra]
    chance.shuffle(words)
    return " ".join(words)


def quick(**given: Any) -> FinetuneSettings:
    """Few quick steps."""
    usual = {"epochs": 4, "batch": 16, "rate": 5e-3, "layer_decay": 1.0, "length": 32, "seeds": 2}
    return FinetuneSettings(**usual | given)


def reader_for(model: Path, length: int = 32) -> Reader:
    return Reader.of(vocabulary.load(model / "tokenizer.json", lowercase=True), pad=0, length=length, segments=True)


def without_seconds(results: FinetuneResults) -> dict[str, Any]:
    kept = results.model_dump()
    costs = {"seconds", "processor_seconds", "memory"}
    return kept | {"seeds": [{name: value for name, value in seed.items() if name not in costs} for seed in kept["seeds"]]}


def assert_a_kill_changes_nothing(folder: Path, model: Path, settings: FinetuneSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a run as it saves its second seed, and go on: it ends as one that was not."""
    whole = finetune(model, folder / "whole", settings)
    save = module.save_file

    def killed(weights: Any, path: Path) -> None:
        if path.parent.name == "1":
            raise SystemExit
        save(weights, path)

    monkeypatch.setattr(module, "save_file", killed)
    with pytest.raises(SystemExit):
        finetune(model, folder / "cut", settings)
    monkeypatch.setattr(module, "save_file", save)
    assert without_seconds(finetune(model, folder / "cut", settings)) == without_seconds(whole)
    for name in ("seeds/0/predictions.jsonl", "seeds/1/predictions.jsonl", "model/model.safetensors", "model/config.json"):
        assert (folder / "cut" / name).read_bytes() == (folder / "whole" / name).read_bytes()
