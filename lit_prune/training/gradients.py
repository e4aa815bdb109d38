"""What the gradients of a training tell, for a criterion that goes by them, from one event to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.criteria import Changes
from lit_prune.graph import ChannelGraph


class Gradients:
    """Follows a network through its shapes, and sums up what gradients tell of its channels.

    Args:
        wanted: Whether a criterion goes by them; if not, nothing is looked at.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._changes: Changes | None = None
        # Of a run that is resumed, until its network is seen.
        self._saved: dict[str, Any] | None = None

    @property
    def are_enough(self) -> bool:
        """Whether an event can go by them, or need not."""
        return not self._wanted or (self._changes is not None and self._changes.has_steps)

    def follow(self, network: nn.Module, graph: ChannelGraph | None) -> None:
        """Go on with the channels that a network has now: what was noted of the same ones still holds."""
        if not self._wanted or graph is None or (self._changes is not None and self._changes.graph is graph):
            return
        before = self.state_dict()
        self._changes, self._saved = Changes(network, graph), None
        if before is not None:
            self._changes.load_state_dict(before)

    def note(self, optimizer: Optimizer, scale: Callable[[], float]) -> None:
        """Before an optimizer steps: look at the gradients, unless the step is passed over.

        Args:
            optimizer: Which one.
            scale: Tells by what the gradients were multiplied; to ask may take a wait for the device.
        """
        if self._changes is None:
            return
        name = self._changes.name_of(_parameters_of(optimizer))
        if self._changes.is_due(name):
            self._changes.note({parameter: parameter.grad for parameter in _parameters_of(optimizer)}, scale())

    def values(self) -> dict[str, Tensor]:
        """As :meth:`Changes.values`; empty where nothing was noted."""
        return {} if self._changes is None else self._changes.values()

    def state_dict(self) -> dict[str, Any] | None:
        """What was noted so far, as plain data."""
        return self._saved if self._changes is None else self._changes.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take up what :meth:`state_dict` wrote, once the network is seen."""
        self._changes, self._saved = None, state

    def forget(self) -> None:
        """Start again: the channels are others."""
        self.load_state_dict(None)


def _parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
