"""Pooling, resampling and padding: what runs beside the channels."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from lit_prune.graph.rules.elementwise import run_over
from lit_prune.graph.rules.shapes import put_together
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block


@register_rule(
    *"adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices "
    "max_pool2d_with_indices max_pool3d_with_indices mkldnn_adaptive_avg_pool2d reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d "
    "upsample_bilinear2d upsample_bilinear2d_aa upsample_bicubic2d upsample_bicubic2d_aa upsample_linear1d "
    "upsample_trilinear3d".split()
)
def _spatial(trace: Tracer, op: Operation) -> None:
    space = next(int(digit) for digit, letter in pairwise(op.name) if digit in "123" and letter == "d")
    rows = trace.channels(op.tensors()[0], -space - 1)
    trace.freeze(rows[-space:], f"{op.name} runs over it")
    for output in op.outputs():
        trace.assign(output, [*rows[:-space], *[None] * space])


@register_rule("constant_pad_nd", "pad")
def _pad(trace: Tracer, op: Operation) -> None:
    source, pad = op["self"], op["pad"]
    widths = {source.dim() - 1 - index: (pad[2 * index], pad[2 * index + 1]) for index in range(len(pad) // 2)}
    blocks = []
    for block in trace.blocks(source):
        padded = [dim for dim in block.dims if widths.get(dim, (0, 0)) != (0, 0)]
        if len(block.dims) == 1 and padded and min(widths[padded[0]]) >= 0:
            # What is added stays, and moves with the rest.
            before, after = (trace.labels.fresh(width) for width in widths[padded[0]])
            trace.freeze([before, after], "is added as padding")
            blocks.append(Block(block.dims, np.concatenate([before, block.labels, after])))
        elif padded:
            trace.freeze([block.labels], "is padded")
        else:
            blocks.append(block)
    trace.assign_blocks(op.output, blocks)


@register_rule("grid_sampler_2d", "grid_sampler_3d")
def _grid_sampler(trace: Tracer, op: Operation) -> None:
    image = trace.channels(op["input"])
    trace.freeze([*image[2:], *trace.rows(op["grid"])], "is a sampling grid")
    trace.assign(op.output, [*image[:2], *[None] * (len(image) - 2)])


@register_rule("torchvision::roi_align", "torchvision::roi_pool")
def _regions(trace: Tracer, op: Operation) -> None:
    maps = trace.channels(op["input"])
    trace.freeze([maps[0], *maps[2:], *trace.rows(op["rois"])], "says where to look")
    for output in op.outputs():
        trace.assign(output, [None, maps[1], None, None])


@register_rule("unfold")
def _unfold(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    dim = op["dimension"] % source.dim()
    trace.assign_blocks(op.output, run_over(trace, trace.blocks(source), {dim}, "is cut into windows"))


@register_rule("im2col")
def _im2col(trace: Tracer, op: Operation) -> None:
    source, kernel = op["self"], math.prod(op["kernel_size"])
    rows = trace.channels(source, -3)
    trace.freeze(rows[-2:], "is cut into patches")
    trace.assign(op.output, [*rows[:-3], None if rows[-3] is None else np.repeat(rows[-3], kernel), None])


@register_rule("col2im")
def _col2im(trace: Tracer, op: Operation) -> None:
    rows = trace.channels(op["self"], -2)
    trace.freeze(rows[-1:], "is put together from patches")
    channels = put_together(trace, rows[-2], math.prod(op["kernel_size"]))
    trace.assign(op.output, [*rows[:-2], channels, None, None])


@register_rule("rot90")
def _turn(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    over = {dim % source.dim() for dim in op["dims"]}
    trace.assign_blocks(op.output, run_over(trace, trace.blocks(source), over, "is turned"))
