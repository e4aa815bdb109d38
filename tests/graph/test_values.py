"""Blocks of labels through a change of shape."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune.graph.values import Block, reshape

SIZES = st.sampled_from([1, 2, 3, 4])


@st.composite
def _reshapes(draw: st.DrawFn) -> tuple[list[int], list[int], Block]:
    """Shapes of equal products, and a block over neighbouring dimensions of the first."""
    factors = draw(st.lists(SIZES, min_size=1, max_size=5))

    def shape() -> list[int]:
        merged: list[int] = []
        for factor in factors:
            if merged and draw(st.booleans()):
                merged[-1] *= factor
            else:
                merged.append(factor)
        return merged

    before, after = shape(), shape()
    wide = [dim for dim, size in enumerate(before) if size > 1]
    if not wide:
        return before, after, Block((), np.empty((), dtype=np.int64))
    dims = tuple(sorted(draw(st.sets(st.sampled_from(wide), min_size=1))))
    sizes = [before[dim] for dim in dims]
    return before, after, Block(dims, np.arange(math.prod(sizes), dtype=np.int64).reshape(sizes))


@given(_reshapes())
def test_labels_go_where_their_elements_go(case: tuple[list[int], list[int], Block]) -> None:
    before, after, block = case
    result = reshape([block] if block.dims else [], before, after)
    if not block.dims:
        assert not result.blocks
        return
    expected = np.broadcast_to(block.over(range(len(before))), before).reshape(after)
    (moved,) = result.blocks
    assert np.array_equal(np.broadcast_to(moved.over(range(len(after))), after), expected)
    assert not result.merged


def test_a_flattened_map_repeats_its_channels() -> None:
    (block,) = reshape([Block((1,), np.array([7, 8]))], (1, 2, 1, 3), (1, 6)).blocks
    assert block.dims == (1,)
    assert block.labels.tolist() == [7, 7, 7, 8, 8, 8]


def test_heads_are_a_fold() -> None:
    result = reshape([Block((1,), np.arange(6))], (1, 6, 9), (1, 2, 3, 9))
    (fold,) = result.folds
    assert fold.dims == (1, 2)
    assert fold.labels.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_heads_put_together_again_are_a_row() -> None:
    block = Block((1, 2), np.arange(6).reshape(2, 3))
    result = reshape([block], (1, 2, 3, 9), (1, 6, 9))
    (row,) = result.blocks
    assert row.labels.tolist() == list(range(6))
    assert not result.folds
    assert not result.crossed


def test_a_shuffle_crosses() -> None:
    block = Block((2, 1), np.arange(6).reshape(2, 3))
    result = reshape([block], (1, 3, 2, 9), (1, 6, 9))
    assert result.crossed == [block]
    assert result.blocks[0].labels.tolist() == [0, 3, 1, 4, 2, 5]


def test_a_batch_merged_with_heads_is_dropped_when_it_comes_apart() -> None:
    block = Block((1, 2), np.arange(6).reshape(2, 3))
    (merged,) = reshape([block], (4, 2, 3), (8, 3)).blocks
    assert merged.labels.shape == (8, 3)
    (again,) = reshape([merged], (8, 3), (4, 2, 3)).blocks
    assert again.dims == (1, 2)
    assert again.labels.tolist() == block.labels.tolist()


def test_of_two_tracked_dimensions_that_become_one_the_wider_is_followed() -> None:
    narrow, wide = Block((0,), np.arange(2)), Block((1,), np.arange(2, 5))
    result = reshape([narrow, wide], (2, 3), (6,))
    # The narrow one must lose nothing: then the wide one is repeated.
    assert result.merged == [narrow]
    assert result.blocks[0].labels.tolist() == [2, 3, 4, 2, 3, 4]


@pytest.mark.parametrize(("dim", "shape"), [(1, (2, 3)), (0, (3, 2))])
def test_led_by(dim: int, shape: tuple[int, int]) -> None:
    block = Block((1, 0), np.arange(6).reshape(2, 3))
    assert block.led_by(dim).shape == shape
