"""What torch said of tensors without values, said again: always what torch itself would say."""

from __future__ import annotations

import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lit_prune import ChannelGraph
from lit_prune.graph import memo
from lit_prune.graph.memo import output_of

aten = torch.ops.aten
SHAPES = ((2, 3, 4, 5), (2, 3, 1, 1), (3, 1, 5), (5,), (1,), ())
UNARY = "silu gelu sigmoid hardswish relu tanh leaky_relu elu exp sqrt neg mish softplus erf clone abs sign".split()
REFUSALS = (RuntimeError, IndexError, ValueError, TypeError, AssertionError, NotImplementedError)


@pytest.fixture(autouse=True)
def _empty_memo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "_known", {})


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layouts(*shape: int) -> list[Tensor]:
    """Contiguous, in other orders, with gaps, expanded, and channels last where it can be."""
    found = [meta(*shape), meta(*shape, dtype=torch.bfloat16), meta(*shape, dtype=torch.int64)]
    if len(shape) > 1:
        found.append(meta(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2))
        found.append(meta(*shape[1:], shape[0]).movedim(-1, 0))
        found.append(meta(*shape[:-1], 2 * shape[-1])[..., ::2])
        found.append(meta(1, *shape[1:]).expand(shape))
    if len(shape) == 4:
        found.append(meta(*shape).to(memory_format=torch.channels_last))
    return found


def _described(output: Any) -> Any:
    return type(output), [(t.shape, t.stride(), t.dtype, t.device, t.storage_offset()) for t in tree_leaves(output)]


