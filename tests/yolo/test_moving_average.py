from importlib.metadata import Distribution

import lightning
import pytest
import torch
from torch import nn
from ultralytics.utils.torch_utils import ModelEMA

from lit_prune import MissingPackageError
from lit_prune.yolo import LitYOLO
from lit_prune.yolo.moving_average import MovingAverage


def test_the_average_is_that_of_ultralytics():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    theirs, callback = ModelEMA(net), MovingAverage()
    lit = lightning.LightningModule()
    lit.net = net
    callback.setup(None, lit, "fit")
    callback.on_train_start(None, lit)
    for _ in range(5):
        net(torch.rand(2, 3, 4, 4))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        theirs.update(net)
        callback.follow()

    ours = callback._average_model.module.net.state_dict()
    for name, value in theirs.ema.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours[name], value)
            assert not torch.equal(value, net.state_dict()[name])


def test_a_lightning_without_averages_is_named(monkeypatch):
    lit = LitYOLO("yolov8n.yaml", num_classes=10, hyperparameters={})
    wanted = r"lightning>=2\.6 \(2\.5\.6 is installed\)\. .*pip install 'lit-prune\[yolo\]'$"
    with monkeypatch.context() as older:
        older.setattr(Distribution, "version", "2.5.6")
        with pytest.raises(MissingPackageError, match=wanted):
            lit.configure_callbacks()
    assert LitYOLO("yolov8n.yaml", num_classes=10).configure_callbacks() == []
