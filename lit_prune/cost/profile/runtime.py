"""What a runtime is to a profile: it tells how long networks take, and their layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Timings:
    """What a runtime tells of some networks.

    Attributes:
        wholes: Of each network, the milliseconds of one forward.
        layers: Of each, the milliseconds of its layers, as far as the runtime tells them.
        conditions: ``device``, ``runtime``, ``version``, ``threads``; of torch also ``device_type``, ``precision`` and
            ``layout``.
    """

    wholes: list[float] = field(default_factory=list)
    layers: list[dict[str, float]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)


class Runtime(ABC):
    """Times networks."""

    @abstractmethod
    def time(self, networks: Iterable[nn.Module], inputs: Tensor, layers: Collection[str]) -> Timings:
        """Times of networks, and of layers within them."""

    @abstractmethod
    def whole(self, network: nn.Module, inputs: Tensor) -> float:
        """The milliseconds of one forward."""

    @abstractmethod
    def conditions(self, inputs: Tensor) -> dict[str, Any]:
        """Where and by what it times."""
