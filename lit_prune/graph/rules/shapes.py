"""Changes of shape: the same values in other dimensions."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lit_prune.graph.labels import Row
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block, reshape


@register_rule("view", "reshape", "unsafe_view", "view_copy", "reshape_alias")
def _view(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    if not source.numel():
        trace.freeze_inputs(op, "is empty")
        return
    blocks = trace.blocks(source)
    result = reshape(blocks, source.shape, op.output.shape)
    if result.merged:
        # What is alike takes the place of nothing that counts.
        firm = [block for block in blocks if not trace.labels.is_loose(block.labels)]
        result = reshape(firm, source.shape, op.output.shape) if firm else result
    trace.freeze([block.labels for block in result.merged], "is merged with another tracked dimension")
    for block in result.crossed:
        pieces = block.led_by(block.dims[-1])
        trace.labels.join(pieces[:, :1], pieces)
    trace.recording.views.setdefault(trace.layer, []).append((op.output.shape, result.folds))
    for block in result.folds:
        trace.labels.fold(block.labels.reshape(-1, block.labels.shape[-1]), may_be_whole=True)
    trace.assign_blocks(op.output, result.blocks)


@register_rule("as_strided")
def _as_strided(trace: Tracer, op: Operation) -> None:
    # The same shape with other strides: the memory format changes, not the value.
    source = op["self"]
    if op.output.shape == source.shape and not op["storage_offset"]:
        trace.assign_blocks(op.output, trace.blocks(source))
    else:
        trace.freeze_inputs(op, "is read with strides")


@register_rule("permute", "permute_copy")
def _permute(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    place = {old % source.dim(): new for new, old in enumerate(op["dims"])}
    trace.assign_blocks(op.output, [block.moved(place) for block in trace.blocks(source)])


@register_rule("transpose", "t", "numpy_T", "swapaxes", "transpose_copy")
def _transpose(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    place = {dim: dim for dim in range(source.dim())}
    if source.dim() > 1:
        first, second = op.get("dim0", 0) % source.dim(), op.get("dim1", 1) % source.dim()
        place[first], place[second] = second, first
    trace.assign_blocks(op.output, [block.moved(place) for block in trace.blocks(source)])


@register_rule("unsqueeze")
def _unsqueeze(trace: Tracer, op: Operation) -> None:
    new = op["dim"] % op.output.dim()
    place = {dim: dim + (dim >= new) for dim in range(op["self"].dim())}
    trace.assign_blocks(op.output, [block.moved(place) for block in trace.blocks(op["self"])])


@register_rule("squeeze")
def _squeeze(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    named = op.get("dim")
    dims = range(source.dim()) if named is None else [named] if isinstance(named, int) else named
    gone = {dim % source.dim() for dim in dims if source.shape[dim] == 1}
    stays = [dim for dim in range(source.dim()) if dim not in gone]
    place = {old: new for new, old in enumerate(stays)}
    trace.assign_blocks(op.output, [block.moved(place) for block in trace.blocks(source)])


@register_rule("expand", "expand_copy")
def _expand(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    offset = op.output.dim() - source.dim()
    place = {dim: dim + offset for dim in range(source.dim())}
    trace.assign_blocks(
        op.output, [*(block.moved(place) for block in trace.blocks(source)), *spread(trace, source, op.output)]
    )


def spread(trace: Tracer, source: Tensor, output: Tensor) -> list[Block]:
    """What dimensions carry along which one value was repeated, those in front included."""
    offset = output.dim() - source.dim()
    return [
        Block((dim,), trace.labels.even(size))
        for dim, size in enumerate(output.shape)
        if size > 1 and (dim < offset or source.shape[dim - offset] == 1)
    ]


def put_together(trace: Tracer, channels: Row | None, number: int) -> Row | None:
    """What channels carry that are made of ``number`` neighbours each, which go together: pixels, places of a patch."""
    if channels is None:
        return None
    pieces = channels.reshape(-1, number)
    trace.labels.join(pieces[:, :1], pieces)
    if len(pieces) > 1:
        return pieces[:, 0]
    trace.freeze([pieces], "becomes the only channel")
    return None


@register_rule("pixel_shuffle")
def _pixel_shuffle(trace: Tracer, op: Operation) -> None:
    rows = trace.channels(op["self"], -3)
    trace.freeze(rows[-2:], "is shuffled into space")
    channels = put_together(trace, rows[-3], int(op["upscale_factor"]) ** 2)
    trace.assign(op.output, [*rows[:-3], channels, None, None])


@register_rule("pixel_unshuffle")
def _pixel_unshuffle(trace: Tracer, op: Operation) -> None:
    rows = trace.channels(op["self"], -3)
    trace.freeze(rows[-2:], "is shuffled out of space")
    channels = None if rows[-3] is None else np.repeat(rows[-3], int(op["downscale_factor"]) ** 2)
    trace.assign(op.output, [*rows[:-3], channels, None, None])


@register_rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(trace: Tracer, op: Operation) -> None:
    source, groups = op["self"], int(op["groups"])
    row = trace.row(source, 1)
    rest = [block for block in trace.blocks(source) if 1 not in block.dims]
    if row is not None and 1 < groups < len(row):
        # Only what goes from all groups alike leaves the others in their order.
        pieces = row.reshape(groups, -1)
        trace.labels.join(pieces[:1], pieces)
        row = pieces.T.ravel()
    trace.assign_blocks(op.output, rest if row is None else [*rest, Block((1,), row)])
