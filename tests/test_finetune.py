"""Fine-tuning learns what can be learned, goes on where it was cut off, and refuses what does not fit."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from toys import ARCH, make_model, quick, reader_for, sentence, without_seconds
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from layerwright import vocabulary
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.checkpoint import hold
from layerwright.configuration import LayerwrightConfig
from layerwright.convert import convert
from layerwright.errors import DataError, Interrupted, RunInUse, exit_code
from layerwright.handover import save_model
from layerwright.models import LayerwrightForSequenceClassification, LayerwrightModel
from layerwright.settings import read
from layerwright.tasks import finetune as module
from layerwright.tasks.catalog import read as read_task
from layerwright.tasks.classification import ClassForm, Classification, layer_scale
from layerwright.tasks.examples import Examples, Row
from layerwright.tasks.finetune import FinetuneResults, FinetuneSettings, finetune
from layerwright.tasks.reading import read_file
from layerwright.tasks.rows import Reader, Rows, Tokens
from layerwright.train import Plan, make_optimizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("made") / "model")


def sentiments(path: Path, rows: int, seed: int, pairs: bool = False) -> Path:
    """One word decides; in a pair, that of the second sentence."""
    chance = Random(seed)
    lines = [["sentence1", "sentence2", "label"] if pairs else ["sentence1", "label"]]
    for _ in range(rows):
        word = chance.choice(["good", "bad"])
        lines.append([*([sentence(chance, "good", "bad")] if pairs else []), sentence(chance, word), f"is {word}"])
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def settings_for(folder: Path, **given) -> FinetuneSettings:
    """Few quick steps; a table is made where none is given."""
    for name, rows in (("train", 256), ("valid", 64)):
        if name not in given:
            given[name] = sentiments(folder / f"{name}.tsv", rows, len(name))
    return quick(**given)


def predictions(folder: Path, table: Examples[Row]) -> list[list[float]]:
    """What anyone gets from the model folder with transformers alone."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [[row.first for row in table.rows], *([[row.second for row in table.rows]] if table.pairs else [])]
    with torch.no_grad():
        return model(**tokenizer(*texts, padding=True, return_tensors="pt")).logits.tolist()


@pytest.mark.parametrize("pairs", [False, True], ids=["sentences", "pairs"])
def test_a_separable_task_is_learned_and_the_model_folder_knows_it(tmp_path, model, pairs):
    tables = {name: sentiments(tmp_path / f"{name}.tsv", rows, rows, pairs) for name, rows in (("train", 400), ("valid", 80))}
    settings = settings_for(tmp_path, **tables, seeds=3, epochs=6 if pairs else 4)
    results = finetune(model, tmp_path / "run", settings)
    assert results.labels == ("is bad", "is good")
    assert results.summary["accuracy"]["median"] > 0.95
    assert all(one.learned for one in results.seeds)
    table = read_file(settings.valid)
    right = np.mean(np.argmax(predictions(tmp_path / "run/model", table), axis=1) == [row.label for row in table.rows])
    median = next(one for one in results.seeds if one.seed == results.median_seed)
    assert right == pytest.approx(median.scores["accuracy"])
    assert median.scores["accuracy"] == results.summary["accuracy"]["median"]
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["id2label"] == {"0": "is bad", "1": "is good"}
    assert config["label2id"] == {"is bad": 0, "is good": 1}


def test_a_regression_is_learned_in_the_units_of_its_table(tmp_path, model):
    def table(name: str, rows: int) -> Path:
        chance = Random(name)
        lines = []
        for _ in range(rows):
            good, bad = chance.randint(0, 4), chance.randint(0, 4)
            text = sentence(chance, *["good"] * good, *["bad"] * bad)
            lines.append(json.dumps({"text": text, "label": 1000.0 + 50 * (good - bad)}))
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    settings = settings_for(tmp_path, train=table("train.jsonl", 400), valid=table("valid.jsonl", 80), seeds=1, epochs=8)
    results = finetune(model, tmp_path / "run", settings)
    assert (results.kind, results.labels, results.score) == ("regression", (), "spearman")
    assert results.summary["pearson"]["median"] > 0.9
    valid = read_file(settings.valid)
    guesses = np.array(predictions(tmp_path / "run/model", valid))
    assert guesses.shape == (80, 1)
    wrong = guesses[:, 0] - [row.label for row in valid.rows]
    assert np.abs(wrong).mean() < 60  # the labels lie 200 to either side of 1000
    assert results.summary["pearson"]["median"] == pytest.approx(
        np.corrcoef(guesses[:, 0], [row.label for row in valid.rows])[0, 1], abs=1e-4
    )


