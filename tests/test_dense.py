"""Padded rows run as fewer rows without padding: the same states at real tokens, whatever the layers."""

from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerwright import dense
from layerwright.backbone import Backbone
from layerwright.configuration import LayerwrightConfig
from layerwright.dense import packed, packing
from layerwright.encoder import LayerwrightModel
from layerwright.presets import architecture

ARCHITECTURES = (
    "16 vocab=60 positions=40 embed=8 segments=2: attn ffn conv[kernel=5]",
    "16 vocab=60 positions=40 norm=pre: 2x(mixed[heads=2] ffn) sdconv[kernel=3]",
    "16 vocab=60 positions=40 offset=2: lightconv[kernel=7] formula",
)


def mask_of(lengths: list[int], more: int = 0) -> torch.Tensor:
    return torch.arange(max(lengths) + more) < torch.tensor(lengths)[:, None]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(0, 5))
def test_every_token_goes_somewhere_and_comes_back(lengths, more):
    mask = mask_of(lengths, more)
    if not mask.numel():
        return
    with packing():
        found = packed(mask)
    if found is None:
        return
    assert found.taken.numel() <= dense.PAYS * mask.numel()
    real = found.documents >= 0
    assert real.sum() == mask.sum()
    x = torch.arange(mask.numel()).view(mask.shape)
    rows, _, places = found.inputs(x)
    assert torch.equal(found.scatter(rows[..., None])[..., 0][mask], x[mask])
    assert torch.equal(found.documents[real], rows[real] // mask.shape[1])
    assert torch.equal(places[real], rows[real] % mask.shape[1])
    for row, documents in zip(rows.tolist(), found.documents.tolist(), strict=True):
        # A document stands in one piece, in its order.
        for one in set(documents) - {-1}:
            places = [place for place, document in enumerate(documents) if document == one]
            assert places == list(range(places[0], places[-1] + 1))
            assert [row[place] % mask.shape[1] for place in places] == list(range(len(places)))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(any))
def test_rows_hold_all_and_do_not_overlap(sizes):
    begins, rows, width = dense.filled(sizes)
    taken = sorted((begin, begin + size) for begin, size in zip(begins, sizes, strict=True) if size)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(taken))
    assert taken[-1][1] <= rows * width
    assert all(begin // width == (end - 1) // width for begin, end in taken), "one is cut in two"
    assert sum(sizes) <= dense.computed(sizes) <= max(sizes) * len(sizes)


def test_texts_of_many_lengths_leave_little_padding():
    draw = Random(0)
    batches = [[draw.randint(4, 60) for _ in range(32)] for _ in range(100)]
    assert 1 - sum(map(sum, batches)) / sum(map(dense.computed, batches)) < 0.05


def test_it_is_done_only_where_it_pays():
    lengths = [30, 2, 3, 4, 9]
    assert packed(mask_of(lengths)) is None, "nobody allowed it"
    with packing():
        assert packed(mask_of(lengths)) is not None
        assert packed(None) is None
        assert packed(mask_of([9, 9, 9])) is None, "no padding"
        assert packed(mask_of(lengths).flip(1)) is None, "padding before the tokens"
        assert packed(mask_of([0, 0], 3)) is None
        with packing(False):
            assert packed(mask_of(lengths)) is None, "somebody forbade it"


@pytest.mark.parametrize("text", ARCHITECTURES)
@pytest.mark.parametrize("given_places", [False, True])
def test_states_are_those_of_the_rows_one_by_one(monkeypatch, text, given_places):
    torch.manual_seed(0)
    arch = architecture(text)
    model = LayerwrightModel(LayerwrightConfig(architecture=arch.explicit())).eval()
    lengths = [20, 1, 7, 11, 3, 8, 2]
    mask, ids = mask_of(lengths, 2), torch.randint(60, (len(lengths), 22))
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if arch.segments > 1:
        inputs["token_type_ids"] = torch.randint(2, ids.shape)
    if given_places:
        inputs["position_ids"] = torch.arange(22).flip(0)[None]
    packings = []
    monkeypatch.setattr("layerwright.encoder.packed", lambda *args: packings.append(packed(*args)) or packings[-1])
    with torch.no_grad(), packing():
        output = model(**inputs, output_hidden_states=True)
        assert packings[-1] is not None
        for row, length in enumerate(lengths):
            alone = {name: x[row if len(x) > 1 else 0, None, :length] for name, x in inputs.items() if name != "attention_mask"}
            expected = model(**alone, output_hidden_states=True)
            torch.testing.assert_close(
                output.last_hidden_state[row, None, :length], expected.last_hidden_state, rtol=0, atol=2e-6
            )
            for found, other in zip(output.hidden_states, expected.hidden_states, strict=True):
                torch.testing.assert_close(found[row, None, :length], other, rtol=0, atol=2e-6)
    assert packings[-1] is None


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_gradients_are_those_of_padded_rows(text):
    torch.manual_seed(0)
    net = Backbone(architecture(text), dropout=0.0).double()
    lengths = [20, 1, 7, 11, 3, 8, 2]
    mask, ids = mask_of(lengths, 2), torch.randint(60, (len(lengths), 22))
    slope, found = torch.randn(len(lengths), 22, 16, dtype=torch.float64) * mask[..., None], []
    for allowed in (False, True):
        net.zero_grad()
        with packing(allowed):
            (net(ids, mask) * slope).sum().backward()
        found.append([parameter.grad.clone() for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
