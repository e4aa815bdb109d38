"""A detector that you already have, on a data.yaml that you already have; out comes a file for plain Ultralytics.

    python examples/detector.py --image-size 96 --out pruned.pt

As written, it starts from random weights and trains on a small data set of handwritten digits that it makes. Give your
own by --model (`yolov8s.pt`) and --data (`data.yaml`).
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("YOLO_OFFLINE", "true")

import lightning as L

from lit_prune import ChannelPruning, Recovery
from lit_prune.data import write_digits
from lit_prune.yolo import LitYOLO, YOLODataModule
from lit_prune.yolo.export import export_detector


def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="yolov8n.yaml", help="weights, a configuration, a checkpoint")
    parser.add_argument("--data", help="an Ultralytics data.yaml")
    parser.add_argument("--classes", type=int, help="of the data, where the model has others")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("pruned.pt"))
    options = parser.parse_args(arguments)

    L.seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            options.data, options.classes = write_digits(folder, 32, 8, image_size=options.image_size), 10
        data = YOLODataModule(str(options.data), options.image_size, options.batch_size)
        module = LitYOLO(options.model, num_classes=options.classes)
        # A third of the work goes in three steps, in the first half of the run.
        third = max(1, options.epochs // 6)
        pruning = ChannelPruning(
            amount=0.33,
            epochs=[third, 2 * third, 3 * third],
            selection="macs",
            recovery=Recovery(rewarm_steps=20),
        )
        trainer = L.Trainer(
            max_epochs=options.epochs,
            callbacks=[pruning],
            logger=False,
            enable_checkpointing=False,
            devices=1,
            limit_val_batches=8,
        )
        trainer.fit(module, data)
    export_detector(module.model, options.out, image_size=options.image_size)
    return pruning


if __name__ == "__main__":
    main()
