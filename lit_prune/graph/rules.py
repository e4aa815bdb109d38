"""The table of rules: what each aten operation says of its channel labels.

Whatever has no rule freezes all that enters it. A rule that can't be exact freezes too; it never guesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from lit_prune.graph.labels import Row
from lit_prune.graph.trace import Operation, Product, Rows, Rule, Tracer

RULES: dict[str, Rule] = {}


def register_rule(*operations: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of the named operations.

    Args:
        operations: Names without namespace, leading and trailing underscores for aten (``"add"`` serves ``aten::add_``
            as well), qualified ones for others (``"mylib::scale"``).

    Example:
        >>> from lit_prune.graph.rules import RULES, register_rule
        >>> @register_rule("mylib::scale")
        ... def _scale(trace, operation):
        ...     trace.assign(operation.output, trace.rows(operation["x"]))
        >>> RULES.pop("mylib::scale") is _scale
        True
    """

    def register(rule: Rule) -> Rule:
        for name in operations:
            RULES[name] = rule
        return rule

    return register


# --- convolutions and products ------------------------------------------------------------------------------------


@register_rule("convolution", "cudnn_convolution", "mkldnn_convolution")
def _convolution(trace: Tracer, op: Operation) -> None:
    image, weight, bias = op["input"], op["weight"], op.get("bias")
    transposed, groups = bool(op.get("transposed", False)), int(op.get("groups", 1))
    entering, w = trace.rows(image)[1], trace.rows(weight)
    trace.freeze(w[2:], "is a kernel dimension")
    if groups == 1:
        leaving, used = (w[1], w[0]) if transposed else (w[0], w[1])
        trace.unite([entering, used], "has an input that is not tracked")
    elif transposed or weight.shape[1] == 1:
        leaving = _depthwise(trace, entering, w, weight, groups, transposed)
    else:
        leaving = _grouped(trace, entering, w, groups)
    trace.unite([leaving, *trace.rows(bias)], "has an untracked bias")
    if leaving is not None:
        trace.recording.produced.append(leaving)
    trace.assign(op.output, [None, leaving, *[None] * (image.dim() - 2)])
    positions = image[:, 0].numel() if transposed else op.output[:, 0].numel()
    _count(trace, positions * math.prod(weight.shape[2:]), [*zip(w[:2], weight.shape[:2], strict=True)])


def _depthwise(
    trace: Tracer, entering: Row | None, w: Rows, weight: Tensor, groups: int, transposed: bool
) -> Row | None:
    if transposed and weight.shape[0] != groups:
        trace.freeze([entering, *w[:2]], "is a grouped transposed convolution")
        return None
    multiplier = weight.shape[1] if transposed else weight.shape[0] // groups
    trace.freeze([w[1]], "is the multiplier of a depthwise convolution")
    if transposed:
        trace.unite([entering, w[0]], "has an input that is not tracked")
        return None if w[0] is None else np.repeat(w[0], multiplier)
    repeated = None if entering is None else np.repeat(entering, multiplier)
    return trace.unite([w[0], repeated], "has an input that is not tracked")


def _grouped(trace: Tracer, entering: Row | None, w: Rows, groups: int) -> Row | None:
    leaving, used = w[0], w[1]
    if entering is None or used is None or leaving is None or len(leaving) == groups:
        trace.freeze([entering, used, leaving], "is a grouped convolution that can't lose equally in each group")
        return leaving
    # One slice of the weight serves all groups, so all must lose the same of their inputs.
    trace.labels.tie([used, *entering.reshape(groups, -1)])
    trace.labels.balance(list(leaving.reshape(groups, -1)))
    return leaving


@register_rule("mm", "addmm")
def _matrix_product(trace: Tracer, op: Operation) -> None:
    first, second = (op["mat1"], op["mat2"]) if "mat1" in op.arguments else (op["self"], op["mat2"])
    a, b = trace.rows(first), trace.rows(second)
    trace.unite([a[1], b[0]], "has an input that is not tracked")
    leaving = b[1]
    if op.name == "addmm":
        bias = trace.rows(op["self"])
        if op["self"].shape[-1] == second.shape[1]:
            trace.unite([leaving, bias[-1]], "has an untracked bias")
        else:
            trace.freeze(bias, "is broadcast over a product")
        trace.freeze(bias[:-1], "is broadcast over a product")
    if leaving is not None:
        trace.recording.produced.append(leaving)
    trace.assign(op.output, [a[0], leaving])
    _count(trace, 1, [(a[0], first.shape[0]), (a[1], first.shape[1]), (leaving, second.shape[1])])


