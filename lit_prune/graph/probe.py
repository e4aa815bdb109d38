"""Try the graph out: shrink a copy, trace it again, and freeze whatever does not come out as foretold.

What a module remembers in Python (``num_heads``, a width in ``view``) is in no trace. A shrunk copy shows it: it fails,
or couples other channels, or computes with another constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from lit_prune.graph.groups import ChannelGroup, Grouping, build_groups, plan_without
from lit_prune.graph.labels import Components, Row
from lit_prune.graph.recording import Call, Constant, Recording, Slot, TraceError
from lit_prune.graph.rules import RULES
from lit_prune.graph.skeleton import on_meta, replica, skeleton, twin
from lit_prune.graph.ties import tie_widths
from lit_prune.graph.trace import record
from lit_prune.plan import PruningPlan
from lit_prune.surgery import shrink_

Examined = tuple[nn.Module, Sequence[Call], Recording, Grouping]
Unit = tuple[ChannelGroup, ...]


def examine(model: nn.Module, calls: Sequence[Call]) -> Examined:
    """Trace a copy of ``model`` and probe every group.

    Returns:
        The copy, the calls as it takes them, the recording and the groups that passed.

    Raises:
        TraceError: If the forward fails on the example inputs.
    """
    network, entered = skeleton(model), on_meta(calls)
    try:
        return network, entered, *_probed(network, entered)
    except TraceError:
        # An operation may need values (`item`, `nonzero`) or a forward make tensors elsewhere: once more with weights.
        pass
    network = replica(model)
    with torch.random.fork_rng():
        return network, calls, *_probed(network, calls)


def rehearse(network: nn.Module, calls: Sequence[Call], recording: Recording, plan: PruningPlan) -> Examined:
    """Shrink a copy of a traced network to ``plan`` and trace it.

    Raises:
        TraceError: If it fails, or differs from what the recording foretells.
    """
    shrunk = shrink_(twin(network), plan)
    again = _record(twin(shrunk), calls)
    _compare(recording, again, plan)
    return shrunk, calls, again, build_groups(again)


def _record(network: nn.Module, calls: Sequence[Call]) -> Recording:
    """Trace a copy that is thrown away: a forward leaves caches behind (anchors, positions)."""
    recording = record(network, calls, RULES)
    tie_widths(network, recording)
    recording.raw = recording.labels.components()
    return recording


def _probed(network: nn.Module, calls: Sequence[Call]) -> tuple[Recording, Grouping]:
    recording = _record(twin(network), calls)
    grouping = build_groups(recording)
    while grouping.groups:
        failing = _Probe(network, calls, recording).failing(_units(grouping.groups))
        if not failing:
            break
        for unit, reason in failing:
            _restrict(recording, grouping.components, unit, reason)
        grouping = build_groups(recording)
    return recording, grouping


def _restrict(recording: Recording, components: Components, unit: Unit, reason: str) -> None:
    """Groups that failed may still pass where whole heads go; otherwise they stay."""
    mine = np.zeros(len(components.reason), dtype=np.bool_)
    for group in unit:
        mine[components.of[group.labels]] = True
    folds = [
        fold
        for fold in recording.labels.folds
        if fold.may_be_whole
        and not fold.whole
        and mine[components.of[fold.labels]].any()
        and (components.of[fold.labels] != components.of[fold.labels[0]]).any()
    ]
    for fold in folds:
        recording.labels.make_whole(fold)
    if not folds:
        for group in unit:
            recording.labels.freeze(group.labels, reason)


class _Probe:
    """Takes a few channels from each of some groups and sees whether the network comes out as foretold."""

    def __init__(self, network: nn.Module, calls: Sequence[Call], recording: Recording) -> None:
        self._network = network
        self._calls = calls
        self._recording = recording

    def error(self, units: Iterable[Unit]) -> TraceError | None:
        """What is wrong once each group has lost some channels; None where nothing is."""
        rng = np.random.default_rng(0)
        gone: list[tuple[ChannelGroup, Row]] = []
        for number, unit in enumerate(units):
            # Groups that must stay equally wide, or lose the same channels, are seen to where they lose differently.
            count = min(1 + number % 7, max(1, min(group.size for group in unit) // 2))
            gone.extend((group, rng.permutation(group.size)[:count]) for group in unit)
        plan = plan_without(self._recording, gone)
        try:
            again = _record(shrink_(twin(self._network), plan), self._calls)
            _compare(self._recording, again, plan)
        except TraceError as failure:
            return failure
        return None

    def failing(self, units: Sequence[Unit]) -> list[tuple[Unit, str]]:
        """The groups that can't lose a channel."""
        sound = list(units)
        set_aside: list[tuple[list[Unit], TraceError]] = []
        while sound and (failure := self.error(sound)) is not None:
            # Set aside what lies in layers like the one that failed: mostly it is the cause, and the rest then passes.
            near = [unit for unit in sound if any(_touches(unit, layer) for layer in self._alike(failure.layer))]
            near = near or list(sound)
            set_aside.append((near, failure))
            sound = [unit for unit in sound if unit not in near]
        found = [item for near, _ in set_aside for item in self._search(near)]
        if set_aside and not found:
            # Alone each passes; it takes several to fail. Which ones is not known.
            found = [(unit, f"can't be narrowed together: {failure}") for near, failure in set_aside for unit in near]
        return found

    def _search(self, tried: Sequence[Unit]) -> list[tuple[Unit, str]]:
        """Those that fail, one after the other by halving; what lies likewise in a like layer fails alike."""
        found: list[tuple[Unit, str]] = []
        pending = list(tried)
        while pending and (failure := self.error(pending)) is not None:
            failing = pending
            while len(failing) > 1:
                half = len(failing) // 2
                failed = next(
                    ((part, cause) for part in (failing[:half], failing[half:]) if (cause := self.error(part))), None
                )
                if failed is None:
                    # It takes both halves to fail.
                    return [*found, *((unit, f"can't be narrowed together: {failure}") for unit in pending)]
                failing, failure = failed
            place = _place(failing[0], failure.layer)
            like = self._alike(failure.layer) if place else []
            alike = [unit for unit in pending if any(_place(unit, layer) == place for layer in like)]
            for unit in alike or failing:
                found.append((unit, f"can't be narrowed: {failure}"))
            pending = [unit for unit in pending if unit not in alike and unit is not failing[0]]
        return found

    def _alike(self, layer: str) -> list[str]:
        """The modules of the class of ``layer``; of a container only itself."""
        if not layer:
            return []
        kind = type(self._network.get_submodule(layer))
        if kind.__module__.startswith("torch.nn."):
            return [layer]
        return [name for name, module in self._network.named_modules() if type(module) is kind]


