"""Forwards that take their batch in parts, in pairs or in threes: of a single example they do nothing."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from lit_prune import ChannelPruning
from tests.toys import loader, trainer

WAYS = {
    "halves": (lambda h: h[: len(h) // 2] - h[len(h) // 2 :], 2),
    "every second": (lambda h: h[0::2] - h[1::2], 2),
    "a view": (lambda h: h.view(len(h) // 2, 2, *h.shape[1:]).diff(dim=1)[:, 0], 2),
    "threes": (lambda h: h[0::3] - h[1::3] * h[2::3], 3),
    "the first stay": (lambda h: torch.cat([h[:1], h[1:] - h[:1]]), 1),
}


class Paired(pl.LightningModule):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU())
        self.second, self.head = nn.Conv2d(32, 32, 3), nn.Linear(32, 4)
        self.way, self.each = WAYS[way]

    def forward(self, x):
        # A layer that is run on what became of pairs alone.
        h = self.way(self.body(x))
        return self.head(self.second(h).relu().mean((2, 3)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1][:: self.each])

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_they_are_pruned(way, tmp_path):
    saved = ModelCheckpoint(tmp_path, save_top_k=-1)
    pruning = ChannelPruning(0.5, epochs=1, verbose=False)
    network = Paired(way)
    data = loader(examples=24, batch_size=12)
    trainer(pruning, saved, enable_checkpointing=True, max_epochs=3).fit(network, data, data)
    assert network.body[0].out_channels == 16
    assert network.second.out_channels == 16
    first = pruning.events[0]
    assert first["macs"][1] < first["macs"][0]

    checkpoint = next(path for path in tmp_path.glob("epoch=0*"))
    again = Paired(way)
    trainer(ChannelPruning(0.5, epochs=1, verbose=False), max_epochs=3).fit(again, data, data, ckpt_path=checkpoint)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
