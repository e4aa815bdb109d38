"""Batches in a layout of your own, and channels that are chosen by what they see in them.

`calibration_batch` says what in a batch is the network's input and what the labels are. Training itself takes batches
of any kind, and so does every choice by weights alone.

    python examples/own_data.py
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration, CalibrationBatch
from lit_prune.select import ClusterSelection


class Digits(Dataset):
    """Each item is a dict; `augmented` adds the noise that only training sees."""

    def __init__(self, examples, augmented):
        digits = load_digits()
        self.images = torch.tensor(digits.images[:examples], dtype=torch.float32)[:, None] / 16
        self.labels = torch.tensor(digits.target[:examples])
        self.augmented = augmented

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        return {
            "image": image + 0.1 * torch.randn_like(image) if self.augmented else image,
            "meta": {"digit": self.labels[index], "row": index},
        }


class Classifier(L.LightningModule):
    def __init__(self, examples):
        super().__init__()
        self.examples = examples
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch["image"]), batch["meta"]["digit"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def train_dataloader(self):
        return DataLoader(Digits(self.examples, augmented=True), 64, shuffle=True)

    def calibration_dataloader(self):
        """Optional: without it, calibration looks at the training data as it is served."""
        return DataLoader(Digits(self.examples, augmented=False), 64)

    def calibration_batch(self, batch):
        labels = batch["meta"]["digit"]
        return CalibrationBatch((batch["image"],), labels=labels, images=torch.arange(len(labels)))


def main(examples=1797, max_epochs=6):
    L.seed_everything(0)
    selection = ClusterSelection(calibration=Calibration(batches=8, batch_size=64))
    pruning = ChannelPruning(amount=0.5, epochs=[2, 3], selection=selection)
    trainer = L.Trainer(max_epochs=max_epochs, callbacks=[pruning], logger=False, enable_checkpointing=False, devices=1)
    trainer.fit(Classifier(examples))
    return pruning


if __name__ == "__main__":
    main()
