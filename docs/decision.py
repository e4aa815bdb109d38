"""Draw `docs/decision.png`: what is decided about one layer of a detector that was trained for a few epochs.

python docs/decision.py [--epochs 8] [--checkpoint FILE] [--layer model.4.cv2.conv] [--out docs/decision.png]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from lightning.pytorch import Trainer, seed_everything

from lit_prune import ChannelGraph
from lit_prune.activations import collect_moments, read_batch
from lit_prune.criteria import Evidence, Magnitude
from lit_prune.data import DigitScenesDataModule
from lit_prune.select import ClusterSelection, Target
from lit_prune.select.clustering.plots import draw_decision
from lit_prune.yolo import LitYOLO


def main() -> None:
    """Train, calibrate on the validation scenes, decide, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="length of the training")
    parser.add_argument("--checkpoint", help="of LitYOLO on DigitScenes; with it nothing is trained")
    parser.add_argument("--layer", default="model.4.cv2.conv", help="a layer of the group that is decided about")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the figure goes")
    options = parser.parse_args()
    seed_everything(0)
    data = DigitScenesDataModule()
    if options.checkpoint:
        module = LitYOLO.load_from_checkpoint(options.checkpoint, map_location="cpu")
        data.setup("validate")
    else:
        module = LitYOLO(model="yolov8n.yaml", num_classes=10)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(max_epochs=options.epochs, limit_val_batches=0, accelerator="cpu", **quiet).fit(module, data)
    network = module.model.eval()
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 96, 96))
    group = graph[options.layer]
    batches = map(read_batch, data.val_dataloader())
    moments = collect_moments(network, list(group.layers), batches, num_classes=10, match_iou=None)
    evidence = Evidence(network, graph, (group,), moments)
    selection = ClusterSelection()
    selection(evidence, Magnitude()(evidence), Target(None, {group.name: group.size}, graph.macs))
    figure = draw_decision(selection.decisions[group.name], group.name)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
