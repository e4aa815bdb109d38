"""Keep folds rectangular: say which groups must lose equally many, and tie what can't be said that way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lit_prune.graph.labels import Components, Fold, Labels, Row
from lit_prune.plan import Slot

Keys = npt.NDArray[np.uint64]
Partners = dict[int, tuple[int, ...]]


def settle(labels: Labels, components: Components, keys: Keys) -> tuple[Partners, bool]:
    """Which groups must lose equally many, so that all pieces of each fold stay equally wide.

    Args:
        labels: The record; pieces that can't be balanced as whole groups are joined there.
        components: Its components.
        keys: ``(components,)`` equal where components are channels of one group.

    Returns:
        The groups, by key, that are balanced with each; and whether labels were joined, so that all must be worked
        out again.
    """
    found = np.unique(keys, return_counts=True)
    sizes = dict(zip(found[0].tolist(), found[1].tolist(), strict=True))
    partners: Partners = {}
    changed = False
    for fold in labels.folds:
        if not fold.whole:
            changed |= _settle(labels, fold, components, keys, sizes, partners)
    return partners, changed


def _settle(
    labels: Labels, fold: Fold, components: Components, keys: Keys, sizes: dict[int, int], partners: Partners
) -> bool:
    members = components.of[fold.labels]
    if components.unprunable[members].all() or (members == members[0]).all():
        return False
    single = (members == members[:, :1]).all(axis=1)
    if fold.may_be_whole and members.shape[1] > 1 and single.any():
        labels.make_whole(fold)
        return True
    if fold.may_be_whole:
        # The heads of each image of a batch are the same ones.
        _, first = np.unique(members, axis=0, return_index=True)
        members, rows = members[first], fold.labels[first]
    else:
        rows = fold.labels
    changed = False
    # Stretches of a piece that are channels of one group each.
    kinds = keys[members]
    starts = [0, *(np.flatnonzero((kinds[:, 1:] != kinds[:, :-1]).any(axis=0)) + 1).tolist(), kinds.shape[1]]
    for start, end in pairwise(starts):
        part = members[:, start:end]
        if components.unprunable[part].all() or (part == part[0]).all():
            continue
        together = [int(key) for key in kinds[:, start]]
        if components.unprunable[part].any() or not _are_whole_groups(part, together, sizes):
            labels.tie(list(rows[:, start:end]))
            changed = True
        else:
            _merge(partners, together)
    return changed


def _are_whole_groups(part: Row, together: list[int], sizes: dict[int, int]) -> bool:
    """Whether each piece holds each channel of its group equally often, and no two pieces are of one group."""
    ordered = np.sort(part, axis=1)
    size = len(np.unique(ordered[0]))
    if len(set(together)) < len(together) or any(sizes[key] != size for key in together) or part.shape[1] % size:
        return False
    channels = ordered.reshape(len(part), size, -1)
    return bool((channels == channels[:, :, :1]).all() and (np.diff(channels[:, :, 0], axis=1) > 0).all())


def _merge(partners: Partners, keys: list[int]) -> None:
    together: dict[int, None] = {}
    for key in keys:
        together.update(dict.fromkeys(partners.get(key, (key,))))
    for key in together:
        partners[key] = tuple(together)


def pieces_of(slots: Mapping[int, Set[Slot]], partners: Partners) -> dict[int, int]:
    """Of how many groups every slot of each consists; the most that all that are balanced have in common.

    Args:
        slots: The slots of each group, by its key.
        partners: As of :func:`settle`.
    """
    balanced = {key: [other for other in partners.get(key, ()) if other in slots] or [key] for key in slots}
    own = {key: sum(slots[other] == slots[key] for other in balanced[key]) for key in slots}
    return {key: math.gcd(*(own[other] for other in balanced[key])) for key in slots}
