"""Folders that others wrote or changed: tokenizers whose class is told by the model, cards, links, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate.utils import send_to_device
from toys import make_model
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ConvBertConfig,
    ConvBertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
)

import layerwright
from layerwright import checkpoint, guard
from layerwright.convert import convert
from layerwright.errors import IntegrityError
from layerwright.folders import open_folder, open_tokenizer
from layerwright.layers import Context

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "The", "##s")
SIZES = {"vocab_size": len(PIECES), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "electra": lambda: ElectraModel(ElectraConfig(**SIZES, embedding_size=8)),
    "convbert": lambda: ConvBertModel(ConvBertConfig(**SIZES, embedding_size=16, conv_kernel_size=3)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=len(PIECES), dim=16, n_layers=1, n_heads=2, hidden_dim=32)),
}


def published(folder: Path, kind: str, config: dict | None) -> Path:
    """Write a model whose tokenizer is a list of pieces, and whose configuration names no class, as bert-base-uncased's."""
    MODELS[kind]().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("config", [None, {"do_lower_case": True, "model_max_length": 512}, {"do_lower_case": False}])
@pytest.mark.parametrize("kind", MODELS)
def test_a_tokenizer_whose_class_the_model_tells_is_the_same_beside_ours(tmp_path, kind, config):
    given = published(tmp_path / kind, kind, config)
    before = AutoTokenizer.from_pretrained(given)
    convert(given, tmp_path / "ours")
    after = AutoTokenizer.from_pretrained(tmp_path / "ours")
    texts = ["The cats", "the cat [MASK]"]
    assert after.special_tokens_map == before.special_tokens_map
    assert after(texts, padding=True).input_ids == before(texts, padding=True).input_ids
    _, ids = open_tokenizer(tmp_path / "ours", open_folder(tmp_path / "ours").config)
    assert ids == {"pad": 0, "cls": 2, "sep": 3, "mask": 4}


def test_a_card_may_be_edited_and_left_out_and_a_changed_file_says_what_to_do(tmp_path):
    folder = make_model(tmp_path / "model")
    (folder / "README.md").write_text("# Mine\n")
    checkpoint.seal_folder(folder)
    (folder / "README.md").write_text("# Ours\n")
    open_folder(folder)
    (folder / "README.md").unlink()
    open_folder(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    older = manifest | {"README.md": {"bytes": 7, "sha256": "0" * 64}}  # as folders had it that were sealed with their card
    (folder / "manifest.json").write_text(json.dumps(older))
    open_folder(folder)
    config = (folder / "config.json").read_text()
    for changed in (config.swapcase(), config + " "):
        (folder / "config.json").write_text(changed)
        with pytest.raises(IntegrityError, match=r"if you changed it, delete manifest\.json"):
            open_folder(folder)


def test_what_a_link_leads_to_is_replaced_as_often_as_wanted(tmp_path):
    real, link = tmp_path / "disk" / "model", tmp_path / "latest"
    real.mkdir(parents=True)
    link.symlink_to(real)
    for number in range(3):
        with checkpoint.appearing(link) as unfinished:
            (unfinished / "number").write_text(str(number))
        assert link.is_symlink()
        assert (real / "number").read_text() == str(number)
    assert sorted(os.listdir(tmp_path)) == ["disk", "latest"]
    assert os.listdir(tmp_path / "disk") == ["model"]


@pytest.mark.parametrize("name", ["adapter_model.bin", "other.safetensors", "x.safetensors.index.json"])
def test_a_configuration_that_names_other_weights_is_refused(tmp_path, name):
    folder = make_model(tmp_path / "model")
    (folder / "manifest.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
    for opened in (open_folder, layerwright.models.LayerwrightModel.from_pretrained):
        with pytest.raises(ValueError, match="'transformers_weights', by which its weights come from another file"):
            opened(folder)


def test_a_tokenizer_that_names_code_is_refused(tmp_path):
    folder = make_model(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(told | {"auto_map": {"AutoTokenizer": ["code.Mine", None]}}))
    config = layerwright.models.LayerwrightConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match="'auto_map', by which a folder brings its own code"):
        open_tokenizer(folder, config)


def test_where_weights_lie_whole_an_index_beside_them_is_passed_over(tmp_path):
    """transformers leaves the index of an earlier save, whose parts are gone."""
    model = MODELS["bert"]()
    model.save_pretrained(tmp_path / "model", max_shard_size="2KB")
    assert (tmp_path / "model" / guard.INDEX).is_file()
    for part in (tmp_path / "model").glob("model-*.safetensors"):
        part.unlink()
    index = (tmp_path / "model" / guard.INDEX).read_bytes()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / guard.INDEX).write_bytes(index)
    assert {entry.file.name for entry in guard.stored(tmp_path / "model").values()} == {guard.WEIGHTS}
    convert(tmp_path / "model", tmp_path / "ours")


def test_what_layers_are_told_goes_along_to_another_device():
    documents = torch.zeros(2, 3, dtype=torch.int64)
    context = Context(torch.ones(2, 3, dtype=torch.bool), documents, dropout=0.1)
    assert send_to_device(context, "cpu") is context, "what was worked out is kept"
    (moved,) = send_to_device((context,), "meta")
    assert (moved.mask.device.type, moved.documents.device.type, moved.dropout) == ("meta", "meta", 0.1)
    assert send_to_device(Context(), "meta") == Context()
