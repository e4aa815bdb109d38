"""Values that are combined index by index: which labels that joins, and what the result carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lit_prune.graph.labels import Labels, Row
from lit_prune.graph.values import Block

Values = Sequence[tuple[Sequence[int], Sequence[Block]]]


def meet_blocks(
    labels: Labels,
    statistics: Mapping[int, Row],
    freeze: Callable[[Sequence[Row]], None],
    shape: Sequence[int],
    values: Values,
) -> list[Block]:
    """Join values of which the shape and the blocks are known, broadcast from the right to ``shape``.

    Args:
        labels: Where they are joined.
        statistics: What stands for whole pieces, by its first label.
        freeze: What to do with labels that meet untracked values.
        shape: Of the result.
        values: Shape and blocks of each.

    Returns:
        The blocks of the result.
    """
    moved = []
    loose_blocks = []
    for own, carried in values:
        offset = len(shape) - len(own)
        blocks = [block.moved({dim: dim + offset for dim in block.dims}) for block in carried] if offset else carried
        wide = {dim + offset for dim, size in enumerate(own) if size > 1}
        firm = []
        for block in blocks:
            if labels.is_loose(block.labels) or _stands_for(statistics, block, len(shape), values):
                # It is like a dimension of one: what it meets says how long it is.
                loose_blocks.append(block)
                wide.difference_update(block.dims)
            else:
                firm.append(block)
        moved.append((firm, wide))
    result = []
    for connected in _connected([block.dims for blocks, _ in moved for block in blocks]):
        dims = connected
        arrays: list[Row] = []
        untracked = False
        loose: set[int] = set()
        for blocks, wide in moved:
            mine = [block for block in blocks if block.dims[0] in dims]
            arrays.extend(block.over(dims) for block in mine)
            reached = {dim for block in mine for dim in block.dims}
            missing = (wide & set(dims)) - reached
            # Rows of their own against one block over both: no removal of the one is one of the other.
            untracked |= len(mine) > 1 or missing == set(dims)
            loose |= missing
        if untracked or loose == set(dims):
            freeze(arrays)
            if all(map(labels.is_even, arrays)):
                continue
        elif loose:
            # Along a dimension that is not tracked nothing is lost: what lies along it goes together.
            thin = [array[tuple(slice(1) if dim in loose else slice(None) for dim in dims)] for array in arrays]
            for first, array in zip(thin, arrays, strict=True):
                labels.join(first, array)
            axes = tuple(axis for axis, dim in enumerate(dims) if dim in loose)
            arrays, dims = [array.squeeze(axes) for array in thin], [dim for dim in dims if dim not in loose]
        arrays.sort(key=lambda array: -array.size)
        for array in arrays[1:]:
            labels.join(arrays[0], array)
        result.append(Block(tuple(dims), np.broadcast_to(arrays[0], [shape[dim] for dim in dims])))
    taken = {dim for _, wide in moved for dim in wide} if loose_blocks else set()
    for block in loose_blocks:
        if taken.isdisjoint(block.dims) and block.labels.shape == tuple(shape[dim] for dim in block.dims):
            result.append(block)
            taken.update(block.dims)
    return result


def _stands_for(statistics: Mapping[int, Row], block: Block, rank: int, values: Values) -> bool:
    """Whether a block holds the statistics of pieces, one label each, and meets these very pieces here."""
    pieces = statistics.get(int(block.labels.flat[0])) if statistics and block.labels.ndim == 1 else None
    if pieces is None:
        return False
    for own, blocks in values:
        dim = block.dims[0] - rank + len(own)
        for other in blocks:
            if dim in other.dims and len(other.dims) > 1 and np.array_equal(other.led_by(dim), pieces):
                return True
    return False


def _connected(spans: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Dimensions that some block spans together, each set sorted."""
    found: list[set[int]] = []
    for span in spans:
        joined = set(span)
        for other in [other for other in found if other & joined]:
            found.remove(other)
            joined |= other
        found.append(joined)
    return sorted(sorted(dims) for dims in found)
