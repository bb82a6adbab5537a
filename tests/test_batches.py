"""Batches: a pure function of seed, step and rank, whose rows say truly what stands in the corpus."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from layerwright.batches import Batch, Prefetched, along, batches
from layerwright.corpus import CorpusSettings, build
from layerwright.errors import DataError
from layerwright.space import Space
from layerwright.vocabulary import SPECIAL

NAMES = ("ids", "segments", "dice")
SETTINGS = {"shape": (12, 24), "seed": 5}


def take(count, corpus, **settings):
    return list(islice(batches(corpus, **SETTINGS | settings), count))


def same(ours, theirs):
    """Whether two lists of batches hold the same bits."""
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(getattr(one, name), getattr(other, name)) for one, other in pairs for name in NAMES)


def test_the_same_arguments_give_the_same_bits_and_another_seed_gives_others(tiny_corpus):
    assert same(take(3, tiny_corpus), take(3, tiny_corpus))
    assert not same(take(3, tiny_corpus), take(3, tiny_corpus, seed=6))


@pytest.mark.parametrize("skipped", [1, 37, 200])
def test_to_start_at_a_step_is_to_skip_the_steps_before(tiny_corpus, skipped):
    assert same(take(2, tiny_corpus, start=skipped), take(skipped + 2, tiny_corpus)[skipped:])


@pytest.mark.parametrize("world", [2, 3, 4, 12])
def test_any_number_of_processes_shares_the_same_global_batches(tiny_corpus, world):
    shares = [take(3, tiny_corpus, share=(rank, world)) for rank in range(world)]
    parts = zip(*shares, strict=True)
    together = [Batch(**{name: torch.cat([getattr(part, name) for part in of]) for name in NAMES}) for of in parts]
    assert same(together, take(3, tiny_corpus))


def test_processes_that_do_not_divide_the_rows_are_refused(tiny_corpus):
    with pytest.raises(ValueError, match="5 processes cannot share a batch of 12 rows"):
        batches(tiny_corpus, **SETTINGS, share=(0, 5))


def test_rows_are_of_the_shapes_and_types_they_say(tiny_corpus):
    (batch,) = take(1, tiny_corpus)
    assert batch.ids.shape == batch.segments.shape == (12, 24)
    assert batch.dice.shape == (12, 24, 3)
    assert (batch.ids.dtype, batch.segments.dtype, batch.dice.dtype) == (torch.int64, torch.int64, torch.float32)
    assert 0 <= batch.dice.min() < batch.dice.max() < 1
    assert batch.mask is batch.labels is batch.arch is None


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A corpus in which no token comes twice, so that a token tells its place."""
    folder, words = tmp_path_factory.mktemp("counted"), [f"word{number}" for number in range(4_000)]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    lengths = [3, 70, 15, 8, 120, 34] * 16
    ends = np.cumsum(lengths)
    documents = [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    return build([str(folder / "text.txt")], folder / "corpus", CorpusSettings(tokenizer=folder / "vocab.txt", validation=0.1))


def rows(corpus, count, **settings):
    """The rows of some batches, each as its first and second segment and the place of its first token in the corpus."""
    special, places = corpus.special, {token: place for place, token in enumerate(corpus.tokens("train").tolist())}
    for batch in take(count, corpus, **settings):
        for row, segments in zip(batch.ids.tolist(), batch.segments.tolist(), strict=True):
            ends = [place for place, token in enumerate(row) if token == special.sep]
            assert row[0] == special.cls
            assert ends[-1] == len(row) - 1
            assert len(ends) <= 2
            assert segments == [int(place > ends[0]) for place in range(len(row))]
            first, second = row[1 : ends[0]], row[ends[0] + 1 : -1]
            at = places[first[0]]
            # Consecutive, and whole but for the token that the cut costs.
            assert [places[token] for token in first + second] == [*range(at, at + (21 if second else 22))]
            yield first, second, at


def test_a_row_is_a_window_cut_where_a_document_begins_or_else_anywhere(counted):
    starts = counted.starts("train")
    anywhere, at_documents = Counter(), 0
    for first, second, at in rows(counted, 100):
        begins = [int(start) - at for start in starts if 0 < start - at < 21]
        if second and begins:
            assert len(first) == begins[0]
            at_documents += 1
        elif second:
            anywhere[len(first)] += 1
    assert at_documents > 100
    assert anywhere.keys() == {*range(1, 21)}


def test_documents_apart_are_numbered_and_nothing_else_changes(counted):
    starts, special = counted.starts("train"), counted.special
    places = {token: place for place, token in enumerate(counted.tokens("train").tolist())}
    several = 0
    for joined, apart in zip(take(60, counted), take(60, counted, apart=True), strict=True):
        assert joined.documents is None
        assert apart.documents is not None
        for name in ("ids", "segments", "dice"):
            assert torch.equal(getattr(joined, name), getattr(apart, name))
        for ids, numbers in zip(apart.ids.tolist(), apart.documents.tolist(), strict=True):
            real = [place for place, token in enumerate(ids) if token not in (special.cls, special.sep)]
            of = [int(np.searchsorted(starts, places[ids[place]], side="right")) for place in real]
            assert [numbers[place] for place in real] == [one - of[0] for one in of]
            # [CLS] is of the first document, a [SEP] of the one before it.
            assert numbers[0] == 0
            assert all(numbers[place] == numbers[place - 1] for place, token in enumerate(ids) if token == special.sep)
            several += numbers[-1] > 1
    assert several > 20


def test_a_tenth_of_the_rows_has_one_segment(tiny_corpus):
    rows = torch.cat([batch.segments.amax(1) for batch in take(250, tiny_corpus)])
    singles, expected = int((rows == 0).sum()), 0.1 * len(rows)
    assert abs(singles - expected) < 3 * (expected * 0.9) ** 0.5


def test_every_window_comes_once_an_epoch_in_an_order_and_from_an_offset_of_its_own(counted):
    windows = len(counted.tokens("train")) // 22 - 1
    assert windows > 100
    places = [at for _, _, at in rows(counted, 3, shape=(windows, 24))]
    epochs = [places[start : start + windows] for start in (0, windows, 2 * windows)]
    for epoch in epochs:
        assert sorted(epoch) == [*range(min(epoch), min(epoch) + 22 * windows, 22)]
        assert min(epoch) < 22
        assert epoch != sorted(epoch)
    assert len({min(epoch) for epoch in epochs}) == 3
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 3


def test_a_batch_may_span_two_epochs_or_many(tiny_corpus):
    small = {"split": "validation", "shape": (300, 24)}
    (batch,) = take(1, tiny_corpus, **small)
    assert len(batch.ids) == 300 > 2 * len(tiny_corpus.tokens("validation")) // 22
    assert same([batch], take(1, tiny_corpus, **small))


def test_a_split_too_small_for_one_row_is_refused_at_once(tiny_corpus):
    held = len(tiny_corpus.tokens("validation"))
    longest = held // 2 + 2
    assert next(batches(tiny_corpus, shape=(2, longest), seed=0, split="validation")).ids.shape == (2, longest)
    with pytest.raises(DataError, match=rf"the validation split has {held:,} tokens: too few for rows of {longest + 1}"):
        batches(tiny_corpus, shape=(2, longest + 1), seed=0, split="validation")


def test_pieces_of_a_batch_are_its_rows_in_order(tiny_corpus):
    (batch,) = take(1, tiny_corpus)
    pieces = batch.split(3)
    assert [len(piece.ids) for piece in pieces] == [4, 4, 4]
    for name in NAMES:
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))
    with pytest.raises(ValueError, match="12 rows on a process cannot be accumulated in 5 equal pieces"):
        batch.split(5)


