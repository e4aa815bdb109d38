"""Formulas for meta tensors against torch's own kernels: the same result, or none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lit_prune.graph.meta_kernels import meta_output

aten = torch.ops.aten
UNARY = "silu gelu sigmoid hardswish hardsigmoid hardtanh relu tanh leaky_relu elu exp sqrt rsqrt neg mish softplus erf"
IN_PLACE = "silu_ sigmoid_ hardswish_ hardsigmoid_ hardtanh_ relu_ tanh_ leaky_relu_ mish_"
SHAPES = ((2, 3, 4, 5), (2, 3, 1, 1), (3, 1, 5), (5,), (1,), ())


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layouts(*shape: int) -> list[Tensor]:
    """Contiguous, in other orders, with gaps, and channels last where it can be."""
    found = [meta(*shape), meta(*shape, dtype=torch.bfloat16), meta(*shape, dtype=torch.int64)]
    if len(shape) > 1:
        found.append(meta(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2))
        found.append(meta(*shape[1:], shape[0]).movedim(-1, 0))
        found.append(meta(*shape[:-1], 2 * shape[-1])[..., ::2])
    if len(shape) == 4:
        found.append(meta(*shape).to(memory_format=torch.channels_last))
    return found


def steps(tensor: Tensor) -> list[int]:
    """The strides that say something: along a dimension of one no step is made."""
    return [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def agrees(func: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether the formula spoke; if it did, torch must say the same."""
    ours = meta_output(func, args, kwargs)
    if ours is None:
        return False
    theirs = func(*args, **kwargs)
    mine, yours = tree_leaves(ours), tree_leaves(theirs)
    assert len(mine) == len(yours)
    for a, b in zip(mine, yours, strict=True):
        assert (a.shape, a.dtype, steps(a), a.device) == (b.shape, b.dtype, steps(b), b.device), (func, args)
    return True


def hands_back(func: Any, *args: Any, **kwargs: Any) -> None:
    """Torch refuses these, so that no formula may answer."""
    with pytest.raises((RuntimeError, IndexError, ValueError, AssertionError)):
        func(*args, **kwargs)
    assert meta_output(func, args, kwargs) is None


@pytest.mark.parametrize("name", UNARY.split())
def test_what_works_by_elements(name: str) -> None:
    func = getattr(aten, name).default
    spoke = [agrees(func, tensor) for shape in SHAPES for tensor in layouts(*shape)]
    assert any(spoke)
    assert not agrees(func, meta(2, 3, dtype=torch.int64)), "an integer may become a float"


@pytest.mark.parametrize("name", IN_PLACE.split())
def test_what_works_in_place_returns_its_argument(name: str) -> None:
    tensor = meta(2, 3)
    assert meta_output(getattr(aten, name).default, (tensor,), {}) is tensor
    assert meta_output(getattr(aten, name).default, (meta(2, dtype=torch.int64),), {}) is None


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_two_values_meet(name: str) -> None:
    func = getattr(aten, name).Tensor
    spoke = 0
    for first, second in itertools.product(SHAPES, repeat=2):
        try:
            torch.broadcast_shapes(first, second)
        except RuntimeError:
            hands_back(func, meta(*first), meta(*second))
            continue
        for a, b in itertools.product(layouts(*first), layouts(*second)):
            spoke += agrees(func, a, b)
    assert spoke > len(SHAPES)
    assert agrees(func, meta(2, 3), 2.0)
    assert not agrees(func, meta(2, 3), meta(2, 3, dtype=torch.float64)), "the types are promoted"


