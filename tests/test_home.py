"""Our models take, return and can do what transformers' own encoders do, and its pipelines, Trainer and friends work on them."""

import inspect
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from layerwright.architecture import Architecture
from layerwright.configuration import LayerwrightConfig
from layerwright.encoder import Checkpointed
from layerwright.handover import save_model
from layerwright.models import (
    FACES,
    LayerwrightForMaskedLM,
    LayerwrightForMultipleChoice,
    LayerwrightForPreTraining,
    LayerwrightForQuestionAnswering,
    LayerwrightForSequenceClassification,
    LayerwrightForTokenClassification,
    LayerwrightModel,
)

MIXED = (
    "32 embed=24 vocab=40 positions=16 norm=pre: "
    "conv[heads=4,kernel=3] mixed[heads=4,kernel=5] attn[heads=2] ffn[inner=48,groups=2]"
)
ATTENTION = "32 vocab=40 positions=16 eps=1e-6: 2x(attn[heads=4] ffn[inner=48])"
CONVOLUTION = "32 vocab=40 positions=16: conv[heads=4,kernel=3] ffn[inner=48]"
BATCH = {
    "input_ids": torch.tensor([[2, 9, 8, 7, 3, 0, 0], [2, 5, 3, 6, 11, 12, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
    "token_type_ids": torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]]),
}
REAL = BATCH["attention_mask"].bool()
LABELS: dict[type, dict[str, Tensor]] = {
    LayerwrightModel: {},
    LayerwrightForMaskedLM: {"labels": torch.where(REAL, BATCH["input_ids"], -100)},
    LayerwrightForPreTraining: {"labels": BATCH["input_ids"] % 2},
    LayerwrightForSequenceClassification: {"labels": torch.tensor([2, 0])},
    LayerwrightForTokenClassification: {"labels": BATCH["input_ids"] % 3},
    LayerwrightForQuestionAnswering: {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 6])},
    LayerwrightForMultipleChoice: {"labels": torch.tensor([1])},
}
every_model = pytest.mark.parametrize("kind", LABELS, ids=lambda kind: kind.__name__)


