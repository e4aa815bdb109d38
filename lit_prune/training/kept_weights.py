"""Weights that a training keeps under other names: old ones, their importance, sums of gradients (EWC and its kin)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_prune.common.names import tensors_of
from lit_prune.errors import UnsupportedError
from lit_prune.plan import PruningPlan
from lit_prune.training.averaged_copies import held_by

# Deeper than lists of dicts by task nobody keeps them.
_DEPTH = 3


def named_after(network: nn.Module) -> dict[str, str]:
    """Each buffer that has the name of a parameter in its own, and its shape, to that parameter.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2))
        >>> net.register_buffer("0__weight_mean", net[0].weight.detach().clone())
        >>> named_after(net)
        {'0__weight_mean': '0.weight'}
    """
    by_shape = defaultdict(list)
    for name, parameter in network.named_parameters():
        by_shape[parameter.shape].append(name)
    found = {}
    for name, buffer in network.named_buffers():
        own = _plain(name.rpartition(".")[2])
        likeness = {each: _likeness(own, each) for each in by_shape[buffer.shape]}
        best = [each for each, length in likeness.items() if length and length == max(likeness.values())]
        if len(best) == 1:
            found[name] = best[0]
    return found


@contextmanager
def kept_as_they_are(network: nn.Module) -> Iterator[None]:
    """While open, what a module keeps of its weights, in dicts under their names, is those weights themselves.

    They are cut in step: a trace of the module sees what it will be.
    """
    parameters = dict(network.named_parameters())
    shorter = {name.partition(".")[2]: parameter for name, parameter in parameters.items()}
    changed: list[tuple[Any, str, Tensor, Tensor]] = []
    for _, value in held_by(network):
        for entries in _dicts(value, _DEPTH):
            for name, tensor in entries.items():
                own = parameters.get(name, shorter.get(name)) if isinstance(name, str) else None
                if own is not None and isinstance(tensor, Tensor) and tensor.dim() == own.dim():
                    changed.append((entries, name, tensor, own))
    try:
        for entries, name, _, weight in changed:
            entries[name] = weight
        yield
    finally:
        for entries, name, tensor, _ in changed:
            entries[name] = tensor


def check_kept(network: nn.Module, plan: PruningPlan, followed: Collection[nn.Module]) -> None:
    """Raise for tensors that look like copies of weights that a plan cuts, where nothing tells of which.

    Args:
        network: The LightningModule.
        plan: What is to be cut, of averages within the network too.
        followed: Copies that are cut in step.

    Raises:
        UnsupportedError: Naming where the tensors are.
    """
    own = dict(tensors_of(network))
    known = {id(tensor) for each in (network, *followed) for _, tensor in tensors_of(each)}
    shapes = {own[name].shape: name for name in plan.kept if name in own and own[name].dim() > 1}
    kept: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, buffer in network.named_buffers(recurse=False):
        if name not in plan.kept:
            kept[f"{type(network).__name__}'s buffers"].append((name, buffer))
    # Callbacks may keep what they like: a training step reads what is the module's.
    for key, value in held_by(network):
        kept[key] += [(place, each) for place, each in _loose(value, key, _DEPTH) if id(each) not in known]
    for tensors in kept.values():
        alike = [(place, each) for place, each in tensors if each.shape in shapes]
        # A batch may have the shape of one matrix by chance.
        if len(alike) > 1 or any(each.dim() > 2 for _, each in alike):
            place, each = alike[0]
            raise UnsupportedError(
                f"{place} has the shape {tuple(each.shape)} of {shapes[each.shape]}, which is to be cut, and nothing "
                "tells whether it belongs to it. If so, keep it in a dict under the names of `named_parameters()`, or "
                "as a buffer whose name ends in the parameter's; else take that layer out by `exclude`."
            )


def _likeness(own: str, parameter: str) -> int:
    """How much of a parameter's name, from its end and with its layer's, is in that of a buffer."""
    parts = parameter.split(".")
    endings = (_plain("".join(parts[first:])) for first in range(max(1, len(parts) - 1)))
    return next((len(ending) for ending in endings if ending in own), 0)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _dicts(value: Any, depth: int) -> Iterator[dict[Any, Any]]:
    """Nested dicts, those in lists too."""
    if isinstance(value, dict):
        yield value
    if depth and isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _dicts(inner, depth - 1)


def _loose(value: Any, place: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dicts and lists, with their places; those of modules are not loose."""
    if isinstance(value, Tensor):
        yield place, value
    elif depth and isinstance(value, (Mapping, list, tuple)):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in entries:
            yield from _loose(inner, f"{place}[{key!r}]", depth - 1)
