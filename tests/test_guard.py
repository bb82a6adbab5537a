"""What a folder from elsewhere may not do: one message that names it, before anything is allocated, run or loaded."""

import json
import resource
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel

from layerwright.architecture import Architecture
from layerwright.configuration import LayerwrightConfig
from layerwright.convert import convert
from layerwright.errors import IntegrityError
from layerwright.guard import LAYERS, PARAMETERS, WIDTH, check_architecture, read_header, read_json, stored
from layerwright.handover import save_model
from layerwright.models import LayerwrightModel

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=16)).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    save_model(tmp_path / "ours", LayerwrightModel(LayerwrightConfig(architecture="32 vocab=40 positions=16: attn ffn")))
    (tmp_path / "ours" / "manifest.json").unlink()  # as whoever alters a folder would write a new one
    return tmp_path / "ours"


def change(folder: Path, name: str = "config.json", **fields: object) -> Path:
    settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(settings | fields))
    return folder


def refused(folder: Path, message: str, kind: type[Exception] = ValueError) -> None:
    """The folder is refused with one message, and nothing is written."""
    out = folder.parent / "out"
    with pytest.raises(kind, match=message) as caught:
        convert(folder, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(folder.parent.glob(".out*"))


CODE = [
    ({"auto_map": {"AutoModel": "modeling_evil.Model"}}, "'auto_map', by which a folder brings its own code"),
    ({"custom_pipelines": {"x": {"impl": "evil.Pipe"}}}, "'custom_pipelines'"),
    ({"text_config": {"inner": [{"auto_map": {"AutoConfig": "a.B"}}]}}, "'auto_map'"),
    ({"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation='kernels-community/flash-attn'"),
    ({"_attn_implementation": "someone/kernel:main"}, "_attn_implementation='someone/kernel:main'"),
    ({"_attn_implementation_internal": {"": "a/b"}}, "_attn_implementation_internal"),
    ({"experts_implementation": "a/b"}, "experts_implementation='a/b'"),
    ({"use_kernels": True}, "use_kernels=True"),
    ({"vocab_file": "../../etc/passwd"}, r"names the file '\.\./\.\./etc/passwd', which lies outside its folder"),
]


@pytest.mark.parametrize(("fields", "message"), CODE)
def test_a_configuration_that_names_code(folder, fields, message):
    refused(change(folder, **fields), message)


@pytest.mark.parametrize(("fields", "message"), CODE)
def test_a_configuration_of_ours_that_names_code(ours, fields, message):
    change(ours, **fields)
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(ours)
    refused(ours, message)


def test_words_of_transformers_itself_are_no_code(folder, ours):
    convert(change(folder, attn_implementation="sdpa", auto_map=None), folder.parent / "out")
    AutoModel.from_pretrained(ours, attn_implementation="eager")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers=100000: it must be an integer from 1 to 2,048"),
        ({"hidden_size": 10**9}, "hidden_size=1000000000: it must be an integer from 1 to"),
        ({"hidden_size": 2**16 + 64}, "width=65,600: more than 65,536 are refused"),
        ({"intermediate_size": 10**400}, "intermediate_size=1000"),
        ({"vocab_size": 19_999_999, "hidden_size": 65_536}, "more than 20,000,000,000 parameters is refused"),
        ({"max_position_embeddings": -5}, "max_position_embeddings=-5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers='12': it must be an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers=1000000000.0"),
        ({"num_attention_heads": 5}, "5 heads do not divide the width 32"),
        ({"num_attention_heads": None}, "num_attention_heads=None: it must be an integer"),
        ({"layer_norm_eps": 7}, "layer_norm_eps=7: it must be a number from 0 to 1"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob=nan"),
        ({"pad_token_id": 10**12}, "pad_token_id=1000000000000"),
        ({"num_labels": 10**12}, "num_labels=1000000000000"),
        ({"id2label": {"0": "a", "7": "b"}}, "id2label whose numbers are not 0 to 1"),
        ({"id2label": ["a", "b"]}, "id2label that is no table"),
        ({"hidden_act": "gellu"}, "hidden_act='gellu'; did you mean 'gelu'"),
        ({"hidden_act": ["gelu"]}, r"hidden_act="),
        ({"is_decoder": True}, "is_decoder=True: bert is converted with False only"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key': .* 'absolute' only"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=false: the output matrix"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"model_type": "bart"}, "model_type 'bart', and those that can be read are bert, roberta, .*, layerwright$"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"architectures": ["BertForMaskedML"]}, "names the class 'BertForMaskedML'; did you mean 'BertForMaskedLM'"),
        ({"architectures": [7]}, "names the class '7'"),
    ],
)
def test_a_configuration_that_is_absurd_or_none_of_ours(folder, fields, message):
    refused(change(folder, **fields), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("32: 50000x(attn ffn)", f"layers=100,000: more than {LAYERS:,} are refused"),
        ("32: 99999999x attn", "more than 100,000 layers"),
        ("1000000000: attn ffn", "the width must be an integer from 1 to"),
        ("100000000: attn", f"width=100,000,000: more than {WIDTH:,} are refused"),
        ("32 embed=100000000: attn ffn", "embed=100,000,000"),
        ("32 vocab=100000000: attn ffn", "vocab=100,000,000"),
        ("64: 4000x ffn[inner=90000000]", "more than 20,000,000,000 parameters"),
        ("64: conv[heads=64,kernel=99999999]", "more than 20,000,000,000 parameters"),
        ("import os", "`architecture` of the configuration is 'import os'"),
        ("__import__('os').system('true')", "`architecture` of the configuration is"),
        ({"a": 1}, "no text of an architecture"),
    ],
)
def test_an_architecture_that_is_absurd_or_none(ours, text, message):
    change(ours, architecture=text)
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(ours)
    with pytest.raises(ValueError, match=message):
        convert(ours, ours.parent / "out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dropout_prob": "x"}, "hidden_dropout_prob='x': it must be a number from 0 to 1"),
        ({"classifier_dropout": 7}, "classifier_dropout=7"),
        ({"head_act": ["gelu"]}, "head_act"),
        ({"id2label": 3}, "no configuration"),
        ({"architectures": ["LayerwrightModell"]}, "'LayerwrightModell'; did you mean 'LayerwrightModel'"),
        ({"architectures": 3}, "names the class '3'|no configuration: .*architectures"),
    ],
)
def test_a_configuration_of_ours_that_is_none(ours, fields, message):
    refused(change(ours, **fields), message)


