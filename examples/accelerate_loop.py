"""With Hugging Face Accelerate: prune the network behind its wrapper.

Under several processes every one gets the same plan; wrap the network again by `accelerator.prepare_model` after the
event, as DDP's buckets have the old shapes.

    python examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import plan_pruning, prune_


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
            prune_(inner, plan_pruning(inner, images, amount=0.5), [optimizer.optimizer])
        loss = wrapped(images).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return network


if __name__ == "__main__":
    main()
