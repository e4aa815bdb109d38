"""Ultralytics' detection networks, from a configuration or from weights, dense or pruned."""

import difflib
import logging
import math
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_prune.surgery import adopt_shapes_

_HEADS = ("Detect", "v10Detect")


def build_detector(model: str | dict[str, Any], num_classes: int | None = None) -> Any:
    """Build an Ultralytics `DetectionModel` that is ready to train.

    Its weights require gradients, it has the hyperparameters that its loss asks for, and in eval mode end-to-end
    heads answer end to end.

    Args:
        model: As for `LitYOLO`.
        num_classes: As for `LitYOLO`. Where the weights are for another number, the last convolutions of the class
            branch are drawn anew; all other weights stay, and pruned networks stay pruned.

    Raises:
        ImportError: If Ultralytics is missing.
        FileNotFoundError: If there is no such configuration or file; near names are listed.
        ValueError: If `model` is no detection network, or `num_classes` is below 1.
    """
    require_ultralytics()
    from ultralytics.cfg import get_cfg

    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, but got {num_classes}.")
    if isinstance(model, str) and Path(model).suffix == ".pt":
        network = _from_weights(model, num_classes)
    elif isinstance(model, str) and Path(model).suffix == ".ckpt":
        network = _from_checkpoint(model, num_classes)
    else:
        network = _from_configuration(model, num_classes)
    network.args = get_cfg()
    if getattr(network.model[-1], "one2one_cv2", None) is not None:
        network.end2end = True
    return network


def build_network(model: str) -> Any:
    """Build an Ultralytics network of any task, in eval mode: from a configuration, or with the weights of a file.

    Args:
        model: A configuration that Ultralytics knows (`"yolov8n-seg.yaml"`), or a `.pt` file.

    Raises:
        ImportError: If Ultralytics is missing.
        FileNotFoundError: If there is no such configuration or file; near names are listed.
        ValueError: If the file cannot be read.
    """
    require_ultralytics()
    from ultralytics import RTDETR, YOLO

    with quiet_ultralytics():
        if Path(model).suffix == ".pt":
            network = _load_weights(model)
        else:
            _configuration(model)
            network = (RTDETR if "rtdetr" in Path(model).stem else YOLO)(model).model
    return network.eval()


def _configuration(model: str) -> dict[str, Any]:
    from ultralytics.nn.tasks import yaml_model_load

    try:
        config: dict[str, Any] = yaml_model_load(model)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Ultralytics has no configuration {model!r}, and there is no such file.{_near(model)}"
        ) from None
    return config


def _from_configuration(model: str | dict[str, Any], num_classes: int | None) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    with quiet_ultralytics():
        if isinstance(model, dict):
            config = deepcopy(model)
        else:
            if Path(model).suffix not in {".yaml", ".yml"}:
                raise ValueError(f"model must end in .yaml, .pt or .ckpt, but got {model!r}.{_near(model)}")
            config = _configuration(model)
        head = config["head"][-1][2]
        if head not in _HEADS:
            raise ValueError(
                f"LitYOLO trains detection networks (their head is one of {', '.join(_HEADS)}), but the head of "
                f"{model if isinstance(model, str) else 'this configuration'!r} is {head}."
            )
        return DetectionModel(config, nc=num_classes, verbose=False)


def _from_weights(path: str, num_classes: int | None) -> Any:
    source = _load_weights(path)
    config = getattr(source, "yaml", None)
    if not isinstance(config, dict) or source.is_fused():
        raise ValueError(
            f"{path!r} holds no network that can be trained (its normalization is fused into its convolutions, or "
            f"it was not written by Ultralytics' trainer or `lit-prune export`); use the file from before export."
        )
    return _with_weights(source, num_classes)


def _from_checkpoint(path: str, num_classes: int | None) -> Any:
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path!r}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = checkpoint["hyper_parameters"]["model"]
        state = checkpoint["state_dict"]
    except (KeyError, RuntimeError, TypeError, pickle.UnpicklingError, EOFError) as error:
        # What follows in torch's message is advice to load files of unknown origin without its safeguards.
        reason = str(error).partition(". ")[0]
        raise ValueError(
            f"{path!r} is no checkpoint that a Trainer saved of a LitYOLO ({type(error).__name__}: {reason})."
        ) from error
    source = _from_configuration(config, None)
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    adopt_shapes_(source, weights)
    source.load_state_dict(weights)
    source.names = checkpoint.get("class_names", source.names)
    return _with_weights(source, num_classes)


