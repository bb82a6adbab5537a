"""Padded rows run as fewer rows without padding: the same states at real tokens, whatever the layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerwright import dense
from layerwright.configuration import LayerwrightConfig
from layerwright.dense import packed, packing
from layerwright.encoder import LayerwrightModel
from layerwright.presets import architecture

WEIGHT = torch.zeros(1)
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
    with torch.no_grad(), packing():
        found = packed(mask, WEIGHT)
    if found is None:
        return
    assert found.taken.numel() <= dense.PAYS * mask.numel()
    assert found.real.sum() == mask.sum()
    x = torch.arange(mask.numel()).view(mask.shape)
    rows = found.gather(x)
    assert torch.equal(found.scatter(rows[..., None])[..., 0][mask], x[mask])
    assert torch.equal(found.documents[found.real], rows[found.real] // mask.shape[1])
    for row, documents in zip(rows.tolist(), found.documents.tolist(), strict=True):
        # A document stands in one piece, in its order.
        for one in set(documents) - {-1}:
            places = [place for place, document in enumerate(documents) if document == one]
            assert places == list(range(places[0], places[-1] + 1))
            assert [row[place] % mask.shape[1] for place in places] == list(range(len(places)))


def test_it_is_done_only_where_it_pays():
    lengths = [30, 2, 3, 4, 9]
    with torch.no_grad():
        assert packed(mask_of(lengths), WEIGHT) is None, "nobody allowed it"
    with torch.no_grad(), packing():
        assert packed(mask_of(lengths), WEIGHT) is not None
        assert packed(None, WEIGHT) is None
        assert packed(mask_of([9, 9, 8]), WEIGHT) is None, "too little padding"
        assert packed(mask_of(lengths).flip(1), WEIGHT) is None, "padding before the tokens"
        assert packed(mask_of([9, 6, 6, 6]), WEIGHT) is None, "no two fit in a row"
        assert packed(mask_of(lengths), WEIGHT.to("meta")) is None
        assert packed(mask_of([0, 0], 3), WEIGHT) is None
    with packing():
        assert packed(mask_of(lengths), WEIGHT) is None, "gradients are wanted"


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