def agrees(func: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether the memo remembers; asked first and again it says what torch does, or raises what torch raises."""
    before = len(memo._known)
    try:
        theirs = _described(func(*args, **kwargs))
    except REFUSALS as error:
        for _ in range(2):
            with pytest.raises(type(error)):
                output_of(func, args, kwargs)
        assert len(memo._known) == before
        return False
    first, second = (output_of(func, args, kwargs) for _ in range(2))
    assert _described(first) == _described(second) == theirs, (func, args)
    for one, other in zip(tree_leaves(first), tree_leaves(second), strict=True):
        assert one is not other
        assert one.untyped_storage() is not other.untyped_storage()
    return len(memo._known) > before


def is_remembered(func: Any, *args: Any, **kwargs: Any) -> bool:
    output_of(func, args, kwargs)
    return bool(memo._known)


@pytest.mark.parametrize("name", UNARY)
def test_one_value_of_every_layout(name: str) -> None:
    func = getattr(aten, name).default
    assert all(agrees(func, tensor) for shape in SHAPES for tensor in layouts(*shape)[:1])
    for shape in SHAPES:
        for tensor in layouts(*shape):
            agrees(func, tensor)


def test_two_values_meet_or_are_refused() -> None:
    for first, second in itertools.product(SHAPES, repeat=2):
        for a, b in itertools.product(layouts(*first)[::2], layouts(*second)):
            agrees(aten.add.Tensor, a, b)
            agrees(aten.div.Tensor, a, b)
    assert memo._known


def test_what_torch_refuses_it_refuses_each_time() -> None:
    for func, args in (
        (aten.add.Tensor, (meta(2, 3), meta(2, 4))),
        (aten.add_.Tensor, (meta(3), meta(2, 3))),
        (aten.linear.default, (meta(2, 3), meta(3, 4))),
        (aten.cat.default, ([meta(2, 3), meta(3, 4)], 0)),
        (aten.mm.default, (meta(2, 3), meta(4, 3))),
        (aten._local_scalar_dense.default, (meta(1),)),
        (aten.nonzero.default, (meta(3),)),
    ):
        assert not agrees(func, *args)
        with pytest.raises(REFUSALS):
            func(*args)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims: int) -> None:
    for stride, padding, groups, transposed in itertools.product((1, 2), (0, 1), (1, 2), (False, True)):
        image, weight = meta(2, 4, *[9] * dims), meta(4, 4 // groups, *[3] * dims)
        rest = ([stride] * dims, [padding] * dims, [1] * dims, transposed, [0] * dims, groups)
        assert agrees(aten.convolution.default, image, weight, None, *rest)
    last = meta(2, 4, 9, 9).to(memory_format=torch.channels_last)
    assert agrees(aten.convolution.default, last, meta(4, 4, 3, 3), meta(4), [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


def test_lists_of_tensors_and_results_of_several() -> None:
    assert agrees(aten.cat.default, [meta(2, 3), meta(2, 5)], 1)
    assert agrees(aten.cat.default, [meta(2, 3), meta(2, 5), meta(2, 1)], 1)
    assert agrees(aten.cat.default, [meta(2, 3), meta(2, 3)], 1)
    assert agrees(aten.cat.default, [meta(2, 3), meta(2, 3)], 0)
    assert not agrees(aten.index.Tensor, meta(4, 5), [None, meta(3, dtype=torch.int64)]), "a mask picks by its values"
    assert agrees(aten.native_layer_norm.default, meta(2, 4, 3).transpose(1, 2), (4,), meta(4), None, 1e-5)
    assert agrees(aten.max_pool2d_with_indices.default, meta(2, 3, 8, 8), [2, 2])
    assert agrees(aten.max.dim, meta(2, 3), 1)
    assert agrees(aten.topk.default, meta(2, 9), 3)


def test_numbers_count_with_their_type() -> None:
    count = meta(3, dtype=torch.int64)
    for number in (1, 1.0, True, 1j, 1.0, 1):
        agrees(aten.add.Tensor, count, number)
        agrees(aten.full_like.default, count, number)
        agrees(aten.full_like.default, count, number, dtype=torch.float16)
    assert len(memo._known) == 12
    assert agrees(aten.mean.dim, meta(2, 3), [1], True)
    assert agrees(aten.mean.dim, meta(2, 3), [1], False)
    assert agrees(aten.sum.dim_IntList, meta(2, 3), [1], dtype=torch.float64)
    assert agrees(aten.clone.default, meta(2, 3, 4, 4), memory_format=torch.channels_last)
    assert agrees(aten.clone.default, meta(2, 3, 4, 4), memory_format=torch.contiguous_format)


def test_the_default_type_counts() -> None:
    for default in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            assert agrees(aten.div.Tensor, meta(3, dtype=torch.int64), 2)
            assert output_of(aten.div.Tensor, (meta(3, dtype=torch.int64), 2), {}).dtype == default
        finally:
            torch.set_default_dtype(before)


def test_what_works_in_place_returns_its_argument() -> None:
    for _ in range(2):
        tensor, parameter = meta(2, 3), nn.Parameter(meta(2, 3), requires_grad=False)
        assert output_of(aten.relu_.default, (tensor,), {}) is tensor
        assert output_of(aten.add_.Tensor, (tensor, meta(3)), {}) is tensor
        assert output_of(aten.add_.Tensor, (parameter, parameter), {}) is parameter
        view = tensor[0]
        assert output_of(aten.mul_.Tensor, (view, 2.0), {}) is view
        assert view.untyped_storage() is tensor.untyped_storage()
    assert memo._known
    for _ in range(2):
        with pytest.raises(RuntimeError):
            output_of(aten.add_.Tensor, (meta(3, dtype=torch.int64), 1.5), {})


@pytest.mark.parametrize("name", "squeeze_ unsqueeze_ t_ transpose_ resize_ as_strided_ swapaxes_".split())
def test_what_changes_a_layout_in_place_does_so_each_time(name: str) -> None:
    args: dict[str, Any] = {"unsqueeze_": (0,), "transpose_": (0, 1), "swapaxes_": (0, 1), "resize_": ([7],)}
    args["as_strided_"] = ([2], [1])
    for _ in range(2):
        tensor = meta(1, 3)
        output = output_of(getattr(aten, name).default, (tensor, *args.get(name, ())), {})
        assert output is tensor
        assert tensor.shape != (1, 3)
    assert not memo._known


def test_views_stay_views() -> None:
    source = meta(2, 3, 4)
    for func, args in (
        (aten.view.default, ([6, 4],)),
        (aten.transpose.int, (0, 1)),
        (aten.slice.Tensor, (1, 0, 2)),
        (aten.select.int, (0, 1)),
        (aten.unsqueeze.default, (0,)),
        (aten.expand.default, ([2, 3, 4],)),
        (aten.reshape.default, ([6, 4],)),
        (aten.detach.default, ()),
        (aten.split.Tensor, (1, 1)),
        # No schema says of this one that it returns what it is given.
        (aten.lift.default, ()),
    ):
        for _ in range(2):
            for view in tree_leaves(output_of(func, (source, *args), {})):
                assert view.untyped_storage() is source.untyped_storage(), func
    assert all(known is None for known in memo._known.values())


def test_what_has_values_is_computed() -> None:
    for first, second in ((1.0, 2.0), (3.0, 4.0)):
        assert output_of(aten.add.Tensor, (torch.tensor(first), torch.tensor(second)), {}) == first + second
        assert output_of(aten._local_scalar_dense.default, (torch.tensor(first),), {}) == first
        assert output_of(aten.nonzero.default, (torch.tensor([first - 1, 1.0]),), {}).shape[0] == 1 + (first > 1)
    # One side has values, or what is made lies elsewhere.
    assert not is_remembered(aten.add.Tensor, meta(3), torch.tensor(1.0))
    assert not is_remembered(aten.empty_like.default, meta(3), device=torch.device("cpu"))


def test_random_operations_and_those_of_others_run_each_time() -> None:
    assert not is_remembered(aten.rand_like.default, meta(3))
    assert not is_remembered(aten.bernoulli_.float, meta(3), 0.5)
    runs = []
    library = torch.library.Library("lit_prune_test_memo", "DEF")
    try:
        library.define("twice(Tensor x) -> Tensor")

        def twice(x: Tensor) -> Tensor:
            runs.append(x)
            return x.new_empty(len(runs))

        library.impl("twice", twice, "Meta")
        func = torch.ops.lit_prune_test_memo.twice.default
        assert [output_of(func, (meta(3),), {}).shape for _ in range(2)] == [(1,), (2,)]
    finally:
        library._destroy()


def test_sparse_tensors_and_unknown_arguments_go_to_torch() -> None:
    sparse = torch.zeros(3, 3).to_sparse().to("meta")
    assert output_of(aten.clone.default, (sparse,), {}).layout is torch.sparse_coo
    assert not memo._known


def test_it_holds_no_tensor_and_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = meta(2, 3)
    output = output_of(aten.neg.default, (tensor,), {})
    gone = [weakref.ref(tensor), weakref.ref(output)]
    del tensor, output
    gc.collect()
    assert memo._known
    assert all(ref() is None for ref in gone)
    monkeypatch.setattr(memo, "_MOST", 4)
    for size in range(1, 20):
        assert output_of(aten.neg.default, (meta(size),), {}).shape == (size,)
        assert 1 <= len(memo._known) <= 4


def test_threads_may_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "_MOST", 4)
    with ThreadPoolExecutor(8) as pool:
        sizes = [1 + number % 7 for number in range(400)]
        found = list(pool.map(lambda size: output_of(aten.neg.default, (meta(size),), {}).shape[0], sizes))
    assert found == sizes


def test_a_second_trace_says_the_same_and_leaves_the_first_alone() -> None:
    class Written(nn.Module):
        """Writes into a view of what it made, and into its own input's copy."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros_like(self.first(x))
            y[:, :] = self.first(x)
            y += self.second(x).relu_()
            y.unsqueeze_(0)
            return self.last(y.squeeze_(0))

    def facts(graph: ChannelGraph) -> Any:
        return [(g.name, g.size, g.slots) for g in graph.groups], graph.unprunable, graph.macs, graph.unsupported

    network = Written()
    first = ChannelGraph.trace(network, torch.zeros(1, 3, 8, 8))
    asked = len(memo._known)
    before = facts(first)
    second = ChannelGraph.trace(network, torch.zeros(1, 3, 8, 8))
    assert len(memo._known) == asked > 0
    assert facts(second) == before == facts(first)
    memo._known.clear()
    assert facts(ChannelGraph.trace(network, torch.zeros(1, 3, 8, 8))) == before
