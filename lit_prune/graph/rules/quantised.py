"""Fake quantisation: each value is rounded by itself, to a scale that follows from the range of all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer


@register_rule("fused_moving_avg_obs_fq_helper")
def _observed(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    axis = op["ch_axis"] % source.dim() if op["per_row_fake_quant"] else None
    # The range is of the channels that are left; of rows each has its own.
    over = [block.labels for block in trace.blocks(source) if block.dims != (axis,)]
    trace.vanishing.rely([], over, trace.layer)
    own = [op[name] for name in ("running_min", "running_max", "scale", "zero_point")]
    _quantised(trace, op, axis, own)


@register_rule("fake_quantize_per_channel_affine_cachemask", "fake_quantize_learnable_per_channel_affine")
def _per_channel(trace: Tracer, op: Operation) -> None:
    _quantised(trace, op, op["axis"] % op["self"].dim(), [op["scale"], op["zero_point"]])


@register_rule(
    "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_learnable_per_tensor_affine",
)
def _per_tensor(trace: Tracer, op: Operation) -> None:
    _quantised(trace, op, None, [])


@register_rule("resize")
def _resize(trace: Tracer, op: Operation) -> None:
    # An observer gives its buffers the size that it is about to write, mostly the one that they have.
    before, size = trace.blocks(op["self"]), op["size"]
    if all(block.labels.size == size[block.dims[0]] for block in before if len(block.dims) == 1):
        trace.assign_blocks(op.output, before)
    else:
        trace.freeze_inputs(op, "is resized")


def _quantised(trace: Tracer, op: Operation, axis: int | None, own: Sequence[Tensor]) -> None:
    """What comes out is as what went in; ``own`` has a number for each index of ``axis``."""
    source = op["self"]
    if axis is not None and source.shape[axis] > 1:
        rows = [trace.row(tensor, 0) for tensor in own if tensor.numel() == source.shape[axis]]
        trace.unite([trace.row(source, axis), *rows], "is quantised with what is not tracked")
    for output in op.outputs():
        trace.assign_blocks(output, trace.blocks(source))