def test_an_absurd_size_takes_no_memory(folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(change(folder, vocab_size=19_999_999, hidden_size=960), "but config.json makes it", IntegrityError)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB; the embedding alone would take 80 GB


def test_what_is_in_use_is_not_absurd():
    check_architecture(Architecture.parse("4096: 48x(attn ffn)"))
    check_architecture(Architecture.parse("1024 vocab=250002 positions=8192: 24x(mixed ffn[groups=2])"))
    assert PARAMETERS > 10**10


@pytest.mark.parametrize("raw", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1} {"b": 2}'])
def test_a_configuration_that_is_no_json_object(folder, raw):
    (folder / "config.json").write_bytes(raw)
    refused(folder, "config.json is (not JSON|JSON, but no object of it)")


def test_a_configuration_without_end(folder):
    with open(folder / "config.json", "wb") as file:
        file.truncate(10**9)
    refused(folder, "config.json has 1,000,000,000 bytes")


# Files


def test_a_pickle_is_named_and_never_loaded(folder, ours, tmp_path):
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "exploded"), "w")

    for place in (folder, ours):
        (place / "model.safetensors").unlink()
        torch.save({"embed.token.weight": Bomb()}, place / "pytorch_model.bin")
    message = r"has no model\.safetensors, but pytorch_model\.bin: that is a pickle, which could run code, and is never loaded"
    refused(folder, message, OSError)
    refused(ours, message, OSError)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(ours)
    with pytest.raises(ValueError, match="use_safetensors=False"):
        AutoModel.from_pretrained(ours, use_safetensors=False)
    assert not (tmp_path / "exploded").exists()


def in_parts(folder: Path, **parts: str) -> Path:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors") | parts}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


NAME = "bert.embeddings.LayerNorm.weight"


