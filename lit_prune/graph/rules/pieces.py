"""Putting together and taking apart along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from lit_prune.common._compat import memory_of
from lit_prune.graph.labels import Row
from lit_prune.graph.rules.shapes import spread
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block


@register_rule("cat", "concat", "concatenate")
def _cat(trace: Tracer, op: Operation) -> None:
    # Torch ignores empty one-dimensional tensors here.
    tensors = [tensor for tensor in op["tensors"] if tensor.numel() or tensor.dim() > 1]
    dim = op["dim"] % tensors[0].dim()
    # Rows along the dimension are put one after the other; along all others the values meet.
    rows = [trace.row(tensor, dim) for tensor in tensors]
    blocks = _join_other_dims(trace, tensors, dim, "is concatenated with what is not tracked")
    if any(row is not None for row in rows):
        known = [_known(trace, row, tensor.shape[dim]) for row, tensor in zip(rows, tensors, strict=True)]
        blocks.append(Block((dim,), np.concatenate(known)))
    trace.assign_blocks(op.output, blocks)


def _known(trace: Tracer, row: Row | None, size: int) -> Row:
    if row is None:
        row = trace.labels.fresh(size)
        trace.freeze([row], "is not tracked")
    return row


def _join_other_dims(trace: Tracer, tensors: Sequence[Tensor], dim: int, reason: str) -> list[Block]:
    """Join values along all dimensions but one; empty pieces have nothing to say."""
    narrow = []
    for tensor in tensors:
        if tensor.shape[dim]:
            kept = [block for block in trace.blocks(tensor) if dim not in block.dims]
            shape = (*tensor.shape[:dim], *tensor.shape[dim + 1 :])
            narrow.append((shape, [block.moved({d: d - (d > dim) for d in block.dims}) for block in kept]))
    met = trace.meet_blocks(narrow[0][0], narrow, reason)
    return [block.moved({d: d + (d >= dim) for d in block.dims}) for block in met]


@register_rule("stack")
def _stack(trace: Tracer, op: Operation) -> None:
    tensors = op["tensors"]
    dim = op["dim"] % op.output.dim()
    met = trace.meet(tensors[0].shape, tensors, "is stacked with what is not tracked")
    trace.assign_blocks(op.output, [block.moved({d: d + (d >= dim) for d in block.dims}) for block in met])


@register_rule(
    "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "tensor_split"
)
def _split(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    dim = op["dim"] % source.dim()
    sizes = [output.shape[dim] for output in op.output]
    bounds = np.cumsum([0, *sizes])
    parts = [_cut(trace, source, dim, slice(a, b)) for a, b in pairwise(bounds)]
    rows = [block.labels for part in parts for block in part if block.dims == (dim,)]
    if len(sizes) > 1 and len(rows) == len(sizes):
        if len(set(sizes)) == 1:
            trace.labels.fold(np.stack(rows))
        else:
            _part(trace, source, rows)
    for output, part in zip(op.output, parts, strict=True):
        trace.assign_blocks(output, _widened(trace, output, part))


@register_rule("glu")
def _glu(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    dim = op["dim"] % source.dim()
    half = op.output.shape[dim]
    parts = [_cut(trace, source, dim, taken) for taken in (slice(half), slice(half, None))]
    rows = [block.labels for part in parts for block in part if block.dims == (dim,)]
    if rows:
        trace.labels.fold(np.stack(rows))
    met = trace.meet_blocks(op.output.shape, [(op.output.shape, part) for part in parts], "meets what is not tracked")
    trace.assign_blocks(op.output, _widened(trace, op.output, met))


@register_rule("slice")
def _slice(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    dim = op["dim"] % source.dim()
    if op.output.shape[dim] == source.shape[dim]:
        trace.assign_blocks(op.output, trace.blocks(source))
        return
    taken = slice(op["start"], op["end"], op["step"])
    part = _cut(trace, source, dim, taken)
    row = next((block.labels for block in trace.blocks(source) if block.dims == (dim,)), None)
    if row is not None:
        step, first = op["step"] or 1, (op["start"] or 0) % len(row)
        if step == 1:
            end = first + op.output.shape[dim]
            _part(trace, source, [piece for piece in (row[first:end], row[:first], row[end:]) if len(piece)])
        elif len(row) % step or first >= step or op.output.shape[dim] != len(row) // step:
            trace.freeze([row], "is sliced with a step")
        else:
            # One of each few that lie side by side: they go together, or the others would change their places.
            trace.labels.join(row.reshape(-1, step)[:, :1], row.reshape(-1, step))
            trace.cuts.append((memory_of(source), row[taken]))
    trace.assign_blocks(op.output, _widened(trace, op.output, part))


def _part(trace: Tracer, source: Tensor, pieces: Sequence[Row]) -> None:
    """Note that pieces of unequal sizes are taken out of a value."""
    trace.labels.part(pieces)
    for piece in pieces:
        trace.recording.pieces.append((trace.layer, piece))
        trace.cuts.append((memory_of(source), piece))


def _cut(trace: Tracer, source: Tensor, dim: int, taken: slice) -> list[Block]:
    """The blocks of a stretch of ``source``; stretches of a block over several dimensions are folds of their own."""
    part = []
    for block in trace.blocks(source):
        if dim in block.dims:
            axis = block.dims.index(dim)
            labels = block.labels[(slice(None),) * axis + (taken,)]
            if len(block.dims) > 1 and labels.size:
                trace.labels.part([labels.ravel()])
            part.append(Block(block.dims, labels))
        else:
            part.append(block)
    return part


def _widened(trace: Tracer, output: Tensor, blocks: list[Block]) -> list[Block]:
    """Without dimensions of one: such a piece is broadcast where it meets others, and can't be lost."""
    kept = []
    for block in blocks:
        thin = [dim for dim in block.dims if output.shape[dim] == 1]
        if thin and len(block.dims) == 1:
            trace.freeze([block.labels], "is a piece of one channel")
        elif thin:
            axes = tuple(block.dims.index(dim) for dim in thin)
            kept.append(Block(tuple(dim for dim in block.dims if dim not in thin), block.labels.squeeze(axes)))
        elif all(output.shape[dim] for dim in block.dims):
            kept.append(block)
    return kept


