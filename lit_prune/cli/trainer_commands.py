"""`lit-prune fit`, `validate`, `test` and `predict`: Lightning's command line, for networks that may be pruned."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import lit_prune
from lit_prune.errors import ArgumentError

if TYPE_CHECKING:
    from lightning.pytorch import Callback

TRAINER_COMMANDS = {
    "fit": "train a model; add ChannelPruning to --trainer.callbacks and it shrinks meanwhile",
    "validate": "measure a checkpoint on the validation data",
    "test": "measure a checkpoint on the test data",
    "predict": "run a checkpoint on data, and draw what it finds",
}
ENVIRONMENT = "LIT_PRUNE"
"""Variables that begin so are read as arguments of the Trainer's commands."""


def run_trainer(
    arguments: Sequence[str] | None = None,
    adjust: Callable[[Any], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Any:
    """Hand `fit`, `validate`, `test` or `predict` to Lightning's command line.

    The model is `LitYOLO` and the data `DigitScenes` unless `--model` and `--data` name other classes. Checkpoints of
    pruned networks load into any model.

    Args:
        arguments: Those of the command line, without the program's name; by default this process's.
        adjust: Changes the command's configuration before anything is built of it; then it is not saved.
        callbacks: More of them, before those of the configuration.

    Returns:
        The `LightningCLI`, after it has run.

    Raises:
        ArgumentError: If an argument is unknown or of the wrong type, or there is no such class; near names are listed.
    """
    from argparse import ArgumentError as ArgparseError

    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import SaveConfigCallback

    from lit_prune.cli._compat import UnreadCheckpoint
    from lit_prune.cli.ckpt_path import KeptRecord, read_hyperparameters, take_up
    from lit_prune.cli.mistakes import explain
    from lit_prune.cli.num_classes import set_classes

    # What has been imported is known to the command line by its short name: with Lightning there, all of lit_prune.
    from lit_prune.yolo import DrawPredictions, LitYOLO

    lit_prune.known_by_short_names()

    class PruneCLI(UnreadCheckpoint):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.set_defaults(
                {
                    "model": {"class_path": "lit_prune.yolo.LitYOLO"},
                    "data": {"class_path": "lit_prune.data.DigitScenesDataModule"},
                }
            )

        def parse_arguments(self, parser: Any, args: Any) -> None:
            # Lightning's own warns that this process has arguments, too; but those given from Python are meant.
            try:
                self.config = parser.parse_args(args)
            except ArgparseError as error:
                raise ArgumentError(f"{explain(str(error))}") from error
            self._take_up_checkpoint()

        def _take_up_checkpoint(self) -> None:
            command = self.config.subcommand
            found = read_hyperparameters(self.config[command])
            if found:
                before = self.config[command].model
                self.config = self.parser.parse_object({command: {"model": found}}, self.config)
                take_up(self.config[command], before)

        def before_instantiate_classes(self) -> None:
            if adjust is not None:
                adjust(self.config[self.subcommand])
            set_classes(self.config[self.subcommand])

        def instantiate_trainer(self, **options: Any) -> Any:
            trainer: Any = super().instantiate_trainer(**options)
            draws = any(isinstance(callback, DrawPredictions) for callback in trainer.callbacks)
            if self.subcommand == "predict" and isinstance(self.model, LitYOLO) and not draws:
                trainer.callbacks.append(DrawPredictions())
            trainer.callbacks[:0] = callbacks
            KeptRecord.add_to(trainer)
            return trainer

    _look_in_the_working_folder()
    return PruneCLI(
        LightningModule,
        LightningDataModule,
        save_config_callback=SaveConfigCallback if adjust is None else None,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "lit-prune", "default_env": True, "env_prefix": ENVIRONMENT, "exit_on_error": False},
        args=None if arguments is None else list(arguments),
    )


def _look_in_the_working_folder() -> None:
    """Let class paths name modules of the working folder, as `python -m lit_prune` does by itself."""
    folder = os.getcwd()
    if not {"", folder} & set(sys.path) and not getattr(sys.flags, "safe_path", False):
        sys.path.append(folder)
