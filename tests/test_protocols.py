"""Protocols say every number, whoever sets one has it instead, and what was used is kept."""

import json
import tomllib
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from toys import ARCH, make_model, sentence

from layerwright.architecture import Architecture
from layerwright.configuration import LayerwrightConfig
from layerwright.handover import save_model
from layerwright.models import LayerwrightForSequenceClassification
from layerwright.settings import read
from layerwright.tasks.finetune import FinetuneSettings, finetune
from layerwright.tasks.protocols import PROTOCOLS

SMALL = Architecture.parse("256 embed=128: 12x(attn ffn)")
BASE = Architecture.parse("768: 12x(attn ffn)")
LARGE = Architecture.parse("1024: 24x(attn ffn)")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("made") / "model")


def rte(folder: Path, rows: int = 24) -> Path:
    """A task of GLUE in words of the toy."""
    chance = Random(0)
    (folder / "RTE").mkdir()
    for split in ("train", "dev", "test"):
        lines = ["idx\tsentence1\tsentence2\tlabel"]
        for number in range(rows):
            label = "" if split == "test" else chance.choice(["entailment", "not_entailment"])
            lines.append(f"{split}-{number}\t{sentence(chance)}\t{sentence(chance)}\t{label}")
        (folder / "RTE" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def chosen(protocol: str, task: str, arch: Architecture, *names: str) -> list[object]:
    settings = FinetuneSettings(task=task, source="x", protocol=protocol).for_model(arch)
    return [getattr(settings, name) for name in names]


@pytest.mark.parametrize(
    ("protocol", "task", "arch", "rate", "batch", "epochs", "length"),
    [
        ("electra", "RTE", SMALL, 3e-4, 32, 10, 128),
        ("electra", "STS-B", BASE, 1e-4, 32, 10, 128),
        ("electra", "CoLA", LARGE, 5e-5, 32, 3, 128),
        ("electra", "SQuAD-v2.0", SMALL, 3e-4, 32, 2, 512),
        ("mosaic", "MNLI", BASE, 5e-5, 48, 3, 256),
        ("mosaic", "QQP", BASE, 3e-5, 16, 5, 256),
        ("mosaic", "QNLI", BASE, 1e-5, 16, 10, 256),
        ("mosaic", "SST-2", BASE, 3e-5, 16, 3, 256),
        ("mosaic", "CoLA", BASE, 5e-5, 32, 10, 256),
        ("mosaic", "MRPC", BASE, 8e-5, 32, 10, 256),
        ("mosaic", "RTE", BASE, 1e-5, 16, 3, 256),
        ("mosaic", "STS-B", BASE, 3e-5, 32, 10, 256),
        ("bert", "RTE", BASE, 2e-5, 32, 3, 128),
        ("bert", "SQuAD-v1.1", BASE, 5e-5, 32, 3, 384),
        ("bert", "SQuAD-v2.0", BASE, 5e-5, 48, 2, 384),
    ],
)
def test_numbers_are_those_of_the_papers(protocol, task, arch, rate, batch, epochs, length):
    assert chosen(protocol, task, arch, "rate", "batch", "epochs", "length") == [rate, batch, epochs, length]


def test_what_else_the_papers_say():
    for task in ("RTE", "MRPC", "STS-B", "CoLA"):
        assert chosen("electra", task, SMALL, "both_orders", "layer_decay", "warmup") == [task in ("MRPC", "STS-B"), 0.8, 0.1]
        [begins] = chosen("mosaic", task, BASE, "begins")
        assert begins == (None if task == "CoLA" else "MNLI")
    assert chosen("electra", "RTE", LARGE, "layer_decay") == [0.9]
    assert chosen("mosaic", "CoLA", BASE, "warmup", "betas", "layer_decay") == [0.06, (0.9, 0.98), 1.0]
    assert chosen("bert", "MNLI", BASE, "layer_decay", "both_orders", "seeds") == [1.0, False, 1]
    assert all(protocol.source for protocol in PROTOCOLS.values())


def test_a_number_that_is_given_wins_and_the_length_is_at_most_the_positions():
    given = read(FinetuneSettings, None, ["epochs=2", "layer_decay=0.5", "seeds=[3]"], task="rte", source="x", protocol="electra")
    settings = given.for_model(SMALL)
    assert (settings.epochs, settings.layer_decay, settings.seeds, settings.rate) == (2, 0.5, (3,), 3e-4)
    assert chosen("mosaic", "CoLA", ARCH, "length") == [32]
    with pytest.raises(ValueError, match="length=64, but the model has 32 positions"):
        FinetuneSettings(task="rte", source="x", length=64).for_model(ARCH)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "train and valid, two files, or task and source"),
        ({"train": "a.tsv"}, "there is only train"),
        ({"task": "RTE"}, "there is only task"),
        ({"task": "RTE", "train": "a.tsv"}, "not train and task"),
        ({"task": "RTTE", "source": "x"}, "task: no task 'RTTE'; did you mean 'RTE'"),
        ({"task": "RTE", "source": "x", "protocol": "elektra"}, "protocol: no protocol 'elektra'; did you mean 'electra'"),
        ({"train": "a.tsv", "valid": "b.tsv", "also": ["test"]}, "`also` names other splits of a task"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read(FinetuneSettings, None, **given)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"(?s)^3 problems.*no task 'RTTE'.*no protocol 'x'.*rate"):
        read(FinetuneSettings, None, ["rate=-1"], task="RTTE", source="x", protocol="x")


