"""Try the graph out: shrink a copy, trace it again, and freeze whatever does not come out as foretold.

What a module remembers in Python (``num_heads``, a width in ``view``) is in no trace. A shrunk copy shows it: it fails,
or couples other channels, or computes with another constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lit_prune.common._compat import forward_hooks
from lit_prune.common.names import modules_of
from lit_prune.errors import TraceError
from lit_prune.graph.agreement import compare
from lit_prune.graph.alternatives import follow_alternatives
from lit_prune.graph.copying import is_torch_hook
from lit_prune.graph.grouping import Grouping, build_groups
from lit_prune.graph.groups import ChannelGroup, plan_without
from lit_prune.graph.labels import Components, Row
from lit_prune.graph.recording import Call, Pairs, Recording
from lit_prune.graph.rules import RULES
from lit_prune.graph.skeleton import NOTHING
from lit_prune.graph.subject import Copies, InPlace, Subject
from lit_prune.graph.ties import keep_whole, tie_averages, tie_widths, unmet
from lit_prune.graph.trace import Reached, Until, record
from lit_prune.plan import PruningPlan, Slot

Examined = tuple[Subject, Recording, Grouping, Mapping[str, str]]
"""What was traced, the recording, the groups that passed, and layers that neither groups nor reasons account for."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Groups that must lose equally many, and the channels of each that go at a trial."""

    gone: tuple[tuple[ChannelGroup, Row], ...]

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups alone."""
        return [group for group, _ in self.gone]


def examine(model: nn.Module, calls: Sequence[Call], averages: Pairs) -> Examined:
    """Trace ``model`` and probe every group.

    Copies come first, without weights where that is enough. What they do not show, hooks of a user's and functions that
    close over layers, is traced in place, and so is a step of training.

    Returns:
        As :data:`Examined` has it.

    Raises:
        TraceError: If the forward fails on the example inputs.
    """
    # What compiled code has in place of tensors, no copy can be told.
    scripted = any(isinstance(module, torch.jit.ScriptModule) for _, module in modules_of(model))
    if scripted or any(call.is_step for call in calls):
        return _examined(InPlace, model, calls, averages)
    if _has_hooks(model):
        with suppress(TraceError):
            return _examined(InPlace, model, calls, averages)
    try:
        examined = _examined(Copies, model, calls, averages)
    except TraceError as error:
        try:
            return _examined(InPlace, model, calls, averages)
        except TraceError:
            raise error from None
    if examined[-1]:
        with suppress(TraceError):
            again = _examined(InPlace, model, calls, averages)
            return again if len(again[-1]) < len(examined[-1]) else examined
    return examined


def _examined(kind: type[Copies] | type[InPlace], model: nn.Module, calls: Sequence[Call], averages: Pairs) -> Examined:
    try:
        subject = kind.of(model, calls, averages, values=False)
        return subject, *_probed(subject)
    except TraceError:
        # An operation may need values (`item`, `nonzero`) or a forward make tensors elsewhere: once more with weights.
        pass
    subject = kind.of(model, calls, averages, values=True)
    with torch.random.fork_rng():
        return subject, *_probed(subject)


def _has_hooks(model: nn.Module) -> bool:
    """Whether hooks of a user's run with the network: copies are without."""
    return any(not is_torch_hook(hook) for _, module in modules_of(model) for hook in forward_hooks(module))


def rehearse(subject: Subject, recording: Recording, plan: PruningPlan) -> Examined:
    """Trace a subject once more in the shapes of ``plan``.

    Raises:
        TraceError: If it fails, or differs from what the recording foretells.
    """
    shrunk = subject.cut(plan)
    again = _record(shrunk)
    _verify(subject, recording, again, plan)
    grouping = build_groups(again)
    return shrunk, again, grouping, unmet(shrunk.network, again, grouping)


