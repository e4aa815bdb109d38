"""What a network costs without being timed: parameters and multiply-adds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lit_prune.common.initialized import check_network
from lit_prune.common.names import count_parameters
from lit_prune.graph import ChannelGraph


@dataclass(frozen=True)
class Cost:
    """Size of a network and work of one example.

    Attributes:
        params: Number of parameters.
        macs: Multiply-adds of one example; one multiply-add counts as one.

    Example:
        >>> import torch
        >>> cost = Cost.of(nn.Conv2d(3, 8, 1, bias=False), torch.zeros(1, 3, 10, 10))
        >>> cost
        Cost(params=24, macs=2400)
        >>> cost.to_dict()
        {'params': 24, 'macs': 2400}
    """

    params: int
    macs: int

    @classmethod
    def of(cls, network: nn.Module, *inputs: Any) -> Cost:
        """Count the parameters of ``network``, and the multiply-adds of its forward.

        Args:
            network: Any module; it stays as it is.
            *inputs: Its example inputs, a batch of any size.

        Raises:
            ArgumentTypeError: If the network is none.
            TraceError: If the forward fails on these inputs; the message names the layer.
        """
        check_network("network", network)
        return cls(count_parameters(network), ChannelGraph.trace(network, *inputs).macs)

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self)
