"""Tables of events, above the progress bar and in the loggers."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lit_prune.common.names import class_names

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def print_above_progress(trainer: Trainer, table: Table) -> None:
    """Print a table; through the console of a rich progress bar where there is one: it redraws its last lines."""
    progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
    console = getattr(progress, "console", None) or Console()
    console.print(table)


def tell_loggers(trainer: Trainer, table: Table, step: int) -> None:
    """Give the table of an event to the loggers that take text: TensorBoard, Weights & Biases, MLflow, Comet."""
    text = StringIO()
    Console(file=text, width=100, no_color=True).print(table)
    for logger in trainer.loggers:
        known = class_names(logger)
        target: Any = logger
        if "TensorBoardLogger" in known:
            target.experiment.add_text("pruning", f"```\n{text.getvalue()}```", step)
        elif "WandbLogger" in known:
            target.log_text("pruning", columns=["step", "event"], data=[[step, text.getvalue()]])
        elif "MLFlowLogger" in known:
            target.experiment.log_text(target.run_id, text.getvalue(), f"pruning/step_{step}.txt")
        elif "CometLogger" in known:
            target.experiment.log_text(text.getvalue(), step=step)