def toy(kind: type, arch: str = MIXED, **settings: Any) -> Any:
    """A model with weights far from where they begin, so that nothing is nearly constant."""
    model = kind(LayerwrightConfig(architecture=arch, **{"num_labels": 3} | settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(kind: type, *, labels: bool = False) -> dict[str, Tensor]:
    """The batch as a model takes it: the two rows are two choices of one row."""
    rows = {name: x[None] for name, x in BATCH.items()} if kind is LayerwrightForMultipleChoice else dict(BATCH)
    return rows | LABELS[kind] if labels else rows


def answer(model: nn.Module, **more: Any) -> Tensor:
    return model(**inputs(type(model)), **more)[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_there_is_a_model_for_every_face():
    assert {face.model for face in FACES.values()} == set(LABELS)


@every_model
def test_attentions_are_the_probabilities_of_each_layer_that_has_any(kind):
    model = toy(kind)
    output = model(**inputs(kind), output_attentions=True)
    assert [tuple(maps.shape) for maps in output.attentions] == [(2, 2, 7, 7), (2, 2, 7, 7)]
    for maps in output.attentions:
        close(maps.sum(-1), torch.ones(2, 2, 7))
        assert not maps[0, :, :, 5:].any()
    close(output[0], answer(model))
    model.set_attn_implementation("eager")  # transformers wants it so before the configuration may ask for them
    model.config.output_attentions = True
    assert len(model(**inputs(kind)).attentions) == 2


def test_attentions_where_no_layer_has_any():
    with pytest.raises(ValueError, match=r"no layer of '32 .*: conv\[heads=4,kernel=3\] ffn\[inner=48\]' has attention"):
        toy(LayerwrightModel, CONVOLUTION)(**BATCH, output_attentions=True)


def test_some_hidden_states_may_be_asked_for():
    model = toy(LayerwrightForTokenClassification)
    every = model(**BATCH, output_hidden_states=True).hidden_states
    some = model(**BATCH, output_hidden_states=[1, -1]).hidden_states
    assert [state is None for state in some] == [True, False, True, True, False]
    assert torch.equal(some[1], every[1])
    with pytest.raises(ValueError, match="no state 5, only 0 to 4"):
        model(**BATCH, output_hidden_states=[5])


@every_model
def test_an_argument_that_no_model_has_is_refused(kind):
    model = toy(kind)
    with pytest.raises(ValueError, match="no argument 'atention_mask'; did you mean 'attention_mask'"):
        model(inputs(kind)["input_ids"], atention_mask=inputs(kind)["attention_mask"])
    assert torch.equal(answer(model, head_mask=None), answer(model))


def test_positions_may_be_given():
    model = toy(LayerwrightModel, ATTENTION)
    ids, order = BATCH["input_ids"][1:], torch.tensor([[3, 0, 6, 2, 5, 1, 4]])
    assert torch.equal(model(ids, position_ids=torch.arange(7)[None])[0], model(ids)[0])
    # Attention alone knows of no order but that of the positions.
    close(model(ids[:, order[0]], position_ids=order)[0], model(ids)[0][:, order[0]])
    offset = toy(LayerwrightModel, ATTENTION.replace("eps", "offset=2 eps"))
    assert torch.equal(offset(ids, position_ids=torch.arange(7)[None])[0], offset(ids)[0])


@every_model
def test_token_vectors_stand_for_ids(kind):
    model = toy(kind)
    rest = inputs(kind)
    vectors = model.get_input_embeddings()(rest.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=vectors, **rest)[0], answer(model))


@every_model
def test_tuples_hold_what_the_output_holds(kind):
    model, asked = toy(kind), {"output_hidden_states": True, "output_attentions": True}
    whole = model(**inputs(kind, labels=True), **asked)
    parts = model(**inputs(kind, labels=True), **asked, return_dict=False)
    assert ("loss" in whole) == bool(LABELS[kind])
    assert len(parts) == len(whole.keys())
    for part, name in zip(parts, whole.keys(), strict=True):
        pairs = zip(part, whole[name], strict=True) if isinstance(part, tuple) else [(part, whole[name])]
        assert all(torch.equal(found, expected) for found, expected in pairs)


def test_loss_of_classified_tokens_leaves_padding_and_minus_100_out():
    model = toy(LayerwrightForTokenClassification)
    labels = torch.tensor([[0, 1, 2, 0, 1, 2, 2], [-100, 2, 2, 1, 0, 0, 1]])
    output = model(**BATCH, labels=labels)
    counted = REAL & (labels >= 0)
    assert output.logits.shape == (2, 7, 3)
    close(output.loss, F.cross_entropy(output.logits[counted], labels[counted]))


def test_loss_of_a_span_counts_neither_padding_nor_places_outside():
    model = toy(LayerwrightForQuestionAnswering)
    start, end = torch.tensor([[1], [2]]), torch.tensor([3, 7])
    output = model(**BATCH, start_positions=start, end_positions=end)
    firsts = [F.cross_entropy(output.start_logits[row, : [5, 7][row]], start[row, 0]) for row in range(2)]
    close(output.loss, (sum(firsts) / 2 + F.cross_entropy(output.end_logits[0, :5], end[0])) / 2)
    alone = model(BATCH["input_ids"][:1, :5], start_positions=start[:1], end_positions=end[:1])
    close(model(**{name: x[:1] for name, x in BATCH.items()}, start_positions=start[:1], end_positions=end[:1]).loss, alone.loss)
    assert model(**BATCH, start_positions=start).loss is None


def test_choices_are_classified_one_by_one():
    model = toy(LayerwrightForMultipleChoice)
    output = model(**{name: torch.stack([x, x.flip(0)]) for name, x in BATCH.items()}, labels=torch.tensor([1, 1]))
    one_by_one = model.head(model.backbone(**BATCH).last_hidden_state)[:, 0]
    close(output.logits, torch.stack([one_by_one, one_by_one.flip(0)]))
    close(output.loss, F.cross_entropy(output.logits, torch.tensor([1, 1])))
    with pytest.raises(ValueError, match=r"input_ids is \[2, 7\], and a choice among texts takes \[B, C, L\]"):
        model(**BATCH)


@pytest.mark.parametrize("input_dropout", [False, True])
def test_a_classifier_may_have_a_hidden_map(input_dropout):
    settings = {"classifier_act": "tanh", "classifier_input_dropout": input_dropout}
    model = toy(LayerwrightForSequenceClassification, classifier_dropout=0.4, **settings)
    head, first = model.head, model.backbone(**BATCH).last_hidden_state[:, 0]
    assert {name.rpartition(".")[0] for name in head.state_dict()} == {"hidden", "classes"}
    close(answer(model), head.classes(torch.tanh(head.hidden(first))))
    seen: list[Tensor] = []
    head.hidden.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    head.train()
    answer(model)
    assert bool((seen[0] == 0).any()) == input_dropout


@pytest.mark.parametrize("kind", [LayerwrightForMaskedLM, LayerwrightForPreTraining])
def test_the_activation_of_the_pretraining_heads(kind):
    relu, tanh = toy(kind, head_act="relu"), toy(kind, head_act="tanh")
    tanh.load_state_dict(relu.state_dict())
    states = relu.backbone(**BATCH).last_hidden_state
    if kind is LayerwrightForMaskedLM:
        features = relu.head.norm(F.relu(relu.head.transform(states)))
        close(answer(relu), features @ relu.get_input_embeddings().weight.T + relu.head.bias)
    else:
        close(answer(relu), relu.head.replaced(F.relu(relu.head.hidden(states)))[..., 0])
    assert not torch.allclose(answer(relu), answer(tanh))


@pytest.mark.parametrize("field", ["head_act", "classifier_act"])
def test_an_unknown_activation(field):
    with pytest.raises(ValueError, match=f"`{field}` .* 'tahn'; did you mean 'tanh'"):
        LayerwrightConfig(architecture=MIXED, **{field: "tahn"})


def test_a_pooler_belongs_to_the_model_alone(tmp_path):
    model = toy(LayerwrightModel, pooler=True)
    output = model(**BATCH)
    close(output.pooler_output, torch.tanh(model.pooler.dense(output.last_hidden_state[:, 0])))
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**BATCH).pooler_output, deepcopy(model)(**BATCH).pooler_output)
    headed, report = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert headed.backbone.pooler is None
    assert set(report["missing_keys"]) == {"head.classes.weight", "head.classes.bias"}
    assert not report["unexpected_keys"]
    assert "pooler_output" not in toy(LayerwrightModel)(**BATCH)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("arch", [MIXED, ATTENTION], ids=["mixed", "attention"])
