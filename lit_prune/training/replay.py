"""Calibration batches run as steps of the training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lit_prune.activations import CalibrationBatch
from lit_prune.common._compat import NormBase
from lit_prune.common.running import restored, untouched
from lit_prune.errors import CalibrationError
from lit_prune.training.step import StepCall


@dataclass(frozen=True, eq=False)
class _Held:
    """A batch that nothing is told of."""

    batch: Any


class Replay:
    """Makes a step of the training with one batch after another; of each no trace is left.

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
        return self._made(held.batch, bool(self._trains))

    def _made(self, batch: Any, trains: bool) -> Any:
        # Who looks on does so by hooks, and keeps what they have seen.
        with restored(self._network, contents=True, around_hooks=False):
            for module, mode in self._modes if trains else ():
                module.training = mode
            return replace(self._step, args=(batch, *self._step.args[1:])).enter(self._network)

    def _needs_training(self, batch: Any) -> bool:
        for trains in (False, True):
            try:
                with untouched(self._network):
                    self._made(batch, trains)
                return trains
            except Exception as error:
                failure = error
        raise CalibrationError(
            f"The training step of {type(self._network).__name__} makes what enters the network, and can't be made "
            f"with a calibration batch: {type(failure).__name__}: {str(failure).rstrip('. ')}. Write a method "
            "`calibration_batch(batch)` that returns a lit_prune.activations.CalibrationBatch of what its `forward` "
            "takes."
        )


def _is_still(module: nn.Module) -> bool:
    return isinstance(module, NormBase) or not any(True for _ in module.parameters())