def test_a_known_task_is_learned_from_a_folder_and_other_splits_are_predicted(tmp_path, model, capsys):
    settings = FinetuneSettings(task="rte", source=str(rte(tmp_path)), also=("test",), seeds=1, epochs=1, protocol="bert")
    results = finetune(model, tmp_path / "run", settings)
    said = capsys.readouterr()
    assert "protocol bert" in said.out
    assert "rate 2e-05" in said.out
    assert (results.task, results.protocol, results.score, results.labels) == (
        "RTE",
        "bert",
        "accuracy",
        ("entailment", "not_entailment"),
    )
    assert results.rows == {"train": 24, "valid": 24, "test": 24}
    written = tomllib.loads((tmp_path / "run/settings.toml").read_text())
    for kept in (written, results.settings):
        assert (kept["rate"], kept["epochs"], kept["batch"], kept["length"]) == (2e-5, 1, 32, 32)
    assert results.seeds[0].also == {}  # it has no labels
    for name, split in (("predictions.jsonl", "dev"), ("predictions.test.jsonl", "test")):
        lines = [json.loads(line) for line in (tmp_path / "run/seeds/0" / name).read_text().splitlines()]
        assert [line["key"] for line in lines] == [f"{split}-{number}" for number in range(24)]
        assert {line["prediction"] for line in lines} <= set(results.labels)
    right = [line.rpartition("\t")[2] for line in (tmp_path / "RTE/dev.tsv").read_text().splitlines()[1:]]
    given = [json.loads(line)["prediction"] for line in (tmp_path / "run/seeds/0/predictions.jsonl").read_text().splitlines()]
    assert sum(map(str.__eq__, right, given)) / 24 == pytest.approx(results.seeds[0].scores["accuracy"])
    with pytest.raises(ValueError, match="RTE has no split 'tset'; did you mean 'test'"):
        finetune(model, tmp_path / "other", settings.model_copy(update={"also": ("tset",)}))


def tuned(folder: Path, arch: Architecture, labels: tuple[str, ...]) -> Path:
    torch.manual_seed(7)
    config = LayerwrightConfig(architecture=str(arch), id2label=dict(enumerate(labels)), classifier_act="gelu")
    save_model(folder, LayerwrightForSequenceClassification(config), tokenizer=folder.parent / "tokenizer")
    return folder


def test_a_start_is_honoured_where_it_is_given_and_else_said_to_be_missing(tmp_path, model, capsys):
    (tmp_path / "tokenizer").symlink_to(model.parent / "tokenizer")
    mnli = tuned(tmp_path / "mnli", ARCH, ("entailment", "neutral", "contradiction"))
    source = str(rte(tmp_path))
    usual = {"task": "RTE", "source": source, "protocol": "mosaic", "seeds": 1, "epochs": 1}
    without = finetune(model, tmp_path / "without", FinetuneSettings(**usual))
    assert without.start is None
    assert any("begins RTE with a model of MNLI; none is given" in note for note in without.notes)
    assert "begins RTE with a model of MNLI" in capsys.readouterr().err
    begun = finetune(model, tmp_path / "begun", FinetuneSettings(**usual, start=mnli, rate=1e-12))
    assert begun.start == f"a model of MNLI: {mnli}"
    assert not any("MNLI" in note for note in begun.notes)
    first, last = load_file(mnli / "model.safetensors"), load_file(tmp_path / "begun/model/model.safetensors")
    for name in first:
        assert (name.startswith("head.classes")) != (
            first[name].shape == last[name].shape and torch.allclose(first[name], last[name])
        ), name
    for folder, message in (
        (tuned(tmp_path / "three", ARCH, ("a", "b", "c")), "is no model of MNLI: its classes are a, b, c"),
        (tuned(tmp_path / "larger", SMALL, ("entailment", "neutral", "contradiction")), "start: .* and"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(model, tmp_path / "refused", FinetuneSettings(**usual, start=folder))
    weights = mnli / "model.safetensors"
    (mnli / "manifest.json").unlink()
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="begun with another start"):
        finetune(model, tmp_path / "begun", FinetuneSettings(**usual, start=mnli, rate=1e-12))


TABLES = {
    "names.conll": ("cat\tB-who\n", 5e-5),
    "names.jsonl": (json.dumps({"words": ["cat"], "tags": ["B-who"]}) + "\n", 5e-5),
    "asked.json": ('{"data": []}', 5e-5),
    "asked.jsonl": (json.dumps({"question": "who?", "context": "a cat", "answers": []}) + "\n", 5e-5),
    "asked.tsv": ("question\tcontext\tanswers\nwho?\ta cat\t\n", 5e-5),
    "texts.tsv": ("sentence1\tlabel\na cat\tyes\n", 2e-5),
    "broken.jsonl": ("{\n", 2e-5),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_numbers_for_a_kind_are_those_of_a_file_of_it(tmp_path, name):
    """The protocol `bert` has a rate of its own for questions and for tags of words."""
    path, (content, rate) = tmp_path / name, TABLES[name]
    path.write_text(content)
    settings = FinetuneSettings(train=path, valid=path, protocol="bert").for_model(BASE)
    assert settings.rate == rate
    assert FinetuneSettings(train=path, valid=path, protocol="bert", rate=1.0).for_model(BASE).rate == 1.0
    if rate == 5e-5:
        named = FinetuneSettings(train=path, valid=path, protocol="bert", kind="spans" if name.startswith("asked") else "tags")
        assert settings.model_dump(exclude={"kind"}) == named.for_model(BASE).model_dump(exclude={"kind"})


@pytest.mark.parametrize("split", ["train", "dev"])
def test_what_is_learned_from_or_scored_is_no_other_split(split):
    with pytest.raises(ValueError, match=f"'{split}' is one of them"):
        FinetuneSettings(task="RTE", source="x", also=(split,))
