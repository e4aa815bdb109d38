"""Run a network and leave no trace: its modes and caches and the random states are put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from lit_prune.common._compat import compiler_is_loaded


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` is in eval mode and without gradients; afterwards no trace is left of what ran.

    Put back, whatever happens: the mode of each submodule, every attribute and buffer that a forward has assigned
    (counters, cached anchors), and the random states of Python, NumPy, the CPU and the model's CUDA devices. Compiled
    parts run eagerly, for compiled code doesn't see hooks that came later.

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
    modules = list(model.modules())
    before = [(module, type(module), dict(vars(module)), dict(module._buffers)) for module in modules]
    with ExitStack() as stack:
        stack.enter_context(_isolated_rng(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eagerly())
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, cls, attributes, buffers in before:
                # A lazy module turns into another class with its first forward: that can't be undone.
                if type(module) is not cls:
                    module.training = attributes["training"]
                    continue
                for name in set(vars(module)) - set(attributes):
                    del vars(module)[name]
                vars(module).update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)


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
