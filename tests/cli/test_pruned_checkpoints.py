import importlib

from lit_prune import load_pruned
from lit_prune.cli import main

MODULE = """
import lightning.pytorch as pl
from tests.toys import Classifier, loader

class Mine(Classifier):
    def __init__(self, width: int = 16):
        super().__init__(width)
        self.save_hyperparameters()

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

class Data(pl.LightningDataModule):
    def _loader(self):
        return loader()

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader
"""


def test_every_command_takes_a_pruned_checkpoint_of_a_class_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    classes = ["--model", "their_module.Mine", "--data", "their_module.Data", "--model.width", "32"]
    quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    pruning = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.5", "--trainer.callbacks.epochs=1"]

    assert main(["fit", *classes, *quiet, *pruning, "--trainer.max_epochs=2"]) == 0

    (checkpoint,) = tmp_path.rglob("*.ckpt")
    for command in ("validate", "test", "predict"):
        assert main([command, *classes, *quiet, "--ckpt_path", str(checkpoint)]) == 0
    assert main(["fit", *classes, *quiet, "--trainer.max_epochs=3", "--ckpt_path", str(checkpoint)]) == 0
    # The command line notes the class in the checkpoint, which must then be that very class.
    module = importlib.import_module("their_module")
    loaded = load_pruned(module.Mine, checkpoint)
    assert type(loaded) is module.Mine
    assert loaded.net[0][0].out_channels == 16
