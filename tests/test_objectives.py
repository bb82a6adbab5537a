"""Objectives: what is hidden from the model, what it is asked, and what its loss counts."""

import math
import weakref
from dataclasses import replace
from itertools import islice

import pytest
import torch
from scipy import stats

from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.batches import Batch, batches
from layerwright.kernels import pick
from layerwright.objectives import MaskedLM, ReplacedTokenDetection, choose, encode, settle
from layerwright.recipe import PretrainSettings, held_out, make_objective, stream_of
from layerwright.space import Space
from layerwright.supernet import Supernet
from layerwright.train import Plan
from layerwright.vocabulary import Special

SPECIAL = Special(pad=0, unk=1, cls=2, sep=3, mask=4)
ARCH = Architecture.parse("16 embed=8 vocab=300 positions=64: attn ffn conv")
LENGTH = 40
CHOSEN = 6  # 15% of them


def masked_lm(arch=ARCH, **settings):
    return MaskedLM(Backbone(arch), SPECIAL, **settings)


def detection(arch=ARCH, **settings):
    generator = MaskedLM(Backbone(arch.narrow(1 / 2)), SPECIAL, masked=0.85, random=0.0)
    return ReplacedTokenDetection(Backbone(arch), generator, **settings)


@pytest.fixture(scope="module")
def rows(tiny_corpus):
    """1,200 rows of real tokens."""
    return next(batches(tiny_corpus, shape=(1_200, LENGTH), seed=0))


@pytest.fixture
def few(rows):
    return rows.split(150)[0]


def padded(batch, to, filler=SPECIAL.pad):
    """The same rows with padding behind them, and dice for it too."""
    more = to - batch.ids.shape[1]
    return Batch(
        torch.nn.functional.pad(batch.ids, (0, more), value=filler),
        mask=torch.nn.functional.pad(torch.ones_like(batch.ids, dtype=torch.bool), (0, more)),
        segments=torch.nn.functional.pad(batch.segments, (0, more)),
        dice=torch.cat([batch.dice, torch.rand(len(batch.ids), more, 3) / 1_000], 1),
    )


def seen_by(net, run):
    """The ids that a backbone is given while `run` runs."""
    given = []
    hook = net.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    run()
    hook.remove()
    return given[0]


def within_three_sigma(count, of, share):
    return abs(count - of * share) <= 3 * math.sqrt(of * share * (1 - share))


def test_the_first_loss_is_that_of_a_blind_guess(rows):
    batch = rows.split(12)[0]
    assert masked_lm().eval()(batch).total.item() == pytest.approx(math.log(300), abs=0.05)
    loss = detection().eval()(batch)
    assert loss.parts["masked"].item() == pytest.approx(math.log(300), abs=0.05)
    assert loss.parts["replaced"].item() == pytest.approx(math.log(2), abs=0.05)


def test_fifteen_of_a_hundred_tokens_are_chosen_anywhere_but_never_a_special_one(rows):
    choice = choose(rows, 0.15, SPECIAL)
    assert choice.places.shape == (1_200, CHOSEN)
    assert choice.real.all()
    assert all(len(set(row)) == CHOSEN for row in choice.places.tolist())
    chosen = rows.ids.gather(1, choice.places)
    assert not torch.isin(chosen, torch.tensor([SPECIAL.cls, SPECIAL.sep, SPECIAL.pad])).any()
    # Anywhere alike; [SEP] is within a row, and at any place as rarely.
    inner = torch.bincount(choice.places.flatten(), minlength=LENGTH)[1:-1]
    assert stats.chisquare(inner).pvalue > 0.001


@pytest.mark.parametrize(("length", "count"), [(4, 1), (10, 2), (23, 3), (24, 4), (40, 6), (64, 10)])
def test_the_number_of_chosen_tokens_is_rounded_and_at_least_one(length, count):
    batch = Batch(torch.full((3, length), 9), dice=torch.rand(3, length, 3))
    assert choose(batch, 0.15, SPECIAL).places.shape == (3, count)


