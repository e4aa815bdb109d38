"""Modules and tensors by their qualified names, and values by the names of their classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""The attributes that a module has because it is one; others are of its class."""
OURS = "_lit_prune_"
"""What the names of attributes begin with that this package leaves on modules and tensors."""


def find_module(network: nn.Module, path: str) -> nn.Module | None:
    """The submodule of that name, found without a walk over all of the network; None where there is none.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.ReLU()))
        >>> find_module(net, "0.0"), find_module(net, "0.1"), find_module(net, "") is net
        (ReLU(), None, True)
    """
    found: nn.Module | None = network
    for part in path.split(".") if path else ():
        if found is None:
            return None
        # Those of a scripted module are no dict, and have no `get`.
        found = (
            dict(found._modules.items()).get(part)
            if isinstance(found, torch.jit.ScriptModule)
            else found._modules.get(part)
        )
    return found


def modules_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """What ``network.named_modules()`` yields, in a fraction of its time: that takes a generator for every level.

    Example:
        >>> [name for name, _ in modules_of(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()))]
        ['', '0', '0.0', '1']
    """
    found: list[tuple[str, nn.Module]] = [("", network)]
    _enter(network, "", found, {id(network)})
    return found


def _enter(module: nn.Module, prefix: str, found: list[tuple[str, nn.Module]], seen: set[int]) -> None:
    # No function within the other: that would refer to itself, and keep the network until the collector comes by.
    for name, child in module._modules.items():
        if child is not None and id(child) not in seen:
            seen.add(id(child))
            found.append((prefix + name, child))
            if child._modules:
                _enter(child, f"{prefix}{name}.", found, seen)


def find_tensor(network: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of that name; None where there is none.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(3))
        >>> find_tensor(net, "0.running_mean"), find_tensor(net, "0.momentum")
        (tensor([0., 0., 0.]), None)
    """
    path, _, own = name.rpartition(".")
    module = find_module(network, path)
    if module is None:
        return None
    tables = [table for table in (module._parameters, module._buffers) if own in table]
    return next((table[own] for table in tables), None)


def layer_of(name: str) -> str:
    """The layer that a parameter or buffer belongs to; of what a parametrization computes from, the parametrized one.

    Example:
        >>> layer_of("net.0.weight"), layer_of("net.0.parametrizations.weight.original1")
        ('net.0', 'net.0')
    """
    layer, parametrized, _ = name.rpartition(".parametrizations.")
    if not parametrized:
        layer = "" if name.startswith("parametrizations.") else name.rpartition(".")[0]
    return layer


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; of one that has several names, the first.

    Example:
        >>> [name for name, _ in tensors_of(nn.BatchNorm1d(3))]
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    modules = modules_of(module)
    for kind in ("_parameters", "_buffers"):
        seen = set()
        for path, owner in modules:
            prefix = f"{path}." if path else ""
            for name, tensor in vars(owner)[kind].items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield prefix + name, tensor


def names_of_tensors(module: nn.Module) -> list[list[str]]:
    """All names of each parameter and buffer, as a state dict has them: a layer may stand in several places.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> names_of_tensors(nn.Sequential(layer, nn.Linear(2, 2, bias=False), layer))
        [['0.weight', '2.weight'], ['1.weight']]
    """
    found: dict[int, list[str]] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append(prefix + name)
    return [*found.values()]


def class_names(value: object) -> tuple[str, ...]:
    """The names of a value's class and of its bases, the class first.

    By them a callback, a logger or a strategy is recognised whichever package it comes from, and none is imported.

    Example:
        >>> class_names(nn.ReLU())
        ('ReLU', 'Module', 'object')
    """
    return tuple(base.__name__ for base in type(value).__mro__)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not; shared ones count once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters())
