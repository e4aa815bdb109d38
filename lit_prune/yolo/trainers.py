"""Ultralytics' own trainers for networks that are pruned. Importing this module imports Ultralytics."""

from typing import Any

from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import LOGGER, RANK

from lit_prune.common.names import count_parameters
from lit_prune.errors import ArgumentError
from lit_prune.yolo.networks import adopt_widths_, is_pruned
from lit_prune.yolo.package import STATE, quiet_ultralytics

# What of a configuration makes the architecture; the rest is the data's, or names.
_ARCHITECTURE = ("backbone", "head", "scale", "depth_multiple", "width_multiple")


class KeepsWidths:
    """Comes before one of Ultralytics' trainers, whose networks then keep the widths of pruned weights."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the network as the base class does, give it the widths of pruned weights, then load them.

        Raises:
            ArgumentError: If the weights are pruned, and their normalization is fused into the convolutions.
        """
        build: Any = super().get_model  # type: ignore[misc]
        if weights is None or not is_pruned(weights):
            return build(cfg=cfg, weights=weights, verbose=verbose)
        if weights.is_fused():
            raise ArgumentError(
                "The weights are pruned, and their normalization is fused into the convolutions, so that they can't be "
                "trained. Load the file again, without `fuse()`."
            )
        with quiet_ultralytics():
            # Networks that classify tell of themselves in any case.
            network = build(cfg=cfg, weights=None, verbose=False)
        if any(network.yaml.get(key) != weights.yaml.get(key) for key in _ARCHITECTURE):
            # Another network that is only to begin with what fits.
            return build(cfg=cfg, weights=weights, verbose=verbose)
        dense = count_parameters(network)
        adopt_widths_(network, weights)
        network.load(weights)
        if hasattr(weights, STATE):
            setattr(network, STATE, getattr(weights, STATE))
        if verbose and RANK == -1:
            # In place of the table that the base class prints, which would be the dense network's.
            network.info()
            LOGGER.info(
                f"Pruned widths are kept: {count_parameters(network):,} parameters, where the dense network has "
                f"{dense:,}."
            )
        return network


def keep_widths_(trainer: Any) -> None:
    """Have a trainer that has not built its network yet keep the widths of pruned weights, whatever its class."""
    if not isinstance(trainer, KeepsWidths):
        kind = type(trainer)
        trainer.__class__ = type(kind.__name__, (KeepsWidths, kind), {"__module__": kind.__module__})


def keeping(trainer: Any) -> str:
    """The name of the trainer class to give, in place of a trainer's own, for pruned weights.

    Example:
        >>> keeping(PoseTrainer.__new__(PoseTrainer))
        'PrunedPoseTrainer'
    """
    names = [pruned.__name__ for pruned in _TRAINERS if isinstance(trainer, pruned.__bases__[1])]
    return names[0] if names else "a class of KeepsWidths and your trainer"


class PrunedDetectionTrainer(KeepsWidths, DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' `DetectionTrainer` that keeps the widths of a pruned network.

    `YOLO("pruned.pt").train(...)` alone builds the dense network from its configuration, and takes only those weights
    that happen to fit. With `trainer=PrunedDetectionTrainer` the network stays as it is. Data with another number of
    classes only replaces the last layers of the class branch. Dense weights train as always. `UltralyticsPruning`
    needs no such class: what it is attached to keeps its widths.

    Example:
        ```
        from ultralytics import YOLO
        from lit_prune.yolo import PrunedDetectionTrainer

        YOLO("pruned.pt").train(trainer=PrunedDetectionTrainer, data="data.yaml", epochs=20)
        ```
    """


class PrunedSegmentationTrainer(KeepsWidths, SegmentationTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for segmentation networks."""


class PrunedPoseTrainer(KeepsWidths, PoseTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for pose networks; other keypoints replace the last layers of their branch."""


class PrunedOBBTrainer(KeepsWidths, OBBTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for networks that find rotated boxes."""


class PrunedClassificationTrainer(KeepsWidths, ClassificationTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for networks that classify."""


class PrunedRTDETRTrainer(KeepsWidths, RTDETRTrainer):  # type: ignore[misc]
    """`PrunedDetectionTrainer` for RT-DETR, as in `RTDETR("pruned.pt").train(trainer=PrunedRTDETRTrainer, ...)`."""


# Subclasses before the classes that they are of.
_TRAINERS = (
    PrunedSegmentationTrainer,
    PrunedPoseTrainer,
    PrunedOBBTrainer,
    PrunedClassificationTrainer,
    PrunedRTDETRTrainer,
    PrunedDetectionTrainer,
)