def test_the_score_is_that_of_the_last_epoch_and_every_step_is_logged(tmp_path, model):
    results = finetune(model, tmp_path / "run", settings_for(tmp_path, seeds=(7, 3), epochs=2))
    assert [one.seed for one in results.seeds] == [7, 3]
    assert results.seeds[0].loss != results.seeds[1].loss
    for one in results.seeds:
        lines = [json.loads(line) for line in (tmp_path / f"run/seeds/{one.seed}/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 33))
        scored = [line for line in lines if "valid_accuracy" in line]
        assert [line["step"] for line in scored] == [16, 32]
        assert scored[-1]["valid_accuracy"] == one.scores["accuracy"]
        assert one.loss == pytest.approx(np.mean([line["loss"] for line in lines[16:]]))
        assert 0 < one.padding < 0.2
    assert FinetuneResults.model_validate_json((tmp_path / "run/results.json").read_text()) == results


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, model, monkeypatch):
    settings = settings_for(tmp_path, seeds=3, epochs=1)
    whole = finetune(model, tmp_path / "whole", settings)
    cut = tmp_path / "cut"
    save = module.save_file
    for place in (cut / "seeds/1", cut / "seeds/2"):  # killed before a seed is sealed, twice

        def killed(weights, path, place=place):
            if path.parent == place:
                raise SystemExit
            save(weights, path)

        monkeypatch.setattr(module, "save_file", killed)
        with pytest.raises(SystemExit):
            finetune(model, cut, settings)
    assert not (cut / "model").exists()
    first = json.loads((cut / "seeds/0/result.json").read_text())
    monkeypatch.setattr(module, "save_file", save)
    resumed = finetune(model, cut, settings)
    assert without_seconds(resumed) == without_seconds(whole)
    assert resumed.seeds[0].seconds == first["seconds"]
    for name in ("seeds/2/metrics.jsonl", "model/model.safetensors", "model/config.json"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_is_not_repeated(tmp_path, model, monkeypatch):
    settings = settings_for(tmp_path, epochs=1)
    results = finetune(model, tmp_path / "run", settings)
    monkeypatch.setattr(module, "train", None)
    assert finetune(model, tmp_path / "run", settings) == results
    assert not list((tmp_path / "run").glob("seeds/*/*.safetensors"))


def test_a_run_asked_to_stop_keeps_its_finished_seeds(tmp_path, model, monkeypatch):
    settings = settings_for(tmp_path, epochs=1)
    append = module.append_line

    def asked(path, record):
        append(path, record)
        if path.parent.name == "1" and record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "append_line", asked)
    with pytest.raises(Interrupted, match="seed 1") as caught:
        finetune(model, tmp_path / "run", settings)
    assert exit_code(caught.value) == 75
    assert (tmp_path / "run/seeds/0/result.json").exists()
    assert len((tmp_path / "run/seeds/1/metrics.jsonl").read_text().splitlines()) == 3
    monkeypatch.setattr(module, "append_line", append)
    assert len(finetune(model, tmp_path / "run", settings).seeds) == 2


def test_a_damaged_seed_is_repeated(tmp_path, model, monkeypatch, capsys):
    settings = settings_for(tmp_path, epochs=1)
    monkeypatch.setattr(module, "save_model", lambda *_, **__: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        finetune(model, tmp_path / "run", settings)
    monkeypatch.undo()
    weights = tmp_path / "run/seeds/1/model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    finetune(model, tmp_path / "run", settings)
    assert "repeating seed 1" in capsys.readouterr().err


def test_seeds_that_learn_nothing_are_named(tmp_path, model, capsys):
    results = finetune(model, tmp_path / "run", settings_for(tmp_path, epochs=1, rate=1e-9, seeds=(4,)))
    assert not results.seeds[0].learned
    said = capsys.readouterr()
    assert "the same prediction for every row: seed 4" in said.err
    assert "accuracy" in said.out
    assert "median" in said.out


def test_bf16_learns_too(tmp_path, model):
    results = finetune(model, tmp_path / "run", settings_for(tmp_path, precision="bf16", seeds=1))
    assert results.summary["accuracy"]["median"] > 0.9


def test_both_orders_double_the_rows(tmp_path, model):
    tables = {name: sentiments(tmp_path / f"{name}.tsv", 48, 1, pairs=True) for name in ("train", "valid")}
    results = finetune(model, tmp_path / "run", settings_for(tmp_path, **tables, both_orders=True, epochs=1, seeds=1))
    assert results.rows == {"train": 96, "valid": 48}


def test_a_last_odd_layer_and_a_last_norm_are_fine_tuned(tmp_path):
    arch = Architecture.parse("32 vocab=64 positions=32 segments=1 norm=pre: attn ffn conv")
    pairs = sentiments(tmp_path / "pairs.tsv", 32, 1, pairs=True)
    settings = settings_for(tmp_path, train=pairs, valid=pairs, epochs=1, seeds=1, layer_decay=0.8)
    assert finetune(make_model(tmp_path / "model", arch), tmp_path / "run", settings).rows["valid"] == 32


# What does not fit is refused before anything is written.


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"score": "acuracy"}, ValueError, "no score 'acuracy'.*did you mean 'accuracy'"),
        ({"length": 64}, ValueError, "length=64, but .* has 32 positions"),
        ({"both_orders": True}, ValueError, "both_orders is for pairs"),
        ({"kind": "regression"}, DataError, "row 2 has the label 'is .*', where a regression needs a number"),
        ({"train": Path("none.tsv")}, DataError, "there is no file none.tsv"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, model, given, error, message):
    with pytest.raises(error, match=message) as caught:
        finetune(model, tmp_path / "run", settings_for(tmp_path, **given))
    assert exit_code(caught.value) == (3 if error is DataError else 2)
    assert not (tmp_path / "run").exists()