def _place(unit: Unit, layer: str) -> frozenset[Slot]:
    """Where in a layer the groups lie."""
    slots = (slot for group in unit for slot in group.slots)
    return frozenset((name[len(layer) + 1 :], dim) for name, dim in slots if name.startswith(f"{layer}."))


def _touches(unit: Unit, layer: str) -> bool:
    """Whether a group reaches into a layer."""
    return bool(layer) and any(name.startswith(f"{layer}.") for group in unit for name, _ in group.slots)


def _units(groups: Sequence[ChannelGroup]) -> list[Unit]:
    """Groups, with those that are balanced as one."""
    by_name = {group.name: group for group in groups}
    units = dict.fromkeys(tuple(sorted(group.balanced or (group.name,))) for group in groups)
    return [tuple(by_name[name] for name in names) for names in units]


def _compare(recording: Recording, again: Recording, plan: PruningPlan) -> None:
    """Raise unless the shrunk network couples exactly what is left of the couplings before."""
    _compare_constants(recording, again)
    old, new = recording.raw, again.raw
    owners: list[str] = []
    before: list[Row] = []
    after: list[Row] = []
    alone = np.zeros(len(old.reason), dtype=np.bool_)
    for slot, row in recording.slots.items():
        kept = plan.kept.get(slot[0], {}).get(slot[1])
        left = row if kept is None else row[kept.numpy()]
        if slot in again.slots:
            before.append(old.of[left])
            after.append(new.of[again.slots[slot]])
            owners.append(slot[0])
        elif len(left) == 1:
            # A dimension of one is not tracked, so nothing is said of what it is coupled with.
            alone[old.of[left]] = True
    missing = again.slots.keys() - recording.slots.keys()
    if missing:
        name = min(missing)[0]
        raise TraceError(f"{name} is used only once the network is narrower", name.rpartition(".")[0])
    if not before:
        return
    old_of, new_of = np.concatenate(before), np.concatenate(after)
    layer = np.repeat(np.arange(len(owners)), [len(row) for row in before])
    compared = ~alone[old_of]
    old_of, new_of, layer = old_of[compared], new_of[compared], layer[compared]
    for ours, theirs in ((old_of, new_of), (new_of, old_of)):
        wrong = _ambiguous(ours, theirs)
        if wrong.any():
            name = owners[int(layer[wrong].min())].rpartition(".")[0]
            raise TraceError(f"the narrower network couples other channels, of {name}", name)
    colder = new.frozen[new_of] & ~old.frozen[old_of]
    if colder.any():
        name = owners[int(layer[colder].min())].rpartition(".")[0]
        raise TraceError(f"the narrower network freezes channels of {name} that were free", name)


def _ambiguous(ours: Row, theirs: Row) -> np.ndarray:
    """Where an element of ``ours`` stands beside several different ones of ``theirs``."""
    first = np.zeros(int(ours.max(initial=0)) + 1, dtype=np.int64)
    first[ours] = theirs
    return np.asarray(first[ours] != theirs)


def _compare_constants(recording: Recording, again: Recording) -> None:
    if recording.constants == again.constants:
        return
    before, after = _by_layer(recording), _by_layer(again)
    for layer in before.keys() | after.keys():
        (numbers, fills), (numbers_now, fills_now) = before.get(layer, ([], [])), after.get(layer, ([], []))
        # A cache that was filled when the network ran before (anchors) is filled anew where it is keyed by a shape.
        if numbers != numbers_now or (fills and fills != fills_now):
            raise TraceError(f"{layer or 'it'} computes with a number that depends on a width", layer)


def _by_layer(recording: Recording) -> dict[str, tuple[list[Constant], list[Constant]]]:
    """For each layer the constants of its arithmetic, and those that it fills new tensors with."""
    found: dict[str, tuple[list[Constant], list[Constant]]] = {}
    for constant in recording.constants:
        name, _, layer = constant
        found.setdefault(layer, ([], []))["full" in name].append(constant)
    return found