def culprits(
    subject: Subject, recording: Recording, components: Components, gone: Sequence[tuple[ChannelGroup, Row]]
) -> dict[str, str]:
    """Which of some groups can't lose the channels that are to go, and why; found by trying parts of it."""
    by_name = {group.name: (group, channels) for group, channels in gone}
    together = dict.fromkeys(tuple(sorted(group.balanced or (name,))) for name, (group, _) in by_name.items())
    bundles = [Bundle(tuple(by_name[name] for name in names if name in by_name)) for names in together]
    probe = _Probe(subject, recording, components, bundles)
    failure = probe.failure(bundles)
    found = [] if failure is None else probe.search(bundles, failure, alike=False)
    return {group.name: reason for bundle, reason in found for group in bundle.groups}


def _record(
    subject: Subject, plan: PruningPlan = NOTHING, until: Until | None = None, masked: bool = False
) -> Recording:
    """Run and record a subject, cut to a plan."""
    with subject.running(plan, masked) as network:
        recording = record(network, subject.calls, RULES, until)
        tie_widths(network, recording)
        tie_averages(recording, subject.averages)
        follow_alternatives(network, recording)
    recording.raw = recording.labels.components()
    return recording


def _probed(subject: Subject) -> tuple[Recording, Grouping, Mapping[str, str]]:
    recording = _record(subject)
    keep_whole(subject.network, recording)
    grouping = build_groups(recording)
    while grouping.groups:
        failing = _failing(subject, recording, grouping)
        if not failing:
            break
        for bundle, reason in failing:
            _restrict(recording, grouping.components, bundle, reason)
        grouping = build_groups(recording)
    return recording, grouping, unmet(subject.network, recording, grouping)


def _restrict(recording: Recording, components: Components, bundle: Bundle, reason: str) -> None:
    """Groups that failed may still pass where whole heads go; otherwise they stay."""
    mine = np.zeros(len(components.reason), dtype=np.bool_)
    for group in bundle.groups:
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
        for group in bundle.groups:
            recording.labels.freeze(group.labels, reason)


@dataclass(frozen=True)
class _Failure:
    """What went wrong, and how far a trace must go to tell whether it does again; None: to the end."""

    reason: str
    layer: str
    until: Until | None

    @classmethod
    def of(cls, error: TraceError, until: Until | None = None) -> _Failure:
        """What an error says: it holds on to all frames that it came through, and these to the copy that failed."""
        return cls(str(error), error.layer, until)


def _failing(subject: Subject, recording: Recording, grouping: Grouping) -> list[tuple[Bundle, str]]:
    """Groups that can't lose a channel; none where all can. Once they are seen to, others may show."""
    # Where a computed size says what is cut out of a dimension, it may fit to what has gone by chance.
    for few, more in ((2, 1), (1, 5)) if recording.pieces else ((2, 1),):
        bundles = _bundles(grouping.groups, few, more)
        probe = _Probe(subject, recording, grouping.components, bundles)
        if (failure := probe.failure(bundles)) is not None:
            return probe.nearest(failure)
    return []


