"""PruningPlan: plain data that composes, compares and is stored."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_prune import PruningPlan


def _plan(indices: list[int], size: int | None = None) -> PruningPlan:
    return PruningPlan({"w": {0: torch.tensor(indices)}}, {} if size is None else {"w": {0: size}})


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [
        ([], 4, "keeps nothing of w dim 0"),
        ([2, 1], 4, "strictly increasing"),
        ([1, 1], 4, "strictly increasing"),
        ([-1, 2], 4, "non-negative"),
        ([0, 4], 4, "keeps index 4 of w dim 0, which has only 4"),
        ([[0, 1]], 4, "keeps nothing of w dim 0"),
    ],
)
def test_bad_indices_are_refused(indices: list[int], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _plan(indices, size)


def test_lists_are_taken_as_well() -> None:
    plan = PruningPlan({"w": {1: [0, 2]}, "b": {}})
    assert plan.kept["w"][1].dtype == torch.int64
    assert len(plan) == 1
    assert plan
    assert not PruningPlan({})


KEPT = st.lists(st.booleans(), min_size=12, max_size=12).filter(any)


@given(KEPT, st.data())
def test_composition_selects_as_two_selections_do(mask: list[bool], data: st.DataObject) -> None:
    first = _plan([index for index, stays in enumerate(mask) if stays], 12)
    left = len(first.kept["w"][0])
    second_mask = data.draw(st.lists(st.booleans(), min_size=left, max_size=left).filter(any))
    second = _plan([index for index, stays in enumerate(second_mask) if stays], left)
    values = torch.arange(12)
    both = values[first.kept["w"][0]][second.kept["w"][0]]
    assert torch.equal(values[first.then(second).kept["w"][0]], both)
    assert first.then(second).sizes == {"w": {0: 12}}


def test_composition_of_different_tensors_keeps_both() -> None:
    first, second = (
        PruningPlan({"a": {0: [0]}}, {"a": {0: 2}}),
        PruningPlan({"a": {1: [1]}, "b": {0: [2]}}, {"b": {0: 3}}),
    )
    both = first.then(second)
    assert {name: set(dims) for name, dims in both.kept.items()} == {"a": {0, 1}, "b": {0}}
    assert both.sizes == {"a": {0: 2}, "b": {0: 3}}
    # Neither part changed.
    assert set(first.kept) == {"a"}
    assert set(first.kept["a"]) == {0}


def test_composition_is_associative() -> None:
    a, b, c = _plan([0, 1, 3, 4, 5], 6), _plan([0, 2, 3, 4], 5), _plan([1, 3], 4)
    assert a.then(b).then(c) == a.then(b.then(c))


def test_a_second_plan_for_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps index 5 of w dim 0, but the first leaves only 2"):
        _plan([0, 1], 6).then(_plan([5], 6))


def test_equal_plans_have_equal_digests() -> None:
    first = PruningPlan({"a": {1: [0, 2], 0: [1]}, "b": {0: [3]}})
    second = PruningPlan({"b": {0: torch.tensor([3])}, "a": {0: [1], 1: [0, 2]}}, {"b": {0: 9}})
    assert first == second
    assert hash(first) == hash(second)
    assert first.digest == second.digest


@pytest.mark.parametrize("other", [{"a": {0: [0, 1]}}, {"a": {1: [0, 2]}}, {"b": {0: [0, 2]}}, {}])
def test_different_plans_have_different_digests(other: dict[str, dict[int, list[int]]]) -> None:
    assert PruningPlan({"a": {0: [0, 2]}}) != PruningPlan(other)
    assert PruningPlan({"a": {0: [0, 2]}}) != "a plan"


def test_it_is_stored_as_plain_data() -> None:
    plan = PruningPlan({"a.weight": {0: [0, 2], 1: [1]}}, {"a.weight": {0: 3, 1: 2}})
    file = io.BytesIO()
    torch.save(plan.state_dict(), file)
    file.seek(0)
    again = PruningPlan.from_state_dict(torch.load(file, weights_only=True))
    assert again == plan
    assert again.sizes == plan.sizes


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a pruning plan: it has \['model'\]"):
        PruningPlan.from_state_dict({"model": 1})


def test_a_newer_format_is_refused() -> None:
    state = {**_plan([0], 2).state_dict(), "format": 99}
    with pytest.raises(ValueError, match="format 99, written by a newer lit_prune"):
        PruningPlan.from_state_dict(state)


def test_a_prefix_for_a_wrapping_module() -> None:
    plan = _plan([1], 3).with_prefix("model.")
    assert set(plan.kept) == {"model.w"}
    assert plan.sizes == {"model.w": {0: 3}}


def test_it_prints_as_a_table() -> None:
    plan = PruningPlan({"conv.weight": {0: [0, 1]}, "b": {0: [0]}}, {"conv.weight": {0: 16}})
    assert str(plan).splitlines() == [
        "tensor       dim  before  after",
        "conv.weight    0      16      2",
        "b              0       ?      1",
    ]
    assert repr(plan) == f"PruningPlan(2 tensors, digest {plan.digest[:12]})"
