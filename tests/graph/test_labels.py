"""Labels: joined, frozen and folded."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lit_prune.graph.labels import OUTPUT, Labels


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30), st.sets(st.integers(0, 19)))
def test_components_are_those_of_a_plain_union(pairs: list[tuple[int, int]], frozen: set[int]) -> None:
    labels = Labels()
    row = labels.fresh(20)
    sets = [{index} for index in range(20)]
    for a, b in pairs:
        labels.join(row[[a]], row[[b]])
        merged = sets[a] | sets[b]
        for index in merged:
            sets[index] = merged
    for index in sorted(frozen):
        labels.freeze(row[[index]], f"reason {index}")
    components = labels.components()
    for a in range(20):
        assert {b for b in range(20) if components.of[a] == components.of[b]} == sets[a]
        assert components.unprunable[components.of[a]] == bool(sets[a] & frozen)


def test_the_first_reason_is_reported() -> None:
    labels = Labels()
    row = labels.fresh(2)
    labels.join(row[:1], row[1:])
    labels.freeze(row[1:], "first")
    labels.freeze(row[:1], "second")
    components = labels.components()
    assert labels.reasons[components.reason[components.of[row[0]]]] == "first"


def test_to_be_an_output_is_reported_before_all_else() -> None:
    labels = Labels()
    row = labels.fresh(2)
    labels.freeze(row, "softmax runs over it")
    labels.freeze(row[1:], OUTPUT)
    components = labels.components()
    reasons = [labels.reasons[index] for index in components.reason[components.of[row]]]
    assert reasons == ["softmax runs over it", OUTPUT]


def test_join_broadcasts() -> None:
    labels = Labels()
    heads, width = labels.fresh(6).reshape(2, 3), labels.fresh(3)
    labels.join(heads, width)
    of = labels.components().of
    assert (of[heads] == of[width]).all()
    assert len(np.unique(of)) == 3


def test_whole_pieces_go_with_what_stands_for_them() -> None:
    labels = Labels()
    width, heads = labels.fresh(6).reshape(2, 3), labels.fresh(2)
    labels.fold(width, heads, whole=True)
    of = labels.components().of
    assert of[width].tolist() == [[of[heads[0]]] * 3, [of[heads[1]]] * 3]
    assert of[heads[0]] != of[heads[1]]


def test_components_may_be_asked_for_again_after_a_tie() -> None:
    labels = Labels()
    first, second = labels.fresh(3), labels.fresh(3)
    assert len(labels.components().reason) == 6
    labels.tie([first, second])
    assert len(labels.components().reason) == 3
