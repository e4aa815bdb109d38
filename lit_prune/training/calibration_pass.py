"""The calibration pass of an event: activations of the live network on a part of the run's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lit_prune.activations import Arrivals, Calibration, Moments, collect_arrivals, collect_moments
from lit_prune.common.running import untouched
from lit_prune.policy.measure import Measure
from lit_prune.repair.entering import Usual, entering_as_in_training
from lit_prune.training.entrance import Entrance, entrance, entrance_with_objects
from lit_prune.training.host import Host
from lit_prune.training.seeing import Sight

# Strong augmentation is no mistake, and looks the same as inputs that a step prepares.
_TELLS_LITTLE = "Channels are chosen by activations that may tell little."


def measure_on(host: Host, sight: Sight, usual: Usual = MappingProxyType({})) -> Measure:
    """How activations are looked at in a run; where inputs are nothing like those of training, it is warned of.

    Args:
        host: The run.
        sight: How training enters the network.
        usual: What enters modules in training, where that is known.
    """

    def moments(layers: Sequence[str], calibration: Calibration) -> Mapping[str, Moments]:
        with entering_as_in_training(host.network, usual, _TELLS_LITTLE):
            return calibrate(host, layers, calibration, sight)

    def arrivals(weights: Sequence[str], calibration: Calibration, covariances: bool) -> Mapping[str, Arrivals]:
        enters = entrance(host.network, sight)
        with entering_as_in_training(host.network, {} if enters.replays else usual, _TELLS_LITTLE):
            return arriving(host, weights, calibration, covariances, enters)

    return Measure(moments, arrivals)


def calibrate(
    host: Host, layers: Sequence[str], calibration: Calibration | None = None, sight: Sight | None = None
) -> dict[str, Moments]:
    """The class-wise moments of layers, from a pass over a part of a run's data; training is not affected.

    Args:
        host: The run.
        layers: Qualified names of layers of its network.
        calibration: How much data, and which objects count.
        sight: How training enters the network; by default not known, and its forward takes the inputs.

    Returns:
        Layer name to moments, on the CPU, the same on every rank; without layers that do not run in eval mode.

    Raises:
        CalibrationError: If there is no data, or no object in it.
        ArgumentTypeError: If a batch is not known.
        ArgumentError: As for :func:`lit_prune.activations.collect_moments`.
    """
    calibration = calibration or Calibration()
    enters = entrance_with_objects(host.network, sight or Sight())
    with untouched(host.network), host.precision():
        return collect_moments(
            host.network,
            layers,
            host.batches(calibration, read=enters.read),
            calibration.num_classes,
            calibration.match_iou,
            enters.forward,
        )


def arriving(
    host: Host, weights: Sequence[str], calibration: Calibration, covariances: bool, enters: Entrance
) -> dict[str, Arrivals]:
    """What arrives at weights, from a pass over a part of a run's data; training is not affected.

    Args:
        host: The run.
        weights: Names of parameters of its network.
        calibration: How much data.
        covariances: Whether those are wanted.
        enters: How batches enter the network.

    Returns:
        Name of a weight to its arrivals, on the CPU, the same on every rank.

    Raises:
        CalibrationError: If there is no data, or a value is not finite.
        ArgumentTypeError: If a batch is not known.
    """
    batches = host.batches(calibration, True, enters.read)
    with host.precision():
        return collect_arrivals(host.network, weights, batches, enters.forward, covariances)
