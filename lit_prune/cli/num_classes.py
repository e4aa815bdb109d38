"""How many classes a new network gets where nobody says: as many as its data has."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lit_prune.data import DigitScenesDataModule
from lit_prune.yolo import LitYOLO, YOLODataModule
from lit_prune.yolo.networks import configured_task


def set_classes(config: Any) -> None:
    """Fill in `num_classes` of a `LitYOLO` that is built from a configuration's file, and say so.

    Weights, and configurations that come from a checkpoint, know their classes.

    Args:
        config: Of a command, parsed; its `model` and `data` are looked at.

    Raises:
        FileNotFoundError: If there is no such configuration or data; near names are listed.
        ValueError: If the configuration or the data can't be used.
    """
    arguments = config.model.get("init_args", {})
    name = arguments.get("model")
    fresh = isinstance(name, str) and Path(name).suffix in {".yaml", ".yml"}
    if not fresh or arguments.get("num_classes") is not None:
        return
    if not issubclass(resolve_name(config.model.class_path), LitYOLO):
        return
    classes = _classes_of(config.data, configured_task(name)) if config.get("data") else None
    if classes is not None:
        arguments.num_classes = classes
        rank_zero_info(f"{name} gets the {classes} classes of the data; --model.num_classes says otherwise.")


def _classes_of(data: Any, task: str) -> int | None:
    kind, arguments = resolve_name(data.class_path), data.get("init_args", {})
    if issubclass(kind, DigitScenesDataModule):
        return DigitScenesDataModule.num_classes
    if issubclass(kind, YOLODataModule):
        chosen = {name: arguments.get(name) for name in ("data", "hyperparameters")}
        return YOLODataModule(**chosen, task=arguments.get("task") or task).num_classes
    return None
