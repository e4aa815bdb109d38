"""Modules and tensors by their qualified names."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


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
        found = found._modules.get(part)
    return found


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
    tensor = module._parameters.get(own)
    return module._buffers.get(own) if tensor is None else tensor


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; of one that has several names, the first.

    Example:
        >>> [name for name, _ in tensors_of(nn.BatchNorm1d(3))]
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    yield from module.named_parameters()
    yield from module.named_buffers()
