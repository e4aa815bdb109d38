"""Ultralytics' detectors in a Lightning Trainer. Ultralytics is imported when the first detector is built."""


from lit_prune.yolo.module import LitYOLO, build_detector

__all__ = ["LitYOLO", "build_detector"]
