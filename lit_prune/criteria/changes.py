"""How much a loss would change without each channel, to first order, by the gradients of training steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.criteria.base import Evidence
from lit_prune.graph import ChannelGraph, ChannelGroup
from lit_prune.plan import Slot

# Of the steps since the last event the first ones are all noted, and of the others one in so many.
_ALL_OF_THE_FIRST = 16
_THEN_ONE_IN = 8


@dataclass(frozen=True, eq=False)
class _Part:
    """One dimension of a parameter: which indices of it belong to which of all channels."""

    name: str
    dim: int
    indices: Tensor
    channels: Tensor


class Changes:
    """Sums up, over steps, what the loss would change by if what reads a channel got zeros from it.

    To first order that is the sum of w · ∂L/∂w over the weights that read the channel: the gate of Molchanov et al.,
    "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3. Only numbers a channel are kept.

    Args:
        network: The live network.
        graph: Its channels.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> changes = Changes(net, ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8)))
        >>> net(torch.ones(1, 3, 8, 8)).sum().backward()
        >>> changes.note({parameter: parameter.grad for parameter in net.parameters()})
        >>> changes.values()["0"].shape
        torch.Size([4])
    """

    def __init__(self, network: nn.Module, graph: ChannelGraph) -> None:
        self.graph = graph
        self._evidence = Evidence(network, graph, graph.groups)
        self._parameters = self._evidence.parameters
        # Of a parameter under several names the first.
        self._names = {id(parameter): name for name, parameter in reversed([*self._parameters.items()])}
        self._groups = {group.name: group for group in graph.groups}
        self._parts = {group.name: self._parts_of(group) for group in graph.groups}
        self._sums = {group.name: torch.zeros(group.size) for group in graph.groups}
        self._steps = dict.fromkeys(self._groups, 0)
        self._seen: Counter[str] = Counter()

    def is_due(self, of: str = "") -> bool:
        """Whether the coming step of a training is to be noted; asked once before each.

        Args:
            of: Whose step: each optimizer is counted by itself.
        """
        self._seen[of] += 1
        return self._seen[of] <= _ALL_OF_THE_FIRST or self._seen[of] % _THEN_ONE_IN == 0

    def note(self, gradients: Mapping[nn.Parameter, Tensor | None], scale: float = 1.0) -> None:
        """Add what one step tells.

        Args:
            gradients: Of the parameters that the step is taken for.
            scale: By what the gradients were multiplied.
        """
        for name, parts in self._parts.items():
            total = None
            for part in parts:
                parameter = self._parameters[part.name]
                gradient = gradients.get(parameter)
                if gradient is not None:
                    change = _by_channel(part, parameter, gradient, self._groups[name].size)
                    total = change if total is None else total + change
            if total is not None:
                # Under a scaler a step may overflow, and is not taken.
                squares = torch.nan_to_num((total / scale).square(), nan=0.0, posinf=0.0)
                self._sums[name] = self._sums[name].to(squares.device) + squares
                self._steps[name] += 1

    def name_of(self, parameters: Iterable[nn.Parameter]) -> str:
        """A name that an optimizer over these keeps in a resumed run: that of the first of them."""
        return next((self._names[id(parameter)] for parameter in parameters if id(parameter) in self._names), "")

    @property
    def has_steps(self) -> bool:
        """Whether anything was noted."""
        return any(self._steps.values())

    def values(self) -> dict[str, Tensor]:
        """Group name to ``(size,)`` root mean squares over the steps, on the CPU; of groups with gradients."""
        return {name: (self._sums[name] / steps).sqrt().double().cpu() for name, steps in self._steps.items() if steps}

    def state_dict(self) -> dict[str, Any]:
        """What was summed up, as plain data."""
        sums = {name: self._sums[name].tolist() for name, steps in self._steps.items() if steps}
        return {"seen": dict(self._seen), "steps": {name: self._steps[name] for name in sums}, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` wrote, of the groups that are still as they were."""
        seen = state["seen"]
        self._seen = Counter(seen if isinstance(seen, Mapping) else {"": seen})
        for name, sums in state["sums"].items():
            if name in self._groups and len(sums) == self._groups[name].size:
                self._sums[name], self._steps[name] = torch.tensor(sums), state["steps"][name]

    def _parts_of(self, group: ChannelGroup) -> list[_Part]:
        readers = [slot for slot, _ in self._evidence.readers_of(group)]
        own = [slot for slot, tensor in self._evidence.slots_of(group) if tensor.dim() > 1]
        return [self._part(group, slot) for slot in readers or own]

    def _part(self, group: ChannelGroup, slot: Slot) -> _Part:
        members, device = group.members[slot], self._parameters[slot[0]].device
        indices, channels = (torch.from_numpy(each).to(device) for each in (members.indices, members.channels))
        return _Part(*slot, indices, channels)


def _by_channel(part: _Part, parameter: nn.Parameter, gradient: Tensor, size: int) -> Tensor:
    change = parameter.detach().float() * (gradient.to_dense() if gradient.is_sparse else gradient).float()
    change = change.sum([dim for dim in range(change.dim()) if dim != part.dim])
    picked = change[part.indices.to(change.device)]
    return change.new_zeros(size).index_add_(0, part.channels.to(change.device), picked)
