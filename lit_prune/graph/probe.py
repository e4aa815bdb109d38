"""Try the graph out: shrink a copy, trace it again, and freeze whatever does not come out as foretold.

What a module remembers in Python (``num_heads``, a width in ``view``) is in no trace. A shrunk copy shows it: it fails,
or couples other channels, or computes with another constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lit_prune.graph.groups import ChannelGroup, Grouping, build_groups
from lit_prune.graph.labels import Components
from lit_prune.graph.rules import RULES
from lit_prune.graph.trace import Call, Recording, TraceError, on_meta, record, replica, skeleton
from lit_prune.plan import PruningPlan
from lit_prune.surgery import shrink_

Examined = tuple[nn.Module, Sequence[Call], Recording, Grouping]


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


def rehearse(
    network: nn.Module, calls: Sequence[Call], recording: Recording, components: Components, plan: PruningPlan
) -> Examined:
    """Shrink a copy of a traced network to ``plan`` and trace it.

    Raises:
        TraceError: If it fails, or differs from what the recording foretells.
    """
    shrunk = shrink_(_twin(network), plan)
    again = record(_twin(shrunk), calls, RULES)
    _compare(recording, components, again, plan)
    return shrunk, calls, again, build_groups(again)


def _twin(network: nn.Module) -> nn.Module:
    on_device = any(parameter.device.type != "meta" for parameter in network.parameters())
    return replica(network) if on_device else skeleton(network)


def _probed(network: nn.Module, calls: Sequence[Call]) -> tuple[Recording, Grouping]:
    # The forward leaves caches behind (anchors, positions); every trace starts without those of the one before.
    recording = record(_twin(network), calls, RULES)
    grouping = build_groups(recording)
    while grouping.groups:
        failing = _failing(network, calls, recording, grouping)
        if not failing:
            break
        for group, reason in failing:
            recording.labels.freeze(group.labels, reason)
        grouping = build_groups(recording)
    return recording, grouping


def _failing(
    network: nn.Module, calls: Sequence[Call], recording: Recording, grouping: Grouping
) -> list[tuple[ChannelGroup, str]]:
    """The groups that can't lose a channel, found by halving."""
    units = _units(grouping.groups)

    def error(tried: Sequence[tuple[ChannelGroup, ...]]) -> str | None:
        plan = _one_each([group for unit in tried for group in unit], recording)
        try:
            rehearse(network, calls, recording, grouping.components, plan)
        except TraceError as failure:
            return str(failure)
        return None

    def search(tried: list[tuple[ChannelGroup, ...]], reason: str) -> list[tuple[ChannelGroup, str]]:
        if len(tried) == 1:
            return [(group, f"can't be narrowed: {reason}") for group in tried[0]]
        halves = tried[: len(tried) // 2], tried[len(tried) // 2 :]
        found = [item for half in halves if (cause := error(half)) for item in search(half, cause)]
        # Each half runs alone: it takes both to fail, and either would do. The smaller loss is not known; freeze all.
        return found or [(group, f"can't be narrowed together: {reason}") for unit in tried for group in unit]

    reason = error(units)
    return search(units, reason) if reason else []


def _units(groups: Sequence[ChannelGroup]) -> list[tuple[ChannelGroup, ...]]:
    """Groups, with those that are balanced as one."""
    by_name = {group.name: group for group in groups}
    units = {group.balanced or (group.name,): None for group in groups}
    return [tuple(by_name[name] for name in names) for names in dict.fromkeys(tuple(sorted(unit)) for unit in units)]


def _one_each(groups: Sequence[ChannelGroup], recording: Recording) -> PruningPlan:
    """A plan that takes the middle channel of every group."""
    kept: dict[str, dict[int, torch.Tensor]] = {}
    gone: dict[tuple[str, int], list[np.ndarray]] = {}
    for group in groups:
        for slot in group.slots:
            gone.setdefault(slot, []).append(group.indices(slot, np.array([group.size // 2])))
    for (name, dim), indices in gone.items():
        stays = np.ones(len(recording.slots[name, dim]), dtype=np.bool_)
        stays[np.concatenate(indices)] = False
        kept.setdefault(name, {})[dim] = torch.from_numpy(np.flatnonzero(stays))
    return PruningPlan(kept)


def _compare(recording: Recording, components: Components, again: Recording, plan: PruningPlan) -> None:
    """Raise unless the shrunk network couples exactly what is left of the couplings before."""
    if recording.constants != again.constants:
        changed = next(
            (name for (name, old), (_, new) in zip(recording.constants, again.constants, strict=False) if old != new),
            "an operation",
        )
        raise TraceError(f"{changed} is given a number that depends on a width")
    before, after = [], []
    now = again.labels.components()
    for slot, row in again.slots.items():
        old = recording.slots.get(slot)
        if old is None:
            raise TraceError(f"{slot[0]} is used only once the network is narrower")
        kept = plan.kept.get(slot[0], {}).get(slot[1])
        before.append(components.of[old if kept is None else old[kept.numpy()]])
        after.append(now.of[row])
    old_of, new_of = np.concatenate(before), np.concatenate(after)
    pairs = len(np.unique(np.stack([old_of, new_of]), axis=1).T)
    if not pairs == len(np.unique(old_of)) == len(np.unique(new_of)):
        raise TraceError("the narrower network couples other channels")
    if bool((now.frozen[new_of] & ~components.frozen[old_of]).any()):
        raise TraceError("the narrower network freezes channels that were free")