def test_checkpointed_gradients_are_the_same_with_dropout_too(arch, reentrant):
    model = toy(LayerwrightForMaskedLM, arch, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    assert all(isinstance(layer, Checkpointed) for layer in model.backbone.layers)
    gradients, kept = [], []
    for checkpointing in (False, True):
        if checkpointing:
            # Of two names, releases of transformers differ in which they still have.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            torch.manual_seed(5)
            loss = model(**inputs(LayerwrightForMaskedLM, labels=True)).loss
        model.zero_grad()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        kept.append(sum(sizes))
    assert all(torch.equal(found, expected) for found, expected in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("size", [29, 40, 55])
@pytest.mark.parametrize("kind", [LayerwrightForMaskedLM, LayerwrightModel])
def test_the_vocabulary_can_be_resized(tmp_path, kind, size):
    model = toy(kind)
    before, ids = deepcopy(model), BATCH["input_ids"]
    table = model.resize_token_embeddings(size)
    assert table is model.get_input_embeddings()
    kept = min(size, 40)
    assert torch.equal(table.weight[:kept], before.get_input_embeddings().weight[:kept])
    assert model.config.vocab_size == Architecture.parse(model.config.architecture).vocab == size
    close(model(ids)[0][..., :kept], before(ids)[0][..., :kept])
    if kind is LayerwrightForMaskedLM:
        assert model(ids).logits.shape == (2, 7, size)
        close(model.head.bias[40:], before.head.bias.mean().expand(max(0, size - 40)))
        assert model.head.bias.requires_grad
    model.save_pretrained(tmp_path)
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    last = torch.full((1, 3), size - 1)
    close(loaded(last)[0], model(last)[0])


def test_a_larger_vocabulary_is_padded_and_need_not_follow_the_mean():
    model = toy(LayerwrightForMaskedLM)
    model.resize_token_embeddings(41, pad_to_multiple_of=16, mean_resizing=False)
    assert model.config.arch.vocab == 48
    assert not model.head.bias[40:].any()
    assert model.get_input_embeddings().weight[40:].std() < 0.05


@every_model
def test_the_token_embedding_can_be_replaced(kind):
    model, other = toy(kind), nn.Embedding(40, 24)
    before = answer(model)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert not torch.allclose(answer(model), before)
    assert model.get_output_embeddings() is None  # the token embedding is the output matrix


@every_model
def test_shards_and_precision(tmp_path, kind):
    model = toy(kind)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    exact = FACES_BY_KIND[kind].from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.bfloat16}
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in exact.state_dict().items())
    for dtype in (torch.float16, torch.float32):
        loaded = FACES_BY_KIND[kind].from_pretrained(tmp_path, dtype=dtype)
        assert answer(loaded).dtype == dtype
        torch.testing.assert_close(answer(loaded).float(), answer(model).float(), rtol=0.1, atol=0.3)


