"""Prune blocks 1, 2 and 3 of a YOLOv8n by what their channels see, in one run.

Block 2 has residuals and a split, and each cut changes what the next block receives.

    python examples/prune_several_blocks.py
"""

import os

os.environ.setdefault("YOLO_OFFLINE", "true")

import lightning as L

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration
from lit_prune.data import DigitScenesDataModule
from lit_prune.select import ClusterSelection
from lit_prune.yolo import LitYOLO


def main() -> ChannelPruning:
    L.seed_everything(0)
    # A network that has learned nothing finds nothing: take every object, found or not.
    calibration = Calibration(batches=2, batch_size=16, match_iou=None)
    pruning = ChannelPruning(
        amount=0.5,
        epochs=[1, 2],
        blocks=[1, 2, 3],
        selection=ClusterSelection(method="max_weight", calibration=calibration),
        round_to=4,
    )
    trainer = L.Trainer(
        max_epochs=3, callbacks=[pruning], logger=False, enable_checkpointing=False, limit_val_batches=0, devices=1
    )
    data = DigitScenesDataModule(scenes=64, val_scenes=8, image_size=64, batch_size=16)
    trainer.fit(LitYOLO("yolov8n.yaml", num_classes=10), data)
    return pruning


if __name__ == "__main__":
    main()
