"""What `--ckpt_path` says of the model: its arguments, and the record of what was pruned."""

from __future__ import annotations

import inspect
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_prune.checkpoint import RECORD_KEY
from lit_prune.common._compat import CLASS_PATH, INSTANTIATOR
from lit_prune.common.reading import read_checkpoint
from lit_prune.errors import MissingFileError
from lit_prune.plan import PruningPlan
from lit_prune.surgery.adoption import accept_for_now
from lit_prune.training.loading import LoadGuard


def read_hyperparameters(config: Any) -> dict[str, Any]:
    """The arguments that the model of a command's checkpoint was built by, as the command line takes them.

    Args:
        config: Of a command; its `ckpt_path` and `weights_only` are looked at.

    Raises:
        MissingFileError: If there is no such file.
        CheckpointError: If the file can't be read.
    """
    path = config.get("ckpt_path")
    if isinstance(path, str) and path.endswith(".ckpt") and "://" not in path and not Path(path).exists():
        raise MissingFileError(f"There is no checkpoint {path!r} to load.")
    if not path or not Path(path).is_file():
        # No checkpoint, or one that the Trainer looks for by itself ("last", "best", a remote one).
        return {}
    # A Trainer that can't be told reads everything.
    weights_only = config.get("weights_only", False) is not False
    checkpoint = read_checkpoint(path, weights_only=weights_only, remedy="add --weights_only false")
    found = dict(checkpoint.get("hyper_parameters", {}))
    found.pop(INSTANTIATOR, None)
    if CLASS_PATH in found:
        return {"class_path": found.pop(CLASS_PATH), "dict_kwargs": found}
    return found


def take_up(config: Any, before: Any) -> None:
    """Say which arguments the checkpoint has replaced, and keep weights that the user asked for.

    Args:
        config: Of a command, with the checkpoint's arguments.
        before: The model's part of it as the user gave it.
    """
    model, path = config.model, config.ckpt_path
    if before.class_path != model.class_path:
        rank_zero_info(f"{path} is of a {model.class_path}, which is taken instead of {before.class_path}.")
        return
    given = before.get("init_args", {})
    if _is_weights(given.get("model")):
        # Where training began from a pruned file, only that file has the widths that the record starts from.
        model.init_args.model = given.model
    known = inspect.signature(resolve_name(model.class_path)).parameters
    for name, value in vars(given).items():
        now = model.init_args.get(name)
        default = known[name].default if name in known else None
        if value not in (now, default):
            rank_zero_info(f"--model.{name} {value} is not used: {path} was trained with {_short(now)}.")


def _is_weights(model: Any) -> bool:
    return isinstance(model, str) and Path(model).suffix in {".pt", ".ckpt"} and Path(model).exists()


def _short(value: Any) -> str:
    return "one of its own" if isinstance(value, dict) else str(value)


class KeptRecord(Callback):
    """Lets a checkpoint of a pruned network load where no `ChannelPruning` does, and hands its record on.

    Without the record in what is saved next, nothing would explain the widths of the network later.
    """

    def __init__(self) -> None:
        self._record: dict[str, Any] = {}
        self._hooks: list[Any] = []

    @classmethod
    def add_to(cls, trainer: Trainer) -> None:
        """Give a Trainer one, unless it has a `ChannelPruning`."""
        if not any(callback.state_key == RECORD_KEY for callback in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.callbacks.insert(0, cls())  # type: ignore[attr-defined]

    @property
    def state_key(self) -> str:
        """That of `ChannelPruning`."""
        return RECORD_KEY

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module take the widths of a checkpoint, if its record explains them."""
        from lit_prune.yolo import LitYOLO

        # LitYOLO does so by itself, also where it began with a pruned file, whose widths no record explains.
        if not isinstance(pl_module, LitYOLO):
            self._hooks = [LoadGuard(trainer, PruningPlan({})).register_on(pl_module)]
            self._hooks += accept_for_now([pl_module])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """The record."""
        return self._record

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the record."""
        self._record = state_dict
