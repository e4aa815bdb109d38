"""From labels to groups: the channels that one decision removes, and the slots that they lie in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lit_prune.common.names import layer_of
from lit_prune.graph.balance import Partners, pieces_of, settle
from lit_prune.graph.labels import Components, Row
from lit_prune.graph.recording import Recording
from lit_prune.plan import PruningPlan, Slot, belongs_to_any


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


@dataclass(frozen=True)
class Grouping:
    """All groups of a recording, and why other layers are unprunable."""

    groups: tuple[ChannelGroup, ...]
    unprunable: Mapping[str, str]
    components: Components


def build_groups(recording: Recording) -> Grouping:
    """Work out the groups: pieces of a fold stay free where each is of whole groups, and are tied where not."""
    index = _SlotIndex(recording)
    while True:
        components = recording.labels.components()
        keys = index.signatures(components)
        partners, changed = settle(recording.labels, components, keys)
        if not changed:
            break
    producing = np.zeros(len(index.slots), dtype=np.bool_)
    for row in recording.produced:
        owners = index.owner[row]
        producing[owners[owners >= 0]] = True

    order = np.argsort(keys, kind="stable")
    stuck = np.zeros(len(components.reason), dtype=np.bool_)
    for fold in recording.labels.folds:
        if fold.heads is not None and not fold.whole:
            # What stands for a piece stays as long as some of the piece does.
            stuck[components.of[fold.heads]] = True
    order = order[~(components.unprunable | stuck)[order]]
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    starts = np.array([0, *bounds.tolist()] if len(order) else [], dtype=np.int64)
    holdings = _Holdings(index, components, order, starts)
    drafts = []
    single = np.zeros(len(components.reason), dtype=np.bool_)
    for number, channels in enumerate(np.split(order, bounds) if len(order) else []):
        draft = _draft(len(channels), *holdings.of(number), index, producing)
        if draft is None:
            single[channels] = len(channels) == 1
        else:
            drafts.append((int(keys[channels[0]]), draft))
    drafts.sort(key=lambda item: item[1].first)
    named = _name([draft for _, draft in drafts])
    names = {key: name for (key, _), name in zip(drafts, named, strict=True)}
    pieces = pieces_of({key: draft.members.keys() for key, draft in drafts}, partners)
    apart = _run_apart(recording, components, dict(drafts), partners)
    groups = tuple(
        ChannelGroup(
            name=name,
            size=draft.size,
            slots=tuple(draft.members),
            layers=draft.layers,
            balanced=tuple(names[partner] for partner in partners.get(key, ()) if partner in names),
            members=draft.members,
            labels=draft.labels,
            followers=draft.followers,
            # One channel of all groups of a convolution is as many of the layer that makes them.
            pieces=pieces[key] * (math.gcd(*(each.repeats for each in apart[key])) or 1),
            narrowest=min((each.size for each in apart[key]), default=0),
        )
        for (key, draft), name in zip(drafts, named, strict=True)
    )
    return Grouping(groups, _unprunable_layers(recording, components, index, producing, single, stuck), components)


class _SlotIndex:
    """Slots as numbers, and for each label the slot it was made for."""

    def __init__(self, recording: Recording) -> None:
        self.slots = list(recording.slots)
        self.rows = list(recording.slots.values())
        self.owner = np.full(recording.labels.count, -1, dtype=np.int64)
        self.position = np.zeros(recording.labels.count, dtype=np.int64)
        if self.rows:
            labels, counts = np.concatenate(self.rows), np.array([len(row) for row in self.rows])
            self.owner[labels] = np.repeat(np.arange(len(counts)), counts)
            self.position[labels] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._labels = recording.labels
        self._averages = recording.averages

    def is_average(self, number: int) -> bool:
        """Whether a slot is that of an average."""
        return belongs_to_any(self.slots[number][0], self._averages)

    def signatures(self, components: Components) -> npt.NDArray[np.uint64]:
        """``(components,)`` equal where components touch the same slots and lie in the same pieces."""
        places = list(self._labels.pieces)
        for fold in self._labels.folds:
            # Pieces that go whole are the channels of one group; others are groups of their own.
            places.extend([fold.labels.ravel()] if fold.whole else fold.labels)
        owned = np.flatnonzero(self.owner >= 0)
        labels = np.concatenate([owned, *places])
        counts = np.array([len(place) for place in places], dtype=np.int64)
        numbers = np.repeat(np.arange(len(places), dtype=np.int64) + len(self.slots), counts)
        total = len(self.slots) + len(places)
        incidence = np.sort(components.of[labels] * total + np.concatenate([self.owner[owned], numbers]))
        incidence = incidence[np.diff(incidence, prepend=-1) > 0]
        # Sets as sums of random 64-bit words; two different sets collide with a chance of 2^-64 a pair.
        words = np.random.default_rng(0).integers(0, 2**64, size=total, dtype=np.uint64)
        keys = np.zeros(len(components.reason), dtype=np.uint64)
        component, place = np.divmod(incidence, total)
        np.add.at(keys, component, words[place])
        return keys


@dataclass(frozen=True)
class _Draft:
    first: int
    size: int
    layers: tuple[str, ...]
    followers: tuple[str, ...]
    members: dict[Slot, Members]
    labels: Row
    repeats: int
    """How often each channel is in every layer that makes it."""


class _Holdings:
    """The labels that each group holds, found for all groups at once."""

    def __init__(self, index: _SlotIndex, components: Components, order: Row, starts: Row) -> None:
        """Take components in an ``order`` in which those of one group lie side by side, from its start on."""
        counts = np.diff([*starts, len(order)])
        # Numbers of 16 bits are sorted without comparing them.
        kind = np.int16 if len(starts) < 2**15 else np.int64
        group: npt.NDArray[Any] = np.full(len(components.reason), -1, dtype=kind)
        group[order] = np.repeat(np.arange(len(starts), dtype=kind), counts)
        channel = np.zeros(len(components.reason), dtype=np.int64)
        channel[order] = np.arange(len(order)) - np.repeat(starts, counts)
        labels = np.flatnonzero(index.owner >= 0)
        held = np.asarray(group[components.of[labels]], dtype=kind)
        inside = np.greater_equal(held, 0)
        labels, held = labels[inside], held[inside]
        self._labels = labels[np.argsort(held, kind="stable")]
        self._channel = channel[components.of[self._labels]]
        self._bounds = np.cumsum([0, *np.bincount(held, minlength=len(starts)).tolist()])

    def of(self, number: int) -> tuple[Row, Row]:
        """The rising labels of a group, and for each the channel that it is of."""
        part = slice(self._bounds[number], self._bounds[number + 1])
        return self._labels[part], self._channel[part]


def _draft(size: int, labels: Row, channel: Row, index: _SlotIndex, producing: npt.NDArray[np.bool_]) -> _Draft | None:
    if size < 2:
        # The only one must stay.
        return None
    if not len(labels):
        # Values that are no parameter's: nothing of them can be cut.
        return None
    # Labels are given out slot by slot, so those of one slot lie side by side.
    owners = index.owner[labels]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    bounds = [*starts.tolist(), len(labels)]
    spans = dict(zip(owners[starts].tolist(), pairwise(bounds), strict=True))
    making = [slot for slot in spans if producing[slot]]
    if not making:
        # Nothing makes these channels (a bare parameter).
        return None
    averages = [slot for slot in making if index.is_average(slot)]
    # Where what they are averages of took no part, they are layers as others.
    makers = [slot for slot in making if slot not in averages] or averages
    # Channels are counted in the order of the layer that makes them first.
    first = slice(*spans[makers[0]])
    _, seen = np.unique(channel[first], return_index=True)
    rank = np.empty(size, dtype=np.int64)
    rank[channel[first][np.sort(seen)]] = np.arange(size)
    ranks, positions = rank[channel], index.position[labels]
    members = {index.slots[slot]: Members(ranks[a:b], positions[a:b]) for slot, (a, b) in spans.items()}
    layers, followers = (tuple(dict.fromkeys(_layer(index.slots[n]) for n in each)) for each in (makers, averages))
    followers = tuple(layer for layer in followers if layer not in layers)
    repeats = math.gcd(*((spans[slot][1] - spans[slot][0]) // size for slot in making))
    return _Draft(int(labels[first].min()), size, layers, followers, members, labels, repeats)


def _unprunable_layers(
    recording: Recording,
    components: Components,
    index: _SlotIndex,
    producing: npt.NDArray[np.bool_],
    single: npt.NDArray[np.bool_],
    stuck: npt.NDArray[np.bool_],
) -> dict[str, str]:
    unprunable = {}
    for number in np.flatnonzero(producing):
        mine = components.of[index.rows[number]]
        reasons = components.reason[mine]
        if (reasons >= 0).any():
            unprunable[_layer(index.slots[number])] = recording.labels.reasons[int(reasons[reasons >= 0].min())]
        elif stuck[mine].any():
            unprunable[_layer(index.slots[number])] = "could only go with the whole of a head"
        elif single[mine].any():
            # One component that holds all channels; or several, each the only one that is coupled in its way.
            alone = (mine == mine[0]).all()
            reason = (
                "can only go all together, and one must stay" if alone else "no other channel could stay in its place"
            )
            unprunable[_layer(index.slots[number])] = reason
    return unprunable


def _run_apart(
    recording: Recording, components: Components, drafts: Mapping[int, _Draft], partners: Partners
) -> dict[int, list[_Draft]]:
    """Of each group those that lose as many, itself among them, where a grouped convolution runs one of them."""
    grouped = np.zeros(len(components.reason), dtype=np.bool_)
    for row in recording.grouped:
        grouped[components.of[row]] = True
    found = {}
    for key in drafts:
        together = [drafts[other] for other in partners.get(key, (key,)) if other in drafts]
        found[key] = together if any(grouped[components.of[each.labels]].any() for each in together) else []
    return found


def _name(drafts: list[_Draft]) -> list[str]:
    taken: dict[str, int] = {}
    names = []
    for draft in drafts:
        # A later group of the same first layer is better known by a layer of its own, if it has one.
        name = next((layer for layer in draft.layers if layer not in taken), draft.layers[0])
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return names


def _layer(slot: Slot) -> str:
    return layer_of(slot[0])


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
