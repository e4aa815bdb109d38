"""See the activations of block 3 after block 1 was pruned, by hooks on the live network.

Next to it, what fails: an `nn.Sequential` of copies of all blocks before the layer, made before block 1 was pruned. The
copies keep the widths that they had, but the layer itself has become narrower.

    python examples/activations_after_pruning.py
"""

import os

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch

from lit_prune import ChannelGraph, shrink_
from lit_prune.activations import ActivationExtractor, sliced_block
from lit_prune.yolo import build_detector

# The first layer that reads what block 1 puts out, and one two blocks on.
READS_BLOCK_1, IN_BLOCK_3 = "model.2.cv1.conv", "model.3.conv"


def main() -> dict[str, torch.Tensor]:
    network = build_detector("yolov8n.yaml", num_classes=10).eval()
    images = torch.rand(4, 3, 64, 64)
    copied = sliced_block(network, READS_BLOCK_1)

    graph = ChannelGraph.trace(network, images)
    shrink_(network, graph.plan({"model.1.conv": range(0, 32, 2)}))

    try:
        copied(images)
    except RuntimeError as error:
        print(f"Copies made before:  {error}")
    with ActivationExtractor(network, [READS_BLOCK_1, IN_BLOCK_3]) as extract:
        maps = extract(images)
    print(f"Live network:        {IN_BLOCK_3} puts out {tuple(maps[IN_BLOCK_3].shape)}")
    return maps


if __name__ == "__main__":
    main()