def test_a_validation_table_of_another_task_is_refused(tmp_path, model):
    unknown = tmp_path / "unknown.tsv"
    unknown.write_text("text\tlabel\ngood\tis good\nw1\tis god\n")
    with pytest.raises(DataError, match="row 3 has the unknown label 'is god'; did you mean 'is good'"):
        finetune(model, tmp_path / "run", settings_for(tmp_path, valid=unknown))
    pairs = sentiments(tmp_path / "pairs.tsv", 8, 0, pairs=True)
    with pytest.raises(DataError, match=r"train.tsv has one sentence a row, and .*pairs.tsv two"):
        finetune(model, tmp_path / "run", settings_for(tmp_path, valid=pairs))


def test_a_model_of_a_family_is_fine_tuned_as_what_it_is_converted_to(tmp_path):
    ours = make_model(tmp_path / "made" / "model", Architecture.parse("32 vocab=64 positions=32: 2x(attn[heads=4] ffn)"))
    convert(ours, tmp_path / "electra", to="electra")
    settings = settings_for(tmp_path)
    first, second = (finetune(folder, tmp_path / f"run-{folder.name}", settings) for folder in (ours, tmp_path / "electra"))
    assert [one.scores for one in first.seeds] == [one.scores for one in second.seeds]
    assert AutoTokenizer.from_pretrained(tmp_path / "run-electra" / "model")("good")
    for file in (tmp_path / "electra").glob("*token*"):
        file.unlink()
    with pytest.raises(DataError, match=f"there is no tokenizer {tmp_path / 'electra'}"):
        finetune(tmp_path / "electra", tmp_path / "run", settings)


