"""The commonest operations on tensors without values, by formula.

Torch has kernels of its own for these, many of them written in Python: they take longer than all the rest of a trace.
A formula speaks only where all is plain (one floating type, contiguous, shapes that fit). Else torch has the word, and
raises what it raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Shape = Sequence[int]


def meta_output(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What ``func`` returns for meta tensors; None where no formula is sure."""
    kernel = _KERNELS.get(func)
    return None if kernel is None else kernel(*args, **kwargs)


def empty(shape: Shape, like: Tensor) -> Tensor:
    """A contiguous meta tensor of the type of ``like``."""
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")


def empty_like(tensor: Tensor) -> Tensor | None:
    """What an operation by elements makes of a meta tensor; None where its order in memory is moot."""
    if tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    shape, strides, filled = tensor.shape, list(tensor.stride()), 1
    order = sorted([(step, dim) for dim, step in enumerate(strides) if shape[dim] != 1])
    if not order or order[0][0] == 0 or len({step for step, _ in order}) < len(order):
        return None
    # The order stays, the gaps go.
    for _, dim in order:
        strides[dim] = filled
        filled *= shape[dim]
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")


def _is_plain(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_meta and tensor.is_floating_point()


def _are_plain(first: Any, *others: Any) -> bool:
    """Whether these are contiguous meta tensors of one floating type; those that are None don't count."""
    return (
        _is_plain(first)
        and first.is_contiguous()
        and all(
            other is None or (_is_plain(other) and other.dtype == first.dtype and other.is_contiguous())
            for other in others
        )
    )


def _unary(tensor: Tensor, *_: Any, **__: Any) -> Tensor | None:
    return empty_like(tensor) if _is_plain(tensor) else None


def _unary_in_place(tensor: Tensor, *_: Any, **__: Any) -> Tensor | None:
    return tensor if _is_plain(tensor) else None


def _clamp(tensor: Tensor, low: Any = None, high: Any = None) -> Tensor | None:
    fits = _is_plain(tensor) and (low is not None or high is not None)
    return empty_like(tensor) if fits else None


def _softmax(tensor: Tensor, dim: int, half_to_float: bool) -> Tensor | None:
    fits = _are_plain(tensor) and not half_to_float and -tensor.dim() <= dim < tensor.dim()
    return empty(tensor.shape, tensor) if fits else None


def _binary(first: Any, second: Any, *, alpha: Any = 1) -> Tensor | None:
    if isinstance(second, (int, float)):
        return empty_like(first) if _is_plain(first) else None
    if not (_is_plain(first) and _is_plain(second)) or first.dtype != second.dtype:
        return None
    if first.shape == second.shape and first.stride() == second.stride():
        return empty_like(first)
    shape = _broadcast(first.shape, second.shape)
    if shape is None:
        return None
    if first.is_contiguous() and second.is_contiguous():
        return empty(shape, first)
    # The order in memory is that of the wider one, where the other has no say: it has an extent along one dimension.
    wide, thin = (first, second) if first.shape == shape else (second, first)
    has_say = sum([size > 1 for size in thin.shape]) > 1
    return empty_like(wide) if wide.shape == shape and not has_say else None


def _binary_in_place(first: Tensor, second: Any, *, alpha: Any = 1) -> Tensor | None:
    if not _is_plain(first):
        return None
    if isinstance(second, (int, float)):
        return first
    fits = _is_plain(second) and first.dtype == second.dtype and _broadcast(first.shape, second.shape) == first.shape
    return first if fits else None


def _broadcast(first: Shape, second: Shape) -> tuple[int, ...] | None:
    if len(first) < len(second):
        first, second = second, first
    ahead = len(first) - len(second)
    shape = list(first)
    for index, size in enumerate(second):
        if shape[ahead + index] == 1:
            shape[ahead + index] = size
        elif size not in (1, shape[ahead + index]):
            return None
    return tuple(shape)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    if not _are_plain(*tensors) or not -first.dim() <= dim < first.dim():
        return None
    dim %= first.dim()
    before, after = first.shape[:dim], first.shape[dim + 1 :]
    if any(len(t.shape) != len(first.shape) or t.shape[:dim] != before or t.shape[dim + 1 :] != after for t in tensors):
        return None
    return empty((*before, sum([tensor.shape[dim] for tensor in tensors]), *after), first)


def _convolution(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    transposed: bool,
    output_padding: Shape,
    groups: int,
) -> Tensor | None:
    space = weight.dim() - 2
    if transposed or not _are_plain(image, weight, bias) or image.dim() != weight.dim() or space not in (1, 2, 3):
        return None
    outputs, inputs = weight.shape[:2]
    if image.shape[1] != inputs * groups or outputs % groups or (bias is not None and bias.shape != (outputs,)):
        return None
    strides, paddings, dilations = (_each(given, space) for given in (stride, padding, dilation))
    sizes = [
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, gap in zip(
            image.shape[2:], weight.shape[2:], strides, paddings, dilations, strict=True
        )
    ]
    fits = min(sizes) > 0 and min(strides) > 0 and min(paddings) >= 0
    return empty((image.shape[0], outputs, *sizes), image) if fits else None


def _each(values: Shape, space: int) -> Shape:
    return values if len(values) == space else [values[0]] * space


def _layer_norm(
    source: Tensor, normalized_shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    shape, count = tuple(normalized_shape), len(normalized_shape)
    # Whatever order the source has in memory, the result is contiguous.
    own = [tensor for tensor in (weight, bias) if tensor is not None]
    if not _is_plain(source) or source.dtype not in (torch.float32, torch.float64):
        return None
    if own and (not _are_plain(*own) or own[0].dtype != source.dtype):
        return None
    if not count or tuple(source.shape[-count:]) != shape:
        return None
    if any(tuple(tensor.shape) != shape for tensor in own):
        return None
    over = (*source.shape[:-count], *[1] * count)
    return empty(source.shape, source), empty(over, source), empty(over, source)


def _reduced(source: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor | None:
    dims = [dim] if isinstance(dim, int) else dim
    if not _are_plain(source) or dtype is not None or not dims or not source.numel():
        return None
    if any(not -source.dim() <= over < source.dim() for over in dims):
        return None
    over = {over % source.dim() for over in dims}
    if len(over) < len(dims):
        return None
    kept = [1 if place in over else size for place, size in enumerate(source.shape) if keepdim or place not in over]
    return empty(kept, source)


def _adaptive_pool(source: Tensor, output_size: Shape) -> Tensor | None:
    fits = _are_plain(source) and source.dim() == 4 and source.numel() and min(output_size) > 0
    return empty((*source.shape[:2], *output_size), source) if fits else None


def _mm(first: Tensor, second: Tensor) -> Tensor | None:
    fits = _is_plain(first) and _is_plain(second) and first.dtype == second.dtype
    if not fits or not first.dim() == second.dim() == 2 or first.shape[1] != second.shape[0]:
        return None
    return empty((first.shape[0], second.shape[1]), first)


def _linear(source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not _are_plain(source, weight, bias) or source.dim() < 2 or weight.dim() != 2:
        return None
    outputs, inputs = weight.shape
    fits = source.shape[-1] == inputs and (bias is None or bias.shape == (outputs,))
    return empty((*source.shape[:-1], outputs), source) if fits else None


def _addmm(bias: Tensor, first: Tensor, second: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor | None:
    product = _mm(first, second)
    if product is None or not _is_plain(bias) or bias.dtype != product.dtype:
        return None
    return product if _broadcast(product.shape, bias.shape) == product.shape else None


def _bmm(first: Tensor, second: Tensor) -> Tensor | None:
    fits = _is_plain(first) and _is_plain(second) and first.dtype == second.dtype
    if not fits or not first.dim() == second.dim() == 3:
        return None
    if first.shape[0] != second.shape[0] or first.shape[2] != second.shape[1]:
        return None
    return empty((*first.shape[:2], second.shape[2]), first)


def _grid_sample(source: Tensor, grid: Tensor, *_: Any) -> Tensor | None:
    if not (_is_plain(source) and _is_plain(grid)) or source.dtype != grid.dtype or not source.dim() == grid.dim() == 4:
        return None
    if source.shape[0] != grid.shape[0] or grid.shape[3] != 2 or not source.numel():
        return None
    return empty((*source.shape[:2], *grid.shape[1:3]), source)


def _max_pool(
    source: Tensor, kernel: Shape, stride: Shape = (), padding: Shape = (0,), dilation: Shape = (1,), ceil: bool = False
) -> tuple[Tensor, Tensor] | None:
    if not _are_plain(source) or source.dim() != 4 or not source.numel():
        return None
    sizes = []
    for index, size in enumerate(source.shape[2:]):
        wide, step, pad, gap = (_each(given, 2)[index] for given in (kernel, stride or kernel, padding, dilation))
        if step <= 0 or pad < 0 or 2 * pad > wide:
            return None
        span = size + 2 * pad - gap * (wide - 1) - 1
        count = (math.ceil(span / step) if ceil else span // step) + 1
        if ceil and (count - 1) * step >= size + pad:
            count -= 1
        sizes.append(count)
    if min(sizes) <= 0:
        return None
    shape = (*source.shape[:2], *sizes)
    return empty(shape, source), torch.empty(shape, dtype=torch.int64, device="meta")


_KERNELS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.native_layer_norm.default: _layer_norm,
    aten.cat.default: _cat,
    aten.mean.dim: _reduced,
    aten.sum.dim_IntList: _reduced,
    aten._adaptive_avg_pool2d.default: _adaptive_pool,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.grid_sampler_2d.default: _grid_sample,
    aten.mm.default: _mm,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten._softmax.default: _softmax,
    aten.clamp.default: _clamp,
    **{
        getattr(aten, name).default: _unary
        for name in "silu gelu sigmoid hardswish hardsigmoid hardtanh relu tanh leaky_relu elu exp sqrt rsqrt neg "
        "mish softplus erf".split()
    },
    **{
        getattr(aten, f"{name}_").default: _unary_in_place
        for name in "silu sigmoid hardswish hardsigmoid hardtanh relu tanh leaky_relu mish".split()
    },
    **{getattr(aten, name).Tensor: _binary for name in "add sub mul div".split()},
    **{getattr(aten, f"{name}_").Tensor: _binary_in_place for name in "add sub mul div".split()},
}