def corrupted(objective, net, batch):
    """What the chosen tokens were and what the net saw instead, after checking that no others changed."""
    ids = seen_by(net, lambda: objective(batch))
    places = choose(batch, 0.15, SPECIAL).places
    assert not (ids != batch.ids).scatter(1, places, False).any()
    return batch.ids.gather(1, places), ids.gather(1, places)


def test_masked_lm_hides_80_replaces_10_and_keeps_10_of_a_hundred(rows):
    objective = masked_lm()
    before, now = corrupted(objective, objective.backbone, rows)
    masks, kept = now == SPECIAL.mask, now == before
    # A random token is the original once in 300.
    assert within_three_sigma(masks.sum(), now.numel(), 0.8 + 0.1 / 300)
    assert within_three_sigma(kept.sum(), now.numel(), 0.1 + 0.1 / 300)
    others = now[~masks & ~kept]
    assert stats.chisquare(torch.bincount(others // 30, minlength=10)).pvalue > 0.001


def test_the_generator_of_electra_hides_85_and_keeps_15_of_a_hundred(rows):
    objective = detection()
    before, now = corrupted(objective, objective.generator.backbone, rows)
    masks, kept = now == SPECIAL.mask, now == before
    assert (masks | kept).all()
    assert within_three_sigma(masks.sum(), now.numel(), 0.85)


@pytest.mark.parametrize("filler", [SPECIAL.pad, 77])
def test_a_padded_row_chooses_what_it_would_alone(few, filler):
    alone, together = choose(few, 0.15, SPECIAL), choose(padded(few, 64, filler), 0.15, SPECIAL)
    assert together.real.sum(1).tolist() == [CHOSEN] * len(few.ids)
    assert torch.equal(together.places[:, :CHOSEN], alone.places)
    assert not together.real[:, CHOSEN:].any()


def test_a_row_of_nothing_but_special_tokens_chooses_none():
    batch = Batch(torch.tensor([[SPECIAL.cls, SPECIAL.sep, SPECIAL.pad, SPECIAL.pad]]), dice=torch.rand(1, 4, 3))
    assert not choose(batch, 0.5, SPECIAL).real.any()


@pytest.mark.parametrize("make", [masked_lm, detection])
def test_padding_does_not_change_the_loss(few, make):
    objective = make().eval()
    # Larger weights, so that what leaks would show.
    torch.nn.init.normal_(objective.backbone.embed.token.weight)
    alone, together = objective(few), objective(padded(few, 64, filler=77))
    torch.testing.assert_close(together.total, alone.total, rtol=1e-5, atol=1e-5)
    for name, value in alone.parts.items():
        torch.testing.assert_close(together.parts[name], value, rtol=1e-5, atol=1e-5)


def test_the_loss_of_rows_of_several_lengths_is_the_mean_over_their_tokens(few):
    short = Batch(few.ids[:, :20], segments=few.segments[:, :20], dice=few.dice[:, :20])
    parts = [padded(short, 50), padded(few, 50)]
    both = Batch(**{name: torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "mask", "segments", "dice")})
    objective = masked_lm().eval()
    expected = (3 * objective(short).total + 6 * objective(few).total) / 9
    torch.testing.assert_close(objective(both).total, expected, rtol=1e-5, atol=1e-6)


def test_a_drawn_token_that_is_the_original_is_not_replaced(few):
    objective = detection()
    choice = choose(few, 0.15, SPECIAL)
    original = few.ids.gather(1, choice.places)
    wanted = original.clone()
    wanted[:, ::2] = (original[:, ::2] + 7) % 300
    ids, replaced = objective.fill(few, choice, wanted.flatten())
    assert torch.equal(ids, few.ids.scatter(1, choice.places, wanted))
    assert replaced.sum().item() == few.ids.shape[0] * CHOSEN / 2
    assert torch.equal(replaced, ids != few.ids)


def test_the_discriminator_sees_drawn_tokens_and_no_masks(few):
    objective = detection()
    ids = seen_by(objective.backbone, lambda: objective(few))
    places = choose(few, 0.15, SPECIAL).places
    assert not (ids != few.ids).scatter(1, places, False).any()
    # At its beginning the generator draws almost anything.
    assert (ids != few.ids).sum() > 0.9 * places.numel()
    assert (ids == SPECIAL.mask).sum() < 5


def test_draw_takes_tokens_as_often_as_the_softmax_says():
    logits = torch.tensor([2.0, -1.0, 0.5, -30.0, 1.0, 0.0, float("-inf"), 1.5])
    tokens = pick(logits.expand(100_000, -1).softmax(-1), torch.rand(100_000))
    found, expected = torch.bincount(tokens, minlength=8).double(), 100_000 * logits.double().softmax(0)
    assert found[3] == found[6] == 0
    likely = expected > 1
    assert stats.chisquare(found[likely], expected[likely] * found.sum() / expected[likely].sum()).pvalue > 0.001


def test_draw_never_takes_an_impossible_token_at_either_end():
    impossible = float("-inf")
    logits = torch.tensor([[impossible, 0.0, 0.0, impossible]]).expand(2, -1)
    assert pick(logits.softmax(-1), torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 2]


def test_draw_follows_each_row_of_a_large_vocabulary():
    wanted = torch.arange(0, 30_000, 997)
    assert torch.equal(
        pick((50 * torch.nn.functional.one_hot(wanted, 30_000).float()).softmax(-1), torch.rand(len(wanted))), wanted
    )


def test_generator_and_discriminator_have_one_embedding(few):
    objective = detection()
    ours, theirs = objective.backbone.embed, objective.generator.backbone.embed
    for name in ("token", "position", "segment", "norm"):
        assert getattr(ours, name).weight.data_ptr() == getattr(theirs, name).weight.data_ptr()
    assert ours.widen is not theirs.widen
    names = [name for name, _ in objective.named_parameters()]
    assert "backbone.embed.token.weight" in names
    assert "generator.backbone.embed.token.weight" not in names
    objective(few).total.backward()
    torch.optim.SGD(objective.parameters(), lr=0.1).step()
    assert torch.equal(objective.state_dict()["generator.backbone.embed.token.weight"], ours.token.weight)


@pytest.mark.parametrize("setting", ["embed=16", "vocab=301", "positions=32", "segments=3", "eps=1e-06"])
def test_a_generator_with_other_embeddings_is_refused(setting):
    name, value = setting.split("=")
    settings = {"embed": "8", "vocab": "300", "positions": "64"} | {name: value}
    other = Architecture.parse(f"8 {' '.join(f'{name}={value}' for name, value in settings.items())}: ffn")
    with pytest.raises(ValueError, match=f"its {setting.replace('=', ' is ')}, the backbone's {getattr(ARCH, name)}"):
        ReplacedTokenDetection(Backbone(ARCH), masked_lm(other))


def test_the_generator_is_narrower_and_not_shallower(tiny_corpus):
    arch = "64 embed=16 vocab=300: 3x(attn[heads=4] ffn conv)"
    settings = PretrainSettings(arch=arch, corpus=tiny_corpus.folder, batch=2, length=16, plan=Plan(steps=1))
    generator = make_objective(settings, tiny_corpus).generator
    assert generator.backbone.arch == Architecture.parse("16 embed=16 vocab=300: 3x(attn[heads=1] ffn[inner=64] conv)")
    assert (generator.rate, generator.masked, generator.random) == (0.15, 0.85, 0.0)


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("convbert-small", "64 embed=128: 12x(mixed[heads=1] ffn[inner=256])"),
        ("convbert-medium-small", "96 embed=128: 12x(mixed[heads=2] ffn[inner=384,groups=2])"),
        ("convbert-base", "256 embed=768: 12x(mixed[heads=4] ffn[inner=1024])"),
        ("electra-base", "256 embed=768: 12x(attn[heads=4] ffn[inner=1024])"),
    ],
)
def test_a_preset_brings_its_published_generator(tiny_corpus, preset, wanted):
    settings = PretrainSettings(arch=preset, corpus=tiny_corpus.folder, plan=Plan(steps=1))
    with torch.device("meta"):
        assert make_objective(settings, tiny_corpus).generator.backbone.arch == Architecture.parse(wanted)
    assert PretrainSettings(arch=preset, generator="1/2", corpus="c", plan=Plan(steps=1)).generator == "1/2"


