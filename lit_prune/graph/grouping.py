"""From labels to groups: which channels one decision removes, and why others stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_prune.common.names import layer_of
from lit_prune.graph.balance import Partners, pieces_of, settle
from lit_prune.graph.groups import ChannelGroup, Members
from lit_prune.graph.labels import Components, Row
from lit_prune.graph.recording import Recording
from lit_prune.plan import Slot, belongs_to_any


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
