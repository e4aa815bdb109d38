"""The calibration pass of an event: activations of the live network on a part of the run's data."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lit_prune.activations import Calibration, Moments
from lit_prune.activations.calibration import collect_moments
from lit_prune.common.running import untouched
from lit_prune.errors import CalibrationError
from lit_prune.graph import Call
from lit_prune.training.host import Host


def calibrate(
    host: Host, layers: Sequence[str], calibration: Calibration | None = None, calls: Sequence[Call] = ()
) -> dict[str, Moments]:
    """The class-wise moments of layers, from a pass over a part of a run's data; training is not affected.

    Args:
        host: The run.
        layers: Qualified names of layers of its network.
        calibration: How much data, and which objects count.
        calls: How a step enters the network; where that has no forward, the part that is entered takes the inputs.

    Returns:
        Layer name to moments, on the CPU, the same on every rank; without layers that do not run in eval mode.

    Raises:
        CalibrationError: If there is no data, or no object in it.
        ArgumentTypeError: If a batch is not known.
        ArgumentError: As for :func:`lit_prune.activations.collect_moments`.
    """
    calibration = calibration or Calibration()
    forward = entrance(host.network, calls)
    with untouched(host.network), host.precision():
        return collect_moments(
            host.network, layers, host.batches(calibration), calibration.num_classes, calibration.match_iou, forward
        )


def entrance(network: nn.Module, calls: Sequence[Call]) -> nn.Module:
    """What takes the inputs of a batch: the network, or the one network that its steps call."""
    # By name: two packages have a LightningModule, and neither is a class of the other.
    bases = [base for base in type(network).__mro__ if base.__name__ in ("LightningModule", "Module")]
    if all(type(network).forward is not vars(base).get("forward") for base in bases):
        return network
    entered = list(dict.fromkeys(call.module for call in calls))
    if len(entered) != 1:
        raise CalibrationError(
            f"{type(network).__name__} has no `forward`, and its training step calls "
            f"{', '.join(entered) or 'no network'}: it is not known how a calibration batch runs through that. Write a "
            "`forward` that takes the inputs of a batch and runs the network."
        )
    return network.get_submodule(entered[0])
