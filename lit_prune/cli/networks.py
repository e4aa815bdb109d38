"""Networks by name: of Ultralytics, torchvision and timm, from files and checkpoints."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common.packages import require
from lit_prune.errors import ArgumentError

# Of a video; networks with embedded positions take no other number.
_FRAMES = 16


def load_network(name: str, image_size: int | None = None) -> tuple[nn.Module, Tensor]:
    """Build a network by name, and example images for it.

    Args:
        name: An Ultralytics configuration (`"yolov8n.yaml"`) or file (`"best.pt"`), a checkpoint of a Trainer with
            `LitYOLO` (`"last.ckpt"`), `"torchvision:NAME"` or `"timm:NAME"`; the latter two with random weights.
        image_size: Height and width of the example images; by default what the network is made for, else 640 for
            Ultralytics and 224 for the others.

    Returns:
        The network in eval mode, and images (1, C, H, W); of a network for videos (1, C, T, H, W).

    Raises:
        FileNotFoundError: If there is no such configuration or file.
        MissingPackageError: If the package that the name asks for is missing.
        ArgumentError: If the package knows no such network (the message has the nearest names), the file can't be read,
            or the network can't take images of that size.

    Example:
        >>> network, images = load_network("torchvision:resnet18")
        >>> type(network).__name__, tuple(images.shape)
        ('ResNet', (1, 3, 224, 224))
    """
    source, colon, model = name.partition(":")
    if colon and source == "torchvision":
        network, leading, size = _from_torchvision(model, image_size)
    elif colon and source == "timm":
        network, *leading, size = _from_timm(model)
    elif Path(name).suffix in {".yaml", ".yml", ".pt", ".ckpt"}:
        network, size = _from_ultralytics(name, image_size), 640
        leading = [int(network.yaml.get("channels", 3))]
    else:
        raise ArgumentError(
            f"{name!r} is not a network that can be inspected: give an Ultralytics file that ends in .yaml or .pt, "
            "a checkpoint of LitYOLO (.ckpt), torchvision:NAME (torchvision:resnet50) or timm:NAME "
            "(timm:convnext_tiny)."
        )
    side = size if image_size is None else image_size
    return network.eval(), torch.zeros(1, *leading, side, side)


def _from_torchvision(name: str, image_size: int | None) -> tuple[nn.Module, list[int], int]:
    """The network, the size of an example before height and width, and its height."""
    require(f"torchvision:{name}", "torchvision:torchvision")
    from torchvision import models

    if name not in models.list_models():
        raise ArgumentError(f"torchvision has no model {name!r}.{_near(name, models.list_models())}")
    builder = models.get_model_builder(name)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    if kind == "optical_flow":
        raise ArgumentError(
            f"torchvision's {name} takes two images: trace it with ChannelGraph.trace(network, one, two)."
        )
    size = 224 if image_size is None else image_size
    options: dict[str, Any] = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    if kind == "detection" and not name.startswith("ssd"):
        # They would enlarge the images to 800 pixels.
        options |= {"min_size": size, "max_size": size}
    if "weights_backbone" in inspect.signature(builder).parameters:
        # By default they are downloaded, also where the rest is random.
        options["weights_backbone"] = None
    network: nn.Module = models.get_model(name, weights=None, **options)
    if kind == "video":
        return network, [3, _FRAMES], models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return network, [3], size


def _from_timm(name: str) -> tuple[nn.Module, int, int]:
    require(f"timm:{name}", "timm:timm")
    import timm

    if name.partition(".")[0] not in timm.list_models():
        raise ArgumentError(f"timm has no model {name!r}.{_near(name, timm.list_models())}")
    network = timm.create_model(name, pretrained=False)
    channels, height, _ = network.default_cfg.get("input_size", (3, 224, 224))
    return network, channels, height


def _from_ultralytics(name: str, image_size: int | None) -> Any:
    from lit_prune.yolo.export import check_image_size, load_detector
    from lit_prune.yolo.networks import build_network

    network = load_detector(name) if Path(name).suffix == ".ckpt" else build_network(name)
    if image_size is not None:
        check_image_size(image_size, network)
    return network


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else f" It has {len(known)} models, such as {known[0]}."
