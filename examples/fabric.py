"""With Lightning Fabric: prune the network behind its wrapper.

python examples/fabric.py
"""

import torch
from lightning.fabric import Fabric
from torch import nn

from lit_prune import plan_pruning, prune_


def main(steps=20):
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    fabric.seed_everything(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 3))
    wrapped, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9))
    for step in range(steps):
        if step == steps // 2:
            plan = plan_pruning(network, torch.zeros(1, 3, 16, 16, device=fabric.device), amount=0.5)
            prune_(network, plan, [optimizer.optimizer])
        loss = wrapped(torch.randn(4, 3, 16, 16, device=fabric.device)).square().mean()
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
    return network


if __name__ == "__main__":
    print(main())
