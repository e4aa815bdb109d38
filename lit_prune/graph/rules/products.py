"""Convolutions and matrix products: what is contracted lives with the weight that it meets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lit_prune.graph.labels import Row
from lit_prune.graph.rules.elementwise import run_over
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Product, Rows, Tracer
from lit_prune.graph.values import Block
from lit_prune.modules.registry import MULTIPLIER


@register_rule("convolution", "conv1d", "conv2d", "conv3d", "cudnn_convolution", "mkldnn_convolution")
def _convolution(trace: Tracer, op: Operation) -> None:
    image, weight, bias = op["input"], op["weight"], op.get("bias")
    transposed, groups = bool(op.get("transposed", False)), int(op.get("groups", 1))
    entering, w = trace.row(image, 1), trace.rows(weight)
    trace.freeze([trace.row(image, dim) for dim in range(2, image.dim())], "is convolved over")
    trace.freeze(w[2:], "is a kernel dimension")
    if groups == 1:
        leaving, used = (w[1], w[0]) if transposed else (w[0], w[1])
        trace.unite([entering, used] if image.shape[1] > 1 else [], "has an input that is not tracked")
        rely(trace, [image, weight], [used])
    elif image.shape[1] == groups and getattr(trace.network.get_submodule(trace.layer), MULTIPLIER, 1):
        leaving = _depthwise(trace, entering, w, weight, groups, transposed)
    else:
        leaving = _grouped(trace, entering, w, groups, transposed)
    if bias is not None:
        trace.unite([leaving, *trace.rows(bias)], "has an untracked bias")
    if leaving is not None:
        trace.recording.produced.append(leaving)
    examples = trace.row(image, 0)
    trace.assign(op.output, [examples, leaving, *[None] * (image.dim() - 2)])
    batch, _, *space = (image if transposed else op.output).shape
    sides = [(examples, batch), *zip(w[:2], weight.shape[:2], strict=True)]
    count(trace, math.prod(space) * math.prod(weight.shape[2:]), sides)


@register_rule("torchvision::deform_conv2d")
def _deformed(trace: Tracer, op: Operation) -> None:
    image, weight, groups = op["input"], op["weight"], int(op["groups"])
    entering, w = trace.channels(image)[1], trace.rows(weight)
    trace.freeze(trace.rows(image)[2:], "is convolved over")
    trace.freeze(w[2:], "is a kernel dimension")
    for side in ("offset", "mask"):
        trace.freeze(trace.channels(op[side]), f"is the {side} of a deformable convolution")
    if entering is not None and op["offset_groups"] > 1:
        trace.labels.fold(entering.reshape(op["offset_groups"], -1))
    if groups == 1:
        leaving = w[0]
        trace.unite([entering, w[1]] if image.shape[1] > 1 else [], "has an input that is not tracked")
    elif image.shape[1] == groups:
        leaving = _depthwise(trace, entering, w, weight, groups, transposed=False)
    else:
        leaving = _grouped(trace, entering, w, groups, transposed=False)
    if op.get("bias") is not None and op["bias"].numel() == len(weight):
        # Without one it is given zeros.
        trace.unite([leaving, trace.row(op["bias"], 0)], "has an untracked bias")
    if leaving is not None:
        trace.recording.produced.append(leaving)
    trace.freeze([trace.row(image, 0)], "is a batch of a deformable convolution")
    trace.assign(op.output, [None, leaving, None, None])
    batch, _, *space = op.output.shape
    count(trace, batch * math.prod(space) * math.prod(weight.shape[2:]), [*zip(w[:2], weight.shape[:2], strict=True)])


def _depthwise(
    trace: Tracer, entering: Row | None, w: Rows, weight: Tensor, groups: int, transposed: bool
) -> Row | None:
    """One input channel a group, each with its own outputs: they go with it."""
    multiplier = weight.shape[1] if transposed else weight.shape[0] // groups
    if transposed:
        trace.freeze([w[1]], "is the multiplier of a depthwise convolution")
        trace.unite([entering, w[0]], "has an input that is not tracked")
        return None if w[0] is None else np.repeat(w[0], multiplier)
    repeated = None if entering is None else np.repeat(entering, multiplier)
    return trace.unite([w[0], repeated], "has an input that is not tracked")


def _grouped(trace: Tracer, entering: Row | None, w: Rows, groups: int, transposed: bool) -> Row | None:
    """All groups must keep equally many, of what enters as of what leaves."""
    into, shared = (w[0], w[1]) if transposed else (w[1], w[0])
    trace.recording.grouped += [row for row in (into, shared) if row is not None]
    if transposed:
        # (inputs, outputs a group): one row of labels serves the outputs of all groups.
        trace.unite([entering, into], "has an input that is not tracked")
        if into is not None:
            trace.labels.fold(into.reshape(groups, -1))
        return None if shared is None else np.tile(shared, groups)
    if entering is not None and into is None:
        trace.freeze([entering], "is a grouped convolution with one input a group")
    elif into is not None:
        # (outputs, inputs a group): one row of labels serves the inputs of all groups.
        trace.unite([into, None if entering is None else entering.reshape(groups, -1)], "has an untracked input")
    if shared is not None:
        trace.labels.fold(shared.reshape(groups, -1))
    return shared


@register_rule("mm", "addmm")
def _matrix_product(trace: Tracer, op: Operation) -> None:
    first, second = (op["mat1"], op["mat2"]) if "mat1" in op.arguments else (op["self"], op["mat2"])
    a, b = trace.rows(first), trace.rows(second)
    across = None
    if first.shape[1] > 1:
        across = trace.unite([a[1], b[0]], "has an input that is not tracked")
        rely(trace, [second, first], [b[0]])
    leaving = b[1]
    if op.name == "addmm":
        bias = trace.rows(op["self"])
        trace.freeze(bias[:-1], "is broadcast over a product")
        if second.shape[1] > 1:
            trace.unite([leaving, *bias[-1:]], "has an untracked bias")
    if leaving is not None:
        trace.recording.produced.append(leaving)
    trace.assign(op.output, [a[0], leaving])
    count(trace, 1, [(a[0], first.shape[0]), (across, first.shape[1]), (leaving, second.shape[1])])


@register_rule("linear")
def _linear(trace: Tracer, op: Operation) -> None:
    entering, weight = trace.rows(op["input"]), trace.rows(op["weight"])
    if op["weight"].shape[1] > 1:
        trace.unite([entering[-1], weight[1]], "has an input that is not tracked")
        rely(trace, [op["weight"], op["input"]], [weight[1]])
    if weight[0] is not None:
        trace.unite([weight[0], *trace.rows(op.get("bias"))], "has an untracked bias")
        trace.recording.produced.append(weight[0])
    trace.assign(op.output, [*entering[:-1], weight[0]])
    leading = [*zip(entering[:-1], op["input"].shape[:-1], strict=True)]
    count(trace, 1, [*leading, *zip(weight, op["weight"].shape, strict=True)])


@register_rule("bmm", "baddbmm")
def _batched_product(trace: Tracer, op: Operation) -> None:
    first, second = (op["batch1"], op["batch2"]) if "batch1" in op.arguments else (op["self"], op["mat2"])
    left, right = piece(trace, first, 0, 1), piece(trace, second, 0, 2)
    inner = [piece(trace, first, 0, 2), piece(trace, second, 0, 1)]
    if sum(any(block and 0 in block.dims for block in blocks) for blocks in ([left], [right], inner)) > 1:
        # Only one of what is contracted and what leaves may span the batch: the others are tied over it.
        left, right = rowed(trace, first, 1), rowed(trace, second, 2)
        inner = [rowed(trace, first, 2), rowed(trace, second, 1)]
    batch = None
    if first.shape[0] > 1:
        batch = trace.unite([trace.heads(first, 0), trace.heads(second, 0)], "is a batch dimension on one side only")
    contracted = join_contracted(trace, (first, second), inner, ((0, 2), (0, 1))) if first.shape[2] > 1 else None
    leaving = [block for block in (left, right) if block is not None]
    spanned = any(0 in block.dims for block in leaving)
    trace.assign_blocks(op.output, leaving if spanned or batch is None else [*leaving, Block((0,), batch)])
    if op.name == "baddbmm":
        trace.freeze_inputs(op, "is added to a batched product")
    spans = spanned or (contracted is not None and contracted.ndim > 1)
    count(
        trace,
        1,
        [
            (None, 1) if spans else (batch, first.shape[0]),
            (None if left is None else left.labels, first.shape[1]),
            (contracted, first.shape[2]),
            (None if right is None else right.labels, second.shape[2]),
        ],
    )


def piece(trace: Tracer, tensor: Tensor, batch: int, dim: int) -> Block | None:
    """What dimension ``dim`` carries: a row, or a block over it and the batch."""
    for block in trace.blocks(tensor):
        if dim in block.dims:
            return block if set(block.dims) <= {batch, dim} else rowed(trace, tensor, dim)
    return None


def rowed(trace: Tracer, tensor: Tensor, dim: int) -> Block | None:
    """What dimension ``dim`` carries, tied over whatever else its block spans."""
    row = trace.row(tensor, dim)
    return None if row is None else Block((dim,), row)


def rely(trace: Tracer, values: Sequence[Tensor], rows: Sequence[Row | None]) -> None:
    """Note what is summed over: unless one factor is zero where it is removed, a reference must leave it out."""
    if any(row is not None for row in rows):
        trace.vanishing.rely_on_product(values, rows, trace.layer)


def join_contracted(
    trace: Tracer, values: Sequence[Tensor], blocks: Sequence[Block | None], dims: Sequence[tuple[int, int]]
) -> Row | None:
    """Join what two sides contract; each block is over the contracted dimension, and the batch perhaps."""
    arrays = [None if block is None else block.over(over) for block, over in zip(blocks, dims, strict=True)]
    tracked = [array for array in arrays if array is not None]
    if not tracked:
        return None
    if len(tracked) < len(arrays):
        trace.freeze(tracked, "is contracted with what is not tracked")
    rely(trace, values, tracked)
    trace.labels.tie(tracked)
    return np.broadcast_arrays(*tracked)[0] if max(len(array) for array in tracked) > 1 else tracked[0][0]


def count(trace: Tracer, factor: float, dims: Sequence[tuple[Row | None, int]]) -> None:
    """Count a product of these sizes; where a dimension is tracked, by what is live of it."""
    for row, size in dims:
        if row is None:
            factor *= size
    live = tuple(row.ravel() for row, _ in dims if row is not None)
    trace.recording.products.append(Product(factor, live))


@register_rule("embedding")
def _embedding(trace: Tracer, op: Operation) -> None:
    weight = trace.rows(op["weight"])
    trace.freeze([weight[0]], "is a vocabulary")
    trace.assign(op.output, [*[None] * op["indices"].dim(), weight[1]])


@register_rule("mv", "addmv")
def _matrix_vector_product(trace: Tracer, op: Operation) -> None:
    matrix, vector = (op["mat"], op["vec"]) if "mat" in op.arguments else (op["self"], op["vec"])
    rows, across = trace.rows(matrix), trace.row(vector, 0)
    if matrix.shape[1] > 1:
        trace.unite([rows[1], across], "is contracted with what is not tracked")
        rely(trace, [matrix, vector], [rows[1], across])
    leaving = rows[0]
    if op.name == "addmv" and len(matrix) > 1 and op["self"].numel() > 1:
        leaving = trace.unite([leaving, trace.row(op["self"], 0)], "is added to what is not tracked")
    trace.assign(op.output, [leaving])
    if not trace.vanishing.is_weight(vector):
        count(trace, 1, [(rows[0], matrix.shape[0]), (rows[1], matrix.shape[1])])


@register_rule("cdist_forward", "euclidean_dist")
def _distances(trace: Tracer, op: Operation) -> None:
    first, second = op["x1"], op["x2"]
    a, b = trace.rows(first), trace.rows(second)
    if first.shape[-1] > 1:
        across = trace.unite([a[-1], b[-1]], "is compared with what is not tracked")
        if across is not None:
            trace.recording.reduced.append((trace.layer, across))
    # In front are batches: as many as the wider side has.
    trace.freeze([*a[:-2], *b[:-2]], "is a batch dimension")
    trace.assign(op.output, [*[None] * (op.output.dim() - 2), a[-2], b[-2]])


@register_rule("trilinear")
def _trilinear(trace: Tracer, op: Operation) -> None:
    sides = []
    for tensor, added in zip(
        (op["i1"], op["i2"], op["i3"]), (op["expand1"], op["expand2"], op["expand3"]), strict=True
    ):
        own = [dim for dim in range(tensor.dim() + len(added)) if dim not in added]
        shape = [1] * (tensor.dim() + len(added))
        for dim, size in zip(own, tensor.shape, strict=True):
            shape[dim] = size
        sides.append((shape, [block.moved(dict(enumerate(own))) for block in trace.blocks(tensor)]))
    shape = [max(sizes) for sizes in zip(*(side for side, _ in sides), strict=True)]
    met = trace.meet_blocks(shape, sides, "is contracted with what is not tracked")
    place = {old: new for new, old in enumerate(dim for dim in range(len(shape)) if dim not in op["sumdim"])}
    left = run_over(trace, [block for block in met if len(block.dims) > 1], set(op["sumdim"]), "is contracted in part")
    left += [block for block in met if len(block.dims) == 1 and block.dims[0] in place]
    leaving = [block.moved(place) for block in left]
    trace.recording.produced.extend(block.labels for block in leaving if len(block.dims) == 1)
    trace.assign_blocks(op.output, leaving)
    rows = {block.dims[0]: block.labels for block in met if len(block.dims) == 1}
    count(trace, 1, [(rows.get(dim), size) for dim, size in enumerate(shape)])