def test_a_batch_goes_to_a_device_with_all_it_has(tiny_corpus):
    space = Space.parse("16: {attn|ffn}")
    moved = next(along(batches(tiny_corpus, **SETTINGS), space, 0)).to("meta")
    assert {moved.ids.device.type, moved.segments.device.type, moved.dice.device.type} == {"meta"}
    assert moved.arch in space
    assert moved.mask is None


def test_the_architectures_of_a_supernet_are_those_of_seed_and_step(tiny_corpus):
    space = Space.parse("16: 6x{conv|attn|ffn}")

    def archs(start, count, seed=5, share=(0, 1)):
        stream = along(batches(tiny_corpus, **SETTINGS, start=start, share=share), space, seed, start)
        return [batch.arch for batch in islice(stream, count)]

    whole = archs(0, 30)
    assert whole == archs(0, 30, share=(1, 3))
    assert whole[17:] == archs(17, 13)
    assert whole != archs(0, 30, seed=6)
    assert all(arch in space for arch in whole)
    assert len(set(whole)) > 20


def test_architectures_are_sampled_uniformly():
    space = Space.parse("16: {conv|attn|ffn}")
    empty = Batch(torch.zeros(1, 1, dtype=torch.int64))
    found = Counter(str(batch.arch) for batch in along(iter([empty] * 3_000), space, 0))
    assert len(found) == 3
    assert all(abs(count - 1_000) < 3 * (3_000 * 2 / 9) ** 0.5 for count in found.values())


def test_batches_made_ahead_are_the_same_and_counted(tiny_corpus):
    stream = Prefetched(iter(take(7, tiny_corpus)))
    assert same(list(stream), take(7, tiny_corpus))
    assert stream.seconds > 0
    assert (stream.tokens, stream.padding) == (7 * 12 * 24, 0)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    padded = Prefetched(iter([Batch(torch.ones(2, 4, dtype=torch.long), mask)]))
    list(padded)
    assert padded.padding == 3 / 8


def test_what_goes_wrong_ahead_is_told_when_it_is_asked_for(tiny_corpus):
    def broken():
        yield from take(2, tiny_corpus)
        raise OSError("the disk is gone")

    stream = Prefetched(broken())
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
