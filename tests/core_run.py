"""Trains, prunes and loads networks of one's own, also on the command line; and asks for what only extras bring."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import lightning.pytorch as pl

import lit_prune
from lit_prune import ChannelPruning, load_pruned
from lit_prune.cli import main
from tests.toys import Classifier, loader, trainer, widths


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()


class Net(Classifier):
    def __init__(self, width: int = 16) -> None:
        super().__init__(width)


def everything_is_imported() -> None:
    clustering = "lit_prune.select.clustering"
    for found in pkgutil.walk_packages(lit_prune.__path__, "lit_prune."):
        # Some of these have subclasses of what the extras bring.
        if not found.name.startswith(("lit_prune.yolo.", f"{clustering}.tsne", f"{clustering}._compat")):
            importlib.import_module(found.name)


def a_fit_prunes_and_its_checkpoint_loads(folder: Path) -> None:
    module = Net()
    run = trainer(ChannelPruning(0.5, [1, 2], verbose=False), enable_checkpointing=True, default_root_dir=folder)
    run.fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)
    assert widths(load_pruned(Net, run.checkpoint_callback.best_model_path)) == widths(module)


def the_command_line_takes_classes_of_ones_own(folder: Path) -> None:
    place = ["--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    own = ["--model", "tests.core_run.Net", "--data", "tests.core_run.Data", "--trainer.max_epochs", "2"]
    prune = ["--trainer.callbacks+=lit_prune.ChannelPruning", "--trainer.callbacks.amount=0.5"]
    assert main(["fit", *place, *own, *prune, "--trainer.callbacks.epochs=1"]) == 0
    assert main(["inspect", "yolov8n.yaml"]) == 2
    assert main(["digits", str(folder / "digits")]) == 2
    assert not (folder / "digits").exists()
    assert (
        main(["fit", *place, *own, *prune, "--trainer.callbacks.epochs=1", "--trainer.callbacks.selection=clusters"])
        == 2
    )
    # The network that is taken where none is named is Ultralytics'.
    assert main(["fit", *place]) == 2
