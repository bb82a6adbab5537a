"""Sequences that share beginnings lead where each leads alone, at the price of the tree of their beginnings."""

import weakref
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from layerwright.prefixes import Beginnings, applications, visit

SEQUENCES = st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(tuple), max_size=30)


class State:
    """A state that can be counted while it is alive."""

    def __init__(self, said: str):
        self.said = said


@given(SEQUENCES)
def test_each_sequence_leads_where_it_leads_alone(sequences):
    found = list(visit(sequences, ">", str.__add__))
    assert sorted(place for place, _ in found) == list(range(len(sequences)))
    assert all(state == reduce(str.__add__, sequences[place], ">") for place, state in found)
    assert found == list(visit(sequences, ">", str.__add__))


@given(SEQUENCES)
def test_what_sequences_begin_with_is_computed_once(sequences):
    computed: list[str] = []

    def apply(state: str, choice: str) -> str:
        computed.append(state + choice)
        return state + choice

    list(visit(sequences, "", apply))
    assert len(computed) == len(set(computed)) == applications(sequences)
    assert set(computed) == {"".join(one[:end]) for one in sequences for end in range(1, len(one) + 1)}


@given(SEQUENCES.filter(bool))
def test_the_states_alive_are_limited_by_depth_not_by_the_number_of_sequences(sequences):
    alive: weakref.WeakSet[State] = weakref.WeakSet()
    most = 0

    def apply(before: State, choice: str) -> State:
        nonlocal most
        state = State(before.said + choice)
        alive.add(state)
        most = max(most, len(alive))
        return state

    for _, state in visit(sequences, State(""), apply):
        del state
    assert most <= max(map(len, sequences)) + 1
    assert not alive


@given(SEQUENCES)
def test_a_sequence_comes_before_those_that_begin_with_it(sequences):
    order = {place: at for at, (place, _) in enumerate(visit(sequences, "", str.__add__))}
    for place, one in enumerate(sequences):
        for other, longer in enumerate(sequences):
            if len(one) < len(longer) and longer[: len(one)] == one:
                assert order[place] < order[other]
    firsts = [one[0] for one in sequences if one]
    visited = [sequences[place][0] for place in sorted(order, key=order.__getitem__) if sequences[place]]
    assert list(dict.fromkeys(visited)) == list(dict.fromkeys(firsts))


def test_a_state_that_is_yielded_can_be_kept():
    kept = dict(visit([(1, 2), (1,), (2, 1)], (), lambda state, choice: (*state, choice)))
    assert kept == {0: (1, 2), 1: (1,), 2: (2, 1)}


@given(SEQUENCES, st.integers(0, 40))
def test_sequences_one_at_a_time_lead_where_each_leads_alone_within_the_room(sequences, room):
    sizes: list[int] = []
    kept = Beginnings(room, len)
    for one in sequences:
        assert kept.run(one, ">", str.__add__) == reduce(str.__add__, one, ">")
        sizes.append(kept.taken)
    assert all(size <= room for size in sizes)
    assert applications(sequences) <= kept.applied <= sum(map(len, sequences))


@given(SEQUENCES)
def test_with_room_for_all_only_whole_sequences_are_computed_again(sequences):
    kept = Beginnings(1 << 20, len)
    for one in dict.fromkeys(sequences):
        kept.run(one, ">", str.__add__)
    inner = {one[:end] for one in sequences for end in range(1, len(one))}
    again = sum(one in inner for one in set(sequences) if one)
    assert applications(sequences) <= kept.applied <= applications(sequences) + again


def test_what_is_used_most_is_kept():
    kept = Beginnings(6, lambda state: 1)
    for end in "abcdefgh":
        kept.run(("x", "y", end, end), "", str.__add__)
    before = kept.applied
    kept.run(("x", "y", "z"), "", str.__add__)
    assert kept.applied == before + 1


def test_what_was_used_long_ago_is_forgotten_and_the_states_are_the_same():
    kept = Beginnings(6, lambda state: 1, half=5)
    for number in range(2000):
        assert kept.run((number, "x", number % 3), "", lambda state, choice: f"{state}{choice}") == f"{number}x{number % 3}"
    assert len(kept._uses) <= 2 * 5 * 12
    assert kept.taken <= 6
