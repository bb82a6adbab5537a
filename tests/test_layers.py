"""The built-in layers against plain loops, fresh weights, backbones, supernets, and what architectures cost."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from layerwright import Architecture, Backbone, Context, Space, Supernet, architecture, cost, flops, layer, parameters
from layerwright.backbone import initialise
from layerwright.registry import KINDS


def built(text: str) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The one layer of an architecture in float64, with weights far from zero, and these weights."""
    arch = Architecture.parse(text)
    module = KINDS[arch.layers[0].kind].module(arch.width, **dict(arch.layers[0].options)).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.6)
    return module, {key: value.numpy() for key, value in module.state_dict().items()}


def linear(weights: dict[str, np.ndarray], name: str, vector: np.ndarray) -> np.ndarray:
    return weights[f"{name}.weight"] @ vector + weights[f"{name}.bias"]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def same(found: Tensor, wanted: np.ndarray) -> None:
    # Softmax over taps is computed in float32, whatever the dtype of the input.
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "kernel", "length"), [(1, 3, 7), (3, 5, 7), (2, 9, 4), (6, 1, 5), (3, 7, 1)])
@torch.no_grad()
def test_conv_is_the_dynamic_convolution_of_lv_bert(heads: int, kernel: int, length: int):
    """Gated linear unit; separable convolution of it; logits of kernels; softmax over taps; mix each head; linear map."""
    width = 6
    module, w = built(f"{width}: conv[heads={heads},kernel={kernel}]")
    x = torch.randn(2, length, width, dtype=torch.float64)
    wanted = np.zeros(x.shape)
    for row, tokens in enumerate(x.numpy()):
        u = [linear(w, "value", token) / (1 + np.exp(-linear(w, "gate", token))) for token in tokens]

        def at(place: int, u: list[np.ndarray] = u) -> np.ndarray:
            return u[place] if 0 <= place < len(u) else np.zeros(width)

        for i in range(length):
            taps = [(j, i + j - kernel // 2) for j in range(kernel)]
            spread = sum(w["depthwise.weight"][:, 0, j] * at(place) for j, place in taps)
            logits = linear(w, "kernels", linear(w, "pointwise", spread)).reshape(heads, kernel)
            mixed = np.zeros(width)
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                chances = softmax(logits[head])
                for j, place in taps:
                    mixed[part] += chances[j] * at(place)[part]
            wanted[row, i] = linear(w, "out", mixed)
    same(module(x, Context()), wanted)


def spans(w: dict[str, np.ndarray], tokens: np.ndarray, values: np.ndarray, heads: int, kernel: int) -> np.ndarray:
    """Span-based dynamic convolution of values [L, P] of one row of tokens [L, D], written out."""
    mixed, size = np.zeros_like(values), values.shape[1] // heads
    for i in range(len(tokens)):
        places = [(j, i + j - kernel // 2) for j in range(kernel) if 0 <= i + j - kernel // 2 < len(tokens)]
        span = linear(w, "pointwise", sum(w["depthwise.weight"][:, 0, j] * tokens[place] for j, place in places))
        logits = linear(w, "kernels", linear(w, "query", tokens[i]) * span).reshape(heads, kernel)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            mixed[i, part] = sum(softmax(logits[head])[j] * values[place, part] for j, place in places)
    return mixed


def attention(w: dict[str, np.ndarray], tokens: np.ndarray, values: np.ndarray, heads: int) -> np.ndarray:
    """Self-attention with values [L, P] of one row of tokens [L, D], written out."""
    query, key = (np.array([linear(w, name, token) for token in tokens]) for name in ("query", "key"))
    mixed, size = np.zeros_like(values), values.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(tokens)):
            mixed[i, part] = softmax(key[:, part] @ query[i, part] / math.sqrt(size)) @ values[:, part]
    return mixed


@pytest.mark.parametrize(("heads", "kernel", "length"), [(1, 3, 7), (3, 5, 7), (2, 9, 4), (6, 1, 5), (3, 7, 1)])
@torch.no_grad()
def test_sdconv_is_the_span_based_dynamic_convolution(heads: int, kernel: int, length: int):
    module, w = built(f"6: sdconv[heads={heads},kernel={kernel}]")
    x = torch.randn(2, length, 6, dtype=torch.float64)
    wanted = []
    for tokens in x.numpy():
        values = np.array([linear(w, "value", token) for token in tokens])
        wanted.append([linear(w, "out", mixed) for mixed in spans(w, tokens, values, heads, kernel)])
    same(module(x, Context()), np.array(wanted))


# Heads and ratio of a layer of width 12; heads of a branch and its width, as each source counts them.
MIXTURES = [
    ("released", 4, 2, 2, 6),
    ("released", 4, 4, 1, 3),
    ("released", 4, 1, 4, 12),
    ("released", 1, 2, 1, 12),
    ("released", 3, 2, 1, 4),
    ("transformers", 4, 2, 2, 6),
    ("transformers", 4, 4, 1, 6),
    ("transformers", 1, 2, 1, 6),
    ("transformers", 6, 2, 3, 6),
    ("paper", 4, 2, 2, 6),
    ("paper", 4, 4, 1, 3),
    ("paper", 1, 2, 1, 12),
]


@pytest.mark.parametrize(("form", "heads", "ratio", "branch", "inner"), MIXTURES)
@torch.no_grad()
def test_mixed_is_the_mixed_attention_of_convbert(form: str, heads: int, ratio: int, branch: int, inner: int):
    """Both branches read one query; what they give, mapped to half the width in the paper's form, enters one linear map."""
    module, w = built(f"12: mixed[heads={heads},ratio={ratio},kernel=5,form={form}]")
    assert w["query.weight"].shape == (inner, 12)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    wanted = []
    for tokens in x.numpy():
        value = np.array([linear(w, "value", token) for token in tokens])
        own = value if form == "paper" else np.array([linear(w, "conv_value", token) for token in tokens])
        seen, near = attention(w, tokens, value, branch), spans(w, tokens, own, branch, 5)
        if form == "paper":
            seen = np.array([linear(w, "attn_out", mixed) for mixed in seen])
            near = np.array([linear(w, "conv_out", mixed) for mixed in near])
        wanted.append([linear(w, "out", both) for both in np.concatenate([seen, near], axis=1)])
    same(module(x, Context()), np.array(wanted))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12: mixed[heads=5]", "5 heads do not divide the width 12; 4 or 6 would"),
        ("12: mixed[kernel=4]", "kernel 4 is even"),
        ("12: mixed[form=released2]", "no form 'released2'; did you mean 'released'"),
        ("6: mixed[heads=2,ratio=1,form=transformers]", "half the width 6 is not divided by the 2 heads of a branch"),
        ("9: mixed[heads=3,form=paper]", "the width 9 has no half"),
        ("12: ffn[groups=5]", "5 groups do not divide the width 12"),
        ("12: ffn[groups=4,inner=18]", "4 groups do not divide the inner width 18"),
        ("12: sdconv[heads=5]", "5 heads do not divide the width 12"),
    ],
)
def test_options_that_do_not_fit_one_another(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Architecture.parse(text)


@pytest.mark.parametrize("groups", [2, 3])
@torch.no_grad()
def test_groups_of_an_ffn_are_smaller_ones_side_by_side(groups: int):
    module, w = built(f"6: ffn[inner=12,groups={groups}]")
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    parts = []
    for group in range(groups):
        inner = slice(12 // groups * group, 12 // groups * (group + 1))
        outer = slice(6 // groups * group, 6 // groups * (group + 1))
        up = x[..., outer].numpy() @ w["up.weight"][group] + w["up.bias"][inner]
        act = np.vectorize(ACTIVATIONS["gelu"])(up)
        parts.append(act @ w["out.weight"][group] + w["out.bias"][outer])
    same(module(x, Context()), np.concatenate(parts, axis=-1))


@pytest.mark.parametrize("kind", ["attn", "mixed"])
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_maps_of_attention_are_left_on_request(kind: str, packed: bool):
    module, _ = built(f"12: {kind}[heads=4]")
    x, mask = torch.randn(2, 7, 12, dtype=torch.float64), torch.arange(7) < torch.tensor([[7], [4]])
    documents = (torch.arange(7) >= 3).long().expand(2, 7) if packed else None
    context = Context(mask, documents, maps=[])
    found = module(x, context)
    torch.testing.assert_close(found[mask], module(x, replace(context, maps=None))[mask], rtol=1e-5, atol=1e-5)
    (weights,) = context.maps
    assert weights.shape == (2, 2 if kind == "mixed" else 4, 7, 7)
    torch.testing.assert_close(weights.sum(-1).transpose(1, 2)[mask], torch.ones(11, weights.shape[1], dtype=torch.float64))
    hidden = ~context.visible().expand(2, 1, 7, 7)
    assert not weights[hidden.expand_as(weights)].any()


@torch.no_grad()
def test_rows_before_the_first_position_are_passed_over():
    arch = Architecture.parse("8 vocab=9 positions=4 offset=2: ffn")
    shifted, plain = Backbone(arch).eval(), Backbone(Architecture.parse("8 vocab=9 positions=4: ffn")).eval()
    assert parameters(arch) == parameters(plain.arch) + 2 * 8
    weights = shifted.state_dict()
    plain.load_state_dict(weights | {"embed.position.weight": weights["embed.position.weight"][2:]})
    assert torch.equal(shifted(torch.arange(8).view(2, 4)), plain(torch.arange(8).view(2, 4)))
    with pytest.raises(ValueError, match="a row of 5 tokens, and the architecture has 4 positions"):
        shifted(torch.zeros(1, 5, dtype=torch.long))


@torch.no_grad()
def test_without_segments_there_is_no_table_of_them():
    net, ids = Backbone(Architecture.parse("8 vocab=9 segments=0: ffn")).eval(), torch.arange(8).view(2, 4)
    assert not any("segment" in key for key in net.state_dict())
    assert torch.equal(net(ids), net(ids, segments=torch.zeros_like(ids)))
    with pytest.raises(ValueError, match="a second segment, and the architecture has segments=0"):
        net(ids, segments=torch.ones_like(ids))


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@torch.no_grad()
def test_attn_is_scaled_dot_product_attention(heads: int):
    width, length = 6, 5
    module, w = built(f"{width}: attn[heads={heads}]")
    x = torch.randn(2, length, width, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    wanted = np.zeros(x.shape)
    for row, tokens in enumerate(x.numpy()):
        keys = [place for place in range(length) if mask[row, place]]
        for i in range(length):
            mixed = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                query = linear(w, "query", tokens[i])[part]
                scores = [query @ linear(w, "key", tokens[j])[part] / math.sqrt(width // heads) for j in keys]
                chances = softmax(np.array(scores))
                mixed += list(sum(p * linear(w, "value", tokens[j])[part] for p, j in zip(chances, keys, strict=True)))
            wanted[row, i] = linear(w, "out", np.array(mixed))
    same(module(x, Context(mask)), wanted)


ACTIVATIONS = {
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "relu": lambda z: max(z, 0.0),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu_tanh": lambda z: z / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "quick_gelu": lambda z: z / (1 + math.exp(-1.702 * z)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("act", ACTIVATIONS)
@torch.no_grad()
def test_ffn_is_two_linear_maps_with_an_activation_between(act: str):
    module, w = built(f"6: ffn[inner=11,act={act}]")
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    wanted = np.zeros(x.shape)
    for place in product(range(2), range(3)):
        wanted[place] = linear(w, "out", np.array([ACTIVATIONS[act](z) for z in linear(w, "up", x[place].numpy())]))
    same(module(x, Context()), wanted)


SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "max_position_embeddings": 20,
}


@torch.no_grad()
def test_a_backbone_of_blocks_is_bert():
    theirs = BertModel(BertConfig(**SIZES), add_pooling_layer=False).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = Backbone(Architecture.parse("48 vocab=50 positions=20: 2x(attn[heads=3] ffn[inner=96])")).eval()
    names = {
        "word_embeddings": "token",
        "position_embeddings": "position",
        "token_type_embeddings": "segment",
        "LayerNorm": "norm",
    }
    table = {f"embeddings.{old}": f"embed.{new}" for old, new in names.items()}
    for block in range(2):
        old, attn, ffn = f"encoder.layer.{block}.", f"layers.{2 * block}.", f"layers.{2 * block + 1}."
        table |= {f"{old}attention.self.{name}": f"{attn}body.{name}" for name in ("query", "key", "value")}
        table |= {f"{old}attention.output.dense": f"{attn}body.out", f"{old}attention.output.LayerNorm": f"{attn}norm"}
        table |= {
            f"{old}intermediate.dense": f"{ffn}body.up",
            f"{old}output.dense": f"{ffn}body.out",
            f"{old}output.LayerNorm": f"{ffn}norm",
        }
    renamed = {}
    for key, value in theirs.state_dict().items():
        module, _, name = key.rpartition(".")
        if module in table:
            renamed[f"{table[module]}.{name}"] = value
    ours.load_state_dict(renamed)
    ids, segments = torch.randint(50, (2, 9)), torch.randint(2, (2, 9))
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    wanted = theirs(ids, attention_mask=mask.long(), token_type_ids=segments).last_hidden_state
    torch.testing.assert_close(ours(ids, mask, segments)[mask], wanted[mask], rtol=1e-4, atol=1e-4)


DEBUG_KEYS = """
embed.token.weight embed.position.weight embed.segment.weight embed.norm.weight embed.norm.bias embed.widen.weight
embed.widen.bias layers.0.body.value.weight layers.0.body.value.bias layers.0.body.gate.weight layers.0.body.gate.bias
layers.0.body.depthwise.weight layers.0.body.pointwise.weight layers.0.body.pointwise.bias layers.0.body.kernels.weight
layers.0.body.kernels.bias layers.0.body.out.weight layers.0.body.out.bias layers.0.norm.weight layers.0.norm.bias
layers.1.body.query.weight layers.1.body.query.bias layers.1.body.key.weight layers.1.body.key.bias layers.1.body.value.weight
layers.1.body.value.bias layers.1.body.out.weight layers.1.body.out.bias layers.1.norm.weight layers.1.norm.bias
layers.2.body.up.weight layers.2.body.up.bias layers.2.body.out.weight layers.2.body.out.bias layers.2.norm.weight
layers.2.norm.bias layers.3.body.query.weight layers.3.body.query.bias layers.3.body.key.weight layers.3.body.key.bias
layers.3.body.value.weight layers.3.body.value.bias layers.3.body.out.weight layers.3.body.out.bias layers.3.norm.weight
layers.3.norm.bias layers.4.body.up.weight layers.4.body.up.bias layers.4.body.out.weight layers.4.body.out.bias
layers.4.norm.weight layers.4.norm.bias
"""


def test_the_names_of_weights_are_a_contract():
    assert sorted(Backbone(architecture("debug")).state_dict()) == sorted(DEBUG_KEYS.split())
    post, pre = (set(Backbone(Architecture.parse(f"8 vocab=9 norm={norm}: ffn")).state_dict()) for norm in ("post", "pre"))
    assert pre - post == {"norm.weight", "norm.bias"}
    assert post < pre
    assert not any("widen" in key for key in pre)


@torch.no_grad()
def test_equal_architectures_have_interchangeable_weights():
    arch = architecture("debug")
    one, two = Backbone(arch).eval(), Backbone(Architecture.parse(arch.explicit()), dropout=0.3).eval()
    two.load_state_dict(one.state_dict())
    ids = torch.randint(1024, (2, 9))
    assert torch.equal(one(ids), two(ids))


def test_more_tokens_than_positions_is_an_error():
    net = Backbone(Architecture.parse("8 vocab=9 positions=4: ffn"))
    with pytest.raises(ValueError, match="a row of 5 tokens, and the architecture has 4 positions"):
        net(torch.zeros(1, 5, dtype=torch.long))


@torch.no_grad()
def test_segments_default_to_the_first():
    net, ids = Backbone(architecture("debug")).eval(), torch.randint(1024, (2, 9))
    first = torch.zeros_like(ids)
    assert torch.equal(net(ids), net(ids, segments=first))
    assert not torch.equal(net(ids), net(ids, segments=first + 1))


@torch.no_grad()
def test_fresh_weights_are_those_of_bert_and_lv_bert():
    width, kernel = 128, 9
    net = Backbone(Architecture.parse(f"{width} embed=96 vocab=500 norm=pre: conv[kernel={kernel}] attn ffn"))
    for name, weight in net.named_parameters():
        if name.endswith(".bias"):
            assert not weight.any(), name
        elif ".norm." in f".{name}":
            assert (weight == 1).all(), name
        else:
            deviation = 0.02
            if name.endswith("depthwise.weight"):  # normal of deviation 1/K, cut at two deviations
                deviation = 0.8796 / kernel
                assert weight.abs().max() <= 2 / kernel
            if name.endswith("kernels.weight"):  # uniform (Glorot)
                bound = math.sqrt(6 / sum(weight.shape))
                deviation = bound / math.sqrt(3)
                assert 0.95 * bound < weight.abs().max() <= bound
            count = weight.numel()
            assert abs(weight.mean()) < 5 * deviation / math.sqrt(count), name
            assert abs(weight.std() / deviation - 1) < 5 / math.sqrt(2 * count) + 0.001, name


def test_initialising_again_draws_afresh_and_repeatably():
    net = Backbone(architecture("debug"))
    first = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(1)
    initialise(net)
    second = {key: value.clone() for key, value in net.state_dict().items()}
    assert not torch.equal(first["layers.0.body.depthwise.weight"], second["layers.0.body.depthwise.weight"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(3.0)
    torch.manual_seed(1)
    initialise(net)
    assert all(torch.equal(value, second[key]) for key, value in net.state_dict().items())


SPACES = [
    "32 vocab=40 positions=16: 3x{attn|ffn|conv[kernel=3|5]} {attn ffn|}",
    "32 embed=8 vocab=40 positions=16 norm=pre: conv 2x{attn[heads=1|2]|ffn conv|} ffn[inner=8|16]",
]


@pytest.mark.parametrize("text", SPACES)
@torch.no_grad()
def test_a_supernet_computes_what_the_backbone_of_its_weights_computes(text: str):
    space, rng = Space.parse(text), random.Random(0)
    net = Supernet(space).eval()
    ids, segments = torch.randint(40, (3, 8)), torch.randint(2, (3, 8))
    mask, documents = torch.arange(8) < torch.tensor([[8], [5], [1]]), torch.randint(2, (3, 8)).sort().values
    for _ in range(12):
        arch = space.sample(rng)
        weights = net.weights_of(arch)
        alone = Backbone(arch).eval()
        assert set(weights) == set(alone.state_dict())
        alone.load_state_dict(weights)
        assert torch.equal(net(ids, mask, segments, documents, arch=arch), alone(ids, mask, segments, documents))


def test_a_supernet_shares_its_weights():
    space = Space.parse(SPACES[0])
    net = Supernet(space)
    first, second = (
        Architecture.parse("32 vocab=40 positions=16: " + text) for text in ("attn ffn attn attn ffn", "attn conv[kernel=3] attn")
    )
    one, two = net.weights_of(first), net.weights_of(second)
    for key, value in one.items():
        shared = not key.startswith("layers.1.") and key in two
        assert (key in two and value.data_ptr() == two[key].data_ptr()) == shared, key
    with torch.no_grad():
        one["layers.0.body.out.bias"].fill_(2.0)
    assert (net.weights_of(second)["layers.0.body.out.bias"] == 2.0).all()


def test_a_supernet_holds_every_alternative_once():
    space = Space.parse("16 vocab=9 positions=4: {attn|ffn attn} conv")
    net = Supernet(space)
    assert {".".join(key.split(".")[:4]) for key in net.state_dict() if key.startswith("slots.")} == {
        "slots.0.0.0", "slots.0.1.0", "slots.0.1.1", "slots.1.0.0",
    }  # fmt: skip
    shares = [
        cost.layer_parameters(Architecture.parse(f"16 vocab=9 positions=4: {kind}"), 0)
        for kind in ("attn", "ffn", "attn", "conv")
    ]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in net.embed.parameters()) + sum(shares)


def test_a_step_of_a_supernet_trains_its_path_alone():
    space = Space.parse("16 vocab=9 positions=4: 2x{attn|ffn}")
    net = Supernet(space)
    net(torch.zeros(1, 3, dtype=torch.long), arch=Architecture.parse("16 vocab=9 positions=4: attn ffn")).sum().backward()
    trained = {
        ".".join(key.split(".")[:3]) for key, weight in net.named_parameters() if weight.grad is not None and "slots" in key
    }
    assert trained == {"slots.0.0", "slots.1.1"}


def test_a_supernet_refuses_what_it_does_not_hold():
    net = Supernet(Space.parse("16 vocab=9 positions=4: 2x{attn|ffn}"))
    outside = Architecture.parse("16 vocab=9 positions=4: attn conv")
    with pytest.raises(ValueError, match="not in this space"):
        net(torch.zeros(1, 3, dtype=torch.long), arch=outside)
    with pytest.raises(ValueError, match="not in this space"):
        net.weights_of(outside)


COSTLY = [
    "64 embed=16 vocab=50 positions=32: 4x{attn[heads=1|2]|ffn[inner=7|200]|conv[kernel=3|9]}",
    "64 vocab=50 positions=32 norm=pre: 2x{attn|ffn conv|} {conv|ffn[act=relu] attn} ffn",
]


def operations(arch: Architecture, length: int) -> int:
    """What the counter of torch sees in the whole backbone at once."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Backbone(arch).eval()(torch.zeros(1, length, dtype=torch.long))
    return counter.get_total_flops()


@pytest.mark.parametrize("text", COSTLY)
def test_costs_are_those_of_the_whole_backbone(text: str):
    space, rng = Space.parse(text), random.Random(0)
    for _ in range(10):
        arch = space.sample(rng)
        assert parameters(arch) == sum(p.numel() for p in Backbone(arch).parameters())
        assert flops(arch, 24) == operations(arch, 24)
        rest = parameters(arch) - sum(cost.layer_parameters(arch, index) for index in range(len(arch)))
        last = 2 * arch.width if arch.norm == "pre" else 0
        assert rest == sum(p.numel() for p in Backbone(arch).embed.parameters()) + last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_operations_are_counted_alike_where_they_are_computed_and_where_not(kind: str, norm: str):
    arch = Architecture.parse(f"128 embed=64 vocab=60 positions=40 norm={norm}: {kind} ffn {kind}")
    assert cost._counted(arch, 33, "cpu") == cost._counted(arch, 33, "meta") == operations(arch, 33)


def test_what_is_large_or_long_is_counted_without_memory():
    deep = f"100000 vocab=50 positions={cost.LONG + 1}: attn[heads=1]"
    assert flops(Architecture.parse(deep), 16) > 2 * 4 * 16 * 10**10
    assert flops(Architecture.parse(deep.replace("100000", "64")), cost.LONG + 1) > 0


def test_costs_are_those_counted_by_hand():
    d, heads, k, inner, length = 64, 2, 9, 200, 24
    arch = Architecture.parse(f"{d} embed=16 vocab=50 positions=32: attn[heads=2] ffn[inner={inner}] conv[heads=2]")
    counts = [4 * (d * d + d), 2 * d * inner + inner + d, 4 * (d * d + d) + k * d + heads * k * (d + 1)]
    assert [cost.layer_parameters(arch, index) for index in range(3)] == [count + 2 * d for count in counts]
    products = [4 * d * d + 2 * length * d, 2 * d * inner, 4 * d * d + k * d + heads * k * d]
    assert [cost.layer_flops(arch, index, length) for index in range(3)] == [2 * length * each for each in products]
    assert flops(arch, length) == 2 * length * (sum(products) + 16 * d)
    assert flops(architecture("bert-base"), 128) == 12 * 2 * 128 * (12 * 768**2 + 2 * 128 * 768)


@pytest.mark.parametrize("text", COSTLY)
@pytest.mark.parametrize("measure", [parameters, lambda arch: flops(arch, 16)], ids=["parameters", "flops"])
def test_the_smallest_and_the_largest_are_exact(text: str, measure: cost.Measure):
    space = Space.parse(text)
    prices = [measure(space.at(path)) for path in product(*(range(len(slot)) for slot in space.slots))]
    assert measure(cost.smallest(space, measure)) == min(prices)
    assert measure(cost.largest(space, measure)) == max(prices) > min(prices)


def test_no_cost_is_made_up_for_more_tokens_than_positions():
    with pytest.raises(ValueError, match="a row of 33 tokens, and the architecture has 32 positions"):
        flops(Space.parse(COSTLY[0]).largest, 33)


@pytest.fixture
def _registry() -> Iterator[None]:
    known = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(known)


class Plain(nn.Module):
    def __init__(self, width: int, size: int):
        super().__init__()


@pytest.mark.usefixtures("_registry")
def test_a_misdeclared_kind_is_refused_where_it_is_declared():
    with pytest.raises(TypeError, match=r"Plain takes \['width', 'size'\], but 'plain' declares \['width', 'sizes'\]"):
        layer("plain", sizes=3)(Plain)
    with pytest.raises(TypeError, match="'my-kind' is not a word"):
        layer("my-kind")
    with pytest.raises(TypeError, match=r"plain\[size\]: a default is .*; None is none"):
        layer("plain", size=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"plain\[size\]: a default is .*; True is none"):
        layer("plain", size=True)
    with pytest.raises(ValueError, match="layer kind 'attn' is already registered by SelfAttention"):
        layer("attn", size=3)(Plain)
    assert "plain" not in KINDS


@pytest.mark.usefixtures("_registry")
def test_a_kind_from_outside_is_spelled_like_any_other():
    layer("plain", size=lambda width: 2 * width)(Plain)
    assert Architecture.parse("64: plain").layers[0].options == (("size", 128),)
    assert str(Architecture.parse("64: plain[size=128] plain[size=7]").narrow(1 / 2)) == "32 embed=64: plain plain[size=4]"
    assert Space.parse("64: 3x{plain[size=1|2|3]|attn}").size == 4**3
