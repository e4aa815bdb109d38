"""A selection for those who know how wide each layer is to be."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common.arguments import check_number
from lit_prune.common.ranks import warn_once
from lit_prune.common.reading import read_checkpoint
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, ArgumentTypeError, SelectionError
from lit_prune.graph import ChannelGroup
from lit_prune.select.base import Scores, Selection, Target, bundled, flat, lowest


class NamedWidths(Selection):
    """Each layer as wide as is said by its name; those that are not named stay.

    Given with ``amount=None``. Earlier events of a schedule go a part of the way. Widths are taken as they are,
    whatever ``round_to`` is.

    Args:
        widths: Pattern of group names (:mod:`fnmatch`) to what is to be left: a whole number of channels, or a ratio
            in (0, 1) of the dense ones. The first that matches counts.

    Raises:
        ArgumentError: If a width is neither.

    Example:
        >>> NamedWidths({"backbone.*": 0.5, "head.0": 24}).widths
        {'backbone.*': 0.5, 'head.0': 24}
        >>> NamedWidths({"head.*": 1.5})
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: the width of 'head.*' must be a whole number, or a ratio in (0, 1), but is 1.5.
    """

    needs_amount = False
    has_limit = True

    def __init__(self, widths: Mapping[str, int | float]) -> None:
        if not isinstance(widths, Mapping):
            raise ArgumentTypeError(f"NamedWidths takes a dict from patterns to widths, but got {widths!r}.")
        for pattern, width in widths.items():
            check_number(f"the width of {pattern!r}", width)
            if not (0 < width < 1 or (width >= 1 and int(width) == width)):
                raise ArgumentError(
                    f"the width of {pattern!r} must be a whole number, or a ratio in (0, 1), but is {width}."
                )
        if not widths:
            raise ArgumentError("NamedWidths needs at least one pattern, but got none.")
        self.widths = dict(widths)
        self._tensors: dict[str, torch.Size] | None = None

    @classmethod
    def like(cls, other: nn.Module | Mapping[str, Tensor] | str | Path, weights_only: bool = True) -> NamedWidths:
        """Each layer as wide as in another network of the same names.

        Args:
            other: The network, its state dict, or a checkpoint that holds one.
            weights_only: As for :func:`torch.load`: ``False`` lets the file run code, so it takes a trusted one.

        Raises:
            ArgumentError: If it holds no weights.
            CheckpointError: If a file can't be read so.
            MissingFileError: If there is none.

        Example:
            >>> NamedWidths.like(nn.Sequential(nn.Conv2d(3, 8, 1)))
            NamedWidths.like(2 tensors)
        """
        tensors: Any = other
        if isinstance(other, (str, Path)):
            tensors = read_checkpoint(other, weights_only=weights_only, remedy="give weights_only=False")
            tensors = tensors.get("state_dict", tensors)
        elif isinstance(other, nn.Module):
            tensors = other.state_dict()
        if not isinstance(tensors, Mapping):
            raise ArgumentTypeError(
                f"NamedWidths.like takes a network, its state dict, or a file that holds one, but got {other!r}."
            )
        shapes = {name: tensor.shape for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        if not shapes:
            raise ArgumentError(
                f"NamedWidths.like takes a network, its state dict or a checkpoint, but {other!r} has none."
            )
        found = cls({"*": 0.5})
        found.widths, found._tensors = {}, shapes
        return found

    def __repr__(self) -> str:
        """What it was made of."""
        return (
            f"NamedWidths({self.widths})"
            if self._tensors is None
            else f"NamedWidths.like({len(self._tensors)} tensors)"
        )

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Remove the channels with the lowest scores of each layer, down to its width.

        Raises:
            SelectionError: If a pattern names no group, a width is more than there are channels, or groups that must
                stay equally wide are to be of different widths.
        """
        groups = flat(bundled(evidence.groups, scores))
        if self._tensors is None:
            self._check_patterns(evidence)
        else:
            self._check_names(evidence, self._tensors)
        part = 1.0 if target.ratio is None else target.ratio
        wanted = {group.name: self._of(group, target) for group in groups}
        widths = {}
        for group in groups:
            dense = target.widths.get(group.name, group.size)
            self._check(group, wanted)
            widths[group.name] = min(group.size, round(dense - part * (dense - wanted[group.name])))
        self._warn_of_others(evidence, target, wanted)
        return lowest(groups, scores, widths)

    def _of(self, group: ChannelGroup, target: Target) -> int:
        if self._tensors is not None:
            return self._of_tensors(group, self._tensors)
        width = next((width for pattern, width in self.widths.items() if fnmatchcase(group.name, pattern)), group.size)
        dense = target.widths.get(group.name, group.size)
        return max(1, round(width * dense)) if width < 1 else int(width)

    def _of_tensors(self, group: ChannelGroup, tensors: Mapping[str, torch.Size]) -> int:
        """By the tensors in which each channel has one index; the network's own names may have a prefix more."""
        for slot in group.slots:
            shape = tensors.get(slot[0]) or _ending_alike(slot[0], tensors)
            members = group.members[slot]
            if shape is not None and len(members.indices) == group.size:
                return shape[slot[1]]
        return group.size

    def _check(self, group: ChannelGroup, wanted: Mapping[str, int]) -> None:
        width = wanted[group.name]
        if width > group.size:
            raise SelectionError(f"{group.name} is to be {width} wide, but has {group.size} channels: they can't grow.")
        other = next((name for name in group.balanced if wanted.get(name, width) != width), None)
        if other is not None:
            raise SelectionError(
                f"{group.name} is to be {width} wide and {other} {wanted[other]}, but they must stay equally wide."
            )

    def _warn_of_others(self, evidence: Evidence, target: Target, taking_part: Mapping[str, int]) -> None:
        others = [group for group in evidence.graph.groups if group.name not in taking_part]
        named = [group.name for group in others if self._of(group, target) < group.size]
        if named:
            shown = f"{', '.join(named[:4])}{' and others' if len(named) > 4 else ''}"
            warn_once(
                f"{shown} should be narrower, but take no part: they are left out by `blocks` or `exclude`, or "
                "are not trained."
            )

    @staticmethod
    def _check_names(evidence: Evidence, tensors: Mapping[str, torch.Size]) -> None:
        names = [slot[0] for group in evidence.graph.groups for slot in group.slots]
        found = sum(name in tensors or _ending_alike(name, tensors) is not None for name in names)
        if 2 * found < len(names):
            raise SelectionError(
                f"NamedWidths.like was given other names than those of this network: it has {next(iter(tensors))!r}, "
                f"where {names[0]!r} is looked for, and {found} of {len(names)} are alike."
            )

    def _check_patterns(self, evidence: Evidence) -> None:
        names = [group.name for group in evidence.graph.groups]
        for pattern in self.widths:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise SelectionError(
                    f"NamedWidths: no layer that can be pruned is named {pattern!r}. `lit-prune inspect` and "
                    f"`graph.groups` list the {len(names)} names, such as {names[0]!r}."
                )


def _ending_alike(own: str, tensors: Mapping[str, torch.Size]) -> torch.Size | None:
    """The shape of the one tensor whose name has a prefix more or less; no tensor that is called ``weight`` alone."""
    found = {
        shape
        for name, shape in tensors.items()
        if name.endswith(f".{own}") or ("." in name and own.endswith(f".{name}"))
    }
    return found.pop() if len(found) == 1 else None
