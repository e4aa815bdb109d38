"""Folds stay rectangular: balanced where they can be, tied where not."""

import numpy as np

from lit_prune.graph.balance import settle
from lit_prune.graph.labels import Labels


def _keys(labels: Labels, kinds: list[int]) -> np.ndarray:
    """A key for each component, from one for each label."""
    of = labels.components().of
    keys = np.zeros(of.max() + 1, dtype=np.uint64)
    keys[of] = kinds
    return keys


def test_halves_of_whole_groups_are_balanced() -> None:
    labels = Labels()
    row = labels.fresh(6)
    labels.fold(row.reshape(2, 3))
    partners, changed = settle(labels, labels.components(), _keys(labels, [1, 1, 1, 2, 2, 2]))
    assert partners == {1: (1, 2), 2: (1, 2)}
    assert not changed


def test_stretches_of_a_piece_are_balanced_by_themselves() -> None:
    labels = Labels()
    labels.fold(labels.fresh(10).reshape(2, 5))
    partners, changed = settle(labels, labels.components(), _keys(labels, [1, 1, 2, 2, 2, 3, 3, 4, 4, 4]))
    assert partners == {1: (1, 3), 3: (1, 3), 2: (2, 4), 4: (2, 4)}
    assert not changed


def test_a_piece_of_a_larger_group_is_tied() -> None:
    labels = Labels()
    row, _ = labels.fresh(6), labels.fresh(2)
    labels.fold(row.reshape(2, 3))
    partners, changed = settle(labels, labels.components(), _keys(labels, [1, 1, 1, 2, 2, 2, 2, 2]))
    assert changed
    assert not partners
    of = labels.components().of
    assert (of[row[:3]] == of[row[3:]]).all()


def test_a_partly_frozen_fold_is_tied_and_so_frozen() -> None:
    labels = Labels()
    row = labels.fresh(4)
    labels.freeze(row[:1], "stays")
    labels.fold(row.reshape(2, 2))
    _, changed = settle(labels, labels.components(), _keys(labels, [1, 1, 2, 2]))
    components = labels.components()
    assert changed
    assert components.unprunable[components.of[row]].tolist() == [True, False, True, False]


def test_heads_of_which_one_must_go_whole_all_go_whole() -> None:
    labels = Labels()
    row = labels.fresh(6).reshape(2, 3)
    labels.join(row[0, :1], row[0])
    labels.fold(row, may_be_whole=True)
    _, changed = settle(labels, labels.components(), _keys(labels, [1, 1, 1, 2, 2, 2]))
    assert changed
    assert len(np.unique(labels.components().of[row])) == 2


def test_halves_never_go_whole() -> None:
    labels = Labels()
    row = labels.fresh(6).reshape(2, 3)
    labels.join(row[0, :1], row[0])
    labels.fold(row)
    settle(labels, labels.components(), _keys(labels, [1, 1, 1, 2, 2, 2]))
    assert len(np.unique(labels.components().of[row])) == 1


def test_three_halves_of_a_chain_are_balanced_together() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(2) for _ in range(3))
    labels.fold(np.stack([a, b]))
    labels.fold(np.stack([b, c]))
    partners, _ = settle(labels, labels.components(), _keys(labels, [1, 1, 2, 2, 3, 3]))
    assert partners[1] == partners[2] == partners[3] == (1, 2, 3)
