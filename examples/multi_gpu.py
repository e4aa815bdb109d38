"""Many devices: the same callback; all ranks prune the same channels and go on together.

python examples/multi_gpu.py              # all GPUs of this machine
python examples/multi_gpu.py --cpu 2      # two processes without one
"""

import argparse

import lightning as L

from lit_prune import ChannelPruning, Recovery
from lit_prune.data import DigitScenesDataModule
from lit_prune.yolo import LitYOLO


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int, default=0, help="number of processes on the CPU")
    parser.add_argument("--scenes", type=int, default=2000)
    options = parser.parse_args()
    L.seed_everything(0)
    pruning = ChannelPruning(0.5, [1, 2], selection="macs", recovery=Recovery(rewarm_steps=20))
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu" if options.cpu else "auto",
        devices=options.cpu or "auto",
        strategy="ddp",
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
    )
    data = DigitScenesDataModule(scenes=options.scenes, val_scenes=32, image_size=64)
    trainer.fit(LitYOLO("yolov8n.yaml", num_classes=10), data)
    if trainer.is_global_zero:
        print(pruning.events[-1]["macs"])


if __name__ == "__main__":
    main()
