"""What a criterion is, and what it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lit_prune.common.names import layer_of
from lit_prune.graph import ChannelGraph, ChannelGroup
from lit_prune.plan import Slot, belongs_to_any

if TYPE_CHECKING:
    from lit_prune.activations import Arrivals, Calibration, Moments


@dataclass(frozen=True)
class Evidence:
    """What a decision can rest on: the live network, its graph, and statistics of activations where asked for.

    Attributes:
        network: The live network; parameters and buffers carry the names of the graph's slots.
        graph: Its channel graph.
        groups: The groups that may lose channels now.
        moments: Layer name to class-wise statistics of its activations; empty unless the criterion or selection has
            a ``calibration``.
        arrivals: Name of a weight to what arrives there on calibration batches; empty unless the criterion needs it.
        changes: Group name to ``(size,)``: by how much the loss changes without each channel, to first order, as
            :class:`lit_prune.criteria.Changes` has it; empty unless the criterion asks for gradients.
    """

    network: nn.Module
    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    changes: Mapping[str, Tensor] = field(default_factory=dict)
    arrivals: Mapping[str, Arrivals] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by name; a shared one under each of its names."""
        return dict(self.network.named_parameters(remove_duplicate=False))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Modules by name; a shared one under each of its names."""
        return dict(self.network.named_modules(remove_duplicate=False))

    def slots_of(self, group: ChannelGroup) -> Iterator[tuple[Slot, Tensor]]:
        """The slots of a group that lie in parameters, each with its tensor, detached."""
        for slot in group.slots:
            parameter = self.parameters.get(slot[0])
            # An average tells nothing that what it is of does not.
            if parameter is not None and not belongs_to_any(slot[0], self.graph.averages):
                yield slot, parameter.detach()

    def readers_of(self, group: ChannelGroup) -> Iterator[tuple[Slot, Tensor]]:
        """Of :meth:`slots_of` those of weights that read the channels, not make, scale or only pass them on."""
        # Vectors scale what passes, and a depthwise layer passes each channel on.
        for slot, tensor in self.slots_of(group):
            if tensor.dim() > 1 and layer_of(slot[0]) not in group.layers:
                yield slot, tensor


class Criterion(ABC):
    """Says how important each channel is; those with the lowest scores go first.

    A criterion of your own is a subclass with one method. In YAML it is named by its class path.

    Example:
        >>> import torch
        >>> class LastFirst(Criterion):
        ...     def __call__(self, evidence):
        ...         return {group.name: -torch.arange(float(group.size)) for group in evidence.groups}
    """

    calibration: Calibration | None = None
    """How much data to look at, for :attr:`Evidence.moments`; ``None`` where activations are ignored."""

    needs_arrivals: bool = False
    """Whether the data is looked at for :attr:`Evidence.arrivals` instead."""

    needs_covariances: bool = False
    """Whether those are to have covariances."""

    needs_gradients: bool = False
    """Whether it goes by :attr:`Evidence.changes`."""

    comparable: bool = False
    """Whether the scores of different layers have one unit, so that they can be compared as they are."""

    is_layer_adaptive: bool = False
    """Whether a score rises with what is gone of its layer, so that no layer is emptied while others are whole."""

    needs: str = ""
    """What a group must have to be judged, for messages."""

    @abstractmethod
    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score the channels of ``evidence.groups``.

        Returns:
            Group name to scores ``(size,)``, higher for what matters more. A group that can't be judged is left out
            and stays as it is.
        """
