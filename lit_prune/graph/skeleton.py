"""Copies of a network to trace: without weights where that is enough, with them where a forward needs values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lit_prune.graph.copying import copy_module
from lit_prune.graph.recording import Call
from lit_prune.lookup import modules_of

# A meta tensor carries under this attribute what it stands for, where that is a few numbers outside the weights.
_VALUE = "_lit_prune_value"
_MOST_VALUES = 256
_PLAIN = (Tensor, nn.Parameter)


def skeleton(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on the meta device: all of its structure, none of its weights copied.

    Hooks stay behind, but for those of torch itself, which compute weights.
    """
    # What is no weight a forward may read numbers from: strides, scales and the like.
    weights = {
        id(buffer)
        for _, module in modules_of(network)
        for buffer in module._buffers.values()
        if buffer is not None and buffer.dim()
    }
    return copy_module(network, lambda tensor: _emptied(tensor, id(tensor) in weights))


def replica(network: nn.Module) -> nn.Module:
    """A copy of ``network`` with its weights, without its hooks: for forwards that need values."""
    return copy_module(network, _cloned)


def twin(network: nn.Module) -> nn.Module:
    """A copy of a network as :func:`skeleton` or :func:`replica` made it."""
    first = next(network.parameters(), None)
    return skeleton(network) if first is None or first.is_meta else replica(network)


def on_meta(calls: Sequence[Call]) -> list[Call]:
    """The same calls with inputs that have a shape and no values."""

    def convert(value: Any) -> Any:
        return tree_map_only(Tensor, _empty, value)

    return [Call(call.module, convert(tuple(call.args)), convert(dict(call.kwargs))) for call in calls]


def remember(empty: Tensor, value: Tensor) -> None:
    """Let a meta tensor know the few numbers that it stands for."""
    if empty.is_meta and not value.is_meta and value.numel() <= _MOST_VALUES:
        setattr(empty, _VALUE, value)


def is_remembered(tensor: Tensor) -> bool:
    """Whether the numbers that a meta tensor stands for are known."""
    return _VALUE in tensor.__dict__


def remembered(arguments: Any) -> Any:
    """``arguments`` with the remembered value in place of each meta tensor."""
    return tree_map_only(Tensor, lambda tensor: vars(tensor)[_VALUE], arguments)


def _emptied(tensor: Tensor, is_weight: bool) -> Tensor:
    if type(tensor) is nn.Parameter and tensor.is_meta:
        # Nothing lies in its memory, so that it may be shared.
        return Tensor._make_subclass(nn.Parameter, tensor, tensor.requires_grad)
    empty = _empty(tensor)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    if not is_weight and tensor.numel() <= _MOST_VALUES:
        # A copy: a forward may count in it.
        remember(empty, vars(tensor).get(_VALUE, tensor.detach()).clone())
    return empty


def _empty(tensor: Tensor) -> Tensor:
    if type(tensor) in _PLAIN and tensor.layout is torch.strided and not tensor.is_quantized:
        # What `empty_like` does, without its way through Python.
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _cloned(tensor: Tensor) -> Tensor:
    values = tensor.detach().clone()
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
