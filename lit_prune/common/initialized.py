"""A network as it is given: one, and whole."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from lit_prune.common.arguments import check_kind
from lit_prune.common.names import modules_of
from lit_prune.errors import ArgumentError


def check_network(name: str, network: object) -> None:
    """Raise unless this is a network whose layers have their weights.

    Args:
        name: The user's argument, for the message.
        network: What was given.

    Raises:
        ArgumentTypeError: If it is no module.
        ArgumentError: If it has a lazy layer that has seen no input; the message has its name.

    Example:
        >>> check_network("network", nn.Sequential(nn.LazyLinear(4)))
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: network is not whole: '0', a LazyLinear, has seen no input. Run it once before.
    """
    check_kind(name, network, nn.Module)
    assert isinstance(network, nn.Module)
    for path, module in modules_of(network):
        tensors = [*module._parameters.values(), *module._buffers.values()]
        if any(tensor is not None and is_lazy(tensor) for tensor in tensors):
            raise ArgumentError(
                f"{name} is not whole: {path!r}, a {type(module).__name__}, has seen no input. Run it once before."
            )
