"""Prune a layer whose input was pruned before: block 1 in one epoch, what reads it in the next.

The second decision rests on the activations of the network as it is by then.

    python examples/prune_after_pruned.py
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
        # The convolution of block 1; the one that reads it, which is split in halves; and what is added to one half.
        blocks=["model.model.1.conv", "model.model.2.cv1.conv", "model.model.2.m.0.cv2.conv"],
        # The widest first, one per event.
        layers_per_event=1,
        selection=ClusterSelection(method="medoid", calibration=calibration),
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
