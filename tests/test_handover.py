"""A model folder is whole or not there, says what it holds, and holds what was trained."""

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from layerwright import handover
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.checkpoint import verify_folder
from layerwright.cost import flops, parameters
from layerwright.handover import model_card, model_of, save_model
from layerwright.heads import MaskedHead
from layerwright.models import LayerwrightConfig, LayerwrightModel, LayerwrightPreTrainedModel
from layerwright.space import Space
from layerwright.supernet import Supernet

ARCH = Architecture.parse("16 embed=8 vocab=40 positions=16: 2xconv[kernel=3] attn ffn conv[kernel=3] ffn[inner=20]")


def weights(arch: Architecture = ARCH) -> dict[str, Tensor]:
    backbone, head = Backbone(arch).state_dict(), MaskedHead(arch).state_dict()
    named = {f"backbone.{name}": weight for name, weight in backbone.items()}
    return named | {f"head.{name}": weight for name, weight in head.items()}


@pytest.fixture
def model() -> LayerwrightPreTrainedModel:
    return model_of(ARCH, weights(), "mlm")


def holds(folder: Path, model: LayerwrightPreTrainedModel) -> bool:
    verify_folder(folder)
    found = type(model).from_pretrained(folder).state_dict()
    return all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


def test_only_the_weights_of_the_model_are_taken_and_copied():
    trained = weights()
    model = model_of(ARCH, trained | {"generator.head.bias": torch.zeros(40)}, "mlm", pad_token_id=3)
    assert model.config.pad_token_id == 3
    assert not model.training
    before = model.head.bias.clone()
    trained["head.bias"] += 1
    assert torch.equal(model.head.bias, before)


def test_a_backbone_is_taken_from_an_objective_or_from_a_supernet():
    space = Space.parse("16 embed=8 vocab=40: {attn|ffn} {attn|conv}")
    net = Supernet(space).eval()
    arch = Architecture.parse("16 embed=8 vocab=40: ffn conv")
    ids = torch.randint(40, (2, 5))
    assert torch.equal(model_of(arch, net.weights_of(arch), "backbone")(ids)[0], net(ids, arch=arch))
    from_objective = model_of(ARCH, weights(), "backbone")
    assert isinstance(from_objective, LayerwrightModel)


def test_a_pooler_is_part_of_the_model_alone():
    model = LayerwrightModel(LayerwrightConfig(architecture=str(ARCH), pooler=True)).eval()
    again = model_of(ARCH, model.state_dict(), "backbone", pooler=True)
    ids = torch.arange(6)[None]
    assert torch.equal(again(ids).pooler_output, model(ids).pooler_output)


def test_making_a_model_leaves_the_random_numbers_alone():
    trained = weights()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model_of(ARCH, trained, "mlm")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("head", "arch", "message"),
    [
        ("mlmm", ARCH, "no head 'mlmm'; did you mean 'mlm'"),
        ("rtd", ARCH, "not weights of .* with head 'rtd': head.bias is"),
        ("mlm", ARCH.with_layers(ARCH.layers[1:] + ARCH.layers[:1]), "not weights of"),
        ("mlm", ARCH.narrow(0.5), "not weights of 8 vocab=40 .*of another shape"),
        ("mlm", ARCH.with_layers(ARCH.layers[:-1]), "backbone.layers.5.body.out.bias is .* too many"),
        ("backbone", ARCH.with_layers(ARCH.layers[:-1]), "layers.5.body.out.bias is .* too many"),
    ],
)
def test_weights_that_do_not_fit(head, arch, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model_of(arch, weights(), head)


def test_a_folder_replaces_an_older_one(tmp_path, model):
    save_model(tmp_path / "runs" / "model", model_of(ARCH, weights(), "mlm"), card="# Old")
    (tmp_path / "runs" / "model" / "left-over").touch()
    save_model(tmp_path / "runs" / "model", model)
    assert holds(tmp_path / "runs" / "model", model)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["model"]
    assert {path.name for path in (tmp_path / "runs" / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "manifest.json",
    }


def test_what_fails_leaves_the_older_one(tmp_path, model, monkeypatch):
    save_model(tmp_path / "model", model)

    def fail(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(handover, "seal_folder", fail)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "model", model_of(ARCH, weights(), "mlm"))
    assert holds(tmp_path / "model", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 4 kB, which a write meets as it meets a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk(tmp_path, model):
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'model'}"):
        save_model(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_comes_along_and_nothing_else(tmp_path, model):
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(FileNotFoundError, match="source holds no tokenizer"):
        save_model(tmp_path / "model", model, tokenizer=source)
    for name in ("tokenizer.json", "vocab.txt", "model.safetensors"):
        (source / name).write_text(name)
    save_model(tmp_path / "model", model, tokenizer=source, card="# Card")
    assert (tmp_path / "model" / "vocab.txt").read_text() == "vocab.txt"
    assert (tmp_path / "model" / "README.md").read_text() == "# Card"
    assert holds(tmp_path / "model", model)


def test_a_folder_of_something_else_is_left_alone(tmp_path, model):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.tex").touch()
    with pytest.raises(FileExistsError, match="thesis exists and is not a model folder"):
        save_model(tmp_path / "thesis", model)
    assert (tmp_path / "thesis" / "chapter-1.tex").exists()


def test_the_card_says_what_the_model_is(model):
    card = model_card(model, "A toy", facts={"data": "a | b", "seed": 3}, scores={"accuracy": 0.5})
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "fill-mask"
    assert "# A toy" in text
    short, explicit = re.findall(r"```text\n(.*?)\n```", text)
    assert Architecture.parse(short) == Architecture.parse(explicit) == ARCH
    assert r"| data | a \| b |" in text
    assert "| accuracy | 0.5 |" in text
    assert "Training" not in model_card(model, "A toy", facts={}, scores={})


def test_the_table_of_layers_adds_up(model):
    card = model_card(model, "A toy", facts={}, scores={})
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith(("| `", "| embeddings"))]
    assert [row[:2] for row in rows[1:]] == [
        ["`conv[kernel=3]`", "0-1, 4"],
        ["`attn`", "2"],
        ["`ffn`", "3"],
        ["`ffn[inner=20]`", "5"],
    ]
    times = [1, 3, 1, 1, 1]
    for column, whole in ((2, parameters(ARCH)), (3, flops(ARCH, 16))):
        numbers = [int(row[column].replace(",", "")) for row in rows]
        assert sum(number * count for number, count in zip(numbers, times, strict=True)) == whole
        assert f"{whole:,}" in card
    assert f"with the head {sum(parameter.numel() for parameter in model.parameters()):,}" in card


def test_the_code_of_the_card_runs(tmp_path, model):
    save_model(tmp_path / "model", model)
    code = re.search(r"```python\n(.*?)```", model_card(model, "A toy", facts={}, scores={}), re.DOTALL)[1]
    lines = [line.replace("path/to/this/folder", str(tmp_path / "model")) for line in code.splitlines()]
    names: dict[str, object] = {}
    exec("\n".join(line for line in lines if not line.startswith("tokenizer")), names)
    assert isinstance(names["model"], type(model))