FACES_BY_KIND = {face.model: face.auto for face in FACES.values()}


@every_model
@pytest.mark.parametrize("devices", ["cpu", "auto", "disk", "both", "whole"])
def test_any_map_of_devices_serves(tmp_path, kind, devices):
    model = toy(kind)
    model.save_pretrained(tmp_path)
    places: Any = devices
    if devices in ("disk", "both", "whole"):
        parts = ["embed", *(["layers"] if devices == "whole" else [f"layers.{index}" for index in range(4)]), "norm"]
        parts = parts if kind is LayerwrightModel else [*(f"backbone.{part}" for part in parts), "head"]
        places = {part: "cpu" if devices == "both" and "layers" not in part else "disk" for part in parts[:-1]}
        places[parts[-1]] = "cpu"
    loaded = kind.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "off")
    close(answer(loaded), answer(model))
    assert len(loaded(**inputs(kind), output_attentions=True).attentions) == 2
    close(answer(loaded), answer(model))


@pytest.mark.parametrize("kind", [LayerwrightForMaskedLM, LayerwrightForQuestionAnswering])
def test_a_model_compiles_without_a_break(kind):
    model = toy(kind)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    output = compiled(**BATCH, output_attentions=True, output_hidden_states=True)
    close(output[0], answer(model))
    assert (len(output.attentions), len(output.hidden_states)) == (2, 5)


def save(model: Any, tokenizer: Path, folder: Path) -> Path:
    save_model(folder, model, tokenizer=tokenizer)
    return folder


def test_token_classification_pipeline(tmp_path, tokenizer_folder):
    model = toy(LayerwrightForTokenClassification, id2label={0: "O", 1: "B-pet", 2: "I-pet"})
    find = pipeline("token-classification", model=str(save(model, tokenizer_folder, tmp_path / "model")))
    texts = ["the cat sat on a mat", "a dog ran"]
    rows = AutoTokenizer.from_pretrained(tokenizer_folder)(texts[0], return_tensors="pt")
    expected = model(**rows).logits[0].argmax(-1)[1:-1]
    found = find(texts, ignore_labels=[], batch_size=2)
    assert [token["word"] for token in found[0]] == texts[0].split()
    assert [token["entity"] for token in found[0]] == [model.config.id2label[int(label)] for label in expected]
    assert all("entity_group" in group for group in find(texts[0], aggregation_strategy="simple"))