@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_"])
def test_what_is_broadcast_in_place_must_fit(name: str) -> None:
    func, tensor = getattr(aten, name).Tensor, meta(2, 3)
    assert meta_output(func, (tensor, meta(3)), {}) is tensor
    hands_back(func, meta(3), meta(2, 3))
    hands_back(func, meta(2, 3), meta(2, 4))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims: int) -> None:
    spoke = 0
    for stride, padding, dilation, groups, bias in itertools.product((1, 2), (0, 1), (1, 2), (1, 2, 4), (False, True)):
        image, weight = meta(2, 4, *[9] * dims), meta(8, 4 // groups, *[3] * dims)
        rest = ([stride] * dims, [padding] * dims, [dilation] * dims, False, [0] * dims, groups)
        spoke += agrees(aten.convolution.default, image, weight, meta(8) if bias else None, *rest)
    assert spoke == 48


def test_convolutions_that_torch_refuses_or_does_otherwise() -> None:
    rest: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    conv = aten.convolution.default
    hands_back(conv, meta(2, 5, 9, 9), meta(8, 4, 3, 3), None, *rest)
    # Torch's own meta kernels let these pass, the first in some releases; on real tensors it refuses them.
    assert meta_output(conv, (meta(2, 4, 2, 2), meta(8, 4, 3, 3), None, *rest), {}) is None
    assert not agrees(conv, meta(2, 4, 9, 9), meta(8, 4, 3, 3), None, [1, 1], [-1, -1], *rest[2:])
    last = meta(2, 4, 9, 9).to(memory_format=torch.channels_last)
    assert not agrees(conv, last, meta(8, 4, 3, 3), None, *rest)
    assert not agrees(conv, meta(2, 4, 9, 9), meta(4, 8, 3, 3), None, *rest[:3], True, [0, 0], 1)
    assert not agrees(conv, meta(2, 4, 9, 9), meta(8, 4, 3, 3, dtype=torch.float64), None, *rest)


def test_cat() -> None:
    cat = aten.cat.default
    for dim in range(-4, 4):
        sizes = [[3, 3, 3, 3] for _ in range(3)]
        for size, width in zip(sizes, (1, 2, 5), strict=True):
            size[dim] = width
        assert agrees(cat, [meta(*size) for size in sizes], dim)
    hands_back(cat, [meta(2, 3), meta(3, 4)], 0)
    hands_back(cat, [meta(2, 3), meta(2, 3)], 2)
    assert not agrees(cat, [meta(2, 3), meta(2, 3, dtype=torch.float64)], 0)
    assert not agrees(cat, [meta(0), meta(2, 3)], 0), "torch leaves out an empty row"


def test_products() -> None:
    for shape in ((2, 3), (1, 3)):
        assert agrees(aten.mm.default, meta(*shape), meta(3, 4))
        assert agrees(aten.bmm.default, meta(5, *shape), meta(5, 3, 4))
        for bias in ((4,), (1, 4), (shape[0], 4), (1,)):
            assert agrees(aten.addmm.default, meta(*bias), meta(*shape), meta(3, 4))
    assert agrees(aten.mm.default, meta(3, 2).t(), meta(4, 3).t())
    for shape in ((2, 3), (5, 2, 3), (2, 1, 4, 3)):
        assert agrees(aten.linear.default, meta(*shape), meta(4, 3))
        assert agrees(aten.linear.default, meta(*shape), meta(4, 3), meta(4))
    hands_back(aten.linear.default, meta(2, 3), meta(3, 4))
    hands_back(aten.linear.default, meta(2, 3), meta(4, 3), meta(3))
    hands_back(aten.mm.default, meta(2, 3), meta(4, 3))
    hands_back(aten.mm.default, meta(2, 3), meta(2, 3, 4))
    hands_back(aten.bmm.default, meta(5, 2, 3), meta(4, 3, 4))
    hands_back(aten.addmm.default, meta(3), meta(2, 3), meta(3, 4))


def test_normalisation_and_softmax() -> None:
    for shape in ((4,), (3, 4), (2, 3, 4)):
        weight = meta(*shape)
        for own in ((None, None), (weight, None), (weight, weight)):
            assert agrees(aten.native_layer_norm.default, meta(2, 3, 4), shape, *own, 1e-5)
    for source in layouts(2, 3, 4, 5):
        agrees(aten.native_layer_norm.default, source, (5,), meta(5), meta(5), 1e-5)
    assert agrees(aten.native_layer_norm.default, meta(2, 4, 3).transpose(1, 2), (4,), meta(4), None, 1e-5)
    hands_back(aten.native_layer_norm.default, meta(2, 3, 4), (3,), None, None, 1e-5)
    hands_back(aten.native_layer_norm.default, meta(2, 3, 4), (4,), meta(3), None, 1e-5)
    for dim in range(-3, 3):
        assert agrees(aten._softmax.default, meta(2, 3, 4), dim, False)
    # Torch's own meta kernel lets this pass; on real tensors it is refused.
    assert not agrees(aten._softmax.default, meta(2, 3, 4), 3, False)


@pytest.mark.parametrize("func", [aten.mean.dim, aten.sum.dim_IntList])
def test_reductions(func: Any) -> None:
    for dims, keep in itertools.product(([0], [-1], [1, 2], [-2, -1], [0, 1, 2, 3]), (False, True)):
        assert agrees(func, meta(2, 3, 4, 5), dims, keep)
    assert not agrees(func, meta(2, 3), [], False)
    hands_back(func, meta(2, 3), [2])
    hands_back(func, meta(2, 3), [1, 1])


def test_clamp() -> None:
    assert agrees(aten.clamp.default, meta(2, 3), 0)
    assert agrees(aten.clamp.default, meta(2, 3), None, 6.0)
    hands_back(aten.clamp.default, meta(2, 3))


def test_grids() -> None:
    sample = aten.grid_sampler_2d.default
    for source, grid in itertools.product(layouts(2, 3, 4, 5), layouts(2, 7, 9, 2)):
        if source.dtype == grid.dtype == torch.float32:
            assert agrees(sample, source, grid, 0, 0, False)
    hands_back(sample, meta(2, 3, 4, 5), meta(1, 7, 9, 2), 0, 0, False)
    hands_back(sample, meta(2, 3, 4, 5), meta(2, 7, 9, 3), 0, 0, False)


def test_pooling() -> None:
    pool = aten.max_pool2d_with_indices.default
    spoke = 0
    for kernel, stride, padding, dilation, ceil in itertools.product((2, 3), (1, 2, 3), (0, 1), (1, 2), (False, True)):
        args = ([kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, ceil)
        spoke += agrees(pool, meta(2, 3, 11, 8), *args)
    assert spoke == 48
    assert agrees(pool, meta(2, 3, 8, 8), [2, 2])
    hands_back(pool, meta(2, 3, 8, 8), [2, 2], [2, 2], [2, 2])
    hands_back(pool, meta(2, 3, 2, 2), [3, 3])
    for size in ([1, 1], [2, 3]):
        assert agrees(aten._adaptive_avg_pool2d.default, meta(2, 3, 7, 7), size)
