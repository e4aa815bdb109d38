"""Experts and heads of which a forward runs one: those that it leaves out are cut as that one is."""

from __future__ import annotations

from collections.abc import Iterator
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
    at_work = {layer for name, _ in recording.slots for layer in _around(name)}
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


def _around(name: str) -> Iterator[str]:
    """The modules that a tensor lies in, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