def test_feature_extraction_pipeline(tmp_path, tokenizer_folder):
    model = toy(LayerwrightModel)
    extract = pipeline("feature-extraction", model=str(save(model, tokenizer_folder, tmp_path / "model")))
    features = extract(["the cat sat", "a dog and a cat ran"], return_tensors="pt")
    rows = AutoTokenizer.from_pretrained(tokenizer_folder)("the cat sat", return_tensors="pt")
    close(features[0], model(**rows).last_hidden_state)


def test_zero_shot_classification_pipeline(tmp_path, tokenizer_folder):
    model = toy(LayerwrightForSequenceClassification, id2label={0: "contradiction", 1: "neutral", 2: "entailment"})
    guess = pipeline("zero-shot-classification", model=str(save(model, tokenizer_folder, tmp_path / "model")))
    found = guess("the cat sat on a mat", candidate_labels=["cat", "dog"], hypothesis_template="a {}")
    assert set(found["labels"]) == {"cat", "dog"}
    assert sum(found["scores"]) == pytest.approx(1)


def test_an_answer_is_found_in_a_text(tmp_path, tokenizer_folder):
    # transformers has no pipeline for it any more: what that did, by hand.
    model, tokenizer = toy(LayerwrightForQuestionAnswering), AutoTokenizer.from_pretrained(tokenizer_folder)
    loaded = AutoModelForQuestionAnswering.from_pretrained(save(model, tokenizer_folder, tmp_path / "model"))
    rows = tokenizer("the dog", "a cat sat on the mat", return_tensors="pt")
    optimizer = torch.optim.Adam(loaded.parameters(), lr=0.01)
    for _ in range(20):
        loss = loaded(**rows, start_positions=torch.tensor([5]), end_positions=torch.tensor([7])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = loaded(**rows)
    start, end = int(output.start_logits.argmax()), int(output.end_logits.argmax())
    assert tokenizer.decode(rows["input_ids"][0, start : end + 1]) == "cat sat on"


def examples(tokenizer: Any) -> list[dict[str, Any]]:
    """Texts with a cat are of class 1."""
    texts = [f"{a} {b} {c} on the mat" for a in ("the", "a") for b in ("cat", "dog") for c in ("sat", "ran")]
    return [dict(tokenizer(text)) | {"labels": int("cat" in text)} for text in texts]


CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name))


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    settings = {"max_steps": 12, "learning_rate": 0.01, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}
    return TrainingArguments(str(folder), **settings | quiet | more)


def test_the_trainer_trains_evaluates_and_saves(tmp_path, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = examples(tokenizer)
    model = LayerwrightForSequenceClassification(LayerwrightConfig(architecture=MIXED, num_labels=2, pad_token_id=0))
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path / "run", save_strategy="steps", save_steps=12, **{CHECKPOINTING: True}),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=lambda seen: {"right": float((seen.predictions.argmax(-1) == seen.label_ids).mean())},
    )
    assert trainer.label_names == ["labels"]
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before / 3
    assert after["eval_right"] == 1.0
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-12")
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in loaded.state_dict().items())


