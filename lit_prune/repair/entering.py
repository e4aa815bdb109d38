"""What enters a network in training and on calibration batches: a repair is worth nothing where these are not alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common._compat import runs_compiled, tree_flatten
from lit_prune.common.ranks import warn_once
from lit_prune.common.signatures import by_position
from lit_prune.errors import CalibrationError
from lit_prune.repair.recalibration import are_unlike, unlike

Usual = Mapping[str, tuple[float, float]]
"""Name of a module to mean and variance of the first tensor of floating-point numbers that enters it."""


class Entering:
    """Notes what enters some modules, each once.

    Args:
        found: What is known before.

    Attributes:
        found: What is known.

    Example:
        >>> entering, net = Entering(), nn.Linear(2, 2)
        >>> entering.watch(net, [""])
        >>> _ = net(torch.tensor([[1.0, 3.0]]))
        >>> entering.found
        {'': (2.0, 1.0)}
    """

    def __init__(self, found: Usual | None = None) -> None:
        self.found: dict[str, tuple[float, float]] = dict(found or {})
        self._handles: dict[str, Any] = {}

    def watch(self, network: nn.Module, names: Iterable[str], in_training: bool = True) -> None:
        """Wait for the first call of each module that is not known yet.

        Args:
            network: What holds the modules.
            names: Theirs in it.
            in_training: Whether only calls count that gradients go through.
        """
        for name in dict.fromkeys(names):
            module = network.get_submodule(name)
            if name in self.found or runs_compiled(module):
                continue

            def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                if name in self.found or (in_training and not torch.is_grad_enabled()):
                    return
                inputs = by_position(module, args, kwargs)
                tensors = [leaf for leaf in tree_flatten(inputs or (args, kwargs))[0] if isinstance(leaf, Tensor)]
                values = next((each for each in tensors if each.is_floating_point() and each.numel()), None)
                if values is not None and not values.is_meta:
                    var, mean = torch.var_mean(values.detach().float(), correction=0)
                    self.found[name] = float(mean), float(var)
                    # Whoever restores the network's attributes after this call puts the hook back: it is kept known.
                    self._handles[name].remove()

            if name in self._handles:
                self._handles[name].remove()
            self._handles[name] = module.register_forward_pre_hook(note, with_kwargs=True)

    def close(self) -> None:
        """Wait no longer."""
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}


@contextmanager
def entering_as_in_training(network: nn.Module, usual: Usual, so: str = "") -> Iterator[None]:
    """While open, calibration batches run; in the end, raise where what entered is nothing like in training.

    Args:
        network: What they run through.
        usual: What enters its modules in training, where that is known.
        so: What comes of it; with it the user is warned, and nothing is raised.

    Raises:
        CalibrationError: As for :func:`check_entering`.
    """
    with closing(Entering()) as entering:
        entering.watch(network, usual, in_training=False)
        yield
        try:
            check_entering(usual, entering.found)
        except CalibrationError as error:
            if not so:
                raise
            warn_once(f"{so} {error}")


def check_entering(usual: Usual, found: Usual) -> None:
    """Raise where what enters on calibration batches is nothing like what enters in training.

    Args:
        usual: In training.
        found: On calibration batches.

    Raises:
        CalibrationError: With the module, and both means.
    """
    for name in usual.keys() & found.keys():
        (mean, var), (other, spread) = usual[name], found[name]
        tiny = torch.finfo(torch.float32).tiny
        shift = abs(other - mean) / math.sqrt(max(var + spread, tiny))
        ratio = max(spread, tiny) / max(var, tiny)
        if math.isnan(shift) or are_unlike(ratio, shift):
            raise CalibrationError(unlike(name or "the network", ratio, shift))
