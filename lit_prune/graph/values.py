"""What the dimensions of a traced value carry: blocks of labels, and how a reshape moves them.

Most dimensions carry a row of labels of their own. Where a dimension has been taken apart (heads of an attention, the
groups of a channel shuffle), one block spans the parts, so that no label is lost until they are put together again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lit_prune.graph.labels import Row


@dataclass(frozen=True)
class Block:
    """Labels over one or several dimensions of a value.

    Attributes:
        dims: The dimensions, one for each axis of ``labels``, in any order.
        labels: An array whose axes have the sizes of ``dims``.
    """

    dims: tuple[int, ...]
    labels: Row

    def moved(self, place: dict[int, int]) -> Block:
        """The same labels with each dimension renamed."""
        return Block(tuple(place[dim] for dim in self.dims), self.labels)

    def over(self, dims: Sequence[int]) -> Row:
        """The labels with axes in the order of ``dims``; of size one where the block does not reach."""
        held = [dim for dim in dims if dim in self.dims]
        array = self.labels.transpose([self.dims.index(dim) for dim in held])
        shape = iter(array.shape)
        return array.reshape([next(shape) if dim in self.dims else 1 for dim in dims])

    def led_by(self, dim: int) -> Row:
        """The labels as ``(size of dim, all others)``."""
        axis = self.dims.index(dim)
        return np.moveaxis(self.labels, axis, 0).reshape(self.labels.shape[axis], -1)


@dataclass(frozen=True)
class Reshaped:
    """What a reshape makes of blocks.

    Attributes:
        blocks: The blocks of the result.
        folds: Blocks that are over more dimensions than before: newly taken apart.
        merged: Blocks that must not lose anything, because their dimension becomes one with a wider tracked one.
        crossed: Blocks that are put together in another order than they were taken apart, as in a channel shuffle.
            Only what goes from all pieces alike leaves the others in their order.
    """

    blocks: list[Block]
    folds: list[Block]
    merged: list[Block]
    crossed: list[Block]


def reshape(blocks: Sequence[Block], before: Sequence[int], after: Sequence[int]) -> Reshaped:
    """Follow blocks through a change of shape from ``before`` to ``after``."""
    result = Reshaped([], [], [], [])
    runs = list(_runs(before, after))
    same = {entering[0]: leaving[0] for entering, leaving in runs if len(entering) == len(leaving) == 1}
    changing = []
    for block in blocks:
        if set(block.dims) <= same.keys():
            result.blocks.append(block.moved(same))
        else:
            changing.append(block)
    for entering, leaving, inside in _joint_runs(changing, runs):
        # Of several that become one the widest can be followed, if the others lose nothing.
        inside.sort(key=lambda block: -block.labels.size)
        result.merged.extend(inside[1:])
        if len(inside[0].dims) > 1 and inside[0].dims[-1] != max(inside[0].dims):
            result.crossed.append(inside[0])
        full = np.broadcast_to(inside[0].over(entering), [before[dim] for dim in entering])
        moved = _without_constant_axes(leaving, full.reshape([after[dim] for dim in leaving]))
        result.blocks.append(moved)
        if len(moved.dims) > len(inside[0].dims):
            result.folds.append(moved)
    return result


def _without_constant_axes(dims: Sequence[int], labels: Row) -> Block:
    """Along an axis where nothing changes there is nothing to remove: it is as untracked as a height or a batch."""
    for axis in reversed(range(labels.ndim)):
        if labels.ndim > 1 and (labels == labels.take([0], axis)).all():
            labels = np.asarray(labels.take(0, axis))
            dims = [*dims[:axis], *dims[axis + 1 :]]
    return Block(tuple(dims), labels)


def _joint_runs(
    blocks: Sequence[Block], runs: Sequence[tuple[list[int], list[int]]]
) -> Iterator[tuple[list[int], list[int], list[Block]]]:
    """The runs that blocks reach into, those of one block together, each with its blocks."""
    spans: list[tuple[int, int, list[Block]]] = []
    for block in blocks:
        touched = [index for index, (entering, _) in enumerate(runs) if set(entering) & set(block.dims)]
        low, high, inside = touched[0], touched[-1], [block]
        for span in [span for span in spans if span[0] <= high and low <= span[1]]:
            spans.remove(span)
            low, high, inside = min(low, span[0]), max(high, span[1]), [*span[2], *inside]
        spans.append((low, high, inside))
    for low, high, inside in spans:
        entering = [dim for run in runs[low : high + 1] for dim in run[0]]
        leaving = [dim for run in runs[low : high + 1] for dim in run[1]]
        yield entering, leaving, inside


def _runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Shortest runs of dimensions with equal products; dimensions of one carry nothing and are left out."""
    left = [(index, size) for index, size in enumerate(before) if size != 1]
    right = [(index, size) for index, size in enumerate(after) if size != 1]
    while left and right:
        entering, leaving = [left.pop(0)], [right.pop(0)]
        while True:
            a, b = math.prod(size for _, size in entering), math.prod(size for _, size in leaving)
            if a == b:
                break
            (entering.append(left.pop(0)) if a < b else leaving.append(right.pop(0)))
        yield [index for index, _ in entering], [index for index, _ in leaving]