def test_model_folders_that_cannot_be_used_are_refused(tmp_path, model):
    settings = settings_for(tmp_path)

    def refused(folder: Path, message: str, code: int) -> None:
        with pytest.raises((ValueError, RuntimeError), match=message) as caught:
            finetune(folder, tmp_path / "run", settings)
        assert exit_code(caught.value) == code
        assert not (tmp_path / "run").exists()

    refused(tmp_path / "none", "is not a model folder", 2)
    small = Architecture.parse("32 vocab=20 positions=32: ffn")
    refused(make_model(tmp_path / "small" / "model", small), "has 50 tokens, and the model embeddings for 20", 3)
    bare = tmp_path / "bare"
    save_model(bare, LayerwrightModel(LayerwrightConfig(architecture=str(ARCH))))
    refused(bare, "there is no tokenizer", 3)
    torn = Path(shutil.copytree(model, tmp_path / "torn"))
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(torn, "model.safetensors has .* bytes instead of", 4)
    (torn / "manifest.json").unlink()
    refused(torn, "model.safetensors should hold .* bytes of tensors", 4)
    weights.unlink()
    refused(torn, "cannot be loaded", 4)


def test_models_that_contradict_the_task_or_their_tokenizer_are_refused(tmp_path, model):
    settings = settings_for(tmp_path, epochs=1, seeds=1)
    labels = finetune(model, tmp_path / "first", settings).labels
    assert len(labels) == 2

    def refused(message: str, **changed: object) -> None:
        folder = shutil.copytree(tmp_path / "first/model", tmp_path / "changed")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))
        (folder / "manifest.json").unlink()
        with pytest.raises(DataError, match=message):
            finetune(folder, tmp_path / "run", settings)
        assert not (tmp_path / "run").exists()
        shutil.rmtree(folder)

    turned = {"id2label": dict(enumerate(reversed(labels))), "label2id": dict(zip(reversed(labels), range(2), strict=True))}
    refused(rf"changed contradicts .*train.tsv: its class 0 is '{labels[1]}', and that of the task '{labels[0]}'", **turned)
    louder = {str(place): name.upper() for place, name in turned["id2label"].items()}
    refused("contradicts", id2label=louder, label2id={name: int(place) for place, name in louder.items()})
    refused("contradicts itself: by label2id .* is class 0, by id2label class 0 is", id2label=turned["id2label"])
    refused("id2label whose numbers are not 0 to 1", id2label={"0": "a", "2": "b"}, label2id={"a": 0, "b": 2})
    refused(r"tokenizer of .* has the sep token \d+, and the model learned with 9", sep_token_id=9)
    other = {"id2label": {"0": "rain", "1": "sun"}, "label2id": {"rain": 0, "sun": 1}}  # of another task: learned anew
    folder = tmp_path / "first/model"
    config = json.loads((folder / "config.json").read_text())
    other["pad_token_id"] = 9  # of no consequence where positions are not counted from it
    (folder / "config.json").write_text(json.dumps(config | other))
    (folder / "manifest.json").unlink()
    assert finetune(folder, tmp_path / "run", settings).labels == labels


def test_a_run_folder_of_other_settings_or_tables_is_refused(tmp_path, model):
    settings = settings_for(tmp_path, epochs=1, seeds=1)
    finetune(model, tmp_path / "run", settings)
    kept = (tmp_path / "run/results.json").read_bytes()
    with pytest.raises(ValueError, match=r"(?s)begun with other settings.*rate: 0.005 -> 0.1"):
        finetune(model, tmp_path / "run", settings.model_copy(update={"rate": 0.1}))
    sentiments(settings.train, 200, 5)
    with pytest.raises(ValueError, match="begun with another training table; use another --out"):
        finetune(model, tmp_path / "run", settings)
    assert (tmp_path / "run/results.json").read_bytes() == kept


def test_a_run_folder_has_one_process_at_a_time(tmp_path, model):
    with hold(tmp_path / "run"), pytest.raises(RunInUse):
        finetune(model, tmp_path / "run", settings_for(tmp_path))


def test_settings_read_from_the_command_line():
    settings = read(FinetuneSettings, None, ["seeds=[1, 5]", "rate=1e-4"], train=Path("a.tsv"), valid=Path("b.tsv"), epochs=10.0)
    assert (settings.seeds, settings.rate, settings.epochs) == ((1, 5), 1e-4, 10)
    for wrong in ("seeds=0", "seeds=[]", "seeds=[-1]", "seeds=[1,1]", "layer_decay=0", "epoch=3"):
        with pytest.raises(ValueError, match=r"^1 problem"):
            read(FinetuneSettings, None, [wrong], train=Path("a.tsv"), valid=Path("b.tsv"))