@register_rule("linear")
def _linear(trace: Tracer, op: Operation) -> None:
    entering, weight = trace.rows(op["input"]), trace.rows(op["weight"])
    trace.unite([entering[-1], weight[1]], "has an input that is not tracked")
    trace.unite([weight[0], *trace.rows(op.get("bias"))], "has an untracked bias")
    if weight[0] is not None:
        trace.recording.produced.append(weight[0])
    trace.assign(op.output, [*entering[:-1], weight[0]])
    positions = op["input"].numel() // op["input"].shape[-1]
    _count(trace, positions, [*zip(weight, op["weight"].shape, strict=True)])


@register_rule("bmm", "baddbmm")
def _batched_product(trace: Tracer, op: Operation) -> None:
    first, second = (op["batch1"], op["batch2"]) if "batch1" in op.arguments else (op["self"], op["mat2"])
    a, b = trace.rows(first), trace.rows(second)
    batch = trace.unite([a[0], b[0]], "is a batch dimension on one side only")
    trace.unite([a[2], b[1]], "is contracted with what is not tracked")
    if op.name == "baddbmm":
        trace.freeze([*trace.rows(op["self"]), batch, a[1], b[2]], "is added to a batched product")
    trace.assign(op.output, [batch, a[1], b[2]])
    sizes = (first.shape[0], first.shape[1], first.shape[2], second.shape[2])
    _count(trace, 1, [*zip((batch, a[1], a[2], b[2]), sizes, strict=True)])


@register_rule(
    "scaled_dot_product_flash_attention",
    "scaled_dot_product_flash_attention_for_cpu",
    "scaled_dot_product_efficient_attention",
    "scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_cudnn_attention",
)
def _attention(trace: Tracer, op: Operation) -> None:
    query, key, value = (trace.rows(op[name]) for name in ("query", "key", "value"))
    for name in ("attn_mask", "attn_bias"):
        trace.freeze(trace.rows(op.get(name)), "is an attention mask")
    width = trace.unite([query[-1], key[-1]], "is contracted with what is not tracked")
    if op.get("scale") is None:
        trace.freeze([width], "sets the scale of an attention")
    leading = [
        trace.unite(rows, "is a head dimension on one side only")
        for rows in zip(query[:-2], key[:-2], value[:-2], strict=True)
    ]
    trace.freeze([query[-2], key[-2], value[-2]], "is a sequence of tokens")
    output = op.output[0] if isinstance(op.output, (list, tuple)) else op.output
    trace.assign(output, [*leading, query[-2], value[-1]])
    q, k, v = op["query"], op["key"], op["value"]
    heads = [*zip(leading, q.shape[:-2], strict=True)]
    tokens = q.shape[-2] * k.shape[-2]
    _count(trace, tokens, [*heads, (width, q.shape[-1])])
    _count(trace, tokens, [*heads, (value[-1], v.shape[-1])])


@register_rule("embedding")
def _embedding(trace: Tracer, op: Operation) -> None:
    weight = trace.rows(op["weight"])
    trace.freeze([weight[0]], "is a vocabulary")
    trace.assign(op.output, [*[None] * op["indices"].dim(), weight[1]])


def _count(trace: Tracer, factor: float, dims: Sequence[tuple[Row | None, int]]) -> None:
    for row, size in dims:
        if row is None:
            factor *= size
    trace.recording.products.append(Product(factor, tuple(row for row, _ in dims if row is not None)))


# --- normalisation ------------------------------------------------------------------------------------------------


