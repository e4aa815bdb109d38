"""Copies of a network to trace: without weights where that is enough, with them where a forward needs values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common._compat import tree_map_only
from lit_prune.common.names import OURS
from lit_prune.graph.copying import copy_module
from lit_prune.graph.recording import Call
from lit_prune.modules.registry import update_attributes_
from lit_prune.plan import PruningPlan
from lit_prune.surgery.shrink import select, shrink_, targets

# A meta tensor carries under this attribute what it stands for, where that is a few numbers outside the weights.
_VALUE = f"{OURS}value"
MOST_VALUES = 2**14
# Of what a network holds.
_MOST_HELD = 256
_PLAIN = (Tensor, nn.Parameter)
NOTHING = PruningPlan({})
"""The plan that leaves a network whole."""


def skeleton(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on the meta device: all of its structure, none of its weights copied.

    Hooks stay behind, but for those of torch itself, which compute weights.
    """
    return copy_module(network, emptied)


def replica(network: nn.Module) -> nn.Module:
    """A copy of ``network`` with its weights, without its hooks: for forwards that need values."""
    return copy_module(network, cloned)


def twin(network: nn.Module, plan: PruningPlan = NOTHING) -> nn.Module:
    """A copy of a network as :func:`skeleton` or :func:`replica` made it, cut to ``plan``.

    Tensors without values that are whole may be shared: nothing lies in their memory.
    """
    if has_values(network):
        return shrink_(replica(network), plan) if plan else replica(network)
    cut = {id(tensor): dims for tensor, dims in targets(network, plan)}

    def copied(tensor: Tensor, is_buffer: bool) -> Tensor:
        dims = cut.get(id(tensor))
        if dims is not None:
            return _alike(select(tensor, dims), tensor)
        return tensor if tensor.is_meta and not is_remembered(tensor) else emptied(tensor, is_buffer)

    result = copy_module(network, copied)
    if plan:
        update_attributes_(result)
    return result


def has_values(network: nn.Module) -> bool:
    """Whether a copy has weights, as :func:`replica` makes it."""
    first = next(network.parameters(), None)
    return first is not None and not first.is_meta


def on_meta(calls: Sequence[Call]) -> list[Call]:
    """The same calls with inputs that have a shape and no values."""
    return [_with_inputs(call, _empty) for call in calls]


def with_values(calls: Sequence[Call], device: torch.device) -> list[Call]:
    """The same calls with made-up values where inputs have none."""

    def convert(tensor: Tensor) -> Tensor:
        return made_up(tensor.shape, tensor.dtype, device) if tensor.is_meta else tensor.to(device)

    return [_with_inputs(call, convert) for call in calls]


def _with_inputs(call: Call, convert: Callable[[Tensor], Tensor]) -> Call:
    args, kwargs = tree_map_only(Tensor, convert, (tuple(call.args), dict(call.kwargs)))
    return replace(call, args=args, kwargs=kwargs)


def made_up(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values between 0 and 1; zeros where they are integers, which may be indices; true where they may be a mask."""
    if dtype == torch.bool:
        return torch.ones(tuple(shape), dtype=dtype, device=device)
    if not dtype.is_floating_point:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    return torch.linspace(0, 1, math.prod(shape)).reshape(tuple(shape)).to(device, dtype)


def remember(empty: Tensor, value: Tensor) -> None:
    """Let a meta tensor know the few numbers that it stands for."""
    if empty.is_meta and not value.is_meta and value.numel() <= MOST_VALUES:
        setattr(empty, _VALUE, value)


def is_remembered(tensor: Tensor) -> bool:
    """Whether the numbers that a meta tensor stands for are known."""
    return _VALUE in tensor.__dict__


def remembered(arguments: Any) -> Any:
    """``arguments`` with the remembered value in place of each meta tensor that has one."""
    if isinstance(arguments, Tensor):
        return vars(arguments).get(_VALUE, arguments)
    if isinstance(arguments, dict):
        return {name: remembered(value) for name, value in arguments.items()}
    kind = type(arguments)
    return kind([remembered(value) for value in arguments]) if kind in (list, tuple) else arguments


def on_numbers(func: Callable[..., Any], values: Any) -> Any:
    """What ``func`` makes of the numbers that :func:`remembered` has found for its (arguments, keyword arguments)."""
    args, kwargs = values
    there = {"device": torch.device("cpu")} if "device" in kwargs else {}
    return func(*args, **{**kwargs, **there})


def emptied(tensor: Tensor, is_buffer: bool) -> Tensor:
    """What stands for a tensor without values."""
    empty = _alike(_empty(tensor), tensor)
    # What a forward may read numbers from: strides, scales and the like; statistics are weights.
    if tensor.numel() <= _MOST_HELD and not (is_buffer and tensor.dim()) and not _is_parameter(tensor):
        remember(empty, vars(tensor).get(_VALUE, tensor.detach()).clone())
    return empty


def _alike(values: Tensor, tensor: Tensor) -> Tensor:
    """``values`` as a parameter where ``tensor`` is one."""
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if _is_parameter(tensor) else values


def _is_parameter(tensor: Tensor) -> bool:
    # To ask torch takes a call of Python's, and most are plain.
    return type(tensor) is nn.Parameter or (type(tensor) is not Tensor and isinstance(tensor, nn.Parameter))


def _empty(tensor: Tensor) -> Tensor:
    if type(tensor) in _PLAIN and tensor.layout is torch.strided and not tensor.is_quantized:
        # What `empty_like` does, without its way through Python.
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def cloned(tensor: Tensor, _: bool) -> Tensor:
    """A tensor of the same values."""
    return _alike(tensor.detach().clone(), tensor)
