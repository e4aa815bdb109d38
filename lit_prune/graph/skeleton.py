"""Copies of a network to trace: without weights where that is enough, with them where a forward needs values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.data import DataLoader, Dataset

from lit_prune.graph.recording import Call

# A meta tensor carries under this attribute what it stands for, where that is a few numbers outside the weights.
_VALUE = "_lit_prune_value"
_MOST_VALUES = 256


def skeleton(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on the meta device: all of its structure, none of its weights copied.

    Hooks stay behind, but for those of torch itself, which compute weights.
    """
    memo: dict[int, Any] = {}
    named = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for module in network.modules():
        for value in vars(module).values():
            for tensor in _tensors_in(value):
                if id(tensor) in memo:
                    continue
                empty = torch.empty_like(tensor, device="meta", requires_grad=False)
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                elif id(tensor) not in named or not tensor.dim():
                    # Strides, scales and the like: a forward may read numbers from them.
                    remember(empty, vars(tensor).get(_VALUE, tensor.detach()))
                memo[id(tensor)] = empty
    return _copy(network, memo)


def replica(network: nn.Module) -> nn.Module:
    """A copy of ``network`` with its weights, without its hooks: for forwards that need values."""
    return _copy(network, {})


def twin(network: nn.Module) -> nn.Module:
    """A copy of a network as :func:`skeleton` or :func:`replica` made it."""
    on_device = any(parameter.device.type != "meta" for parameter in network.parameters())
    return replica(network) if on_device else skeleton(network)


def on_meta(calls: Sequence[Call]) -> list[Call]:
    """The same calls with inputs that have a shape and no values."""

    def convert(value: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta", requires_grad=False), value)

    return [Call(call.module, convert(tuple(call.args)), convert(dict(call.kwargs))) for call in calls]


def remember(empty: Tensor, value: Tensor) -> None:
    """Let a meta tensor know the few numbers that it stands for."""
    if empty.is_meta and not value.is_meta and value.numel() <= _MOST_VALUES:
        setattr(empty, _VALUE, value)


def remembered(arguments: Any) -> Any:
    """``arguments`` with the remembered value in place of each meta tensor; None unless every tensor has one."""
    tensors = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Tensor)]
    if not tensors or not all(_VALUE in vars(tensor) for tensor in tensors):
        return None
    return tree_map_only(Tensor, lambda tensor: vars(tensor)[_VALUE], arguments)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def _copy(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for module in network.modules():
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = vars(module)[table]
            # A hook of a callback or a tracker would be copied with all that it refers to, and run.
            kept = {key: hook for key, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils")}
            memo[id(hooks)] = type(hooks)(kept)
    _share_data(network, memo)
    try:
        return copy.deepcopy(network, dict(memo))
    except Exception:
        _share_uncopyable(network, memo)
        return copy.deepcopy(network, memo)


def _share_data(network: nn.Module, memo: dict[int, Any]) -> None:
    """Data sets that a module holds are no part of the network, and may be large."""
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, (Dataset, DataLoader)):
                memo[id(value)] = value


def _share_uncopyable(network: nn.Module, memo: dict[int, Any]) -> None:
    """What can't be copied (locks, open files, generators) is shared with the copy."""
    for module in network.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and id(value) not in memo:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    memo[id(value)] = value
