"""What works element by element: one value stays as it is, several meet index by index."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block


@register_rule(
    *"abs acos alias angle asin atan bernoulli bitwise_not ceil celu clamp clamp_max clamp_min clone contiguous cos "
    "conj conj_physical cosh detach detach_copy dropout elu empty_like erf erfc exp exp2 expm1 feature_dropout fill "
    "floor frac "
    "full_like gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lift lift_fresh log "
    "log10 log1p log2 log_sigmoid log_sigmoid_forward logical_not logit mish nan_to_num native_dropout neg normal "
    "ones_like positive rand_like randn_like reciprocal relu relu6 resolve_conj resolve_neg round rrelu_with_noise "
    "rsqrt selu sgn sigmoid "
    "sign silu sin sinh softplus softshrink softsign special_expit sqrt square tan tanh threshold to to_copy trunc "
    "uniform zero zeros_like".split()
)
def _unary(trace: Tracer, op: Operation) -> None:
    tensors = op.tensors()
    if len(tensors) > 1:
        # Overloads that take their bounds or values as tensors.
        broadcast(trace, op)
        return
    _write_in_place(trace, op)
    blocks = trace.blocks(tensors[0])
    for output in op.outputs():
        if output.dim() == tensors[0].dim():
            trace.assign_blocks(output, blocks)


@register_rule(
    *"add sub rsub mul div floor_divide true_divide maximum minimum fmax fmin fmod remainder pow atan2 hypot where "
    "lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or masked_fill copy "
    "xlogy prelu_kernel complex polar logaddexp logaddexp2 heaviside copysign isclose".split()
)
def broadcast(trace: Tracer, op: Operation) -> None:
    """Values meet index by index."""
    _write_in_place(trace, op)
    shape = op.output.shape
    trace.assign_blocks(op.output, trace.meet(shape, op.tensors(), "meets what is not tracked"))


def _write_in_place(trace: Tracer, op: Operation) -> None:
    target, *others = op.tensors()
    if op.output is target:
        for block in trace.blocks(target):
            write(trace, target, block, [(other, {dim - target.dim() for dim in block.dims}) for other in others])


def write(trace: Tracer, target: Tensor, block: Block, values: Sequence[tuple[Tensor, Collection[int]]]) -> None:
    """Say that values are written where a block lies: what was alike there may be so no longer.

    Args:
        trace: The tracer.
        target: What is written to.
        block: Of its blocks that which is written over.
        values: What is written, each with its dimensions, counted from the last, that lie along the block.
    """
    if any(trace.is_firm(value, dims) for value, dims in values):
        trace.labels.bind(block.labels)
    elif trace.is_piece(target, block.labels):
        trace.freeze([block.labels], "is filled in part")


@register_rule(
    *"zeros ones full empty empty_strided empty_permuted rand randn randint new_full new_zeros new_ones new_empty "
    "new_empty_strided".split()
)
def _new(trace: Tracer, op: Operation) -> None:
    if op.get("generator") is not None:
        # Noise of a generator of its own is a table: it is the same each time.
        return
    # Nothing of the values enters; a size that follows a width shows when the result meets the channels.
    trace.assign(op.output, [trace.labels.even(size) if size > 1 else None for size in op.output.shape])


@register_rule("prelu")
def _prelu(trace: Tracer, op: Operation) -> None:
    rows, weight = trace.channels(op["self"]), op["weight"]
    if weight.numel() > 1:
        rows[1] = trace.unite([rows[1], *trace.rows(weight)], "meets what is not tracked")
    trace.assign(op.output, rows)


def run_over(trace: Tracer, blocks: Sequence[Block], dims: Collection[int], reason: str) -> list[Block]:
    """What is left of blocks for an operation that mixes the values along ``dims``.

    A row along one of them is unprunable. Where a block spans others too (the paths of a split attention), what lies
    along ``dims`` is coupled, so that nothing of what is mixed is lost.
    """
    left = []
    for block in blocks:
        axes = tuple(axis for axis, dim in enumerate(block.dims) if dim in dims)
        if len(axes) == len(block.dims):
            trace.freeze([block.labels], reason)
        elif axes:
            index = tuple(slice(1) if axis in axes else slice(None) for axis in range(block.labels.ndim))
            trace.labels.join(block.labels[index], block.labels)
            left.append(Block(tuple(dim for dim in block.dims if dim not in dims), block.labels[index].squeeze(axes)))
        else:
            left.append(block)
    return left


@register_rule("softmax", "log_softmax", "cumsum", "cumprod", "safe_softmax", "logcumsumexp")
def _along(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    over = run_over(trace, trace.blocks(source), {op["dim"] % max(1, source.dim())}, f"{op.name} runs over it")
    trace.assign_blocks(op.output, over)


@register_rule("tril", "triu")
def _triangle(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    over = {source.dim() - 2, source.dim() - 1}
    trace.assign_blocks(op.output, run_over(trace, trace.blocks(source), over, "is cut to a triangle"))
