"""How much memory the values of a forward take: each from where it is made to where Python lets go of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_prune.common._compat import ITEM, DispatchMode, memory_of, tree_flatten
from lit_prune.common.arguments import check_choice
from lit_prune.common.running import eagerly
from lit_prune.errors import TraceError
from lit_prune.graph import Call, ChannelGraph
from lit_prune.graph.memo import output_of
from lit_prune.graph.operation import tensors_among
from lit_prune.graph.skeleton import is_remembered, on_numbers, remember, remembered, with_values
from lit_prune.plan import PruningPlan

Precision = Literal["float32", "float16", "int8"]
BYTES: dict[str, int] = {"float32": 4, "float16": 2, "int8": 1}
"""Bytes of one number in each precision."""
Timeline = npt.NDArray[np.int64]
_WHOLE = PruningPlan({})


def peak_memory(network: nn.Module, *inputs: Any, precision: Precision = "float32") -> int:
    """The most bytes that the values of one forward take at once, its inputs and outputs among them.

    Weights are not counted, nor what a kernel takes for itself while it runs (workspaces, weights in another order).

    Args:
        network: Any module, taken in eval mode; it stays as it is.
        *inputs: Its example inputs, a batch of any size.
        precision: In which values that are floating-point numbers are kept.

    Raises:
        ArgumentError: If the precision is unknown.
        TraceError: If the forward fails on these inputs.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> peak_memory(net, torch.zeros(1, 3, 10, 10))  # 3 of the input, 8 before and 8 behind the ReLU
        7600
    """
    check_choice("precision", precision, get_args(Precision))
    return int(timeline(ChannelGraph.trace(network, *inputs), precision=precision).max())


def timeline(graph: ChannelGraph, plan: PruningPlan = _WHOLE, precision: Precision = "float32") -> Timeline:
    """``(operations,)`` bytes that are taken once each operation has run, where a plan was carried out.

    Args:
        graph: Of the network, by the inputs that it was traced with.
        plan: What is left of it.
        precision: As for :func:`peak_memory`.

    Raises:
        TraceError: If no forward is known, or it fails.
    """
    try:
        return _timeline(graph, plan, precision, values=False)
    except TraceError:
        raise
    except Exception:
        # A forward may read numbers that a copy without weights has not.
        pass
    try:
        return _timeline(graph, plan, precision, values=True)
    except Exception as error:
        raise TraceError(f"The memory of a forward can't be told: {type(error).__name__}: {error}") from error


def _timeline(graph: ChannelGraph, plan: PruningPlan, precision: Precision, values: bool) -> Timeline:
    with graph.running(plan) as (network, calls):
        if not calls:
            raise TraceError("The memory of a forward can't be told: only whole training steps are known")
        if values:
            _fill_(network)
        entered = with_values(calls, torch.device("cpu")) if values else calls
        with torch.no_grad(), eagerly():
            return np.concatenate([_of_call(network, call, precision) for call in entered])


def _of_call(network: nn.Module, call: Call, precision: Precision) -> Timeline:
    given = [leaf for leaf in tree_flatten((call.args, dict(call.kwargs)))[0] if isinstance(leaf, Tensor)]
    own = [*network.parameters(), *network.buffers()]
    on_meta = bool(given) and given[0].is_meta
    where: AbstractContextManager[Any] = torch.device("meta") if on_meta else nullcontext()
    with where, _WholeAttention(), _Living(own, given, BYTES[precision]) as living:
        output = call.enter(network)
    del output
    return np.array([living.at_first, *living.after], dtype=np.int64)


def _fill_(network: nn.Module) -> None:
    """Give zeros to what has no values."""
    for module in network.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in tables:
            for name, tensor in own.items():
                if tensor is not None and tensor.is_meta:
                    zeros = torch.zeros_like(tensor, device="cpu")
                    own[name] = nn.Parameter(zeros, tensor.requires_grad) if own is module._parameters else zeros


class _Living(DispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of all values that are made while it is open.

    Args:
        own: Tensors that are there before and are not counted.
        given: Tensors that are there before and are.
        each: Bytes of a floating-point number.
    """

    def __init__(self, own: Iterable[Tensor], given: Sequence[Tensor], each: int) -> None:
        super().__init__()
        self._own = {memory_of(tensor) for tensor in own}
        self._each = each
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._bytes = 0
        self.after: list[int] = []
        for tensor in given:
            self._note(tensor)
        self.at_first = self._bytes

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        numbers = _numbers(args, kwargs)
        if func is ITEM and numbers is not None:
            return func(*numbers[0])
        output = output_of(func, args, kwargs)
        made = tensors_among([output])
        # Without values a norm makes statistics also where it takes those that it has.
        for each in made[:1] if "batch_norm" in func.name() else made:
            self._note(each)
        if numbers is not None and isinstance(output, Tensor) and output.is_meta:
            remember(output, on_numbers(func, numbers))
        self.after.append(self._bytes)
        return output

    def _note(self, tensor: Tensor) -> None:
        key = memory_of(tensor)
        if key in self._own or key in self._alive:
            return
        memory = tensor.untyped_storage()
        size = memory.nbytes()
        if tensor.is_floating_point():
            size = size // tensor.element_size() * self._each
        self._bytes += size
        self._alive[key] = weakref.ref(memory, partial(self._free, key, size))

    def _free(self, key: int, size: int, _: Any) -> None:
        self._bytes -= size
        del self._alive[key]


def _numbers(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The arguments with their numbers, where all tensors among them are small and stand for known ones."""
    tensors = tensors_among((*args, *kwargs.values()))
    return remembered((args, kwargs)) if tensors and all(map(is_remembered, tensors)) else None


class _WholeAttention(TorchFunctionMode):
    """Keeps attention one operation, as the kernels are that compute it: without values torch takes it apart."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, value = args[0] if args else kwargs["query"], args[2] if len(args) > 2 else kwargs["value"]
            if query.is_meta:
                return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **kwargs)
