"""Models of five families become ours and come back: the same numbers, the same bits, or one message and nothing written."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from layerwright import cli, families, parity
from layerwright.configuration import LayerwrightConfig
from layerwright.convert import convert
from layerwright.errors import IntegrityError
from layerwright.families import FAMILIES
from layerwright.handover import save_model
from layerwright.models import FACES

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 19,
}
THEIRS = {
    "bert": SIZES,
    "roberta": SIZES | {"type_vocab_size": 1},
    "distilbert": {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 56, "max_position_embeddings": 19},
    "electra": SIZES | {"embedding_size": 20},
    "convbert": SIZES | {"embedding_size": 20, "conv_kernel_size": 5, "num_groups": 2, "pad_token_id": 0},
}
CLASSES = [(family.name, key) for family in FAMILIES.values() for key in family.heads]
OUTPUTS = ("logits", "start_logits", "end_logits", "pooler_output", "last_hidden_state")


def draw(module: nn.Module) -> nn.Module:
    """Give a model weights so far from their beginning that a wrong one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.eval()


def theirs(family: str, key: str, **more: object) -> PreTrainedModel:
    torch.manual_seed(1)
    known = FAMILIES[family]
    config = getattr(transformers, known.config)(**THEIRS[family] | more)
    return draw(getattr(transformers, known.heads[key].model)(config))


def written(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    return folder


def ours_of(folder: Path) -> nn.Module:
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    return next(face.model for face in FACES.values() if face.model.__name__ == named).from_pretrained(folder).eval()


def same_bits(one: Path, other: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def batch_of(model: nn.Module, length: int, rows: int = 3) -> dict[str, Tensor]:
    """Rows without padding, drawn apart from those of the parity gate."""
    config = model.config
    shape = (rows, 2, length) if "MultipleChoice" in type(model).__name__ else (rows, length)
    batch = {"input_ids": torch.randint(2, config.vocab_size, shape)}
    if segments := getattr(config, "type_vocab_size", 0):
        batch["token_type_ids"] = torch.randint(segments, shape)
    return batch


@torch.no_grad()
def assert_same_numbers(theirs: nn.Module, ours: nn.Module, length: int) -> None:
    batch = batch_of(theirs, length)
    expected, found = (model(**batch, output_hidden_states=True) for model in (theirs, ours))
    assert len(found.hidden_states) == 2 * len(expected.hidden_states) - 1
    for block, states in enumerate(expected.hidden_states):
        torch.testing.assert_close(found.hidden_states[2 * block], states, rtol=0, atol=1e-4)
    shared = [name for name in OUTPUTS if name in expected]
    assert shared
    for name in shared:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "key"), CLASSES)
def test_round_trip_keeps_every_bit_of_every_class(tmp_path, family, key):
    model = theirs(family, key)
    source = written(tmp_path / "source", model)
    there = convert(source, tmp_path / "ours")
    assert_same_numbers(model, ours_of(tmp_path / "ours"), 17)
    back = convert(tmp_path / "ours", tmp_path / "back", family)
    assert same_bits(source, tmp_path / "back")
    assert there.source == back.result == type(model).__name__
    assert there.result == back.source == FACES[key].model.__name__
    assert max(there.difference, back.difference) < 1e-4
    again = type(model).from_pretrained(tmp_path / "back").eval()
    assert_same_numbers(again, ours_of(tmp_path / "ours"), 17)
    before, after = model.config.to_dict(), again.config.to_dict()
    fields = {*FAMILIES[family].fields.values(), "pad_token_id", "id2label", "architectures"}
    assert {name: before[name] for name in fields} == {name: after[name] for name in fields}


def test_labels_tokens_and_dropouts_are_carried(tmp_path):
    labels = {0: "no", 1: "perhaps", 2: "yes"}
    told = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}, "pad_token_id": 0}
    told |= {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2, "classifier_dropout": 0.4}
    told |= {"problem_type": "multi_label_classification", "bos_token_id": 5, "sep_token_id": 3}
    convert(written(tmp_path / "source", theirs("electra", "classification", **told)), tmp_path / "ours")
    ours = LayerwrightConfig.from_pretrained(tmp_path / "ours")
    assert {name: getattr(ours, name) for name in told} == told
    assert (ours.classifier_act, ours.classifier_input_dropout) == ("gelu", True)
    convert(tmp_path / "ours", tmp_path / "back", "electra")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    assert {name: getattr(back, name) for name in told} == told


