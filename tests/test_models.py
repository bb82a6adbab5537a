"""What transformers loads is what was trained, and behaves as transformers' own encoders do."""

import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    pipeline,
)

from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.configuration import LayerwrightConfig
from layerwright.handover import model_of, save_model
from layerwright.heads import ClassificationHead, MaskedHead, ReplacedHead, TokenHead
from layerwright.models import (
    FACES,
    LayerwrightForMaskedLM,
    LayerwrightForPreTraining,
    LayerwrightForSequenceClassification,
    LayerwrightModel,
)

POST = Architecture.parse("32 embed=24 vocab=40 positions=16: conv[heads=2,kernel=3] attn[heads=4] ffn[inner=48] conv[heads=4]")
PRE = Architecture.parse("32 vocab=40 positions=16 norm=pre eps=1e-5: attn[heads=2] ffn[inner=48,act=relu]")
AUTO = {
    "backbone": AutoModel,
    "mlm": AutoModelForMaskedLM,
    "rtd": AutoModelForPreTraining,
    "classification": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
    "choices": AutoModelForMultipleChoice,
}
BATCH = {
    "input_ids": torch.tensor([[2, 9, 8, 7, 3, 0, 0], [2, 5, 3, 6, 11, 12, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
    "token_type_ids": torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]]),
}


class Trained(nn.Module):
    """Stands for an objective: a backbone and a head, with weights far from where any initialisation puts them."""

    def __init__(self, arch: Architecture, head: str):
        super().__init__()
        self.backbone = Backbone(arch)
        heads = {
            "mlm": MaskedHead,
            "rtd": ReplacedHead,
            "classification": lambda arch: ClassificationHead(arch, 3),
            "tokens": lambda arch: TokenHead(arch, 3),
            "spans": lambda arch: TokenHead(arch, 2),
            "choices": lambda arch: ClassificationHead(arch, 1),
        }
        if head in heads:
            self.head = heads[head](arch)
        far_from_initial(self).eval()

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        states = self.backbone(ids, mask.bool(), segments)
        if not hasattr(self, "head"):
            return states
        return self.head(states, self.backbone.embed.token.weight) if isinstance(self.head, MaskedHead) else self.head(states)


def far_from_initial(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def toy(kind: type, arch: Architecture = POST, **settings: object) -> nn.Module:
    return far_from_initial(kind(LayerwrightConfig(architecture=str(arch), **settings))).eval()


def same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("arch", [POST, PRE], ids=["post", "pre"])
@pytest.mark.parametrize("head", FACES)
def test_the_auto_classes_load_what_was_trained(tmp_path, arch, head):
    trained = Trained(arch, head)
    model = model_of(arch, trained.state_dict(), head, num_labels=3)
    save_model(tmp_path / "model", model)
    loaded, report = AUTO[head].from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(loaded) is FACES[head].model
    assert not any(report.values())
    assert not loaded.training
    assert same_bits(loaded.state_dict(), model.state_dict())
    # A copy, because loaded weights lie in memory as in the file, and alignment alone decides the last bit of a sum.
    assert torch.equal(answers(deepcopy(loaded), head), trained(*BATCH.values()))


def answers(model: nn.Module, head: str) -> Tensor:
    """What a model says of the batch, in the shape in which its head says it."""
    if head == "choices":
        return model(**{name: rows[None] for name, rows in BATCH.items()}).logits.T
    output = model(**BATCH)
    return torch.stack([output.start_logits, output.end_logits], -1) if head == "spans" else output[0]


def test_the_model_alone_has_the_names_and_the_first_weights_of_a_backbone():
    torch.manual_seed(1)
    backbone = Backbone(POST)
    torch.manual_seed(1)
    assert same_bits(LayerwrightModel(LayerwrightConfig(architecture=str(POST))).state_dict(), backbone.state_dict())


@pytest.mark.parametrize("shards", [False, True])
def test_save_and_load_keep_the_bits(tmp_path, shards):
    model = toy(LayerwrightForMaskedLM, PRE)
    model.save_pretrained(tmp_path, max_shard_size=4000 if shards else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
    assert same_bits(LayerwrightForMaskedLM.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_a_model_can_be_loaded_in_another_precision(tmp_path):
    model = toy(LayerwrightForSequenceClassification)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    logits = loaded(**BATCH).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(**BATCH).logits, rtol=0.1, atol=0.5)


@pytest.mark.parametrize("trained", ["mlm", "rtd"])
def test_a_new_head_begins_afresh_on_the_backbone_it_is_given(tmp_path, trained):
    pretrained = toy(FACES[trained].model)
    pretrained.save_pretrained(tmp_path)
    # One class has the shape of the output of replaced-token detection, which it must not be taken for.
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, output_loading_info=True)
    assert same_bits(loaded.backbone.state_dict(), pretrained.backbone.state_dict())
    assert set(report["missing_keys"]) == {"head.classes.weight", "head.classes.bias"}
    assert 0.005 < loaded.head.classes.weight.std() < 0.05
    assert not loaded.head.classes.bias.any()


def test_layers_missing_from_the_file_begin_as_they_would_in_a_backbone(tmp_path):
    model = toy(LayerwrightModel)
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("layers.0.")}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded = AutoModel.from_pretrained(tmp_path)
    convolution = loaded.layers[0].body
    assert convolution.depthwise.weight.abs().max() <= 2 / 3  # truncated at two deviations of 1 / kernel
    assert convolution.depthwise.weight.std() > 0.2
    assert convolution.kernels.weight.abs().max() > 0.1  # Xavier, not N(0, 0.02)
    assert torch.equal(loaded.layers[0].norm.weight, torch.ones(32))
    assert same_bits(loaded.layers[3].state_dict(), model.layers[3].state_dict())