def test_the_trainer_accumulates_gradients_to_those_of_the_whole_batch(tmp_path, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    models = []
    for size, count in ((8, 1), (2, 4)):
        torch.manual_seed(1)
        dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = LayerwrightForSequenceClassification(LayerwrightConfig(architecture=MIXED, **dropouts))
        settings = arguments(
            tmp_path, max_steps=1, optim="sgd", per_device_train_batch_size=size, gradient_accumulation_steps=count
        )
        Trainer(model=model, args=settings, train_dataset=examples(tokenizer), processing_class=tokenizer).train()
        models.append(model)
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_trainer_trains_a_masked_language_model(tmp_path, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [{"input_ids": row["input_ids"]} for row in examples(tokenizer)]
    model = LayerwrightForMaskedLM(LayerwrightConfig(architecture=MIXED, pad_token_id=0))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=1)
    settings = arguments(tmp_path, max_steps=40)
    trainer = Trainer(model=model, args=settings, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2


@pytest.mark.parametrize(
    ("kind", "task"), [(LayerwrightForSequenceClassification, TaskType.SEQ_CLS), (LayerwrightModel, TaskType.FEATURE_EXTRACTION)]
)
def test_lora_adapters_train_save_load_and_merge(tmp_path, kind, task):
    model = toy(kind)
    untouched = deepcopy(model)
    head = {"modules_to_save": ["head"]} if task is TaskType.SEQ_CLS else {}
    adapted = get_peft_model(model, LoraConfig(task_type=task, r=4, target_modules=["query", "value"], **head))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".head." in name for name in trained)
    assert any(".head." in name for name in trained) == bool(head)
    optimizer = torch.optim.Adam([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=0.02)
    for _ in range(3):
        output = adapted(**inputs(kind, labels=True))
        loss = output.loss if head else output[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.eval()
    found = adapted(**BATCH)[0]
    assert not torch.allclose(found, untouched(**BATCH)[0], atol=1e-3)
    adapted.save_pretrained(tmp_path)
    close(PeftModel.from_pretrained(untouched, tmp_path).eval()(**BATCH)[0], found)
    merged = adapted.merge_and_unload()
    assert type(merged) is kind
    close(merged(**BATCH)[0], found)


def test_sentence_transformers_embeds_saves_and_trains(tmp_path, tokenizer_folder):
    model = toy(LayerwrightModel)
    body = Transformer(str(save(model, tokenizer_folder, tmp_path / "model")))
    embedder = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), "mean")], device="cpu")
    texts = ["the cat sat", "a dog and a cat ran on the mat"]
    found = embedder.encode(texts, convert_to_tensor=True)
    for row, text in zip(found, texts, strict=True):
        ids = AutoTokenizer.from_pretrained(tokenizer_folder)(text, return_tensors="pt")
        close(row, model(**ids).last_hidden_state[0].mean(0))
    embedder.save(str(tmp_path / "embedder"))
    close(SentenceTransformer(str(tmp_path / "embedder"), device="cpu").encode(texts, convert_to_tensor=True), found)
    vectors = embedder(embedder.preprocess(texts))["sentence_embedding"]
    vectors.square().mean().backward()
    assert all(parameter.grad is not None for parameter in embedder.parameters())


def test_a_cross_encoder_of_sentence_transformers_scores_pairs(tmp_path, tokenizer_folder):
    model = toy(LayerwrightForSequenceClassification, num_labels=1)
    scorer = CrossEncoder(str(save(model, tokenizer_folder, tmp_path / "model")), device="cpu", activation_fn=nn.Identity())
    pairs = [("the cat sat", "a cat ran"), ("a dog", "the mat")]
    ids = AutoTokenizer.from_pretrained(tokenizer_folder)(*pairs[0], return_tensors="pt")
    assert scorer.predict(pairs)[0] == pytest.approx(model(**ids).logits.item(), abs=1e-4)


@every_model
def test_labels_can_be_found_in_the_signature(kind):
    # The Trainer looks for them there.
    names = inspect.signature(kind.forward).parameters
    assert set(LABELS[kind]) <= set(names)
    assert ("labels" in names) == ("labels" in LABELS[kind])
    assert next(iter(list(names)[1:])) == kind.main_input_name


def test_masked_tokens_are_found_by_the_auto_class(tmp_path):
    model = toy(LayerwrightForMaskedLM)
    model.save_pretrained(tmp_path)
    close(answer(AutoModelForMaskedLM.from_pretrained(tmp_path)), answer(model))
