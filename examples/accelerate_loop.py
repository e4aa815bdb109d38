"""With Hugging Face Accelerate: prune the network behind its wrapper.

Under several processes pass the same plan on every one (`lit_prune.ranks.from_rank_zero`), and wrap the network again
by `accelerator.prepare_model` after the event, for DDP has buckets of the old shapes.

    python examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import ChannelGraph, prune_


def main(steps=20):
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    data = DataLoader(TensorDataset(torch.randn(4 * steps, 3, 16, 16)), batch_size=4)
    wrapped, optimizer, data = accelerator.prepare(network, optimizer, data)
    for step, (images,) in enumerate(data):
        if step == steps // 2:
            inner = accelerator.unwrap_model(wrapped)
            graph = ChannelGraph.trace(inner, images)
            # Which channels go is up to you; here the sixteen last ones.
            prune_(inner, graph.plan({"0": range(16, 32)}), [optimizer.optimizer])
        loss = wrapped(images).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return network


if __name__ == "__main__":
    main()
