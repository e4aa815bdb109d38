"""Ultralytics' own trainers for networks that are pruned. Importing this module imports Ultralytics."""

from typing import Any

from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer

from lit_prune.yolo.networks import adopt_widths_
from lit_prune.yolo.pruning import STATE


class KeepsWidths:
    """Comes before one of Ultralytics' trainers, whose networks then keep the widths of the weights they start from."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the network as the base class does, give it the widths of the weights, then load them."""
        network = super().get_model(cfg=cfg, weights=None, verbose=verbose)  # type: ignore[misc]
        if weights is not None:
            adopt_widths_(network, weights)
            network.load(weights)
            if hasattr(weights, STATE):
                setattr(network, STATE, getattr(weights, STATE))
        return network


class PrunedDetectionTrainer(KeepsWidths, DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' `DetectionTrainer` that keeps the widths of a pruned network.

    `YOLO("pruned.pt").train(...)` alone builds the dense network anew from its configuration, and takes only those
    weights that happen to fit. With `trainer=PrunedDetectionTrainer` the network stays as it is. Data with another
    number of classes only replaces the last layers of the class branch. Dense weights train as always.

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
