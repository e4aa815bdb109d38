"""Try the graph out: shrink a copy, trace it again, and freeze whatever does not come out as foretold.

What a module remembers in Python (``num_heads``, a width in ``view``) is in no trace. A shrunk copy shows it: it fails,
or couples other channels, or computes with another constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lit_prune.common.names import modules_of
from lit_prune.errors import TraceError
from lit_prune.graph.agreement import compare
from lit_prune.graph.groups import ChannelGroup, Grouping, build_groups, plan_without
from lit_prune.graph.labels import Components, Row
from lit_prune.graph.recording import Call, Recording
from lit_prune.graph.rules import RULES
from lit_prune.graph.skeleton import has_values, on_meta, replica, skeleton, twin
from lit_prune.graph.ties import keep_whole, tie_widths
from lit_prune.graph.trace import Reached, Until, record
from lit_prune.plan import PruningPlan, Slot
from lit_prune.surgery.mask import zero_

Examined = tuple[nn.Module, Sequence[Call], Recording, Grouping]


@dataclass(frozen=True, eq=False)
class Unit:
    """Groups that must lose equally many, and the channels of each that go at a trial."""

    gone: tuple[tuple[ChannelGroup, Row], ...]

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups alone."""
        return [group for group, _ in self.gone]


def examine(model: nn.Module, calls: Sequence[Call]) -> Examined:
    """Trace a copy of ``model`` and probe every group.

    Returns:
        The copy, the calls as it takes them, the recording and the groups that passed.

    Raises:
        TraceError: If the forward fails on the example inputs.
    """
    network, entered = skeleton(model).eval(), on_meta(calls)
    try:
        return network, entered, *_probed(network, entered)
    except TraceError:
        # An operation may need values (`item`, `nonzero`) or a forward make tensors elsewhere: once more with weights.
        pass
    network = replica(model).eval()
    with torch.random.fork_rng():
        return network, calls, *_probed(network, calls)


def rehearse(network: nn.Module, calls: Sequence[Call], recording: Recording, plan: PruningPlan) -> Examined:
    """Shrink a copy of a traced network to ``plan`` and trace it.

    Raises:
        TraceError: If it fails, or differs from what the recording foretells.
    """
    shrunk = twin(network, plan)
    again = _record(twin(shrunk), calls)
    _verify(network, calls, recording, again, plan)
    return shrunk, calls, again, build_groups(again)


def _record(network: nn.Module, calls: Sequence[Call], until: Until | None = None) -> Recording:
    """Trace a copy that is thrown away: a forward leaves caches behind (anchors, positions)."""
    recording = record(network, calls, RULES, until)
    tie_widths(network, recording)
    recording.raw = recording.labels.components()
    return recording


def _probed(network: nn.Module, calls: Sequence[Call]) -> tuple[Recording, Grouping]:
    recording = _record(twin(network), calls)
    keep_whole(network, recording)
    grouping = build_groups(recording)
    while grouping.groups:
        failing = _Probe(network, calls, recording, grouping).failing()
        if not failing:
            break
        for unit, reason in failing:
            _restrict(recording, grouping.components, unit, reason)
        grouping = build_groups(recording)
    return recording, grouping


def _restrict(recording: Recording, components: Components, unit: Unit, reason: str) -> None:
    """Groups that failed may still pass where whole heads go; otherwise they stay."""
    mine = np.zeros(len(components.reason), dtype=np.bool_)
    for group in unit.groups:
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
        for group in unit.groups:
            recording.labels.freeze(group.labels, reason)


@dataclass(frozen=True)
class _Failure:
    """What went wrong, and how far a trace must go to tell whether it does again; None: to the end."""

    error: TraceError
    until: Until | None


