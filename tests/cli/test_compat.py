"""Whether what is private in Lightning's command line is there, and still means what it meant."""

import pickle

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lit_prune.cli._compat import UnreadCheckpoint
from lit_prune.common._compat import CLASS_PATH, INSTANTIATOR


class Model(BoringModel):
    def __init__(self, width: int = 3):
        super().__init__()
        self.save_hyperparameters()
        self.width = width


_OFF = [f"--trainer.{name}=false" for name in ("logger", "enable_progress_bar", "enable_model_summary")]


def test_the_checkpoint_is_left_to_us_and_classes_are_built_later(tmp_path):
    (tmp_path / "none.ckpt").write_text("not a checkpoint")
    arguments = ["validate", *_OFF, f"--ckpt_path={tmp_path / 'none.ckpt'}"]

    class Wider(UnreadCheckpoint):
        def parse_arguments(self, parser, args):
            super().parse_arguments(parser, args)
            self.config.validate.model.width = 5

        def _run_subcommand(self, subcommand):
            pass

    assert Wider(Model, BoringDataModule, args=arguments).model.width == 5
    if hasattr(LightningCLI, "_parse_ckpt_path"):
        with pytest.raises(pickle.UnpicklingError):
            LightningCLI(Model, BoringDataModule, args=arguments)


def test_what_the_command_line_notes_of_a_model(tmp_path):
    run = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"]
    LightningCLI(
        Model,
        BoringDataModule,
        subclass_mode_model=True,
        save_config_callback=None,
        args=["fit", *_OFF, *run, f"--trainer.default_root_dir={tmp_path}", f"--model={__name__}.Model"],
    )
    (path,) = tmp_path.rglob("*.ckpt")
    noted = torch.load(path, weights_only=True)["hyper_parameters"]
    assert noted[CLASS_PATH] == f"{__name__}.Model"
    assert INSTANTIATOR in noted