# The pieces.


def test_a_seed_begins_with_the_weights_of_the_folder(tmp_path, model):
    pretrained = load_file(model / "model.safetensors")
    finetune(model, tmp_path / "run", settings_for(tmp_path, epochs=1, seeds=1, rate=1e-12))
    tuned = load_file(tmp_path / "run/model/model.safetensors")
    assert tuned.keys() - pretrained.keys() == {"head.classes.weight", "head.classes.bias"}
    for name in pretrained.keys() & tuned.keys():
        torch.testing.assert_close(tuned[name], pretrained[name])


def test_the_longer_sentence_is_cut_first_as_the_tokenizer_of_the_folder_cuts_it(model):
    theirs = AutoTokenizer.from_pretrained(model)
    for length in (10, 11):
        reader = reader_for(model, length)
        for first in range(12):
            for second in range(1, 12):  # transformers takes a pair with an empty text for one text
                texts = ["w1 " * first, "w2 " * second]
                [tokens], shortened = reader.rows(texts[:1], texts[1:])
                assert shortened == (first + second > length - 3)
                wanted = theirs(*texts, truncation="longest_first", max_length=length)
                assert list(tokens.ids) == wanted["input_ids"]
                assert tokens.second == wanted["token_type_ids"].index(1)


def test_tokens_equal_those_of_the_tokenizer_of_the_folder(model):
    ours = AutoTokenizer.from_pretrained(model)
    for second in ("bad [W9] unknown", None):
        theirs = ours('Good "w7" w8', second)
        [tokens], _ = reader_for(model).rows(['Good "w7" w8'], None if second is None else [second])
        batch = Rows([tokens], torch.tensor([0]), 0).batch([0])
        assert batch.ids.tolist() == [theirs["input_ids"]]
        assert batch.segments.tolist() == [theirs["token_type_ids"]]


def test_special_tokens_in_a_sentence_are_text(model):
    reader = reader_for(model)
    [tokens], _ = reader.rows(["good [SEP] bad"], None)
    assert tokens.ids.count(vocabulary.special(reader.tokenizer).sep) == 1
    assert [reader.tokenizer.id_to_token(token) for token in tokens.ids[1:-1]] == ["good", "[", "sep", "]", "bad"]


def test_a_batch_is_padded_to_its_longest_row():
    rows = Rows([Tokens([1, 5, 2, 6, 2], 3), Tokens([1, 7, 2], 3), Tokens([1, 8, 2], 3)], torch.tensor([4, 5, 6]), pad=9)
    batch = rows.batch([1, 0])
    assert batch.ids.tolist() == [[1, 7, 2, 9, 9], [1, 5, 2, 6, 2]]
    assert batch.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.segments.tolist() == [[0] * 5, [0, 0, 0, 1, 1]]
    assert batch.labels.tolist() == [5, 4]
    assert rows.batch([1, 2]).mask is None
    assert rows.padding([[1, 0], [2]]) == 0, "two short ones are packed"


@pytest.mark.parametrize("count", [1, 31, 32, 500])
def test_batches_hold_every_row_once_in_an_order_drawn(count):
    rows = Rows([Tokens([0] * (3 + number % 90), 3) for number in range(count)], torch.zeros(count), 0)
    batches = rows.shuffled(32, seed=1, epoch=2)
    assert sorted(place for batch in batches for place in batch) == list(range(count))
    assert len(batches) == math.ceil(count / 32)
    assert batches == rows.shuffled(32, seed=1, epoch=2)
    if count > 1:
        assert batches != rows.shuffled(32, seed=1, epoch=3)
        assert batches != rows.shuffled(32, seed=2, epoch=2)
    if count >= 500:
        lengths = [sum(map(rows.length, batch)) for batch in batches[:-1]]
        assert max(lengths) < 1.5 * min(lengths), "batches of short rows alone"
        assert rows.padding(batches) < 0.05


