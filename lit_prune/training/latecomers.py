"""Layers that take no part in the first batch: seen when they do, said where they might break."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lit_prune.common.names import find_module


class Latecomers:
    """Watches layers that no batch has used so far: heads and experts that only some batches need.

    Example:
        >>> net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        >>> late = Latecomers()
        >>> late.watch(net, ["b"])
        >>> _ = net["a"](torch.ones(1, 2))
        >>> late.came(), net["b"](torch.ones(1, 2)).shape, late.came(), late.came()
        (False, torch.Size([1, 2]), True, False)
    """

    def __init__(self) -> None:
        self._came: set[str] = set()
        self._handles: dict[str, Any] = {}

    def watch(self, network: nn.Module, layers: Iterable[str]) -> None:
        """From now on look out for these, and no others."""
        self.close()
        for name in layers:
            module = find_module(network, name)
            # Of a compiled script no hook is called.
            if module is not None and not isinstance(module, torch.jit.ScriptModule):
                self._handles[name] = module.register_forward_pre_hook(self._note(name))

    def came(self) -> bool:
        """Whether one was called since the last time that this was asked; it is no longer watched then."""
        came, self._came = self._came, set()
        for name in came & self._handles.keys():
            self._handles.pop(name).remove()
        return bool(came)

    def close(self) -> None:
        """Watch no more."""
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._came = {}, set()

    def _note(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self._came.add(name)

        return hook