@pytest.mark.parametrize("weight", [50.0, 7.0])
def test_the_total_is_the_generators_loss_and_the_weighted_discriminators(few, weight):
    loss = detection(weight=weight)(few)
    torch.testing.assert_close(loss.total, loss.parts["masked"] + weight * loss.parts["replaced"])
    assert not any(part.requires_grad for part in loss.parts.values())


def gradients(objective, batch, prefix):
    objective.zero_grad()
    objective.eval()(batch).total.backward()
    return {name: value.grad.clone() for name, value in objective.named_parameters() if name.startswith(prefix)}


def test_the_discriminator_sends_no_gradient_through_what_was_drawn(few):
    objective = detection()
    learned = gradients(objective, few, "generator.")
    objective.weight = 0.0
    alone = gradients(objective, few, "generator.")
    assert learned.keys() == alone.keys()
    assert all(torch.equal(learned[name], alone[name]) for name in alone)
    assert all(gradient.abs().sum() > 0 for name, gradient in alone.items() if "norm" not in name)


def test_the_shared_embedding_learns_from_both(few):
    objective = detection()
    both = gradients(objective, few, "backbone.embed.token")["backbone.embed.token.weight"]
    objective.weight = 0.0
    one = gradients(objective, few, "backbone.embed.token")["backbone.embed.token.weight"]
    assert one.abs().sum() > 0
    assert not torch.equal(both, one)


