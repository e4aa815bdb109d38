"""A classifier that you already train, and one more line.

python examples/classifier.py
"""

import lightning as L
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import ChannelPruning


class Classifier(L.LightningModule):
    """Nothing in it knows of pruning."""

    def __init__(self):
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=10)
        self.net.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loaders(examples):
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    data = TensorDataset(images[:examples], torch.tensor(digits.target)[:examples])
    train, val = torch.utils.data.random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    return DataLoader(train, 64, shuffle=True), DataLoader(val, 256)


def main(examples=1797, max_epochs=6):
    L.seed_everything(0)
    module = Classifier()
    pruning = ChannelPruning(amount=0.5, epochs=[2, 3], selection="macs")
    trainer = L.Trainer(max_epochs=max_epochs, callbacks=[pruning], logger=False, enable_checkpointing=False, devices=1)
    trainer.fit(module, *loaders(examples))
    return pruning


if __name__ == "__main__":
    main()
