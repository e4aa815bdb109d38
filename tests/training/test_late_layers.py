"""Layers that a LightningModule builds after its ``__init__``: in ``setup`` or ``configure_model``."""

import pytest
import torch
from torch import nn

from lit_prune import ChannelPruning
from lit_prune.checkpoint import load_pruned
from lit_prune.errors import ArgumentError
from tests.toys import Classifier, loader, network, trainer, widths


class InSetup(Classifier):
    def __init__(self):
        super().__init__()
        del self.net

    def setup(self, stage):
        self.net = network()


class InSetupOnce(InSetup):
    def setup(self, stage):
        if not hasattr(self, "net"):
            self.net = network()


class InConfigureModel(InSetup):
    def setup(self, stage):
        pass

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = network()


class HeadBuiltLate(InSetupOnce):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.net(self.stem(x))


def pruning(**options):
    return ChannelPruning(0.5, **{"epochs": 1, "verbose": False, **options})


@pytest.mark.parametrize("kind", [InSetup, InSetupOnce, InConfigureModel, HeadBuiltLate])
def test_they_are_pruned_and_resumed(kind, tmp_path):
    module, run = kind(), trainer(pruning(blocks=["net.*"]), max_epochs=2)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert module.net[2][0].weight.shape == (16, 8, 3, 3)
    again = kind()
    trainer(pruning(), max_epochs=3).fit(again, loader(), ckpt_path=tmp_path / "x.ckpt")
    assert widths(again) == widths(module)
    if kind is InConfigureModel:
        assert widths(load_pruned(kind, tmp_path / "x.ckpt")) == widths(module)


def test_a_network_that_is_built_again_is_another_one():
    module, callback = InSetup(), pruning()
    for _ in range(2):
        trainer(callback, max_epochs=2).fit(module, loader())
        assert len(callback.events) == 1
        assert module.net[2][0].weight.shape == (16, 8, 3, 3)


def test_a_pattern_that_matches_nothing_is_still_named():
    with pytest.raises(ArgumentError, match=r"'nett.\*' matches no layer"):
        trainer(pruning(blocks=["nett.*"])).fit(InSetup(), loader())


def test_before_wrap_is_too_early_for_them():
    module = InSetup()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ArgumentError, match=r"InSetup has no convolution.*has to be built in `__init__`"):
        trainer(pruning(epochs="before_wrap")).fit(module, loader())
