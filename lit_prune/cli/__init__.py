"""The command `lit-prune`."""

from lit_prune.cli.commands import main
from lit_prune.cli.trainer_commands import run_trainer

__all__ = ["main", "run_trainer"]