def _with_weights(source: Any, num_classes: int | None) -> Any:
    """A new network of the architecture and the weights of `source`, for as many classes, or for others."""
    classes = int(source.model[-1].nc)
    network = _from_configuration(source.yaml, num_classes or classes)
    adopt_widths_(network, source)
    if num_classes in {None, classes}:
        network.load_state_dict(source.state_dict())
        network.names = source.names
        return network
    with quiet_ultralytics():
        network.load(source, verbose=False)
    return network


def adopt_widths_(network: Any, source: Any) -> None:
    """Give a detection network, in place, the widths of a pruned one; the number of classes stays its own.

    The values come with the loading: `network.load(source)` takes every tensor, but for the last convolutions of the
    class branch where the numbers of classes differ. Those start anew.

    Args:
        network: Built from the configuration of `source`, for any number of classes.
        source: The network to be like, pruned or not.

    Raises:
        ValueError: If it is of another architecture.

    Example:
        >>> network, source = (build_detector("yolov8n.yaml", num_classes=classes) for classes in (2, 3))
        >>> adopt_widths_(network, source)
        >>> network.model[-1].cv3[0][-1].out_channels
        2
    """
    weights = source.state_dict()
    classes, fresh = int(network.model[-1].nc), []
    if classes != int(source.model[-1].nc):
        for name, layer in _class_layers(network):
            for end in ("weight", "bias"):
                stored = weights[f"{name}.{end}"]
                weights[f"{name}.{end}"] = stored.new_empty((classes, *stored.shape[1:]))
            if layer.weight.shape != weights[f"{name}.weight"].shape:
                fresh.append(layer)
    adopt_shapes_(network, weights)
    for layer in fresh:
        # As torch draws a convolution's weights; the bias is as Ultralytics set it.
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))


def _class_layers(network: Any) -> Iterator[tuple[str, Any]]:
    """The layers with one output channel a class, by their names."""
    number = len(network.model) - 1
    for branch in ("cv3", "one2one_cv3"):
        for level, layers in enumerate(getattr(network.model[-1], branch, None) or ()):
            yield f"model.{number}.{branch}.{level}.{len(layers) - 1}", layers[-1]


def _load_weights(path: str) -> Any:
    from ultralytics.nn.tasks import load_checkpoint
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    offered = Path(path).name == path and (path in GITHUB_ASSETS_NAMES or f"{path[:-3]}u.pt" in GITHUB_ASSETS_NAMES)
    if not Path(path).exists() and not offered:
        raise FileNotFoundError(f"There is no file {path!r}, and Ultralytics offers none of this name.{_near(path)}")
    try:
        return load_checkpoint(path)[0]
    except (OSError, RuntimeError, TypeError) as error:
        if Path(path).exists():
            raise ValueError(f"{path!r} cannot be read as weights by Ultralytics: {error}") from error
        raise FileNotFoundError(
            f"{path!r} is not here, and Ultralytics could not download it ({error}). Put the file into the working "
            f"directory, or start from {Path(path).stem + '.yaml'!r} without weights."
        ) from error


def _near(name: str) -> str:
    """End of an error message: the known names that resemble this one."""
    import ultralytics
    from ultralytics.utils import YAML
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    stem, suffix = Path(name).stem, Path(name).suffix
    if suffix == ".pt":
        known = {asset for asset in GITHUB_ASSETS_NAMES if re.fullmatch(r"yolo[^-]*\.pt", asset)}
    else:
        suffix = ".yaml"
        known = set()
        for path in (Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"):
            config = YAML.load(path)
            if config["head"][-1][2] in _HEADS:
                scales = config.get("scales") or [""]
                known |= {re.sub(r"(\d+)(?=$|-)", rf"\g<1>{scale}", path.stem, count=1) + suffix for scale in scales}
    near = difflib.get_close_matches(stem + suffix, sorted(known), n=4, cutoff=0.4)
    return f" Did you mean {', '.join(near)}?" if near else f" Known are {', '.join(sorted(known))}."


def require_ultralytics() -> None:
    """Raise an ImportError that says what to install, if Ultralytics can't be imported."""
    try:
        import ultralytics  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"LitYOLO builds its networks with Ultralytics, which cannot be imported ({error}). Install it with: "
            f"pip install 'lit-prune[yolo]'. Mind that Ultralytics is licensed under AGPL-3.0."
        ) from error


@contextmanager
def quiet_ultralytics() -> Iterator[None]:
    """Keep Ultralytics' notes about building a network from the console."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