class _Probe:
    """Takes a few channels from each of some groups and sees whether the network comes out as foretold."""

    def __init__(self, network: nn.Module, calls: Sequence[Call], recording: Recording, grouping: Grouping) -> None:
        self._network = network
        self._calls = calls
        self._recording = recording
        self._components = grouping.components
        self._groups = grouping.groups
        self._units = _units(self._groups)

    def failing(self) -> list[tuple[Unit, str]]:
        """Groups that can't lose a channel; none where all can. Once they are seen to, others may show."""
        failure = self._failure(self._units)
        if failure is None and self._recording.pieces:
            # Where a computed size says what is cut out of a dimension, it may fit to what has gone by chance.
            self._units = _units(self._groups, few=1, more=5)
            failure = self._failure(self._units)
        units = self._units
        if failure is None:
            return []
        layer = failure.error.layer
        # Mostly the cause lies in the layer that failed, or in one like it.
        for layers in ([layer], self._alike(layer)):
            near = [unit for unit in units if any(_touches(unit, name) for name in layers)]
            if near and (cause := self._failure(near, failure.until)):
                return self._search(near, cause)
        return self._search(units, failure)

    def _failure(self, units: Sequence[Unit], until: Until | None = None) -> _Failure | None:
        """What is wrong once each of these has lost some channels; None where nothing is, as far as ``until``."""
        gone = [item for unit in units for item in unit.gone]
        plan = plan_without(self._recording, self._components, gone)
        try:
            again = _record(twin(self._network, plan), self._calls, until)
        except Reached:
            return None
        except TraceError as error:
            calls = self._recording.calls[error.layer]
            return _Failure(error, Until(error.layer, calls) if error.layer and calls else None)
        try:
            _verify(self._network, self._calls, self._recording, again, plan)
        except TraceError as error:
            return _Failure(error, None)
        return None

    def _search(self, tried: Sequence[Unit], failure: _Failure) -> list[tuple[Unit, str]]:
        """Those of ``tried`` that fail, by halving; what lies likewise in a like layer fails alike."""
        found: list[tuple[Unit, str]] = []
        pending, cause = list(tried), failure
        while True:
            failing = pending
            while len(failing) > 1:
                half = len(failing) // 2
                for part in (failing[:half], failing[half:]):
                    if failed := self._failure(part, cause.until):
                        failing, cause = part, failed
                        break
                else:
                    # It takes both halves to fail.
                    return [*found, *((unit, f"can't be narrowed together: {cause.error}") for unit in failing)]
            layer = cause.error.layer
            place = _place(failing[0], layer)
            like = self._alike(layer) if place else []
            alike = [unit for unit in self._units if any(_place(unit, name) == place for name in like)]
            found.extend((unit, f"can't be narrowed: {cause.error}") for unit in alike or failing)
            pending = [unit for unit in pending if unit not in alike and unit is not failing[0]]
            again = self._failure(pending, failure.until) if pending else None
            if again is None:
                return found
            cause = again

    def _alike(self, layer: str) -> list[str]:
        """The modules of the class of ``layer``; of a container only itself."""
        if not layer:
            return []
        kind = type(self._network.get_submodule(layer))
        if kind.__module__.startswith("torch.nn."):
            return [layer]
        return [name for name, module in modules_of(self._network) if type(module) is kind]


def _place(unit: Unit, layer: str) -> frozenset[Slot]:
    """Where in a layer the groups lie."""
    slots = (slot for group in unit.groups for slot in group.slots)
    return frozenset((name[len(layer) + 1 :], dim) for name, dim in slots if name.startswith(f"{layer}."))


def _touches(unit: Unit, layer: str) -> bool:
    """Whether a group reaches into a layer."""
    return bool(layer) and any(name.startswith(f"{layer}.") for group in unit.groups for name, _ in group.slots)


def _units(groups: Sequence[ChannelGroup], few: int = 2, more: int = 1) -> list[Unit]:
    """Groups, with those that are balanced as one, and a few channels of each, always the same."""
    by_name = {group.name: group for group in groups}
    together = dict.fromkeys(tuple(sorted(group.balanced or (group.name,))) for group in groups)
    rng = np.random.default_rng(0)
    units = []
    for number, names in enumerate(together):
        unit = [by_name[name] for name in names]
        # Groups that must stay equally wide, or lose the same channels, are seen to where they lose differently.
        count = min(few + more * number % 7, max(1, min(group.size for group in unit) - 2))
        units.append(Unit(tuple((group, rng.permutation(group.size)[:count]) for group in unit)))
    return units


def _verify(
    network: nn.Module, calls: Sequence[Call], recording: Recording, again: Recording, plan: PruningPlan
) -> None:
    """Raise unless the shrunk network couples what is left of the couplings before.

    Where the forward depends on values (a loop over what was found) they are the shrunk network's in a masked one.
    """
    try:
        compare(recording, again, plan)
    except TraceError as error:
        if not has_values(network):
            raise
        try:
            masked = twin(network)
            zero_(masked, plan)
            compare(_record(masked, calls), again, plan)
        except TraceError:
            raise error from None
