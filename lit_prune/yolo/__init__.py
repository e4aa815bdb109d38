"""Ultralytics' detectors in a Lightning Trainer. Ultralytics is imported when the first detector is built."""

from lit_prune.yolo.data import YOLODataModule
from lit_prune.yolo.figures import draw_detections
from lit_prune.yolo.module import LitYOLO
from lit_prune.yolo.networks import build_detector

__all__ = ["LitYOLO", "YOLODataModule", "build_detector", "draw_detections"]
