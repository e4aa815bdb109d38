"""Experts and heads of which a forward runs one: those that it leaves out are cut as that one is."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from lit_prune.common.names import modules_of, tensors_of
from lit_prune.graph.recording import Recording


def follow_alternatives(network: nn.Module, recording: Recording) -> None:
    """Couple what lies unused in a list or dict of modules with what was used beside it, if that is built alike.

    Another input, or another task, may have it run in that one's place.
    """
    kinds = (nn.ModuleList, nn.ModuleDict)
    containers = [(path, module) for path, module in modules_of(network) if isinstance(module, kinds)]
    at_work = _at_work(recording)
    containers = [
        (path, container)
        for path, container in containers
        if any(f"{path}.{key}".lstrip(".") not in at_work for key in container._modules)
    ]
    if not containers:
        return
    produced = np.zeros(recording.labels.count, dtype=np.bool_)
    for row in recording.produced:
        produced[row] = True
    used: dict[str, list[int]] = {}
    for name, dim in recording.slots:
        used.setdefault(name, []).append(dim)
    for path, container in containers:
        prefix = f"{path}." if path else ""
        models: dict[Any, str] = {}
        waiting = []
        for key, child in container._modules.items():
            tensors = [] if child is None else [(name, tuple(tensor.shape)) for name, tensor in tensors_of(child)]
            seen = [f"{prefix}{key}.{name}" in used for name, _ in tensors]
            kind = type(child), tuple(tensors)
            if any(seen):
                models.setdefault(kind, f"{prefix}{key}.")
            elif tensors:
                waiting.append((kind, f"{prefix}{key}."))
        for kind, mine in waiting:
            if kind in models:
                names = [name for name, _ in kind[1] if models[kind] + name in used]
                recording.followed.append(mine[:-1])
                for name in names:
                    for dim in used[models[kind] + name]:
                        row = recording.slots[models[kind] + name, dim]
                        own = recording.slots[mine + name, dim] = recording.labels.fresh(len(row))
                        recording.labels.join(row, own)
                        if produced[row].all():
                            recording.produced.append(own)


def _at_work(recording: Recording) -> set[str]:
    """The modules that the tensors of a recording lie in, and those around them."""
    found: set[str] = set()
    for tensor, _ in recording.slots:
        layer = tensor.rpartition(".")[0]
        while layer and layer not in found:
            found.add(layer)
            layer = layer.rpartition(".")[0]
    return found