@pytest.mark.parametrize("count", [1, 40, 700])
def test_what_is_only_scored_comes_once_in_order_with_little_padding(count):
    chance = Random(count)
    rows = Rows([Tokens([0] * chance.randint(3, 100), 3) for _ in range(count)], None, 0)
    batches = rows.in_order(32)
    assert [place for batch in batches for place in batch] == list(range(count))
    assert max(map(len, batches)) <= 32
    assert rows.padding(batches) <= 0.05


def test_the_loss_is_cross_entropy_or_squared_error():
    ids = torch.randint(5, 64, (8, 12))
    for classes, labels in ((3, torch.arange(8) % 3), (1, torch.linspace(-1, 1, 8))):
        objective = Classification(Backbone(ARCH), classes).eval()
        batch = Rows([Tokens(row.tolist(), 12) for row in ids], labels, 0).batch(range(8))
        logits = objective.head(objective.backbone(ids))
        wanted = -logits.log_softmax(-1)[range(8), labels].mean() if classes > 1 else ((logits[:, 0] - labels) ** 2).mean()
        torch.testing.assert_close(objective(batch).total, wanted)
        assert torch.equal(objective.predict(batch), logits)
    assert F.cross_entropy(torch.zeros(1, 3), torch.tensor([0])) == pytest.approx(math.log(3))


def test_the_head_sees_the_first_token_only():
    head = Classification(Backbone(ARCH), 2).eval().head
    states = torch.randn(4, 6, 32)
    changed = torch.cat([states[:, :1], torch.randn(4, 5, 32)], dim=1)
    assert torch.equal(head(states), head(changed))


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("backbone.embed.token.weight", 0),
        ("backbone.embed.widen.weight", 0),
        ("backbone.layers.0.body.query.weight", 1),
        ("backbone.layers.1.norm.bias", 1),
        ("backbone.layers.2.norm.bias", 2),
        ("backbone.layers.23.body.inner.weight", 12),
        ("backbone.norm.weight", 12),
        ("head.classes.weight", 14),
    ],
)
def test_rates_fall_towards_the_input_as_published(name, depth):
    assert layer_scale(name, layers=24, decay=0.8) == pytest.approx(0.8 ** (14 - depth))


def test_every_weight_has_a_rate_and_an_odd_layer_is_a_group():
    arch = Architecture.parse("32 embed=16 vocab=64 norm=pre: conv attn ffn")
    objective = Classification(Backbone(arch), 2)
    optimizer = make_optimizer(objective, Plan(steps=1), lambda name: layer_scale(name, len(arch), 0.5))
    scales = {id(weight): group["scale"] for group in optimizer.param_groups for weight in group["params"]}
    found = {".".join(name.split(".")[:3]): scales[id(weight)] for name, weight in objective.named_parameters()}
    assert found["backbone.embed.token"] == 0.5**4
    assert [found[f"backbone.layers.{layer}"] for layer in range(3)] == [0.5**3, 0.5**3, 0.5**2]
    assert found["backbone.norm.weight"] == 0.5**2
    assert found["head.classes.weight"] == 1


# Where a model folder, a tokenizer or a file is of another sort.


def test_a_pooler_goes_on_as_the_hidden_map_of_the_head(tmp_path, model):
    torch.manual_seed(5)
    pooled = tmp_path / "pooled"
    net = LayerwrightModel(LayerwrightConfig(architecture=str(ARCH), pooler=True)).eval()
    save_model(pooled, net, tokenizer=model)
    begun = finetune(pooled, tmp_path / "run", settings_for(tmp_path, epochs=1, seeds=1, rate=1e-12))
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").eval()
    assert tuned.config.classifier_act == "tanh"
    assert not tuned.config.classifier_input_dropout
    ids = torch.randint(5, 50, (3, 9))
    with torch.no_grad():
        summed_up = net(ids).pooler_output
        wanted = F.linear(summed_up, tuned.head.classes.weight, tuned.head.classes.bias)
        torch.testing.assert_close(tuned(ids).logits, wanted)
    assert begun.labels == ("is bad", "is good")


