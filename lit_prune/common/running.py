"""Run a network and leave no trace: its modes and caches and the random states are put back."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from lit_prune.common._compat import compiler_is_loaded, forward_hooks, full_products
from lit_prune.common.names import OF_EVERY_MODULE
from lit_prune.common.noted import is_meter, putting_back

# A memory of past batches is put back itself; what it holds is not looked at.
_LARGE = 1000
_DEPTH = 3


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` is in eval mode and without gradients; afterwards no trace is left of what ran.

    Put back, whatever happens: the mode of each submodule, every attribute that a forward has assigned (cached
    anchors), buffers (counters) with what they hold, and the random states of Python, NumPy, the CPU and the model's
    CUDA devices. Compiled parts run eagerly, for compiled code doesn't see hooks that came later.

    Args:
        model: The live network.

    Example:
        >>> net = nn.Dropout().train()
        >>> with untouched(net):
        ...     net(torch.ones(3))
        tensor([1., 1., 1.])
        >>> net.training
        True
    """
    with restored(model), torch.no_grad(), eagerly():
        # Norms that a forward sets to train, and counters, write into them.
        before = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_inference()]
        for module in model.modules():
            module.training = False
        try:
            yield
        finally:
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """Within, matrix products are as precise as what they are of: what is computed there is not the network's.

    Neither autocast takes them down, nor `torch.set_float32_matmul_precision`.

    Args:
        device: Where it is computed.
    """
    enabled = torch.is_autocast_enabled(device.type)
    with full_products(), torch.autocast(device.type, enabled=False) if enabled else nullcontext():
        yield


@contextmanager
def restored(
    model: nn.Module, seed: int | None = None, contents: bool = False, around_hooks: bool = True
) -> Iterator[None]:
    """Afterwards ``model`` is as it was before: modes, attributes, parameters and buffers.

    So are the random states of Python, NumPy, the CPU and the model's CUDA devices.

    Args:
        model: The live network.
        seed: What all random generators start from within; ``None`` leaves them as they are.
        contents: Put back also what lists, dicts and sets hold, of its modules and around its hooks.
        around_hooks: Whether that is put back which hooks note down.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net.seen = []
        >>> with restored(net, contents=True):
        ...     net.seen.append(1)
        ...     net.weight = nn.Parameter(torch.zeros(4, 2))
        >>> net.seen, net.weight.shape
        ([], torch.Size([1, 2]))
    """
    before = [_Before(module, contents, around_hooks) for module in model.modules()]
    with _isolated_rng(model):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
        try:
            yield
        finally:
            for state in before:
                state.restore()


class _Before:
    """A module as it is now."""

    def __init__(self, module: nn.Module, contents: bool, around_hooks: bool) -> None:
        self._module = module
        self._class = type(module)
        self._attributes = dict(vars(module))
        if contents:
            hooks = forward_hooks(module) if around_hooks else ()
            held = [value for hook in hooks for value in _held_by(hook)]
            noted = _noted([*self._attributes.values(), *held])
        else:
            # Tensors and hooks of the module itself lie in dicts.
            own = (value for name, value in self._attributes.items() if name in OF_EVERY_MODULE)
            noted = _noted(own, depth=1)
        self._put_back = [put_back for value in noted if (put_back := putting_back(value)) is not None]
        # Of a scripted module these are no attributes of Python.
        scripted = isinstance(module, torch.jit.ScriptModule)
        self._tensors = [*module._parameters.items(), *module._buffers.items()] if scripted else []

    def restore(self) -> None:
        module, attributes = self._module, self._attributes
        if type(module) is not self._class:
            # A lazy module turns into another class with its first forward: that can't be undone.
            module.training = attributes["training"]
            return
        for name in vars(module).keys() - attributes.keys():
            del vars(module)[name]
        vars(module).update(attributes)
        for put_back in self._put_back:
            put_back()
        for name, tensor in self._tensors:
            setattr(module, name, tensor)


def _held_by(hook: Any) -> Iterator[Any]:
    """What a hook may note down in what it sees: variables around a function, attributes of an object."""
    for function in (hook, getattr(hook, "func", None)):
        around = variables_around(function)
        yield from around
        for owner in (function, getattr(function, "__self__", None), *around):
            if not isinstance(owner, (nn.Module, type)):
                yield getattr(owner, "__dict__", None)


def variables_around(function: Any) -> list[Any]:
    """What a function refers to in the functions that it was made in.

    Example:
        >>> def noting(seen):
        ...     return lambda value: seen.append(value)
        >>> variables_around(noting([1]))
        [[1]]
    """
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        # A variable may have no value yet.
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _noted(values: Iterable[Any], depth: int = _DEPTH) -> Iterator[Any]:
    """Some values, and what containers among them hold."""
    for value in values:
        yield value
        inner = vars(value) if is_meter(value) else value
        if depth > 1 and isinstance(inner, (list, dict, set, deque, tuple)) and len(inner) < _LARGE:
            yield from _noted(inner.values() if isinstance(inner, dict) else inner, depth - 1)


@contextmanager
def _isolated_rng(model: nn.Module) -> Iterator[None]:
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(sorted(device.index for device in devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def eagerly() -> Iterator[None]:
    """While open, what ``torch.compile`` has taken runs as it was written: hooks are seen, and nothing is compiled.

    Example:
        >>> net = torch.compile(torch.nn.Linear(2, 1))
        >>> with eagerly():
        ...     net(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    if not compiler_is_loaded():
        # Nothing can have been compiled, and to ask for a stance loads it.
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Within, networks are in eval mode; afterwards the mode of every part of them is as it was before.

    Example:
        >>> net = nn.Sequential(nn.Dropout().train(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(net):
        ...     [module.training for module in net]
        [False, False]
        >>> [module.training for module in net]
        [True, False]
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
