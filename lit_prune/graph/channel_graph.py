"""The public face: trace a network, see its groups, ask for a plan and what it costs."""

from __future__ import annotations

import difflib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_prune.common.deprecated import warn_renamed
from lit_prune.common.initialized import check_network
from lit_prune.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from lit_prune.graph.grouping import Grouping
from lit_prune.graph.groups import ChannelGroup, plan_without
from lit_prune.graph.labels import Row
from lit_prune.graph.probe import culprits, examine, rehearse
from lit_prune.graph.recording import Call, Pairs, Recording, parted
from lit_prune.graph.subject import Subject
from lit_prune.graph.ties import IDLE
from lit_prune.plan import PruningPlan

Removal = Mapping[str, "Sequence[int] | Tensor | Row"]


class ChannelGraph:
    """Which channels of a network can be removed, and what has to go with each.

    Made by :meth:`trace`. It describes the network as it was then: trace again after pruning.

    Attributes:
        groups: The prunable groups, in forward order.
        unprunable: Layer name to the reason why some or all of its channels must stay.
        unsupported: aten operation to the number of times it met channels and had no rule.
        macs: Multiply-adds of one example.
        averages: Prefixes and names of what is an average of other weights, and shrinks with these.
        idle: Layers that took no part in the forward.
        followed: Modules that took none either, and are cut as one that lies beside them in a list or dict of modules.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> graph = ChannelGraph.trace(net, torch.zeros(1, 3, 16, 16))
        >>> [(group.name, group.size) for group in graph.groups], graph.unprunable
        ([('0', 8)], {'3': "reaches the network's output"})
        >>> graph.plan({"0": [1, 5]}).kept["3.weight"][1]
        tensor([0, 2, 3, 4, 6, 7])
    """

    def __init__(self, subject: Subject, recording: Recording, grouping: Grouping, idle: Mapping[str, str]) -> None:
        self.groups: tuple[ChannelGroup, ...] = grouping.groups
        self.unprunable: dict[str, str] = {**grouping.unprunable, **idle}
        self.followed = tuple(recording.followed)
        self.idle = tuple(name for name, reason in idle.items() if reason == IDLE)
        self.unsupported: dict[str, int] = dict(recording.unsupported)
        self._subject = subject
        self._recording = recording
        self._components = grouping.components
        self._by_name = {group.name: group for group in self.groups}
        self.averages: tuple[str, ...] = recording.averages
        self._batch = max(1, subject.calls[0].batch_size) if subject.calls else 1
        self.macs: int = self.macs_without({})

    def __repr__(self) -> str:
        channels, stay = sum(group.size for group in self.groups), len(self.unprunable)
        return (
            f"ChannelGraph({len(self.groups)} groups of {channels:,} channels, {stay} unprunable "
            f"layer{'s' * (stay != 1)}, {self.macs:,} MACs)"
        )

    @property
    def frozen(self) -> dict[str, str]:
        """The old name of ``unprunable``."""
        warn_renamed("ChannelGraph.frozen", "ChannelGraph.unprunable")
        return self.unprunable

    @property
    def batch_size(self) -> int:
        """Number of examples in the traced inputs."""
        return self._batch

    @property
    def tensors(self) -> frozenset[str]:
        """Names of the parameters and buffers that the forward has used."""
        return frozenset(name for name, _ in self._recording.slots)

    @classmethod
    def trace(cls, model: nn.Module, *args: Any, **kwargs: Any) -> ChannelGraph:
        """Trace one forward of ``model``.

        The forward runs on a copy without weights (meta tensors), or, where an operation needs values, on a copy with
        them. The model, its mode, its caches and the random state stay as they are.

        Args:
            model: The network, on any device.
            *args: Positional example inputs.
            **kwargs: Keyword example inputs.

        Raises:
            ArgumentTypeError: If the model is no network.
            TraceError: If the forward fails on these inputs; the message names the layer.
        """
        return cls.trace_calls(model, [Call("", args, kwargs)])

    @classmethod
    def trace_calls(
        cls, model: nn.Module, calls: Iterable[Call], averages: Pairs = MappingProxyType({})
    ) -> ChannelGraph:
        """Trace a network that is entered through several of its submodules.

        Args:
            model: The module whose names the graph carries.
            calls: One for each entered submodule, with its example inputs.
            averages: Prefix of each average inside of the model, with its dot, to that of what it is an average of;
                or one tensor to another.

        Raises:
            TraceError: If a forward fails on these inputs; the message names the layer.
        """
        check_network("model", model)
        with _collector_paused():
            return cls(*examine(model, list(calls), averages))

    def __iter__(self) -> Iterator[ChannelGroup]:
        """The groups, in forward order."""
        return iter(self.groups)

    def __contains__(self, name: object) -> bool:
        """Whether there is a group of that name."""
        return name in self._by_name

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group of that name.

        Raises:
            UnknownNameError: If there is none; the message has the nearest names.
        """
        if name not in self._by_name:
            if not isinstance(name, str):
                raise ArgumentTypeError(f"Groups are named by their first layer, but got {name!r}: see `graph.groups`.")
            near = difflib.get_close_matches(name, self._by_name, n=3, cutoff=0.5)
            # Norms are no layers that make channels, but have some of a group.
            mine = [
                group.name
                for group in self.groups
                if name in group.layers or {(f"{name}.weight", 0), (f"{name}.running_mean", 0)} & group.members.keys()
            ]
            hint = ""
            if mine:
                hint = f" Its channels are coupled with others, as graph[{mine[0]!r}]."
            elif name in self.unprunable:
                hint = f" It is unprunable: {self.unprunable[name]}."
            elif near:
                hint = f" Nearest: {', '.join(near)}."
            raise UnknownNameError(
                f"No prunable group is named {name!r}.{hint} `graph.groups` lists all {len(self.groups)}."
            )
        return self._by_name[name]

    def plan(self, remove: Removal) -> PruningPlan:
        """The plan that removes the given channels, and all that hangs on them.

        Args:
            remove: Group name to the channels to remove, as indices into the group.

        Raises:
            UnknownNameError: If a group is unknown.
            ArgumentTypeError: If channels are no whole numbers; a mask is none.
            ArgumentError: If a channel is out of range, none would be left, or groups that must stay equally wide lose
                different numbers.
        """
        gone = {name: self._channels(name, channels) for name, channels in remove.items()}
        self._check_balance(gone)
        removed = [(self[name], channels) for name, channels in gone.items()]
        return plan_without(self._recording, self._components, removed)

    def macs_without(self, remove: Removal) -> int:
        """Multiply-adds of one example once these channels are gone; nothing is run.

        Args:
            remove: As for :meth:`plan`.
        """
        gone = np.zeros(len(self._components.reason), dtype=np.bool_)
        for name, channels in remove.items():
            group = self[name]
            slot = group.slots[0]
            picked = group.indices(slot, self._channels(name, channels))
            gone[self._components.of[self._recording.slots[slot][picked]]] = True
        stays = ~gone[self._components.of]
        total = 0.0
        for product in self._recording.products:
            total += product.factor * float(np.prod([stays[row].sum() for row in product.rows], dtype=np.float64))
        return round(total / self._batch)

    def rehearse(self, plan: PruningPlan) -> ChannelGraph:
        """Shrink a copy without weights, run it, and return its graph: proof that the plan can be carried out.

        Raises:
            TraceError: If the shrunk copy doesn't run, or couples its channels in another way.
        """
        with _collector_paused():
            return ChannelGraph(*rehearse(self._subject, self._recording, plan))

    @contextmanager
    def running(self, plan: PruningPlan) -> Iterator[tuple[nn.Module, list[Call]]]:
        """A copy of what a plan would leave, mostly without weights, in eval mode, and the forwards that enter it.

        It is for one run, and may be the live network with other tensors in the place of its own while it is open.
        """
        with self._subject.running(plan) as network:
            yield network.eval(), parted(self._subject.calls)[0]

    def culprits(self, plan: PruningPlan) -> dict[str, str]:
        """Of a plan that can't be carried out: the groups that can't lose what they would, and why.

        It is found by trying parts of the plan, in several traces.
        """
        gone = []
        for group in self.groups:
            slot, members = next(iter(group.members.items()))
            kept = plan.kept.get(slot[0], {}).get(slot[1])
            if kept is not None:
                gone.append((group, np.setdiff1d(members.channels, members.channels[np.isin(members.indices, kept)])))
        with _collector_paused():
            return culprits(self._subject, self._recording, self._components, [each for each in gone if len(each[1])])

    def _channels(self, name: str, channels: Sequence[int] | Tensor | Row) -> Row:
        group = self[name]
        given = np.asarray(channels)
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise ArgumentTypeError(
                f"The channels of group {name!r} are named by their indices, but got {given.dtype} values. Of a mask "
                "of what goes, give `mask.nonzero()`."
            )
        gone = np.unique(given.astype(np.int64).ravel())
        if len(gone) and (gone[0] < 0 or gone[-1] >= group.size):
            wrong = gone[0] if gone[0] < 0 else gone[-1]
            raise ArgumentError(
                f"Group {name!r} has channels 0 to {group.size - 1}; there is no channel {wrong} to remove."
            )
        if len(gone) == group.size:
            raise ArgumentError(f"All {group.size} channels of group {name!r} would go: at least one must stay.")
        return gone

    def _check_balance(self, gone: Mapping[str, Row]) -> None:
        for name, channels in gone.items():
            for partner in self[name].balanced:
                other = len(gone.get(partner, ()))
                if other != len(channels):
                    raise ArgumentError(
                        f"Groups {name!r} and {partner!r} are equal pieces of one split and must stay equally wide, "
                        f"but would lose {len(channels)} and {other} channels. Remove equally many of both."
                    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """While open, Python looks for no garbage."""
    # A trace makes many small objects that live on; where much is imported, one search takes longer than the trace.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
