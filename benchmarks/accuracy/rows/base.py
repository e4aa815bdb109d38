"""What a row is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lit_prune import Repair
from lit_prune.common._compat import NormBase

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
"""Of a Trainer."""


class Row(ABC):
    """A trained network, its data and its measure.

    Attributes:
        name: The network's.
        measure: What :meth:`score` gives.
        network: The whole network, in eval mode.
        image: One example input.
        outputs: Names of the layers that must keep their channels, for packages that have to be told.
        loss_scale: What is to :meth:`loss` what 1 is to a mean over images.
        rate: The highest rate of a training that goes on with a network, of that of the first training.
    """

    name: str
    measure: str
    network: nn.Module
    image: Tensor
    outputs: tuple[str, ...] = ()
    loss_scale = 1.0
    rate = 0.5

    @abstractmethod
    def batches(self, draw: int, number: int) -> list[Any]:
        """Some batches of the training data, others for each draw."""

    @abstractmethod
    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        """What a repair looks at."""

    @abstractmethod
    def inputs(self, batch: Any) -> Tensor:
        """What of a batch goes into the network."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """What the network is trained for; norms in eval mode."""

    @abstractmethod
    def score(self, network: nn.Module) -> float:
        """The measure, on data that nothing else has seen."""

    def train(self, network: nn.Module, epochs: float, draw: int, callbacks: Sequence[Callback] = ()) -> nn.Module:
        """The same network after so many epochs, from a seed of its own."""
        raise NotImplementedError

    def train_anew(self, network: nn.Module, epochs: float, draw: int) -> nn.Module:
        """The same network from random weights, trained as the whole one was, and for so many epochs more."""
        raise NotImplementedError


def still(network: nn.Module) -> None:
    """Norms in eval mode: gradients are those of the network that is cut."""
    for module in network.modules():
        if isinstance(module, NormBase):
            module.eval()


def last_linear(network: nn.Module) -> str:
    """Name of the layer that tells classes apart."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def restarted(network: nn.Module, draw: int) -> nn.Module:
    """The network with random weights in place of all that is trained."""
    torch.manual_seed(draw)
    for module in network.modules():
        own = [*module.parameters(recurse=False)]
        if own and all(parameter.requires_grad for parameter in own):
            module.reset_parameters()
    return network
