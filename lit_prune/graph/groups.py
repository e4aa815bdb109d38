"""Groups: the channels that one decision removes, and the slots that they lie in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from lit_prune.graph.labels import Components, Row
from lit_prune.graph.recording import Recording
from lit_prune.plan import PruningPlan, Slot


@dataclass(frozen=True)
class Members:
    """Which indices of one slot belong to which channel of a group; several may belong to one (flatten).

    Attributes:
        channels: ``(indices,)`` channel of each.
        indices: ``(indices,)`` index in the slot's dimension.
    """

    channels: Row
    indices: Row


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that one decision is about: removing channel k removes it from every slot at once.

    Attributes:
        name: Qualified name of the first layer that makes these channels; ``#2`` and so on where a layer makes those
            of several groups (the halves of a ``chunk``).
        size: Number of channels.
        slots: (tensor name, dimension) of all that shrinks.
        layers: Layers that make the channels, in forward order: coupled, they shrink together.
        followers: Averages of these layers, which shrink with them.
        balanced: Names of the groups, this one included, that must lose equally many; empty where it is free.
        members: For each slot the indices of each channel.
        pieces: Of how many such pieces, alike, each layer consists that makes these channels: of those of a GroupNorm,
            of the groups of a convolution. The width of a layer is theirs together.
        narrowest: How many channels the narrowest piece has, where a convolution runs them one by one; else 0.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    layers: tuple[str, ...]
    balanced: tuple[str, ...] = ()
    members: Mapping[Slot, Members] = field(default_factory=dict, repr=False)
    labels: Row = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)
    followers: tuple[str, ...] = ()
    pieces: int = 1
    narrowest: int = 0

    def step(self, round_to: int) -> int:
        """The step of this group's width by which that of its layers is a multiple of ``round_to``.

        Example:
            >>> ChannelGroup("conv", 4, (), (), pieces=32).step(8), ChannelGroup("conv", 16, (), (), pieces=4).step(8)
            (1, 2)
        """
        if self.narrowest > round_to:
            # What kernels run through is a piece: one of 15 channels takes half as long again as one of 16.
            return round_to
        return round_to // math.gcd(round_to, self.pieces)

    @property
    def bundle(self) -> tuple[str, ...]:
        """Names of the groups that must lose equally many, this one among them; of a free one its own."""
        return tuple(sorted(self.balanced)) or (self.name,)

    def indices(self, slot: Slot, channels: Row) -> Row:
        """The sorted indices that ``channels`` occupy in ``slot``."""
        chosen = np.zeros(self.size, dtype=np.bool_)
        chosen[channels] = True
        members = self.members[slot]
        return np.sort(members.indices[chosen[members.channels]])

    def width_under(self, plan: PruningPlan) -> int:
        """How many of these channels a plan keeps."""
        slot = next(iter(self.members))
        kept = plan.kept.get(slot[0], {}).get(slot[1])
        members = self.members[slot]
        return self.size if kept is None else len(np.unique(members.channels[np.isin(members.indices, kept.numpy())]))


def plan_without(recording: Recording, components: Components, gone: Iterable[tuple[ChannelGroup, Row]]) -> PruningPlan:
    """The plan that removes these channels of these groups."""
    leaves = np.zeros(len(components.reason), dtype=np.bool_)
    for group, channels in gone:
        # Every channel of a group lies in each of its slots.
        slot = group.slots[0]
        leaves[components.of[recording.slots[slot][group.indices(slot, channels)]]] = True
    names, rows = list(recording.slots), list(recording.slots.values())
    bounds = np.cumsum([0, *[len(row) for row in rows]])
    positions = np.flatnonzero(~leaves[components.of][np.concatenate([np.empty(0, dtype=np.int64), *rows])])
    edges = np.searchsorted(positions, bounds)
    cut = np.flatnonzero(np.diff(edges) < np.diff(bounds)).tolist()
    kept: dict[str, dict[int, torch.Tensor]] = {}
    sizes: dict[str, dict[int, int]] = {}
    for number in sorted(cut, key=names.__getitem__):
        name, dim = names[number]
        # An array of its own: a view would be saved with all the others.
        indices = positions[edges[number] : edges[number + 1]] - bounds[number]
        kept.setdefault(name, {})[dim] = torch.from_numpy(indices)
        sizes.setdefault(name, {})[dim] = len(rows[number])
    reduced_in = {layer for layer, row in recording.reduced if leaves[components.of[row]].any()}
    divisors = [slot for slot in recording.divisors if slot[1] in kept.get(slot[0], ())]
    return PruningPlan(kept, sizes, frozenset(reduced_in), divisors)