def test_a_hidden_map_of_an_earlier_fine_tuning_is_kept_and_its_classes_are_not(tmp_path, model):
    torch.manual_seed(6)
    config = LayerwrightConfig(architecture=str(ARCH), num_labels=3, classifier_act="gelu", classifier_input_dropout=True)
    save_model(tmp_path / "earlier", LayerwrightForSequenceClassification(config), tokenizer=model)
    finetune(tmp_path / "earlier", tmp_path / "run", settings_for(tmp_path, epochs=1, seeds=1, rate=1e-12))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("earlier", "run/model"))
    torch.testing.assert_close(after["head.hidden.weight"], before["head.hidden.weight"])
    assert after["head.classes.weight"].shape == (2, 32)
    written = json.loads((tmp_path / "run/model/config.json").read_text())
    assert (written["classifier_act"], written["classifier_input_dropout"]) == ("gelu", True)


def test_texts_are_framed_as_their_tokenizer_frames_them():
    letters = ["<pad>", "<s>", "</s>", *"abcdefgh"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(letters)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    reader = Reader.of(tokenizer, pad=0, length=10, segments=True)
    for pair in ((["c d e"], None), (["c d e"], ["f g"])):
        [row], shortened = reader.rows(*pair)
        assert list(row.ids) == tokenizer.encode(*(texts[0] for texts in pair if texts)).ids
        assert row.second == len(row.ids)  # one segment, as RoBERTa has it
        assert shortened == 0
    [row], shortened = reader.rows(["a b c d e f"], ["g h"])
    assert [letters[one] for one in row.ids] == ["<s>", "a", "b", "c", "d", "</s>", "</s>", "g", "h", "</s>"]
    assert shortened == 1
    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    with pytest.raises(DataError, match="puts no token such as"):
        Reader.of(tokenizer, pad=0, length=10, segments=True)


def test_rows_that_are_skipped_are_counted_and_named(tmp_path, model, capsys):
    settings = settings_for(tmp_path, epochs=1, seeds=1)
    lines = settings.train.read_text().splitlines()
    settings.train.write_text("\n".join([*lines[:5], "too\tmany\tfields", *lines[5:9], "w1\tis god", *lines[9:]]) + "\n")
    with pytest.raises(DataError, match="row 6 has 3 fields"):
        finetune(model, tmp_path / "run", settings)
    skipping = settings.model_copy(update={"on_bad_row": "skip", "valid": settings.valid})
    results = finetune(model, tmp_path / "run", skipping)
    assert results.skipped["train"][0].startswith("row 6 has 3 fields")
    assert results.labels == ("is bad", "is god", "is good")  # without known labels, a slip is a class of its own
    assert "skipped in train, 1 rows: row 6" in capsys.readouterr().err


def test_predictions_are_kept_by_the_keys_of_the_rows(tmp_path, model):
    settings = settings_for(tmp_path, epochs=1, seeds=(2,), rate=1e-3)
    rows = settings.valid.read_text().splitlines()
    settings.valid.write_text("\n".join([f"idx\t{rows[0]}", *(f"row-{n}\t{row}" for n, row in enumerate(rows[1:]))]) + "\n")
    results = finetune(model, tmp_path / "run", settings)
    lines = [json.loads(line) for line in (tmp_path / "run/seeds/2/predictions.jsonl").read_text().splitlines()]
    valid = read_file(settings.valid)
    assert [line["key"] for line in lines] == [f"row-{number}" for number in range(64)]
    right = sum(line["prediction"] == valid.labels[int(row.label)] for line, row in zip(lines, valid.rows, strict=True))
    assert right / 64 == pytest.approx(results.seeds[0].scores["accuracy"])


@pytest.mark.large
@pytest.mark.skipif("LAYERWRIGHT_DATA" not in os.environ, reason="LAYERWRIGHT_DATA names no folder of real tasks")
@pytest.mark.parametrize("task", ["CoLA", "MRPC", "RTE", "STS-B"])
def test_little_of_a_real_task_is_padding(task):
    root = Path(os.environ["LAYERWRIGHT_DATA"])
    tokenizer = vocabulary.load(root / "vocab" / "bert-base-uncased.txt", lowercase=True)
    form = ClassForm.of(Reader.of(tokenizer, pad=0, length=128, segments=True), read_task(task, "train", root))
    rows = form.rows(read_task(task, "train", root))
    assert rows.padding(rows.shuffled(32, seed=0, epoch=0)) < 0.05
