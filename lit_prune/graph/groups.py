"""From labels to groups: the channels that one decision removes, and the slots that they lie in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lit_prune.graph.labels import Components, Row
from lit_prune.graph.trace import Recording, Slot
from lit_prune.plan import PruningPlan


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
        balanced: Names of the groups, this one included, that must lose equally many; empty where it is free.
        members: For each slot the indices of each channel.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    layers: tuple[str, ...]
    balanced: tuple[str, ...] = ()
    members: Mapping[Slot, Members] = field(default_factory=dict, repr=False)
    labels: Row = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)

    def indices(self, slot: Slot, channels: Row) -> Row:
        """The sorted indices that ``channels`` occupy in ``slot``."""
        members = self.members[slot]
        return np.sort(members.indices[np.isin(members.channels, channels)])

    def width_under(self, plan: PruningPlan) -> int:
        """How many of these channels a plan keeps."""
        slot = next(iter(self.members))
        kept = plan.kept.get(slot[0], {}).get(slot[1])
        members = self.members[slot]
        return self.size if kept is None else len(np.unique(members.channels[np.isin(members.indices, kept.numpy())]))


@dataclass(frozen=True)
class Grouping:
    """All groups of a recording, and why the other layers are frozen."""

    groups: tuple[ChannelGroup, ...]
    frozen: Mapping[str, str]
    components: Components


def build_groups(recording: Recording) -> Grouping:
    """Work out the groups, keeping balanced pieces free where each is a group of its own and tying the rest."""
    index = _SlotIndex(recording)
    while True:
        components = recording.labels.components()
        keys = index.signatures(components)
        partners, tied = _settle_balance(recording, components, keys)
        if not tied:
            break
    owner = index.owner
    producing = np.zeros(len(index.slots), dtype=np.bool_)
    for row in recording.produced:
        producing[owner[row]] = True

    order = np.argsort(keys, kind="stable")
    order = order[~components.frozen[order]]
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    drafts = []
    for channels in np.split(order, bounds) if len(order) else []:
        draft = _draft(channels, components, index, producing)
        if draft is not None:
            drafts.append((int(keys[channels[0]]), draft))
    drafts.sort(key=lambda item: item[1].first)
    named = _name([draft for _, draft in drafts])
    names = {key: name for (key, _), name in zip(drafts, named, strict=True)}
    groups = tuple(
        ChannelGroup(
            name=name,
            size=draft.size,
            slots=tuple(draft.members),
            layers=draft.layers,
            balanced=tuple(names[partner] for partner in partners.get(key, ()) if partner in names),
            members=draft.members,
            labels=draft.labels,
        )
        for (key, draft), name in zip(drafts, named, strict=True)
    )
    return Grouping(groups, _frozen_layers(recording, components, index, producing), components)


class _SlotIndex:
    """Slots as numbers, and for each label the slot it was made for."""

    def __init__(self, recording: Recording) -> None:
        self.slots = list(recording.slots)
        self.rows = list(recording.slots.values())
        self.owner = np.full(recording.labels.count, -1, dtype=np.int64)
        self.position = np.zeros(recording.labels.count, dtype=np.int64)
        for number, row in enumerate(self.rows):
            self.owner[row] = number
            self.position[row] = np.arange(len(row))
        self._pieces = recording.labels.pieces

    def signatures(self, components: Components) -> npt.NDArray[np.uint64]:
        """``(components,)`` equal where components touch the same slots and lie in the same balanced pieces."""
        pieces = [piece for pieces in self._pieces for piece in pieces]
        labels = np.concatenate([np.flatnonzero(self.owner >= 0), *pieces])
        places = np.concatenate(
            [
                self.owner[self.owner >= 0],
                *(np.full(len(piece), len(self.slots) + number) for number, piece in enumerate(pieces)),
            ]
        )
        incidence = np.unique(np.stack([components.of[labels], places], axis=1), axis=0)
        # Sets as sums of random 64-bit words; two different sets collide with a chance of 2^-64 a pair.
        words = np.random.default_rng(0).integers(0, 2**64, size=len(self.slots) + len(pieces), dtype=np.uint64)
        keys = np.zeros(len(components.reason), dtype=np.uint64)
        np.add.at(keys, incidence[:, 0], words[incidence[:, 1]])
        return keys


def _settle_balance(
    recording: Recording, components: Components, keys: npt.NDArray[np.uint64]
) -> tuple[dict[int, tuple[int, ...]], bool]:
    """Which groups, by key, must lose equally many; ties the pieces where that can't be said of whole groups."""
    sizes = dict(zip(*np.unique(keys, return_counts=True), strict=True))
    partners: dict[int, tuple[int, ...]] = {}
    remaining, tied = [], False
    for pieces in recording.labels.pieces:
        members = [components.of[piece] for piece in pieces]
        if all(np.array_equal(members[0], other) for other in members[1:]):
            continue
        frozen = [components.frozen[piece] for piece in members]
        if all(mask.all() for mask in frozen):
            continue
        whole = not any(mask.any() for mask in frozen) and all(
            len(np.unique(piece)) == len(piece)
            and (keys[piece] == keys[piece[0]]).all()
            and sizes[keys[piece[0]]] == len(piece)
            for piece in members
        )
        if not whole:
            recording.labels.tie(pieces)
            tied = True
            continue
        remaining.append(pieces)
        together: list[int] = []
        for key in (int(keys[piece[0]]) for piece in members):
            together.extend(partner for partner in partners.get(key, (key,)) if partner not in together)
        for key in together:
            partners[key] = tuple(together)
    recording.labels.pieces[:] = remaining
    return partners, tied


@dataclass(frozen=True)
class _Draft:
    first: int
    size: int
    layers: tuple[str, ...]
    members: dict[Slot, Members]
    labels: Row


def _draft(channels: Row, components: Components, index: _SlotIndex, producing: npt.NDArray[np.bool_]) -> _Draft | None:
    place = np.full(len(components.reason), -1, dtype=np.int64)
    place[channels] = np.arange(len(channels))
    labels = np.flatnonzero((place[components.of] >= 0) & (index.owner >= 0))
    slots = np.unique(index.owner[labels])
    makers = [slot for slot in slots if producing[slot]]
    if not makers or len(channels) < 2:
        # Nothing makes these channels (a bare parameter), or the only one must stay.
        return None
    # Channels are counted in the order of the layer that makes them first.
    first = labels[index.owner[labels] == makers[0]]
    rank = np.empty(len(channels), dtype=np.int64)
    _, seen = np.unique(components.of[first], return_index=True)
    ordered = components.of[first[np.sort(seen)]]
    rank[place[ordered]] = np.arange(len(channels))
    members = {}
    for slot in slots:
        mine = labels[index.owner[labels] == slot]
        members[index.slots[slot]] = Members(rank[place[components.of[mine]]], index.position[mine])
    layers = tuple(dict.fromkeys(_layer(index.slots[slot]) for slot in makers))
    return _Draft(int(first.min()), len(channels), layers, members, labels)


def _frozen_layers(
    recording: Recording, components: Components, index: _SlotIndex, producing: npt.NDArray[np.bool_]
) -> dict[str, str]:
    frozen = {}
    for number in np.flatnonzero(producing):
        reasons = components.reason[components.of[index.rows[number]]]
        if (reasons >= 0).any():
            frozen[_layer(index.slots[number])] = recording.labels.reasons[int(reasons[reasons >= 0].min())]
    return frozen


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
    return slot[0].rpartition(".")[0]


def iterate_labels(groups: tuple[ChannelGroup, ...]) -> Iterator[Row]:
    """The labels of each group."""
    for group in groups:
        yield group.labels