@register_rule("select", "unbind")
def _select(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    dim = op["dim"] % source.dim()
    for number, output in enumerate(op.outputs()):
        index = op["index"] if op.name == "select" else number
        place = {d: d - (d > dim) for d in range(source.dim())}
        blocks = []
        for block in trace.blocks(source):
            if dim not in block.dims:
                blocks.append(block.moved(place))
            elif len(block.dims) == 1:
                trace.freeze([block.labels], "is picked from one by one")
            else:
                labels = np.asarray(block.labels.take(index, block.dims.index(dim)))
                blocks.append(Block(tuple(place[d] for d in block.dims if d != dim), labels))
        trace.assign_blocks(output, blocks)


@register_rule("pack_padded_sequence")
def _pack(trace: Tracer, op: Operation) -> None:
    # Steps of all sequences, one after the other.
    rows = trace.rows(op["input"])
    trace.freeze(rows[:2], "is a batch or a step")
    trace.assign(op.outputs()[0], [None, *rows[2:]])


@register_rule("pad_packed_sequence")
def _pad_packed(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["data"])
    trace.assign(op.outputs()[0], [None, None, *rows[1:]])


@register_rule("roll", "flip")
def _move(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    for dim in op["dims"] or range(source.dim()):
        trace.freeze([trace.row(source, dim)], f"{op.name} moves it")
    trace.assign_blocks(op.output, trace.blocks(source))


@register_rule("repeat")
def _repeat(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    offset = op.output.dim() - source.dim()
    blocks = spread(trace, source, op.output)
    for block in trace.blocks(source):
        times = [op["repeats"][dim + offset] for dim in block.dims]
        blocks.append(Block(tuple(dim + offset for dim in block.dims), np.tile(block.labels, times)))
    trace.assign_blocks(op.output, blocks)
