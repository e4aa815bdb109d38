"""What a selection is, and how far it has to go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_prune.common.deprecated import warn_renamed
from lit_prune.criteria import Evidence
from lit_prune.graph import ChannelGroup

if TYPE_CHECKING:
    from lit_prune.activations import Calibration

Scores = Mapping[str, Tensor]
Widths = dict[str, int]
Bundle = tuple[ChannelGroup, ...]
"""Groups that must lose equally many channels; most have one group."""


@dataclass(frozen=True)
class Target:
    """How far one event goes, in terms of the dense network, and which widths are allowed.

    Attributes:
        ratio: What is to be gone after this event, in (0, 1); ``None`` where the selection decides it by itself.
        widths: Group name to its channels in the dense network.
        macs: Multiply-adds of the dense network, for one example.
        params: Its parameters.
        round_to: Kept widths of layers are multiples of it; narrower layers stay whole.
        min_channels: The fewest channels that a group keeps.
        comparable: Whether scores of different layers have one unit.
        is_layer_adaptive: Whether a score rises with what is gone of its layer.
        findings: What the selection found out at the last event: its :attr:`Selection.findings` of then.
        least: Group name to the fewest channels that it keeps, where that is more than ``min_channels``.
        kinds: Group name to a number that groups have in common which are built alike.
    """

    ratio: float | None
    widths: Mapping[str, int]
    macs: int
    round_to: int = 8
    min_channels: int = 1
    comparable: bool = False
    params: int = 0
    findings: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    is_layer_adaptive: bool = False
    kinds: Mapping[str, int] = field(default_factory=dict)

    @property
    def costs(self) -> dict[str, float]:
        """What the dense network costs, by the units of budgets."""
        known = {"MACs": float(self.macs), "params": float(self.params)}
        return {unit: cost for unit, cost in known.items() if cost}

    @property
    def share(self) -> float | None:
        """The old name of ``ratio``."""
        warn_renamed("Target.share", "Target.ratio")
        return self.ratio

    def keep(self, group: ChannelGroup, ratio: float) -> int:
        """The width of ``group`` once ``ratio`` of its dense channels is gone: rounded, and never above the present."""
        return self.allowed(group, self.widths.get(group.name, group.size) * (1 - ratio))

    def allowed(self, group: ChannelGroup, wanted: float) -> int:
        """The allowed width nearest to ``wanted``."""
        step = group.step(self.round_to)
        # Half a step goes up: what is in doubt stays.
        width = step * int(wanted / step + 0.5)
        fewest = max(self.min_channels, self.least.get(group.name, 1), 1)
        least = step * -(-fewest // step)
        return min(group.size, max(width, least))


class Selection(ABC):
    """Says which channels go, given their scores and a target.

    A selection of your own is a subclass with one method. In YAML it is named by its class path.

    Example:
        >>> class NarrowestScore(Selection):
        ...     def __call__(self, evidence, scores, target):
        ...         return {name: score.argsort()[:1] for name, score in scores.items() if len(score) > 1}
    """

    calibration: Calibration | None = None
    """How much data to look at, for :attr:`Evidence.moments`; ``None`` where activations are ignored."""
    needs_amount: bool = True
    """Whether it needs to be told an amount."""
    has_limit: bool = False
    """Whether it says by itself how far it goes; an event's ratio is then the part of the way."""
    findings: Mapping[str, float] = MappingProxyType({})
    """What else its last choice found out, for the record of the event: numbers by name."""

    @abstractmethod
    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Choose the channels to remove.

        Args:
            evidence: The network, its graph, the groups that may lose channels.
            scores: Group name to ``(size,)`` scores; a group that is missing stays.
            target: How far to go.

        Returns:
            Group name to the sorted channels that go. Balanced groups lose equally many.

        Raises:
            SelectionError: If the target is out of reach.
        """

    def foretell(self, evidence: Evidence, scores: Scores, target: Target) -> Mapping[str, object]:
        """What would be removed, as far as it can be known before activations are looked at.

        With it a whole run is rehearsed on its first batch. A selection that needs activations says nothing unless
        it has a method of its own.

        Args:
            evidence: As for a call, without moments.
            scores: As for a call.
            target: As for a call.

        Returns:
            As a call does; for most purposes only the numbers of channels count.

        Raises:
            SelectionError: If the target is out of reach, or the selection can't work on these groups.
        """
        return self(evidence, scores, target) if self.calibration is None else {}


def bundled(groups: Iterable[ChannelGroup], scores: Scores) -> list[Bundle]:
    """Groups in bundles that must lose equally many channels; those that are not fully scored are left out."""
    by_name = {group.name: group for group in groups}
    found = dict.fromkeys(group.bundle for group in by_name.values())
    return [
        tuple(by_name[name] for name in names)
        for names in found
        if all(name in scores and name in by_name for name in names)
    ]


def units(groups: Iterable[ChannelGroup], scores: Scores) -> list[Bundle]:
    """The old name of :func:`bundled`."""
    warn_renamed("units", "bundled")
    return bundled(groups, scores)


def flat(bundles: Iterable[Bundle]) -> list[ChannelGroup]:
    """All groups of some bundles."""
    return [group for bundle in bundles for group in bundle]


def lowest(groups: Sequence[ChannelGroup], scores: Scores, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The channels with the lowest scores, so many that ``widths`` are left; of equal scores the later one goes."""
    gone = {}
    for group in groups:
        number = group.size - widths[group.name]
        if number > 0:
            # A stable sort of the mirrored scores breaks ties alike on every device.
            order = torch.argsort(scores[group.name].double().cpu().flip(0), stable=True)
            gone[group.name] = (group.size - 1 - order[:number]).sort().values
    return gone
