"""What tests of Ultralytics' own trainers and validators share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def settings(data: str | Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of `train` and `val` for a small and quiet run on the CPU, which writes below ``folder``."""
    quiet = {"plots": False, "verbose": False, "project": str(folder / "runs"), "amp": False, "device": "cpu"}
    return {"data": str(data), "imgsz": 64, "batch": 4, "workers": 0, **quiet, **changes}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """The shape of each tensor of a network."""
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