def test_every_parameter_learns(few):
    for objective in (masked_lm(), detection()):
        objective(few).total.backward()
        assert [name for name, value in objective.named_parameters() if value.grad is None] == []


def test_accuracy_is_the_share_of_right_answers(few):
    objective = masked_lm().eval()
    objective.head.bias.data[44] = 1e4
    ids = few.ids.clone()
    targets = choose(few, 0.15, SPECIAL).places
    assert objective(few).parts["accuracy"].item() == pytest.approx((ids.gather(1, targets) == 44).float().mean().item())
    assert objective(replace(few, ids=ids.scatter(1, targets, 44))).parts["accuracy"].item() == 1

    detector = detection().eval()
    detector.head.replaced.bias.data.fill_(-1e4)
    ids = seen_by(detector.backbone, lambda: detector(few))
    assert detector(few).parts["accuracy"].item() == pytest.approx((ids == few.ids).float().mean().item())


def test_evaluation_repeats_itself_and_training_drops_out(few):
    for objective in (masked_lm(), detection()):
        objective.eval()
        assert objective(few).total.item() == objective(few).total.item()
        objective.train()
        assert objective(few).total.item() != objective(few).total.item()


def test_an_architecture_of_one_segment_learns_from_rows_of_two(few):
    one = Architecture.parse("16 vocab=300 segments=1: attn")
    for objective in (masked_lm(one), detection(one)):
        objective(few).total.backward()
        assert objective.backbone.embed.segment.weight.grad.abs().sum() > 0


def test_a_supernet_learns_along_the_path_its_batch_names(few):
    space = Space.parse("16 embed=8 vocab=300 positions=64: 2x{attn|ffn|conv}")
    generator = MaskedLM(Backbone(ARCH.narrow(1 / 2)), SPECIAL, masked=0.85, random=0.0)
    for objective in (MaskedLM(Supernet(space), SPECIAL), ReplacedTokenDetection(Supernet(space), generator)):
        with pytest.raises(ValueError, match="a supernet needs batches that name an architecture"):
            objective(few)
        arch = Architecture.parse("16 embed=8 vocab=300 positions=64: conv attn")
        objective(replace(few, arch=arch)).total.backward()
        learned = {name for name, value in objective.backbone.slots.named_parameters() if value.grad is not None}
        learned = {tuple(name.split(".")[:2]) for name in learned}
        assert learned == {("0", "2"), ("1", "0")}