@pytest.mark.parametrize(
    "part", ["../other.safetensors", "/etc/other.safetensors", "a/../../b.safetensors", "~/x.safetensors", "C:\\x.safetensors"]
)
def test_an_index_that_leads_outside(folder, part):
    (folder.parent / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    refused(in_parts(folder, **{NAME: part}), "which lies outside its folder")


def test_an_index_of_ours_that_leads_outside(ours):
    in_parts(ours, **{"embed.token.weight": "../source/model.safetensors"})
    with pytest.raises(ValueError, match="lies outside its folder"):
        AutoModel.from_pretrained(ours)


def test_an_index_that_is_none_or_wrong(folder):
    refused(in_parts(folder, **{NAME: "pytorch_model.bin"}), "names 'pytorch_model.bin', which is no safetensors file")
    index = folder / "model.safetensors.index.json"
    for found, message in (
        ({"weight_map": {NAME: "lost.safetensors"}}, "names lost.safetensors, which is missing"),
        ({"weight_map": {"nothing": "part.safetensors"}}, "places nothing in part.safetensors, which does not hold it"),
        ({"weight_map": [1]}, "has no weight_map"),
        ({}, "has no weight_map"),
    ):
        index.write_text(json.dumps(found))
        refused(folder, message, IntegrityError)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
def test_a_link_that_leads_outside(folder, name):
    target = folder.parent / "secret"
    if (folder / name).exists():
        (folder / name).rename(target)
    else:
        target.write_text("secret")
    (folder / name).symlink_to(target)
    refused(folder, "is a link that leads out of its folder")


def test_a_link_within_the_folder_is_none_of_our_business(folder):
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    convert(folder, folder.parent / "out")


def test_a_tokenizer_that_names_code_or_other_files(folder):
    (folder / "vocab.txt").write_text("[PAD]\n")
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    refused(folder, "tokenizer_config.json has 'auto_map'")
    (folder / "tokenizer_config.json").write_text(json.dumps({"vocab_file": "/etc/passwd"}))
    refused(folder, "names the file '/etc/passwd', which lies outside its folder")
    # What the tokenizers of years ago wrote of the machine they were made on, and nobody reads.
    (folder / "tokenizer_config.json").write_text(json.dumps({"special_tokens_map_file": "/elsewhere/x", "name_or_path": "/a"}))
    convert(folder, folder.parent / "out")


# Headers


def rewrite(path: Path, alter: object, *, body: bytes | None = None) -> None:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    text = alter(header)
    text = text if isinstance(text, bytes) else json.dumps(header if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (raw[8 + length :] if body is None else body))


def shifted(header: dict[str, dict[str, object]], name: str, field: str, value: object) -> None:
    header[name][field] = value


LIES = {
    "a larger shape": (lambda h: shifted(h, NAME, "shape", [10**9, 10**9]), "says that .* is .*1000000000.* which is false"),
    "a smaller shape": (lambda h: shifted(h, NAME, "shape", [31]), "which is false"),
    "a negative shape": (lambda h: shifted(h, NAME, "shape", [-32, -1]), "an impossible shape or place"),
    "a shape that is none": (lambda h: shifted(h, NAME, "shape", "32"), "an impossible shape or place"),
    "too many dimensions": (lambda h: shifted(h, NAME, "shape", [1] * 50 + [32]), "an impossible shape or place"),
    "a fraction": (lambda h: shifted(h, NAME, "shape", [32.0]), "an impossible shape or place"),
    "another dtype": (lambda h: shifted(h, NAME, "dtype", "F16"), "which is false"),
    "an unknown dtype": (lambda h: shifted(h, NAME, "dtype", "PICKLE"), "unknown dtype 'PICKLE'"),
    "no dtype": (lambda h: h[NAME].pop("dtype") and None, "does not describe bert.embeddings.LayerNorm.weight"),
    "offsets elsewhere": (lambda h: shifted(h, NAME, "data_offsets", [0, 128]), "begins at byte|should hold"),
    "offsets past the end": (lambda h: shifted(h, NAME, "data_offsets", [10**12, 10**12 + 128]), "begins at byte"),
    "offsets that are none": (lambda h: shifted(h, NAME, "data_offsets", 7), "does not describe"),
    "an entry that is none": (lambda h: h.update({NAME: 3}), "does not describe"),
    "a list": (lambda h: [1, 2], "a header that is no JSON object"),
    "no JSON": (lambda h: b"{{{{", "a header that is not JSON"),
    "a name twice": (lambda h: b'{"a": 1, "a": 2}', "a header that is not JSON"),
    "one tensor less than bytes": (
        lambda h: h.pop(max(h, key=lambda n: h[n].get("data_offsets", [0])[0])) and None,
        "should hold",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(folder, lie):
    alter, message = LIES[lie]
    rewrite(folder / "model.safetensors", alter)
    refused(folder, message, IntegrityError)


def test_a_header_of_ours_that_lies(ours):
    rewrite(ours / "model.safetensors", lambda header: shifted(header, "embed.norm.bias", "shape", [10**9, 10**9]))
    with pytest.raises(IntegrityError, match=r"embed\.norm.bias is .* which is false"):
        AutoModel.from_pretrained(ours)


@pytest.mark.parametrize("kept", [0, 3, 8, 100, -4])
def test_a_file_cut_short(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "cut short|not JSON|should hold", IntegrityError)


def test_a_header_longer_than_the_file(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(folder, "no safetensors file, or cut short", IntegrityError)


def test_a_true_header_is_read_as_safetensors_reads_it(folder):
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    assert {name: tensor.shape for name, tensor in read_header(folder / "model.safetensors").items()} == expected
    empty = {"none": torch.zeros(0, 4), "one": torch.tensor(3), "half": torch.zeros(3, dtype=torch.bfloat16)}
    save_file(empty, folder / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in stored(folder).items()} == {
        "none": ("F32", (0, 4)),
        "one": ("I64", ()),
        "half": ("BF16", (3,)),
    }


# Tensors


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_tensor_that_is_missing(folder, ours):
    less = {name: tensor for name, tensor in weights(folder).items() if not name.startswith("bert.encoder.layer.1.output.dense")}
    refused(put(folder, less), r"lack bert\..*\.1\.output\.dense\.bias, bert\..*\.1\.output\.dense\.weight$", IntegrityError)
    less = {name: tensor for name, tensor in weights(ours).items() if name != "layers.1.norm.bias"}
    refused(put(ours, less), r"lack layers\.1\.norm\.bias", IntegrityError)


def test_a_tensor_too_many(folder, ours):
    refused(
        put(folder, weights(folder) | {"backdoor": torch.ones(3)}), "holds backdoor, for which BertForMaskedLM", IntegrityError
    )
    refused(put(ours, weights(ours) | {"backdoor": torch.ones(3)}), "holds backdoor, of which the architecture", IntegrityError)


def test_a_tensor_of_another_shape_or_sort(folder, ours):
    refused(
        put(folder, weights(folder) | {NAME: torch.ones(31)}),
        r"LayerNorm\.weight is \[31\], but config.json makes it \[32\]",
        IntegrityError,
    )
    refused(put(folder, weights(folder) | {NAME: torch.ones(32).long()}), "is of I64, and a weight is one of", IntegrityError)
    refused(put(ours, weights(ours) | {"embed.norm.bias": torch.ones(4, 8)}), r"embed\.norm\.bias is \[4, 8\]", IntegrityError)


def test_an_output_matrix_of_its_own(folder):
    own = weights(folder) | {"cls.predictions.decoder.weight": torch.ones(40, 32)}
    refused(put(folder, own), r"cls\.predictions\.decoder\.weight differs from bert\.embeddings\.word_embeddings", IntegrityError)


def test_a_tensor_by_two_names(folder):
    twice = weights(folder)
    twice["embeddings.LayerNorm.gamma"] = twice[NAME].clone()
    refused(put(folder, twice), "is there twice", IntegrityError)


def test_an_answer_has_two_ends(tmp_path):
    config = BertConfig(**SIZES, max_position_embeddings=16, num_labels=3)
    transformers.BertForQuestionAnswering(config).save_pretrained(tmp_path / "source")
    refused(tmp_path / "source", "3 labels: BertForQuestionAnswering marks two places")


def test_roberta_counts_from_its_padding_token(tmp_path):
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=16, pad_token_id=0)
    transformers.RobertaModel(config).save_pretrained(tmp_path / "source")
    refused(change(tmp_path / "source", pad_token_id=None), "no pad_token_id, from which roberta counts its positions")
    refused(change(tmp_path / "source", pad_token_id=15), "positions=0")


def test_reading_json_gives_what_it_holds(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, {"b": null}]}')
    assert read_json(tmp_path, "a.json") == {"a": [1, {"b": None}]}
    with pytest.raises(FileNotFoundError, match=r"has no b\.json"):
        read_json(tmp_path, "b.json")


def test_a_folder_without_names_of_a_base_model(tmp_path):
    """A class with a head finds the weights of a bare base model in its file, as transformers does, and says what lacks."""
    BertModel(BertConfig(**SIZES, max_position_embeddings=16)).save_pretrained(tmp_path / "source")
    refused(change(tmp_path / "source", architectures=["BertForMaskedLM"]), r"lack cls\.predictions\.bias", IntegrityError)
