from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lit_prune.checkpoint import CheckpointError
from lit_prune.yolo import LitYOLO, build_detector
from lit_prune.yolo.networks import build_network


class Gone(nn.Conv2d):
    """Stands for a class that is not there when the file is read."""


@pytest.mark.parametrize("build", [build_detector, build_network])
@pytest.mark.parametrize("held", [[1], torch.zeros(3), {"state_dict": {"weight": torch.zeros(3)}}])
def test_a_file_without_a_network_says_so(tmp_path, build, held):
    torch.save(held, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="cannot be read as weights by Ultralytics: it is whole, but holds no network"):
        build(str(tmp_path / "net.pt"))


@pytest.mark.parametrize("build", [build_detector, build_network])
def test_a_missing_class_is_named(tmp_path, build, monkeypatch):
    torch.save({"model": Gone(3, 3, 1)}, tmp_path / "net.pt")
    monkeypatch.delitem(globals(), "Gone")
    with pytest.raises(ValueError, match=r"whose class is not found here .*Gone.* Install or import what defines it"):
        build(str(tmp_path / "net.pt"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "net.ckpt"
    run = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    run.strategy.connect(LitYOLO("yolov8n.yaml", num_classes=2))
    run.save_checkpoint(path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda parts: parts["hyper_parameters"].update(root=Path("x")),
            r"is whole, but .*pathlib.*LitYOLO.load_from",
        ),
        (
            lambda parts: parts["hyper_parameters"].pop("model"),
            "lacks 'model'. A checkpoint of another",
        ),
        (lambda parts: parts.pop("hyper_parameters"), "checkpoint of a LitYOLO: it lacks 'hyper_parameters'"),
        (lambda parts: parts.update(callbacks={"ChannelPruning": {}}), "record of what was pruned is damaged"),
    ],
)
def test_checkpoints_that_are_refused(checkpoint, tmp_path, change, message):
    parts = {**checkpoint, "hyper_parameters": dict(checkpoint["hyper_parameters"])}
    change(parts)
    torch.save(parts, tmp_path / "net.ckpt")
    with pytest.raises(CheckpointError, match=message):
        build_detector(str(tmp_path / "net.ckpt"))


def test_a_checkpoint_that_is_cut_short(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "net.ckpt")
    whole = (tmp_path / "net.ckpt").read_bytes()
    (tmp_path / "net.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"net.ckpt can't be read as a checkpoint: it is cut short"):
        build_detector(str(tmp_path / "net.ckpt"))