def test_a_path_of_a_supernet_has_the_loss_of_its_backbone(few):
    space = Space.parse("16 embed=8 vocab=300 positions=64: 2x{attn|ffn|conv}")
    arch = Architecture.parse("16 embed=8 vocab=300 positions=64: conv attn")
    supernet = MaskedLM(Supernet(space), SPECIAL).eval()
    alone = masked_lm(arch).eval()
    alone.backbone.load_state_dict(supernet.backbone.weights_of(arch))
    alone.head.load_state_dict(supernet.head.state_dict())
    torch.testing.assert_close(alone(few).total, supernet(replace(few, arch=arch)).total)


def test_an_objective_without_dice_says_so(few):
    with pytest.raises(ValueError, match="needs a batch with dice"):
        masked_lm()(replace(few, dice=None))


def test_objectives_learn_the_sentences(tiny_corpus):
    """Forty steps go well below the loss of a blind guess, for both objectives."""
    for objective in (masked_lm(), detection()):
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
        for batch in islice(batches(tiny_corpus, shape=(16, LENGTH), seed=0), 40):
            loss = objective(batch)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        assert loss.parts.get("masked", loss.total).item() < 0.75 * math.log(300)


@pytest.mark.parametrize(
    "space", ["16 embed=8 vocab=4096 positions=64: attn ffn conv mixed[kernel=5]", "16 embed=8 vocab=4096: 4x{conv|attn}"]
)
@pytest.mark.parametrize("kind", ["mlm", "rtd"])
def test_documents_apart_are_strangers_in_encoder_generator_and_supernet(tiny_corpus, space, kind):
    settings = PretrainSettings(
        arch=space, corpus=tiny_corpus.folder, objective=kind, batch=8, length=48, apart=True, plan=Plan(steps=1)
    )
    objective = make_objective(settings, tiny_corpus).eval()
    batch = next(stream_of(settings, tiny_corpus, 0))
    assert batch.documents is not None
    changed = replace(batch, ids=torch.where(batch.documents == 1, 5 + (batch.ids * 7) % 90, batch.ids))
    elsewhere = batch.documents != 1
    assert not torch.equal(batch.ids, changed.ids)
    nets = [objective.backbone, *([objective.generator.backbone] if kind == "rtd" else [])]
    for net in nets:
        one, other = (encode(net, some, some.ids) for some in (batch, changed))
        assert torch.allclose(one[elsewhere], other[elsewhere], atol=1e-6)
        joined, mixed_up = (encode(net, replace(some, documents=None), some.ids) for some in (batch, changed))
        assert not torch.allclose(joined[elsewhere], mixed_up[elsewhere], atol=1e-4)
    assert objective(batch).total.isfinite()
    assert all(one.documents is not None for one in held_out(tiny_corpus, settings))


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def test_a_settled_loss_has_the_value_and_the_gradients_it_had():
    x, y, unused = leaf(3), leaf(3), leaf(2)
    fixed = torch.ones(3)

    def grads(through):
        loss = through((x * y).square().sum(), [x, y, unused, fixed]) * 0.3 + 2 * (x + unused.sum()).sum()
        return loss.detach(), *torch.autograd.grad(loss, (x, y, unused))

    torch.testing.assert_close(grads(settle), grads(lambda loss, parameters: loss))
    constant = torch.tensor(1.0)
    assert settle(constant, [x]) is constant
    with torch.no_grad():
        assert not settle(x.sum(), [x]).requires_grad


def test_a_settled_loss_frees_what_it_was_made_of():
    kept = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(big := x * 2)
            kept.append(weakref.ref(big))
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.ones(3, dtype=torch.float64)

    x = leaf(3)
    loss = settle(Watched.apply(x), [x])
    assert kept[0]() is None
    loss.backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_another_token_is_one_that_texts_hold(rows, tiny_corpus):
    few = masked_lm(tokens=170, masked=0.0, random=1.0)
    choice = choose(rows, 0.15, SPECIAL)
    others = few.corrupt(rows.ids.gather(1, choice.places), rows, choice)
    assert others[choice.real].max() == 169
    assert len(others[choice.real].unique()) == 170
    settings = PretrainSettings(arch=str(ARCH), corpus=tiny_corpus.folder, objective="mlm", length=LENGTH, plan=Plan(steps=1))
    assert make_objective(settings, tiny_corpus).tokens == tiny_corpus.vocab < ARCH.vocab
