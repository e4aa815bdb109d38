"""Calibration batches run as steps of the training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.activations import CalibrationBatch
from lit_prune.common._compat import NormBase
from lit_prune.common.names import tensors_of
from lit_prune.common.running import restored, untouched
from lit_prune.errors import CalibrationError
from lit_prune.training.averaged_copies import held_by
from lit_prune.training.step import StepCall

# Deeper than lists of dicts nobody keeps tensors.
_DEPTH = 3


@dataclass(frozen=True, eq=False)
class _Held:
    """A batch that nothing is told of."""

    batch: Any


class Replay:
    """Makes a step of the training with one batch after another; of each no trace is left in the network.

    The network is in eval mode, or, where a step can't be made so, in the modes that it was in when this was made: but
    norms and what draws masks.

    Args:
        network: The live network, a LightningModule.
        step: Its step.
    """

    def __init__(self, network: nn.Module, step: StepCall) -> None:
        self._network, self._step = network, step
        self._modes = [(module, module.training and not _is_still(module)) for module in network.modules()]
        self._trains: bool | None = None
        # What the step writes into: averages, queues, weights that it clips.
        self._written: list[Tensor] = []

    def read(self, batch: Any) -> CalibrationBatch:
        """The input that makes a step of a batch.

        Raises:
            CalibrationError: If the step can't be made outside of the training.
        """
        if self._trains is None:
            self._trains = self._needs_training(batch)
        return CalibrationBatch((_Held(batch),))

    def make(self, held: _Held) -> Any:
        """Make the step of a batch that was read."""
        with _values_kept(self._written):
            return self._made(held.batch, bool(self._trains))

    def _made(self, batch: Any, trains: bool) -> Any:
        # A step may take its batch apart.
        with suppress(Exception):
            batch = copy.deepcopy(batch)
        # Who looks on does so by hooks, and keeps what they have seen.
        with restored(self._network, contents=True, around_hooks=False):
            for module, mode in self._modes if trains else ():
                module.training = mode
            return replace(self._step, args=(batch, *self._step.args[1:])).enter(self._network)

    def _needs_training(self, batch: Any) -> bool:
        tensors = [*_tensors(self._network)]
        for trains in (False, True):
            try:
                # Of all once; what a repair writes into weights while a step is made is not the step's.
                with untouched(self._network), _values_kept(tensors) as changed:
                    self._made(batch, trains)
                self._written = changed
                return trains
            except Exception as error:
                failure = error
        raise CalibrationError(
            f"The training step of {type(self._network).__name__} makes what enters the network, or enters several, "
            f"and can't be made with a calibration batch: {type(failure).__name__}: {str(failure).rstrip('. ')}. "
            "Calibration batches are to be of the form of training's; or write a method `calibration_batch(batch)` "
            "that returns a lit_prune.activations.CalibrationBatch of what its `forward` takes."
        )


def _is_still(module: nn.Module) -> bool:
    return isinstance(module, NormBase) or not any(True for _ in module.parameters())


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """All tensors of a network and of what its modules hold beside their own, each once."""
    seen: set[int] = set()
    waiting: list[tuple[Any, int]] = [(tensor, 0) for _, tensor in tensors_of(network)]
    waiting += [(value, 0) for module in network.modules() for _, value in held_by(module)]
    while waiting:
        value, depth = waiting.pop()
        if id(value) in seen or depth > _DEPTH:
            continue
        seen.add(id(value))
        inner: Any = ()
        if isinstance(value, Tensor):
            # An inference tensor can't be written into, and a stand-in holds nothing.
            if not value.is_inference() and not value.is_meta:
                yield value
        elif isinstance(value, nn.Module):
            inner = (tensor for _, tensor in tensors_of(value))
        elif isinstance(value, (dict, list, tuple)):
            inner = value.values() if isinstance(value, dict) else value
        waiting.extend((each, depth + 1) for each in inner if isinstance(each, (Tensor, nn.Module, dict, list, tuple)))


@contextmanager
def _values_kept(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Afterwards tensors hold what they held; which were changed is in the list by then."""
    before = [(tensor, tensor.data, tensor.detach().clone()) for tensor in tensors]
    changed: list[Tensor] = []
    try:
        yield changed
    finally:
        for tensor, data, value in before:
            if tensor.data_ptr() != data.data_ptr() or not torch.equal(tensor.data, value):
                changed.append(tensor)
                tensor.data = data
                tensor.data.copy_(value)
