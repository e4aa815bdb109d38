"""Without a Trainer: a loop of one's own decides when, and prunes by one call.

python examples/plain_loop.py
"""

import torch
from torch import nn

from lit_prune import plan_pruning, prune_


def main(steps=40):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(steps):
        if step == steps // 2:
            # Half of the multiply-adds.
            plan = plan_pruning(network, torch.zeros(1, 3, 16, 16), amount=0.5)
            prune_(network, plan, [optimizer])
        images, labels = torch.randn(16, 3, 16, 16), torch.randint(0, 4, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network


if __name__ == "__main__":
    print(main())