def test_distilbert_has_other_names_for_dropout(tmp_path):
    told = {"dropout": 0.3, "attention_dropout": 0.25, "seq_classif_dropout": 0.4}
    convert(written(tmp_path / "source", theirs("distilbert", "classification", **told)), tmp_path / "ours")
    ours = LayerwrightConfig.from_pretrained(tmp_path / "ours")
    assert (ours.hidden_dropout_prob, ours.attention_probs_dropout_prob, ours.classifier_dropout) == (0.3, 0.25, 0.4)
    convert(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    assert back.model_type == "distilbert"
    assert {name: getattr(back, name) for name in told} == told


SIZED = st.fixed_dictionaries(
    {
        "num_attention_heads": st.sampled_from([1, 2, 3, 6]),
        "size": st.sampled_from([1, 4, 5]),
        "num_hidden_layers": st.integers(1, 3),
        "intermediate_size": st.sampled_from([2, 14, 30]),
        "max_position_embeddings": st.integers(3, 40),
        "vocab_size": st.integers(5, 50),
        "type_vocab_size": st.integers(1, 3),
        "hidden_act": st.sampled_from(["gelu", "relu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "swish", "tanh"]),
        "layer_norm_eps": st.sampled_from([1e-12, 1e-5]),
        "pad_token_id": st.integers(0, 1),
        "embedding_size": st.sampled_from([3, 12, 60]),
        "head_ratio": st.sampled_from([1, 2, 4]),
        "conv_kernel_size": st.sampled_from([3, 5, 9, 15]),
        "num_groups": st.sampled_from([1, 2]),
    }
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=SIZED, key=st.sampled_from(["backbone", "mlm", "classification"]))
def test_odd_sizes(tmp_path_factory, family, said, key):
    folder = tmp_path_factory.mktemp("odd")
    said = dict(said) | {"hidden_size": said["num_attention_heads"] * 2 * said.pop("size")}
    if family == "distilbert":
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        names |= {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
        said = {names.get(name, name): value for name, value in said.items()}
    torch.manual_seed(1)
    known = FAMILIES[family]
    if "segments" in known.fixed:
        del said["type_vocab_size"]
    config = getattr(transformers, known.config)(**said)
    model = draw(getattr(transformers, known.heads[key].model)(config))
    convert(written(folder / "source", model), folder / "ours")
    ours = ours_of(folder / "ours")
    assert_same_numbers(model, ours, ours.config.arch.positions)
    convert(folder / "ours", folder / "back", family)
    assert same_bits(folder / "source", folder / "back")


@pytest.mark.parametrize(
    ("heads", "ratio", "text"),
    [
        (4, 2, "mixed[heads=4,ratio=2,kernel=9,form=released]"),
        (1, 2, "mixed[heads=1,ratio=2,kernel=9,form=transformers]"),
        (8, 4, "mixed[heads=8,ratio=4,kernel=9,form=transformers]"),
        (5, 2, "mixed[heads=2,ratio=1,kernel=9,form=transformers]"),  # five heads do not divide the width, the branch's two do
    ],
)
def test_convbert_of_transformers_is_a_form_of_mixed_attention(tmp_path, heads, ratio, text):
    model = theirs("convbert", "backbone", num_attention_heads=heads, head_ratio=ratio, conv_kernel_size=9)
    arch = convert(written(tmp_path / "source", model), tmp_path / "ours").arch
    assert str(arch.layers[0]) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_for_ours(tmp_path, family):
    """On padded rows ours equals itself without padding; transformers too, but for ConvBERT, whose convolutions read padding."""
    model = theirs(family, "mlm")
    convert(written(tmp_path / "source", model), tmp_path / "ours")
    ours, pad = ours_of(tmp_path / "ours"), model.config.pad_token_id
    ids = torch.randint(2, 40, (2, 11))
    padded = torch.cat([ids, torch.full((2, 5), pad)], 1)
    mask = torch.cat([torch.ones(2, 11), torch.zeros(2, 5)], 1).long()
    with torch.no_grad():
        alone, expected = ours(ids).logits, model(ids).logits
        found, leaking = ours(padded, mask).logits[:, :11], model(padded, mask).logits[:, :11]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert bool((leaking - expected).abs().max() > 1e-3) == (family == "convbert")


def test_old_checkpoints_hold_old_names_and_more_than_their_class(tmp_path):
    """As the first checkpoints of BERT do: gamma and beta, a pooler, the next-sentence head, positions, repeated weights."""
    source = written(tmp_path / "source", theirs("bert", "mlm"))
    weights = load_file(source / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): weight for name, weight in weights.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): weight for name, weight in old.items()}
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    old["bert.embeddings.position_ids"] = torch.arange(19)[None]
    for name, size in (("bert.pooler.dense", 32), ("cls.seq_relationship", 2)):
        old |= {f"{name}.weight": torch.randn(size, 32), f"{name}.bias": torch.randn(size)}
    save_file(old, source / "model.safetensors", {"format": "pt"})
    done = convert(source, tmp_path / "ours")
    assert any("cls.seq_relationship.weight" in line and "next sentence" in line for line in done.dropped)
    assert any("bert.pooler.dense.bias" in line for line in done.dropped)
    convert(tmp_path / "ours", tmp_path / "back", "bert")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_bert_for_pretraining_becomes_masked_tokens(tmp_path):
    config = transformers.BertConfig(**SIZES)
    source = written(tmp_path / "source", draw(transformers.BertForPreTraining(config)))
    done = convert(source, tmp_path / "ours")
    assert (done.source, done.result) == ("BertForPreTraining", "LayerwrightForMaskedLM")
    assert any("the head that predicts the next sentence" in line for line in done.dropped)


def test_a_class_that_is_not_named_is_the_base(tmp_path):
    source = written(tmp_path / "source", theirs("electra", "rtd"))
    settings = json.loads((source / "config.json").read_text())
    del settings["architectures"]
    (source / "config.json").write_text(json.dumps(settings))
    done = convert(source, tmp_path / "ours")
    assert done.result == "LayerwrightModel"
    assert any("discriminator_predictions.dense.weight" in line and "ElectraForPreTraining" in line for line in done.dropped)


def test_a_base_model_without_its_pooler(tmp_path):
    torch.manual_seed(1)
    model = draw(transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False))
    convert(written(tmp_path / "source", model), tmp_path / "ours")
    assert not LayerwrightConfig.from_pretrained(tmp_path / "ours").pooler
    done = convert(tmp_path / "ours", tmp_path / "back", "bert")
    assert same_bits(tmp_path / "source", tmp_path / "back")
    assert any("pooler" in line for line in done.notes)
    assert convert(tmp_path / "ours", tmp_path / "natural").result == "ElectraModel"  # which has no pooler to begin with


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_it_is(tmp_path, dtype):
    source = written(tmp_path / "source", theirs("roberta", "mlm").to(dtype))
    convert(source, tmp_path / "ours")
    assert {w.dtype for w in load_file(tmp_path / "ours" / "model.safetensors").values()} == {dtype}
    convert(tmp_path / "ours", tmp_path / "back")
    assert same_bits(source, tmp_path / "back")


def test_weights_in_several_files(tmp_path):
    model = theirs("bert", "backbone")
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    convert(tmp_path / "source", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    whole = written(tmp_path / "whole", model)
    assert same_bits(whole, tmp_path / "back")


def test_the_tokenizer_comes_along(tmp_path):
    source = written(tmp_path / "source", theirs("bert", "mlm"))
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(words) + "\n")
    done = convert(source, tmp_path / "ours")
    back = convert(tmp_path / "ours", tmp_path / "back")
    assert not done.notes
    assert not back.notes
    for folder in ("ours", "back"):
        assert (tmp_path / folder / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
        assert AutoTokenizer.from_pretrained(tmp_path / folder)("a b c")["input_ids"] == [5, 6, 1]
    assert "no tokenizer" in convert(written(tmp_path / "bare", theirs("bert", "mlm")), tmp_path / "other").notes[0]


def test_a_replaced_folder_and_one_that_is_no_model(tmp_path):
    source = written(tmp_path / "source", theirs("bert", "mlm"))
    for _ in range(2):
        convert(source, tmp_path / "ours")
    (tmp_path / "letters").mkdir()
    with pytest.raises(FileExistsError, match="letters exists and is not a model folder"):
        convert(source, tmp_path / "letters")
    with pytest.raises(ValueError, match="is the source itself"):
        convert(source, tmp_path / "letters" / ".." / "source")


def swapped(family: families.Family) -> families.Family:
    """Return a family whose table takes the key for the query."""
    names = dict(family.block_names)
    names["0.body.query"], names["0.body.key"] = names["0.body.key"], names["0.body.query"]
    names["0.body.value"], names["0.body.out"] = names["0.body.out"], names["0.body.value"]
    return dataclasses.replace(family, block_names=names)


def test_nothing_is_written_where_the_numbers_differ(tmp_path, monkeypatch):
    source = written(tmp_path / "source", theirs("bert", "mlm"))
    convert(source, tmp_path / "ours")
    monkeypatch.setitem(FAMILIES, "bert", swapped(FAMILIES["bert"]))
    for given_folder, to in ((source, None), (tmp_path / "ours", "bert")):
        with pytest.raises(IntegrityError, match=r"differ by .* in the states after block 1 at 1 tokens.* nothing was written"):
            convert(given_folder, tmp_path / "wrong", to)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "ours"}


def test_a_number_that_is_none_is_a_difference(tmp_path):
    model = theirs("bert", "mlm")
    with torch.no_grad():
        model.cls.predictions.transform.LayerNorm.weight[3] = 3e38  # finite, but not what comes of it
    with pytest.raises(IntegrityError, match="differ by nan in logits"):
        convert(written(tmp_path / "source", model), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_weight_that_is_no_number_is_named(tmp_path):
    model = theirs("bert", "mlm")
    with torch.no_grad():
        model.cls.predictions.bias[3] = float("nan")
    with pytest.raises(IntegrityError, match=r"cls\.predictions\.bias holds values that are not finite"):
        convert(written(tmp_path / "source", model), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_lengths_go_up_to_the_maximum():
    assert parity.lengths(512) == [1, 2, 5, 24, 256, 511, 512]
    assert parity.lengths(1) == [1]


# Out of models that were never a family's


def own(folder: Path, text: str, key: str = "backbone", **more: object) -> Path:
    torch.manual_seed(1)
    save_model(folder, draw(FACES[key].model(LayerwrightConfig(architecture=text, **more))))
    return folder


SMALL = "vocab=40 positions=18"


@pytest.mark.parametrize(
    ("text", "key", "more", "family"),
    [
        (f"32 {SMALL}: 2x(attn[heads=4] ffn)", "mlm", {}, "bert"),
        (f"32 {SMALL}: 2x(attn[heads=4] ffn)", "backbone", {"pooler": True}, "bert"),
        (f"32 {SMALL}: 2x(attn[heads=4] ffn[act=gelu_tanh])", "mlm", {"head_act": "gelu_tanh"}, "bert"),
        (f"32 {SMALL} embed=24: 2x(attn[heads=4] ffn)", "mlm", {}, "electra"),
        (f"32 {SMALL}: 2x(attn[heads=4] ffn)", "rtd", {}, "electra"),
        (f"32 {SMALL} offset=2 segments=1: 2x(attn[heads=4] ffn)", "mlm", {}, "roberta"),
        (f"32 {SMALL} segments=0: 2x(attn[heads=4] ffn)", "tokens", {}, "distilbert"),
        (f"32 {SMALL}: 2x(mixed[heads=4] ffn[groups=2])", "mlm", {}, "convbert"),
        (f"32 {SMALL}: attn ffn", "classification", {"classifier_act": "tanh"}, "bert"),
        (f"32 {SMALL}: attn ffn", "classification", {"classifier_act": "gelu", "classifier_input_dropout": True}, "electra"),
    ],
)
def test_the_family_that_says_most(tmp_path, text, key, more, family):
    folder = own(tmp_path / "ours", text, key, **more)
    done = convert(folder, tmp_path / "theirs")
    assert done.result == FAMILIES[family].heads[key].model
    model = getattr(transformers, done.result).from_pretrained(tmp_path / "theirs").eval()
    assert_same_numbers(model, ours_of(folder), 18)


@pytest.mark.parametrize(
    ("text", "key", "more", "to", "messages"),
    [
        (
            f"32 {SMALL}: conv[kernel=3] ffn attn ffn 2x(conv[kernel=5] ffn) ffn",
            "backbone",
            {},
            None,
            [
                "no family of transformers can express '32 ",
                r"bert: layer 0: conv\[kernel=3\], where bert has attn",
                r"bert: layers 4, 6: conv\[kernel=5\], where bert has attn",
                "bert: layer 8: ffn, where bert has attn",
                "bert: layer 8: a block of bert is two layers",
                r"convbert: layer 2: attn, where convbert has mixed",
            ],
        ),
        (f"32 {SMALL}: attn ffn attn", "mlm", {}, "bert", ["layer 2: a block of bert is two layers, and this one has no second"]),
        (
            f"32 {SMALL}: attn[heads=2] ffn attn[heads=4] ffn",
            "mlm",
            {},
            "electra",
            [r"layer 2: attn\[heads=4\], unlike layer 0, attn\[heads=2\]; all blocks of electra are alike"],
        ),
        (f"32 {SMALL} norm=pre: attn ffn", "mlm", {}, "bert", ["norm=pre: the norms of bert come after the layers"]),
        (f"32 {SMALL} embed=24: attn ffn", "mlm", {}, "bert", ["embed=24: the embeddings of bert are as wide"]),
        (f"32 {SMALL}: attn ffn[groups=2]", "mlm", {}, "bert", ["layer 1: .*groups=2.* the maps of bert have no groups"]),
        (f"32 {SMALL}: attn ffn", "mlm", {}, "distilbert", ["segments=2: it is 0 in distilbert"]),
        (f"32 {SMALL} segments=0 eps=1e-5: attn ffn", "tokens", {}, "distilbert", ["eps=1e-05: it is 1e-12 in distilbert"]),
        (f"32 {SMALL} segments=0: attn ffn", "mlm", {}, "bert", ["segments=0: bert has segment embeddings"]),
        (f"32 {SMALL}: attn ffn", "mlm", {}, "roberta", ["offset=0: roberta leaves the rows"]),
        (f"32 {SMALL} offset=2: attn ffn", "mlm", {"pad_token_id": 0}, "roberta", ["pad_token_id=0: .* roberta is 1"]),
        (f"32 {SMALL}: mixed[heads=4,form=paper] ffn", "mlm", {}, "convbert", ["a map behind each branch"]),
        (f"32 {SMALL}: mixed[heads=8,ratio=4] ffn", "mlm", {}, "convbert", ["branches 8 wide; convbert .* branches 16 wide"]),
        (f"32 {SMALL}: attn ffn", "rtd", {}, "bert", ["the head: bert has none for 'rtd', as ElectraForPreTraining has"]),
        (f"32 {SMALL}: attn ffn", "classification", {}, None, ["the head: classifier_act is none, and tanh in BertForSeq"]),
        (f"32 {SMALL}: attn ffn[act=relu]", "mlm", {}, "bert", ["the head: head_act is gelu, and relu in BertForMaskedLM"]),
        (f"32 {SMALL}: attn ffn", "backbone", {"pooler": True}, "electra", ["the pooler: ElectraModel has none"]),
        (f"32 {SMALL}: attn ffn", "mlm", {}, "electro", ["no family 'electro'; did you mean 'electra'"]),
    ],
)
def test_why_a_family_cannot_express_a_model(tmp_path, text, key, more, to, messages):
    folder = own(tmp_path / "ours", text, key, **more)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert(folder, tmp_path / "theirs", to)
    for message in messages:
        assert re.search(message, str(caught.value)), f"{message!r} is not in {caught.value}"
    assert not (tmp_path / "theirs").exists()


def test_an_altered_folder_of_ours(tmp_path):
    folder = own(tmp_path / "ours", f"32 {SMALL}: attn ffn", "mlm")
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-3] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        convert(folder, tmp_path / "theirs")


# Names of the Hub, and the command


def test_a_name_that_is_not_here_and_no_network(tmp_path):
    with pytest.raises(
        OSError,
        match="google/electra-small-discriminator is no folder here and not in the cache of the Hub, which cannot be reached",
    ):
        convert("google/electra-small-discriminator", tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match=r"\.\./nowhere is no folder, and no name"):
        convert("../nowhere", tmp_path / "ours")


def test_a_model_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    """Its files are links to where the cache keeps them, and may be."""
    kept = written(tmp_path / "kept", theirs("electra", "rtd"))
    model = tmp_path / "hub" / "models--someone--small"
    snapshot = model / "snapshots" / "0123"
    (model / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(kept.iterdir())):
        path.rename(model / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    monkeypatch.setattr("layerwright.convert.snapshot_download", lambda name, allow_patterns: str(snapshot))
    assert convert("someone/small", tmp_path / "ours").source == "ElectraForPreTraining"


def test_the_command(tmp_path, capsys):
    source = written(tmp_path / "source", theirs("bert", "mlm"))
    command = typer.main.get_command(cli.app)
    command(["convert", str(source), "--out", str(tmp_path / "ours")], standalone_mode=False)
    told = capsys.readouterr()
    assert "BertForMaskedLM -> LayerwrightForMaskedLM" in told.out
    assert "1e-04 allowed" in told.out
    assert "no tokenizer" in told.err
    command(["convert", str(tmp_path / "ours"), "--out", str(tmp_path / "back"), "--to", "bert"], standalone_mode=False)
    assert same_bits(source, tmp_path / "back")
