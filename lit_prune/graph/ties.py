"""What a module class says of its widths where no operation does, so that the probe need not find it out."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lit_prune.common.names import modules_of, tensors_of
from lit_prune.graph.grouping import Grouping
from lit_prune.graph.labels import Row
from lit_prune.graph.recording import Pairs, Recording
from lit_prune.modules.registry import FIXED, TIES, WHOLE, qualified_names
from lit_prune.plan import belongs

IDLE = "takes no part in the forward of these inputs"


def tie_widths(network: nn.Module, recording: Recording) -> None:
    """Join and freeze what the tables say of the modules of ``network``."""
    slots, labels = recording.slots, recording.labels
    for path, module in modules_of(network):
        prefix = f"{path}." if path else ""
        for name in qualified_names(type(module)):
            if name in FIXED:
                for (tensor, dim), reason in FIXED[name](module):
                    row = slots.get((prefix + tensor, dim))
                    if row is not None:
                        labels.freeze(row, f"{reason}, in {path}" if path else reason)
            if name in TIES:
                for (first, dim), (second, other) in TIES[name](module):
                    rows = slots.get((prefix + first, dim)), slots.get((prefix + second, other))
                    if rows[0] is not None and rows[1] is not None and len(rows[0]) % len(rows[1]) == 0:
                        for part in rows[0].reshape(-1, len(rows[1])):
                            labels.join(part, rows[1])


def tie_averages(recording: Recording, averages: Pairs) -> None:
    """Join averages with what they are of: a training goes through the tensors of both side by side."""
    recording.averages = tuple(averages)
    for average, source in averages.items():
        for (name, dim), row in list(recording.slots.items()):
            if belongs(name, source):
                own = recording.slots.get((average + name.removeprefix(source), dim))
                if own is not None and len(own) == len(row):
                    recording.labels.join(own, row)


def keep_whole(network: nn.Module, recording: Recording) -> None:
    """Make whole the heads that the table names of the modules of ``network``."""
    rows: list[Row | None] = []
    for path, module in modules_of(network):
        prefix = f"{path}." if path else ""
        for name in qualified_names(type(module)):
            if name in WHOLE:
                rows.extend(recording.slots.get((prefix + tensor, dim)) for tensor, dim in WHOLE[name](module))
    inside = np.zeros(recording.labels.count, dtype=np.bool_)
    for row in rows:
        if row is not None:
            inside[row] = True
    for fold in recording.labels.folds if rows else []:
        if fold.may_be_whole and not fold.whole and inside[fold.labels].all():
            recording.labels.make_whole(fold)


def unmet(network: nn.Module, recording: Recording, grouping: Grouping) -> dict[str, str]:
    """Layers that no group and no reason accounts for, since no operation met their weight; and why."""
    accounted = set(grouping.unprunable)
    for group in grouping.groups:
        accounted.update(group.layers, group.followers)
    used: set[int] | None = None
    found = {}
    for name, module in modules_of(network):
        if name in accounted:
            continue
        is_own = "weight" in module._parameters
        if is_own and not _is_wide(module._parameters["weight"]):
            continue
        # To look at a weight that is computed is to compute it, which may count as a forward of its own.
        is_computed = "parametrizations" in module._modules and is_parametrized(module, "weight")
        weights = [None if is_computed else _weight_of(module)]
        if not is_own and (is_computed or isinstance(weights[0], Tensor)):
            # It is known by what it is computed from.
            weights.extend(module.parameters())
        wide = [each for each in weights if each is not None and _is_wide(each)]
        if not wide:
            continue
        if used is None:
            tensors = dict(tensors_of(network))
            used = {id(tensors[name]) for name, _ in recording.slots if name in tensors}
        is_met = not used.isdisjoint(map(id, wide))
        if is_own and not is_met:
            found[name] = IDLE
        # One with a single output or input has no channels that could be accounted for.
        if not is_own and (not is_met or any(min(each.shape[:2]) > 1 for each in wide)):
            found[name] = "has no weight of its own to cut: each forward computes it, in a way that is not understood"
    return found


def _is_wide(weight: Tensor | None) -> bool:
    """Whether it maps channels to channels, more than one to one."""
    return isinstance(weight, Tensor) and weight.dim() > 1 and max(weight.shape[:2]) > 1


def _weight_of(module: nn.Module) -> Tensor | None:
    """What a module has under that name: most have nothing, and torch is slow to say so."""
    own = "weight" in module._parameters or "weight" in module._buffers or "weight" in vars(module)
    found = getattr(module, "weight", None) if own or hasattr(type(module), "weight") else None
    return found if isinstance(found, Tensor) else None