class _Probe:
    """Takes some channels from each of some groups and sees whether the network comes out as foretold."""

    def __init__(
        self, subject: Subject, recording: Recording, components: Components, bundles: Sequence[Bundle]
    ) -> None:
        self._subject = subject
        self._recording = recording
        self._components = components
        self._bundles = bundles

    def nearest(self, failure: _Failure) -> list[tuple[Bundle, str]]:
        """Those that fail, looked for first in the layer that failed, or in one like it."""
        layer = failure.layer
        for layers in ([layer], self._alike(layer)):
            near = [bundle for bundle in self._bundles if any(_touches(bundle, name) for name in layers)]
            if near and (cause := self.failure(near, failure.until)):
                return self.search(near, cause)
        return self.search(self._bundles, failure)

    def failure(self, bundles: Sequence[Bundle], until: Until | None = None) -> _Failure | None:
        """What is wrong once each of these has lost some channels; None where nothing is, as far as ``until``."""
        gone = [item for bundle in bundles for item in bundle.gone]
        plan = plan_without(self._recording, self._components, gone)
        try:
            again = _record(self._subject, plan, until)
        except Reached:
            return None
        except TraceError as error:
            calls = self._recording.calls[error.layer]
            return _Failure.of(error, Until(error.layer, calls) if error.layer and calls else None)
        try:
            _verify(self._subject, self._recording, again, plan)
        except TraceError as error:
            return _Failure.of(error)
        return None

    def search(self, tried: Sequence[Bundle], failure: _Failure, alike: bool = True) -> list[tuple[Bundle, str]]:
        """Those of ``tried`` that fail, by halving; if ``alike``, with what lies likewise in a like layer."""
        found: list[tuple[Bundle, str]] = []
        pending, cause = list(tried), failure
        while True:
            failing = pending
            while len(failing) > 1:
                half = len(failing) // 2
                for part in (failing[:half], failing[half:]):
                    if failed := self.failure(part, cause.until):
                        failing, cause = part, failed
                        break
                else:
                    # It takes both halves to fail.
                    return [*found, *((bundle, f"can't be narrowed together: {cause.reason}") for bundle in failing)]
            layer = cause.layer
            place = _place(failing[0], layer)
            like = self._alike(layer) if place and alike else []
            same = [bundle for bundle in self._bundles if any(_place(bundle, name) == place for name in like)]
            far = "" if alike else " that far"
            found.extend((bundle, f"can't be narrowed{far}: {cause.reason}") for bundle in same or failing)
            pending = [bundle for bundle in pending if bundle not in same and bundle is not failing[0]]
            again = self.failure(pending, failure.until) if pending else None
            if again is None:
                return found
            cause = again

    def _alike(self, layer: str) -> list[str]:
        """The modules of the class of ``layer``; of a container only itself."""
        if not layer:
            return []
        kind = type(self._subject.network.get_submodule(layer))
        if kind.__module__.startswith("torch.nn."):
            return [layer]
        return [name for name, module in modules_of(self._subject.network) if type(module) is kind]


def _place(bundle: Bundle, layer: str) -> frozenset[Slot]:
    """Where in a layer the groups lie."""
    slots = (slot for group in bundle.groups for slot in group.slots)
    return frozenset((name[len(layer) + 1 :], dim) for name, dim in slots if name.startswith(f"{layer}."))


def _touches(bundle: Bundle, layer: str) -> bool:
    """Whether a group reaches into a layer."""
    return bool(layer) and any(name.startswith(f"{layer}.") for group in bundle.groups for name, _ in group.slots)


def _bundles(groups: Sequence[ChannelGroup], few: int, more: int) -> list[Bundle]:
    """Groups, with those that are balanced as one, and a few channels of each, always the same."""
    by_name = {group.name: group for group in groups}
    together = dict.fromkeys(tuple(sorted(group.balanced or (group.name,))) for group in groups)
    rng = np.random.default_rng(0)
    bundles = []
    for number, names in enumerate(together):
        bundle = [by_name[name] for name in names]
        # Groups that must stay equally wide, or lose the same channels, are seen to where they lose differently.
        count = min(few + more * number % 7, max(1, min(group.size for group in bundle) - 2))
        bundles.append(Bundle(tuple((group, rng.permutation(group.size)[:count]) for group in bundle)))
    return bundles


def _verify(subject: Subject, recording: Recording, again: Recording, plan: PruningPlan) -> None:
    """Raise unless the shrunk network couples what is left of the couplings before.

    Where the forward depends on values (a loop over what was found) they are the shrunk network's in a masked one.
    """
    try:
        compare(recording, again, plan)
    except TraceError as error:
        if not subject.has_values:
            raise
        try:
            compare(_record(subject, plan, masked=True), again, plan)
        except TraceError:
            raise error from None