@register_rule(
    "native_batch_norm",
    "native_batch_norm_legit",
    "native_batch_norm_legit_no_training",
    "batch_norm_no_update",
    "batch_norm_with_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
def _batch_norm(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["input"])
    own = [row for name in ("weight", "bias", "running_mean", "running_var") for row in trace.rows(op.get(name))]
    channels = trace.unite([rows[1], *own], "is normalised with what is not tracked")
    trace.assign(op.output[0], [rows[0], channels, *rows[2:]])


@register_rule("native_layer_norm", "layer_norm", "fused_rms_norm", "rms_norm")
def _layer_norm(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["input"])
    count = len(op["normalized_shape"])
    own = [trace.rows(op.get(name)) for name in ("weight", "bias")]
    for index, row in enumerate(rows[-count:]):
        trace.freeze([row, *(mine[index] for mine in own if mine)], "is normalised together (LayerNorm)")
    output = op.output[0] if isinstance(op.output, (list, tuple)) else op.output
    trace.assign(output, list(rows))


@register_rule("native_group_norm", "group_norm")
def _group_norm(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["input"])
    own = [row for name in ("weight", "bias") for row in trace.rows(op.get(name))]
    trace.freeze([rows[1], *own], "is normalised together (GroupNorm)")
    output = op.output[0] if isinstance(op.output, (list, tuple)) else op.output
    trace.assign(output, list(rows))


# --- element by element -------------------------------------------------------------------------------------------


@register_rule(
    *"abs acos alias angle asin atan bernoulli bitwise_not ceil celu clamp clamp_max clamp_min clone contiguous cos cosh "
    "conj detach detach_copy dropout elu empty_like erf erfc exp exp2 expm1 feature_dropout fill floor frac "
    "full_like gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lift lift_fresh log log10 "
    "log1p log2 log_sigmoid logical_not logit mish nan_to_num native_dropout neg normal ones_like positive "
    "rand_like randn_like reciprocal relu relu6 round rrelu_with_noise rsqrt selu sgn sigmoid sign silu sin sinh "
    "softplus softshrink softsign sqrt square tan tanh threshold to to_copy trunc uniform zero zeros_like "
    "log_sigmoid_forward special_expit".split()
)
def _unary(trace: Tracer, op: Operation) -> None:
    if len(op.tensors()) > 1:
        # Overloads that take their bounds or values as tensors.
        _broadcast(trace, op)
        return
    rows = trace.rows(op.tensors()[0])
    for output in op.output if isinstance(op.output, (list, tuple)) else [op.output]:
        if output.dim() == len(rows):
            trace.assign(output, list(rows))


@register_rule(
    *"add sub rsub mul div floor_divide true_divide maximum minimum fmax fmin fmod remainder pow atan2 hypot where lerp "
    "addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or masked_fill copy xlogy "
    "prelu_kernel".split()
)
def _broadcast(trace: Tracer, op: Operation) -> None:
    tensors = op.tensors()
    rows: Rows = []
    for back in range(op.output.dim(), 0, -1):
        meeting = [trace.rows(tensor)[-back] for tensor in tensors if tensor.dim() >= back and tensor.shape[-back] > 1]
        rows.append(trace.unite(meeting, "meets what is not tracked"))
    trace.assign(op.output, rows)


@register_rule(*"new_full new_zeros new_ones new_empty new_empty_strided".split())
def _new(trace: Tracer, op: Operation) -> None:
    # Nothing of the values enters; a size that follows a width shows when the result meets the channels.
    trace.assign(op.output, [None] * op.output.dim())


@register_rule("prelu")
def _prelu(trace: Tracer, op: Operation) -> None:
    rows, weight = list(trace.rows(op["self"])), trace.rows(op["weight"])
    if len(rows) > 1:
        rows[1] = trace.unite([rows[1], *(row for row in weight if row is not None)], "meets what is not tracked")
    trace.assign(op.output, rows)


@register_rule("softmax", "log_softmax", "cumsum", "cumprod", "safe_softmax")
def _along(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["self"])
    trace.freeze([rows[op["dim"]]], f"{op.name} runs over it")
    trace.assign(op.output, list(rows))


# --- putting together and taking apart ----------------------------------------------------------------------------


@register_rule("cat", "concat", "concatenate")
def _cat(trace: Tracer, op: Operation) -> None:
    # Torch ignores empty one-dimensional tensors here.
    tensors = [tensor for tensor in op["tensors"] if tensor.numel() or tensor.dim() > 1]
    dim = op["dim"] % tensors[0].dim()
    every = [trace.rows(tensor) for tensor in tensors]
    rows = [
        None
        if index == dim
        else trace.unite([mine[index] for mine in every], "is concatenated with what is not tracked")
        for index in range(tensors[0].dim())
    ]
    if any(mine[dim] is not None for mine in every):
        rows[dim] = np.concatenate(
            [_known(trace, mine[dim], tensor.shape[dim]) for mine, tensor in zip(every, tensors, strict=True)]
        )
    trace.assign(op.output, rows)


def _known(trace: Tracer, row: Row | None, size: int) -> Row:
    if row is None:
        row = trace.labels.fresh(size)
        trace.freeze([row], "is not tracked")
    return row


@register_rule("stack")
def _stack(trace: Tracer, op: Operation) -> None:
    every = [trace.rows(tensor) for tensor in op["tensors"]]
    rows = [trace.unite(list(meeting), "is stacked with what is not tracked") for meeting in zip(*every, strict=True)]
    rows.insert(op["dim"] % op.output.dim(), None)
    trace.assign(op.output, rows)


@register_rule(
    "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "tensor_split"
)
def _split(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["self"])
    dim = op["dim"] % len(rows)
    row = rows[dim]
    sizes = [output.shape[dim] for output in op.output]
    pieces = [None] * len(sizes) if row is None else np.split(row, np.cumsum(sizes)[:-1])
    if row is not None and len(sizes) > 1:
        if len(set(sizes)) == 1 and sizes[0] > 1:
            trace.labels.balance(list(pieces))
        else:
            trace.freeze([row], "is split into unequal pieces")
    for output, piece in zip(op.output, pieces, strict=True):
        # A piece of one channel is broadcast where it meets others, and can't be lost.
        trace.assign(output, [*rows[:dim], piece if output.shape[dim] > 1 else None, *rows[dim + 1 :]])


@register_rule("slice")
def _slice(trace: Tracer, op: Operation) -> None:
    rows = list(trace.rows(op["self"]))
    dim = op["dim"] % len(rows)
    row = rows[dim]
    if row is not None and op.output.shape[dim] != op["self"].shape[dim]:
        trace.freeze([row], "is sliced")
        rows[dim] = row[slice(op["start"], op["end"], op["step"])]
        if op.output.shape[dim] <= 1:
            rows[dim] = None
    trace.assign(op.output, rows)


@register_rule("select", "unbind")
def _select(trace: Tracer, op: Operation) -> None:
    rows = list(trace.rows(op["self"]))
    trace.freeze([rows.pop(op["dim"] % len(rows))], "is picked from one by one")
    for output in op.output if isinstance(op.output, (list, tuple)) else [op.output]:
        trace.assign(output, list(rows))


@register_rule(
    *"index gather topk sort argsort scatter scatter_add index_put index_add index_copy nonzero masked_select "
    "kthvalue unique unique2 take take_along_dim bincount searchsorted one_hot masked_scatter".split()
)
def _pick(trace: Tracer, op: Operation) -> None:
    trace.freeze_inputs(op, f"{op.name} picks from it")


@register_rule("index_select")
def _index_select(trace: Tracer, op: Operation) -> None:
    rows = list(trace.rows(op["self"]))
    dim = op["dim"] % len(rows)
    trace.freeze([rows[dim]], "is picked from by index")
    rows[dim] = None
    trace.assign(op.output, rows)


# --- shapes -------------------------------------------------------------------------------------------------------


@register_rule("view", "reshape", "unsafe_view", "view_copy", "reshape_alias")
def _view(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    before, rows = source.shape, trace.rows(source)
    after = op.output.shape
    if not source.numel():
        trace.freeze(rows, "is empty")
        return
    result: Rows = [None] * len(after)
    for entering, leaving in _runs(before, after):
        tracked = [index for index in entering if rows[index] is not None]
        if len(tracked) > 1:
            trace.freeze([rows[index] for index in tracked], "is merged with another tracked dimension")
        elif tracked and leaving:
            _reshape_run(trace, rows, before, after, entering, leaving, tracked[0], result)
    trace.assign(op.output, result)


def _reshape_run(
    trace: Tracer,
    rows: Rows,
    before: Sequence[int],
    after: Sequence[int],
    entering: list[int],
    leaving: list[int],
    tracked: int,
    result: Rows,
) -> None:
    row = rows[tracked]
    assert row is not None
    if len(entering) > 1:
        shape = [len(row) if index == tracked else 1 for index in entering]
        row = np.broadcast_to(row.reshape(shape), [before[index] for index in entering]).ravel()
    if len(leaving) == 1:
        result[leaving[0]] = row
        return
    # Several dimensions for one: the last carries the channels (a head's, a shuffle's), tied over the others.
    parts = row.reshape(-1, after[leaving[-1]])
    trace.labels.tie(list(parts))
    result[leaving[-1]] = parts[0]


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


@register_rule("permute", "permute_copy")
def _permute(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["self"])
    trace.assign(op.output, [rows[dim] for dim in op["dims"]])


@register_rule("transpose", "t", "numpy_T", "swapaxes", "transpose_copy")
def _transpose(trace: Tracer, op: Operation) -> None:
    rows = list(trace.rows(op["self"]))
    if len(rows) > 1:
        first, second = op.get("dim0", 0), op.get("dim1", 1)
        rows[first], rows[second] = rows[second], rows[first]
    trace.assign(op.output, rows)


@register_rule("unsqueeze")
def _unsqueeze(trace: Tracer, op: Operation) -> None:
    rows = list(trace.rows(op["self"]))
    rows.insert(op["dim"] % op.output.dim(), None)
    trace.assign(op.output, rows)


@register_rule("squeeze")
def _squeeze(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    named = op.get("dim")
    dims = range(source.dim()) if named is None else [named] if isinstance(named, int) else named
    gone = {dim % source.dim() for dim in dims if source.shape[dim] == 1}
    trace.assign(op.output, [row for index, row in enumerate(trace.rows(source)) if index not in gone])


@register_rule("expand", "expand_copy")
def _expand(trace: Tracer, op: Operation) -> None:
    rows = trace.rows(op["self"])
    trace.assign(op.output, [*[None] * (op.output.dim() - len(rows)), *rows])


@register_rule("repeat")
def _repeat(trace: Tracer, op: Operation) -> None:
    rows: Rows = [*[None] * (op.output.dim() - op["self"].dim()), *trace.rows(op["self"])]
    trace.assign(
        op.output,
        [None if row is None else np.tile(row, times) for row, times in zip(rows, op["repeats"], strict=True)],
    )


@register_rule("roll", "flip")
def _move(trace: Tracer, op: Operation) -> None:
    rows = list(trace.rows(op["self"]))
    for dim in op["dims"] or range(len(rows)):
        trace.freeze([rows[dim]], f"{op.name} moves it")
    trace.assign(op.output, rows)


# --- over space ---------------------------------------------------------------------------------------------------


@register_rule(
    *"mean sum prod amax amin max min std var var_mean std_mean any all argmax argmin logsumexp norm linalg_vector_norm "
    "median count_nonzero".split()
)
def _reduce(trace: Tracer, op: Operation) -> None:
    source = op.tensors()[0]
    rows = trace.rows(source)
    named = op.get("dim")
    if len(op.tensors()) > 1:
        # `max` and `min` of two tensors work element by element.
        _broadcast(trace, op)
        return
    dims = range(source.dim()) if named in (None, []) else [named] if isinstance(named, int) else named
    over = {dim % source.dim() for dim in dims}
    # A sum runs over channels that are not zero when masked (sigmoid), a mean divides by their number.
    trace.freeze([rows[dim] for dim in over], f"{op.name} runs over it")
    for output in op.output if isinstance(op.output, (list, tuple)) else [op.output]:
        if output.dim() == source.dim():
            trace.assign(output, [None if index in over else row for index, row in enumerate(rows)])
        else:
            trace.assign(output, [row for index, row in enumerate(rows) if index not in over])


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
    rows = trace.rows(op.tensors()[0])
    space = next(int(digit) for digit, letter in pairwise(op.name) if digit in "123" and letter == "d")
    trace.freeze(rows[-space:], f"{op.name} runs over it")
    for output in op.output if isinstance(op.output, (list, tuple)) else [op.output]:
        trace.assign(output, [*rows[:-space], *[None] * space])


@register_rule("constant_pad_nd", "pad")
def _pad(trace: Tracer, op: Operation) -> None:
    rows = list(trace.rows(op["self"]))
    for index in range(len(op["pad"]) // 2):
        if op["pad"][2 * index] or op["pad"][2 * index + 1]:
            trace.freeze([rows[-1 - index]], "is padded")
            rows[-1 - index] = None
    trace.assign(op.output, rows)


@register_rule("grid_sampler_2d", "grid_sampler_3d")
def _grid_sampler(trace: Tracer, op: Operation) -> None:
    image = trace.rows(op["input"])
    trace.freeze([*image[2:], *trace.rows(op["grid"])], "is a sampling grid")
    trace.assign(op.output, [*image[:2], *[None] * (len(image) - 2)])
