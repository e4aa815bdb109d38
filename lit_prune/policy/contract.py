"""Checks what selections and schedules return before anything rests on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_prune.common.answers import answered, check_names
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.graph import ChannelGroup
from lit_prune.schedule import Schedule, check_within
from lit_prune.select import Selection


def checked_removal(selection: Selection, removal: Any, groups: Iterable[ChannelGroup]) -> dict[str, Tensor]:
    """Which channels ``selection`` removes.

    Args:
        selection: Whose answer it is, for the messages.
        removal: The answer: group name to the channels that go.
        groups: Those that take part.

    Raises:
        ArgumentTypeError: If it is not a mapping from names to whole numbers; a mask is refused.
        ArgumentError: If a name is unknown or takes no part, or channels are out of range, repeated, or all of a group.
    """
    who = type(selection).__name__
    by_name = {group.name: group for group in groups}
    removal = answered(f"{who} must return a dict from group names to the channels that go", removal)
    check_names(f"{who} removes channels of", removal, by_name)
    return {name: _checked_channels(who, by_name[name], channels) for name, channels in removal.items()}


def checked_events(schedule: Schedule, length: int | None) -> dict[int, float]:
    """The events of a schedule, in rising order.

    Args:
        schedule: The user's.
        length: As for :meth:`Schedule.events`.

    Raises:
        ArgumentTypeError: If it is not a mapping from whole numbers to numbers.
        ArgumentError: If there is no event, one is negative, or the parts do not rise within (0, 1].
    """
    who = type(schedule).__name__
    given = answered(
        f"{who}.events must return a dict from {schedule.unit} to the part that is gone", schedule.events(length)
    )
    events = {point: given[point] for point in sorted(given)}
    if not events:
        raise ArgumentError(f"{who} has no event, so nothing would be pruned.")
    before = 0.0
    for point, part in events.items():
        if not isinstance(point, int) or isinstance(point, bool) or point < 0:
            raise ArgumentError(f"{who}: events come at whole {schedule.unit} from 0 on, but one is at {point!r}.")
        if not isinstance(part, (int, float)) or not before <= part <= 1 or part == 0:
            raise ArgumentError(
                f"{who}: the part that is gone after each event rises within (0, 1], but at {point} it is {part!r}"
                f"{f', after {before:g}' if before else ''}."
            )
        before = part
    check_within([*events], length, schedule.unit)
    return events


def _checked_channels(who: str, group: ChannelGroup, channels: Any) -> Tensor:
    given = channels.detach().cpu() if isinstance(channels, Tensor) else np.asarray(channels)
    indices = torch.as_tensor(given)
    if indices.numel() and (indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex()):
        raise ArgumentTypeError(
            f"{who} must name the channels of group {group.name!r} that go by their indices, but returned "
            f"{str(indices.dtype).removeprefix('torch.')} values. Of a mask of what goes, return "
            "`mask.nonzero().flatten()`."
        )
    if indices.dim() != 1:
        raise ArgumentTypeError(
            f"{who} must name the channels of group {group.name!r} that go by a list of indices, but returned "
            f"{channels!r}."
        )
    indices = indices.long()
    if len(set(indices.tolist())) < indices.numel():
        raise ArgumentError(f"{who} removes a channel of group {group.name!r} twice.")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < group.size:
        raise ArgumentError(
            f"{who} removes channels {int(indices.min())} to {int(indices.max())} of group {group.name!r}, which has "
            f"channels 0 to {group.size - 1}."
        )
    if indices.numel() == group.size:
        raise ArgumentError(f"{who} removes all {group.size} channels of group {group.name!r}: at least one must stay.")
    return indices
