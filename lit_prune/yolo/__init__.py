"""Ultralytics' networks in a Lightning Trainer. Ultralytics is imported when the first one is built."""

from typing import TYPE_CHECKING, Any

from lit_prune.yolo.datamodule import YOLODataModule
from lit_prune.yolo.drawing import draw_detections
from lit_prune.yolo.lit_yolo import LitYOLO
from lit_prune.yolo.networks import build_detector
from lit_prune.yolo.predictions import DrawPredictions
from lit_prune.yolo.pruning import UltralyticsPruning

if TYPE_CHECKING:
    from lit_prune.yolo.trainers import (
        PrunedClassificationTrainer,
        PrunedDetectionTrainer,
        PrunedOBBTrainer,
        PrunedPoseTrainer,
        PrunedRTDETRTrainer,
        PrunedSegmentationTrainer,
    )

__all__ = [
    "DrawPredictions",
    "LitYOLO",
    "PrunedClassificationTrainer",
    "PrunedDetectionTrainer",
    "PrunedOBBTrainer",
    "PrunedPoseTrainer",
    "PrunedRTDETRTrainer",
    "PrunedSegmentationTrainer",
    "UltralyticsPruning",
    "YOLODataModule",
    "build_detector",
    "draw_detections",
]


def __getattr__(name: str) -> Any:
    # A subclass of one of Ultralytics' trainers can't be had without importing Ultralytics.
    if name in __all__ and name.endswith("Trainer"):
        from lit_prune.yolo.package import require_ultralytics

        require_ultralytics()
        from lit_prune.yolo import trainers

        return getattr(trainers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
