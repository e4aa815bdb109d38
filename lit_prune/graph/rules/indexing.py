"""Picking and writing by index: what lies along the indexed dimensions is moved about, all other dimensions pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_prune.graph.rules.elementwise import run_over, write
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block

_MASKS = (torch.bool, torch.uint8)


@register_rule("index")
def _index(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    place, _ = _places(source, op["indices"])
    _freeze_indexed(trace, source, op["indices"], place, "is picked from by index")
    kept = [block for block in trace.blocks(source) if place.keys() >= set(block.dims)]
    trace.assign_blocks(op.output, [block.moved(place) for block in kept])


@register_rule("index_put", "index_put_impl")
def _index_put(trace: Tracer, op: Operation) -> None:
    source, values = op["self"], op["values"]
    place, wide = _places(source, op["indices"])
    _freeze_indexed(trace, source, op["indices"], place, "is written to by index")
    shape = [1] * (len(place) + wide)
    for old, new in place.items():
        shape[new] = source.shape[old]
    inside = set(range(len(shape))) - set(place.values())
    offset = len(shape) - values.dim()
    run = run_over(trace, trace.blocks(values), {dim - offset for dim in inside}, "is placed by index")
    kept = [block for block in trace.blocks(source) if place.keys() >= set(block.dims)]
    for block in kept:
        write(trace, source, block, [(values, {place[dim] - len(shape) for dim in block.dims})])
    sides = [(shape, [block.moved(place) for block in kept]), (_without(values, inside, offset), run)]
    trace.meet_blocks(shape, sides, "is written over with what is not tracked")
    trace.assign_blocks(op.output, kept)


def _places(source: Tensor, indices: Sequence[Tensor | None]) -> tuple[dict[int, int], int]:
    """Where the dimensions lie that are not indexed, once the others are picked from; and of how many the picked are.

    As in NumPy: in place of the indexed ones where these lie side by side, else in front.
    """
    indexed: list[int] = []
    dim = wide = 0
    for index in indices:
        used = 1 if index is None or index.dtype not in _MASKS else index.dim()
        if index is not None:
            indexed.extend(range(dim, dim + used))
            wide = max(wide, 1 if index.dtype in _MASKS else index.dim())
        dim += used
    beside = indexed == list(range(indexed[0], indexed[-1] + 1))
    first = indexed[0] if beside else 0
    rest = [dim for dim in range(source.dim()) if dim not in indexed]
    return {old: new if new < first else new + wide for new, old in enumerate(rest)}, wide


def _freeze_indexed(
    trace: Tracer, source: Tensor, indices: Sequence[Tensor | None], place: dict[int, int], reason: str
) -> None:
    trace.freeze([block.labels for block in trace.blocks(source) if not place.keys() >= set(block.dims)], reason)
    for index in indices:
        trace.freeze([block.labels for block in trace.blocks(index)], "is an index")


def _without(tensor: Tensor, dims: set[int], offset: int) -> list[int]:
    """The shape of a tensor, with one in place of some dimensions."""
    return [1 if dim + offset in dims else size for dim, size in enumerate(tensor.shape)]


@register_rule("index_select")
def _index_select(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    dim = op["dim"] % max(1, source.dim())
    trace.freeze([trace.row(source, dim)], "is picked from by index")
    trace.assign_blocks(op.output, [block for block in trace.blocks(source) if dim not in block.dims])


@register_rule("gather")
def _gather(trace: Tracer, op: Operation) -> None:
    source, index = op["self"], op["index"]
    dim = op["dim"] % max(1, source.dim())
    left = run_over(trace, trace.blocks(source), {dim}, "gather picks from it")
    trace.assign_blocks(op.output, _along(trace, left, source, index, "gather picks from it"))


def _along(trace: Tracer, blocks: Sequence[Block], source: Tensor, index: Tensor, reason: str) -> list[Block]:
    """Those blocks along whose dimensions an index picks everywhere the same; the others are unprunable."""
    kept = []
    for block in blocks:
        whole = all(index.shape[dim] == source.shape[dim] for dim in block.dims)
        if whole and not trace.is_firm(index, {dim - index.dim() for dim in block.dims}):
            kept.append(block)
        else:
            trace.freeze([block.labels], reason)
    return kept


@register_rule(*"scatter scatter_add scatter_reduce index_add index_copy index_fill".split())
def _scatter(trace: Tracer, op: Operation) -> None:
    target, index = op["self"], op["index"]
    values = op.get("src", op.get("source"))
    dim = op["dim"] % max(1, target.dim())
    reason = f"{op.name} writes to it"
    left = run_over(trace, trace.blocks(target), {dim}, reason)
    if index.dim() == target.dim() and "index" not in op.name:
        left = _along(trace, left, target, index, reason)
    if isinstance(values, Tensor):
        moved = run_over(trace, trace.blocks(values), {dim}, f"{op.name} places it")
        for block in left:
            write(trace, target, block, [(values, {d - target.dim() for d in block.dims})])
        sides = [(_without(side, {dim}, 0), blocks) for side, blocks in ((target, left), (values, moved))]
        if values.dim() == target.dim() and sides[0][0] == sides[1][0]:
            left = trace.meet_blocks(sides[0][0], sides, "is written over with what is not tracked")
        else:
            trace.freeze([block.labels for block in (*left, *moved)], reason)
    else:
        for block in left:
            write(trace, target, block, [])
    trace.assign_blocks(op.output, left)


@register_rule("masked_scatter")
def _masked_scatter(trace: Tracer, op: Operation) -> None:
    target, mask, source = op["self"], op["mask"], op["source"]
    last = target.dim() - 1
    reason = "is written over with what is not tracked"
    rows = trace.row(target, last), trace.row(source, -1)
    if source.shape[-1:] == target.shape[-1:] and not trace.is_firm(mask, {-1}) and rows[0] is not None:
        # Values are taken one after the other: whole rows of them, as each is written whole.
        write(trace, target, Block((last,), rows[0]), [(source, {-1})])
        trace.unite(rows, reason)
    else:
        trace.freeze(rows, reason)
    run_over(trace, trace.blocks(source), set(range(source.dim() - 1)), "masked_scatter places it")
    run_over(trace, trace.blocks(target), set(range(last)), "masked_scatter writes to it")
    trace.freeze([block.labels for block in trace.blocks(mask)], "is a mask")
    trace.assign(op.output, [None] * last + [trace.row(target, last)])


@register_rule("topk", "sort", "argsort", "kthvalue")
def _ordered(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    kept = run_over(trace, trace.blocks(source), {op["dim"] % max(1, source.dim())}, f"{op.name} picks from it")
    for output in op.outputs():
        same = output.dim() == source.dim()
        place = {d: d - (not same and d > op["dim"] % source.dim()) for d in range(source.dim())}
        trace.assign_blocks(output, [block.moved(place) for block in kept])


@register_rule(*"nonzero masked_select unique unique2 take take_along_dim bincount searchsorted one_hot".split())
def _pick(trace: Tracer, op: Operation) -> None:
    trace.freeze_inputs(op, f"{op.name} picks from it")
