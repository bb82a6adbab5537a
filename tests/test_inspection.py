"""Sweeps over edits equal the edited models run whole, and what is said of hidden states equals its definition written out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from layerwright.architecture import Architecture
from layerwright.configuration import LayerwrightConfig
from layerwright.dense import packing
from layerwright.errors import DataError
from layerwright.geometry import cosines, debiased_cka, uniformity
from layerwright.handover import model_of, save_model
from layerwright.inference import Opened, open_model
from layerwright.inspection import Inspection, InspectionSettings, Plan, all_changes, inspect, order_of, read_edit, usual_unit
from layerwright.models import FACES
from layerwright.prefixes import applications
from layerwright.sweep import Effect, Order, final_states, measure, read_rows, readings

TEXT = "\n".join(
    ["the cat sat on a mat", "", "a dog ran", "the dog and the cat ran and sat on the mat and a mat", "cat", "the mat", "zebra"]
)
ARCHS = ["16 vocab=14 positions=16: 4x(attn ffn)", "16 embed=8 vocab=14 positions=16 norm=pre: conv attn ffn"]


def opened(folder: Path, tokenizer: Path, arch: str = ARCHS[0], head: str = "mlm") -> Opened:
    torch.manual_seed(3)
    model = FACES[head].model(LayerwrightConfig(architecture=arch))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # so that layers do something
    save_model(folder / "model", model, tokenizer=tokenizer)
    (folder / "text.txt").write_text(TEXT)
    return open_model(folder / "model", list(FACES))


def edited(given: Opened, order: Order) -> Opened:
    """The model with its layers in this order, built and loaded as an architecture of its own."""
    arch = given.model.config.arch
    weights = {name: weight for name, weight in given.model.state_dict().items() if not name.startswith("backbone.layers.")}
    for to, source in enumerate(order):
        old = f"backbone.layers.{source}."
        weights |= {
            f"backbone.layers.{to}.{name.removeprefix(old)}": weight
            for name, weight in given.model.state_dict().items()
            if name.startswith(old)
        }
    model = model_of(arch.with_layers(arch.layers[layer] for layer in order), weights, given.head)
    return Opened(given.folder, given.head, model, given.tokenizer, given.special)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sweep_gives_the_bits_of_each_edited_model_run_whole(arch: str, tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, arch)
    plan = Plan.of(model, InspectionSettings(length=16))
    rows = read_rows(model, tmp_path / "text.txt", rows=6, length=16, seed=1)
    orders = list(dict.fromkeys(plan.orders()))
    for reading in readings(model, rows, 2):
        with model.running(), packing(False):
            found = list(final_states(model, reading, orders))
            assert found[0][0] == 0
            assert sorted(place for place, _ in found) == list(range(len(orders)))
            for place, states in found:
                if orders[place]:
                    whole = edited(model, orders[place]).model.backbone(reading.ids, reading.mask).last_hidden_state
                    assert torch.equal(states, whole), orders[place]


@pytest.mark.parametrize("arch", ARCHS)
def test_numbers_of_a_sweep_are_those_of_each_order_alone(arch: str, tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, arch)
    plan = Plan.of(model, InspectionSettings(length=16))
    rows = read_rows(model, tmp_path / "text.txt", rows=6, length=16, seed=1)
    orders = plan.orders()
    found, _ = measure(model, rows, orders, batch=3)
    assert set(found) == set(orders)
    for order in found:
        alone, _ = measure(model, rows, [orders[0], order], batch=3)
        assert alone[order] == found[order]
    unedited = found[orders[0]]
    assert (unedited.l2, unedited.kl, unedited.agreement) == (0, 0, 1)


def test_all_ranges_of_twelve_blocks_cost_about_half(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, "16 vocab=14 positions=16: 12x(attn ffn)", "backbone")
    plan = Plan.of(model, InspectionSettings(length=16))
    orders = [order_of(plan.whole), *(order_of(one.edit) for one in plan.changes)]
    assert len(orders) == 1 + 2 * 78 - 1
    assert applications(orders) <= 0.51 * sum(map(len, orders))
    run = 0

    def count(*_: Any) -> None:
        nonlocal run
        run += 1

    for layer in model.model.layers:
        layer.register_forward_hook(count)
    found = inspect(model, tmp_path / "text.txt", InspectionSettings(length=16, batch=3))
    assert run == 2 * found.evaluations  # of two batches
    assert found.evaluations <= 0.6 * found.evaluations_whole


@pytest.mark.parametrize("arch", ARCHS)
def test_the_output_layer_reads_what_it_would_read_of_hidden_states(arch: str, tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, arch)
    settings = InspectionSettings(length=16, batch=4, unit="layer")
    found = inspect(model, tmp_path / "text.txt", settings)
    rows = read_rows(model, tmp_path / "text.txt", rows=64, length=16, seed=0)
    for level, effect in enumerate(found.lenses[0].states):
        right: dict[str, list[bool]] = {"masked": [], "kept": []}
        distance, pairs = [], []
        for row in rows:
            ids = torch.tensor([row.ids])
            hidden = ids.clone()
            hidden[0, row.masked] = model.special["mask"]
            with torch.no_grad():
                states = model.model.backbone(hidden, output_hidden_states=True).hidden_states
                state = states[level] if level == len(found.units) else model.model.backbone.norm(states[level])
                likeliest = model.model.predict(state).argmax(-1)
            for sort, places in (("masked", row.masked), ("kept", row.kept)):
                right[sort] += (likeliest == ids)[0, places].tolist()
            distance += torch.cosine_similarity(state, states[-1], dim=-1)[0].tolist()
            pairs.append(mean_of_pairs(state[0]))
        assert effect.accuracy == pytest.approx(sum(right["masked"]) / len(right["masked"]))
        assert effect.recovered == pytest.approx(sum(right["kept"]) / len(right["kept"]))
        assert effect.cosine == pytest.approx(sum(distance) / len(distance), abs=1e-5)
        assert found.uniformity[level] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_masks_follow_the_seed_and_leave_special_tokens(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder)
    text = tmp_path / "text.txt"
    text.write_text("the cat and the dog sat on a mat and the cat ran\n" * 20)
    rows = [read_rows(model, text, rows=5, length=16, seed=seed) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    for row in rows[0]:
        assert not set(row.masked) & set(row.kept)
        assert len(row.masked) == len(row.kept) == 2
        assert not {0, len(row.ids) - 1} & {*row.masked, *row.kept}
    for reading in readings(model, rows[0], 2):
        asked = reading.ids[reading.places[:, 0], reading.places[:, 1]]
        assert torch.equal(asked == model.special["mask"], reading.masked)
        assert not (reading.tokens == model.special["mask"]).any()


def test_rows_are_drawn_from_the_whole_text(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder)
    (tmp_path / "text.txt").write_text("the cat\n" * 50 + "a dog\n" * 50)
    rows = read_rows(model, tmp_path / "text.txt", rows=20, length=16, seed=0)
    dogs = sum(row.ids[1] == model.tokenizer.token_to_id("a") for row in rows)
    assert len(rows) == 20
    assert 3 < dogs < 17


@pytest.mark.parametrize("head", ["backbone", "rtd"])
def test_without_an_output_layer_its_numbers_are_left_out_and_that_is_said(head: str, tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, head=head)
    found = inspect(model, tmp_path / "text.txt", InspectionSettings(length=16, suggest=("duplicate=2", "remove=1")))
    assert found.masked == 0
    assert found.left_out
    assert all(one.kl is one.accuracy is one.recovered is one.agreement is None for one in found.changes)
    for one in found.suggestions:
        assert one.by == "cosine"
        assert [each.cosine for each in one.ranked] == sorted((each.cosine for each in one.ranked), reverse=True)


def test_suggestions_are_ranked_by_divergence(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder)
    found = inspect(model, tmp_path / "text.txt", InspectionSettings(length=16, suggest=("duplicate=3",)), name="my model")
    (one,) = found.suggestions
    assert one.by == "kl"
    assert {(each.start, each.stop) for each in one.ranked} == {(0, 3), (1, 4)}
    assert one.ranked[0].kl == min(each.kl for each in found.changes_of("duplicate") if each.stop - each.start == 3)
    start, stop = one.ranked[0].start, one.ranked[0].stop
    span = f"{start}:{stop}"
    assert one.command == f"layerwright edit 'my model' --unit block --duplicate {span} --out duplicate-{start}-{stop}"


def test_an_inspection_is_json_and_repeats_itself(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder)
    one, two = (inspect(model, tmp_path / "text.txt", InspectionSettings(length=16)) for _ in range(2))
    assert one == two
    assert Inspection.model_validate(json.loads(one.model_dump_json())) == one


@pytest.mark.parametrize(("head", "lines"), [("mlm", 2), ("mlm", 4), ("backbone", 3), ("rtd", 3)])
def test_text_by_which_hidden_states_cannot_be_compared_is_refused_before_any_layer_runs(
    head: str, lines: int, tmp_path: Path, tokenizer_folder: Path
):
    """Where tokens are masked, a line of one token has none to keep; else each line has one."""
    model = opened(tmp_path, tokenizer_folder, head=head)
    text = tmp_path / "text.txt"
    line, kept = ("the mat\n", lines) if lines < 4 else ("cat\n", 0)
    text.write_text(line * lines)

    def forbidden(*_: Any) -> None:
        raise AssertionError("a layer ran")

    for part in model.model.modules():
        part.register_forward_hook(forbidden)
    with pytest.raises(DataError, match=rf"text.txt is too little: .*, {kept} kept tokens .* by 4 at least; give more text"):
        inspect(model, text, InspectionSettings(length=16))


@pytest.mark.parametrize("head", ["mlm", "backbone"])
def test_the_least_text_that_is_enough_leaves_no_number_out(head: str, tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, head=head)
    (tmp_path / "text.txt").write_text("the mat\na dog\nthe cat\na mat\n")
    found = inspect(model, tmp_path / "text.txt", InspectionSettings(length=16))
    assert found.kept == 4
    assert Inspection.model_validate_json(found.model_dump_json()) == found


def test_rows_of_one_token_each_are_refused(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, head="backbone")
    model.tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    (tmp_path / "text.txt").write_text("cat\n" * 5)
    with pytest.raises(DataError, match="each row drawn is a single token"):
        inspect(model, tmp_path / "text.txt", InspectionSettings(length=16))


def test_the_only_unit_is_not_removed(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder, "16 vocab=14 positions=16: attn ffn")
    with pytest.raises(ValueError, match="'remove=1': the only block cannot be removed"):
        inspect(model, tmp_path / "text.txt", InspectionSettings(length=16, suggest=("remove=1",)))


def test_bad_settings_name_what_is_wrong(tmp_path: Path, tokenizer_folder: Path):
    model = opened(tmp_path, tokenizer_folder)
    text = tmp_path / "text.txt"
    for settings, said in (
        ({"length": 99}, "at most 16 tokens"),
        ({"length": 16, "edited": ("dupliate=1",)}, "did you mean 'duplicate'"),
        ({"length": 16, "edited": ("duplicate=3:9",)}, "there are 4 blocks"),
        ({"length": 16, "edited": ("remove=0:4",)}, "leaves no block"),
        ({"length": 16, "suggest": ("remove=4",)}, "at most 3"),
        ({"length": 16, "suggest": ("duplicate=x",)}, "how many of the 4"),
    ):
        with pytest.raises(ValueError, match=said):
            inspect(model, text, InspectionSettings(**settings))
    text.write_text("\n \n")
    with pytest.raises(DataError, match="holds no text"):
        inspect(model, text, InspectionSettings(length=16))


def test_blocks_are_the_usual_unit_where_layers_pair_up():
    texts = ["16: 4x(attn ffn)", "16: conv ffn attn ffn", "16: conv attn ffn", "16: attn ffn attn", "16: ffn attn"]
    units = [usual_unit(Architecture.parse(text)) for text in texts]
    assert units == ["block", "block", "layer", "layer", "layer"]


@given(st.integers(1, 9))
def test_every_change_is_there_once_and_leaves_something(count: int):
    arch = Architecture.parse(f"16: {count}x(attn ffn)")
    changes = all_changes(arch, "block")
    orders = [order_of(one.edit) for one in changes]
    assert len(set(orders)) == len(orders) == count * (count + 1) - 1
    assert () not in orders
    units = [(2 * place, 2 * place + 1) for place in range(count)]
    for one in changes:
        before, inside, after = units[: one.start], units[one.start : one.stop], units[one.stop :]
        expected = [*before, *after] if one.sort == "remove" else [*before, *inside, *inside, *after]
        assert order_of(one.edit) == tuple(layer for unit in expected for layer in unit)
        assert read_edit(f"{one.sort}={one.start}:{one.stop}", arch, "block") == one.edit


def hsic(k: Tensor, other: Tensor) -> float:
    """Song et al. (2012), equation 5, with loops: both Gram matrices without their diagonals."""
    count = len(k)
    off = [(i, j) for i in range(count) for j in range(count) if i != j]
    trace = sum(k[i, j] * other[i, j] for i, j in off)
    totals = sum(k[i, j] for i, j in off) * sum(other[i, j] for i, j in off)
    chains = sum(k[i, j] * other[j, m] for i, j in off for m in range(count) if m != j)
    return float(trace + totals / ((count - 1) * (count - 2)) - 2 * chains / (count - 2)) / (count * (count - 3))


def test_debiased_cka_equals_the_formula():
    torch.manual_seed(0)
    x = torch.randn(9, 5) + 2
    y = x @ torch.randn(5, 5) + torch.randn(9, 5) - 1
    grams = [one.double() @ one.double().T for one in (x, y)]
    expected = hsic(*grams) / (hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])) ** 0.5
    found = debiased_cka(torch.stack([x, y]))
    assert found[0, 1] == pytest.approx(expected, abs=1e-9)
    assert found.diagonal().tolist() == pytest.approx([1, 1])
    turned = torch.linalg.qr(torch.randn(5, 5))[0]
    assert debiased_cka(torch.stack([x, 3 * (y @ turned) + 7]))[0, 1] == pytest.approx(expected, abs=1e-6)


def test_few_vectors_of_many_dimensions_do_not_look_alike():
    torch.manual_seed(0)
    alike = [float(debiased_cka(torch.randn(2, 30, 400))[0, 1]) for _ in range(20)]
    assert abs(sum(alike) / len(alike)) < 0.02
    assert debiased_cka(torch.randn(2, 3, 4)).isnan().all()


def mean_of_pairs(vectors: Tensor) -> float:
    count = len(vectors)
    pairs = [(one, other) for one in range(count) for other in range(one)]
    return sum(float(torch.cosine_similarity(vectors[i], vectors[j], dim=0)) for i, j in pairs) / len(pairs)


def test_uniformity_is_over_pairs_of_real_tokens():
    torch.manual_seed(0)
    states = torch.randn(3, 6, 4) + 1
    real = torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [True] + [False] * 5])
    found = uniformity(states, real)
    assert found[0].item() == pytest.approx(mean_of_pairs(states[0]), abs=1e-6)
    assert found[1].item() == pytest.approx(mean_of_pairs(states[1, :3]), abs=1e-6)
    assert found[2].isnan()
    assert torch.allclose(found[:2], uniformity(states * 1.5 + 0 * real[..., None], real)[:2])


def test_cosines_are_means_over_vectors():
    torch.manual_seed(0)
    states = torch.randn(3, 5, 4)
    expected = torch.stack([torch.cosine_similarity(states, other[None], dim=-1).mean(1) for other in states])
    assert torch.allclose(cosines(states).float(), expected, atol=1e-6)


def test_effects_have_no_further_fields():
    with pytest.raises(ValueError, match="extra"):
        Effect(cosine=1, l2=0, loss=3)  # type: ignore[call-arg]