def test_padding_changes_nothing():
    model = toy(LayerwrightForPreTraining)
    alone = model(BATCH["input_ids"][:1, :5]).logits
    for mask in (BATCH["attention_mask"], BATCH["attention_mask"].bool()):
        padded = model(BATCH["input_ids"], mask).logits
        torch.testing.assert_close(padded[:1, :5], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", [POST, PRE], ids=["post", "pre"])
def test_hidden_states_begin_before_the_first_layer_and_end_with_the_result(arch):
    model = toy(LayerwrightModel, arch)
    output = model(**BATCH, output_hidden_states=True)
    assert len(output.hidden_states) == len(arch) + 1
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.hidden_states[0], model.embed(BATCH["input_ids"], BATCH["token_type_ids"]))
    assert model(**BATCH).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(**BATCH).hidden_states) == len(arch) + 1


def test_token_vectors_stand_for_ids():
    model = toy(LayerwrightForMaskedLM)
    vectors = model.get_input_embeddings()(BATCH["input_ids"])
    rest = {name: value for name, value in BATCH.items() if name != "input_ids"}
    assert torch.equal(model(inputs_embeds=vectors, **rest).logits, model(**BATCH).logits)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": torch.ones(1, 4).long(), "inputs_embeds": torch.ones(1, 4, 24)}, "either input_ids or inputs_embeds"),
        ({"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.ones(1, 1, 1, 4)}, r"attention_mask is \[1, 1, 1, 4\]"),
        ({"input_ids": torch.ones(1, 17).long()}, "17 tokens, and the architecture has 16 positions"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        toy(LayerwrightModel)(**inputs)


def test_loss_of_masked_tokens():
    model = toy(LayerwrightForMaskedLM)
    labels = torch.full((2, 7), -100)
    labels[0, 2], labels[1, 4] = 17, 5
    output = model(**BATCH, labels=labels)
    expected = F.cross_entropy(output.logits[[0, 1], [2, 4]], torch.tensor([17, 5]))
    torch.testing.assert_close(output.loss, expected)


def test_loss_of_replaced_tokens_leaves_padding_out():
    model = toy(LayerwrightForPreTraining)
    labels = torch.tensor([[0, 1, 0, 0, 0, 1, 1], [0, 0, -100, 1, 1, 0, 0]])
    output = model(**BATCH, labels=labels)
    real = (BATCH["attention_mask"] == 1) & (labels >= 0)
    assert output.logits.shape == (2, 7)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits[real], labels[real].float()))


@pytest.mark.parametrize(
    ("settings", "labels", "loss"),
    [
        ({"num_labels": 3}, torch.tensor([2, 0]), F.cross_entropy),
        ({"num_labels": 1}, torch.tensor([0.5, 3.0]), lambda logits, labels: F.mse_loss(logits[:, 0], labels)),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[1, 0, 1], [0, 0, 1]]),
            lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels.float()),
        ),
    ],
    ids=["classes", "regression", "several classes"],
)
def test_loss_of_a_classification(settings, labels, loss):
    model = toy(LayerwrightForSequenceClassification, **settings)
    output = model(**BATCH, labels=labels)
    assert output.logits.shape == (2, settings["num_labels"])
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_outputs_as_tuples():
    model = toy(LayerwrightForSequenceClassification)
    output = model(**BATCH, labels=torch.tensor([0, 1]))
    loss, logits = model(**BATCH, labels=torch.tensor([0, 1]), return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    model.config.return_dict = False
    assert len(model(**BATCH)) == 1


def test_dropout_follows_the_configuration():
    assert torch.equal(*dropped({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    assert not torch.equal(*dropped({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}))
    assert not torch.equal(*dropped({"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.0}))


def dropped(settings: dict[str, float]) -> tuple[Tensor, Tensor]:
    model = toy(LayerwrightModel, PRE, **settings).train()
    return model(**BATCH)[0], model(**BATCH)[0]


def test_the_configuration_keeps_one_text_and_derives_the_rest(tmp_path):
    labels = {0: "no", 1: "perhaps", 2: "yes"}
    written = LayerwrightConfig(architecture=str(POST), id2label=labels, pad_token_id=0, hidden_dropout_prob=0.2)
    written.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.arch == POST
    assert (read.id2label, read.pad_token_id, read.hidden_dropout_prob) == (labels, 0, 0.2)
    assert (read.hidden_size, read.num_hidden_layers, read.vocab_size) == (32, 4, 40)
    assert (read.max_position_embeddings, read.type_vocab_size) == (16, 2)
    on_disk = json.loads((tmp_path / "config.json").read_text())
    assert on_disk["architecture"] == POST.explicit()
    assert not {"hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "type_vocab_size"} & set(on_disk)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("32: atn ffn", r"'32: atn ffn'.*did you mean 'attn'"),
        ("32: {attn|ffn}", r"'32: {attn\|ffn}'.*leaves a choice open"),
        ("32: attn[heads=5]", "5 heads do not divide the width 32"),
        ("", "no text of an architecture"),
        (12, "no text of an architecture, but `architecture` is 12"),
        (None, "no text of an architecture"),
    ],
)
def test_a_configuration_that_is_no_architecture(tmp_path, text, message):
    toy(LayerwrightModel).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"architecture": text}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(tmp_path)


def test_fill_mask_pipeline(tmp_path, tokenizer_folder):
    model = toy(LayerwrightForMaskedLM)
    save_model(tmp_path / "model", model, tokenizer=tokenizer_folder)
    found = pipeline("fill-mask", model=str(tmp_path / "model"))("the cat [MASK] on the mat", top_k=3)
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("the cat [MASK] on the mat", return_tensors="pt")
    assert [guess["token"] for guess in found] == model(**ids).logits[0, 3].topk(3).indices.tolist()


def test_text_classification_pipeline(tmp_path, tokenizer_folder):
    model = toy(LayerwrightForSequenceClassification, id2label={0: "no", 1: "yes"}, pad_token_id=0)
    save_model(tmp_path / "model", model, tokenizer=tokenizer_folder)
    classify = pipeline("text-classification", model=str(tmp_path / "model"))
    texts = ["the cat sat", "a dog and a cat ran on the mat"]
    together, alone = classify(texts, batch_size=2), [classify(text)[0] for text in texts]
    assert [found["label"] for found in together] == [found["label"] for found in alone]
    assert {found["label"] for found in together} <= {"no", "yes"}
    assert [found["score"] for found in together] == pytest.approx([found["score"] for found in alone], abs=1e-5)


def renamed(theirs: nn.Module, prefix: str, head: dict[str, str]) -> dict[str, Tensor]:
    """Weights of a BERT or ELECTRA of transformers under our names."""
    table = {
        "embeddings.word_embeddings": "embed.token",
        "embeddings.position_embeddings": "embed.position",
        "embeddings.token_type_embeddings": "embed.segment",
        "embeddings.LayerNorm": "embed.norm",
        "embeddings_project": "embed.widen",
    }
    for block in range(3):
        table |= {
            f"encoder.layer.{block}.{name}": f"layers.{2 * block + place}.{ours}"
            for name, place, ours in [
                ("attention.self.query", 0, "body.query"),
                ("attention.self.key", 0, "body.key"),
                ("attention.self.value", 0, "body.value"),
                ("attention.output.dense", 0, "body.out"),
                ("attention.output.LayerNorm", 0, "norm"),
                ("intermediate.dense", 1, "body.up"),
                ("output.dense", 1, "body.out"),
                ("output.LayerNorm", 1, "norm"),
            ]
        }
    table = {f"{prefix}.{name}": f"backbone.{ours}" for name, ours in table.items()} | head
    weights = {}
    for name, weight in theirs.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module in table:
            weights[f"{table[module]}.{kind}".removesuffix(".")] = weight
    return weights


def assert_parity(theirs: nn.Module, ours: nn.Module, labels: Tensor) -> None:
    theirs.eval()
    with torch.no_grad():
        expected = theirs(**BATCH, labels=labels, output_hidden_states=True)
        found = ours(**BATCH, labels=labels, output_hidden_states=True)
    real = BATCH["attention_mask"].bool()
    for block, states in enumerate(expected.hidden_states):
        torch.testing.assert_close(found.hidden_states[2 * block][real], states[real], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.logits[real], expected.logits[real], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-4)


SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 16,
}


def test_against_bert():
    theirs = far_from_initial(BertForMaskedLM(BertConfig(**SIZES)))
    head = {"transform.dense": "head.transform", "transform.LayerNorm": "head.norm", "": "head"}
    head = {f"cls.predictions.{name}".rstrip("."): ours for name, ours in head.items()}
    arch = Architecture.parse("32 vocab=40 positions=16: 3x(attn[heads=4] ffn[inner=56])")
    ours = model_of(arch, renamed(theirs, "bert", head), "mlm")
    assert_parity(theirs, ours, torch.tensor([[-100, 9, -100, 4, -100, -100, -100], [-100] * 6 + [8]]))


@pytest.mark.parametrize("embed", [32, 20])
def test_against_electra(embed):
    theirs = far_from_initial(ElectraForPreTraining(ElectraConfig(**SIZES, embedding_size=embed)))
    head = {
        "discriminator_predictions.dense": "head.hidden",
        "discriminator_predictions.dense_prediction": "head.replaced",
    }
    arch = Architecture.parse(f"32 embed={embed} vocab=40 positions=16: 3x(attn[heads=4] ffn[inner=56])")
    ours = model_of(arch, renamed(theirs, "electra", head), "rtd")
    assert_parity(theirs, ours, torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0]]))
