"""Ultralytics' networks of any task, from a configuration or from weights, dense or pruned."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lit_prune.errors import ArgumentError, MissingFileError
from lit_prune.surgery.adoption import adopt_shapes_
from lit_prune.yolo.package import quiet_ultralytics, require_ultralytics
from lit_prune.yolo.reading import load_weights, near, read_lit_checkpoint
from lit_prune.yolo.tasks import HEADS, TASK_NAMES, task_of, task_of_head

# Layers of heads whose outputs are the data's: one a class, or one a number of each keypoint. Of a sequence, the last.
_CLASS_LAYERS = re.compile(
    r"(one2one_)?cv3\.\d+|proto\.semseg|linear|enc_score_head|dec_score_head\.\d+|denoising_class_embed"
)
_KEYPOINT_LAYERS = re.compile(r"(one2one_)?cv4(_kpts|_sigma)?\.\d+")


def build_detector(
    model: str | dict[str, Any], num_classes: int | None = None, kpt_shape: Sequence[int] | None = None
) -> Any:
    """Build an Ultralytics network, a `DetectionModel` or that of another task, that is ready to train.

    Its weights require gradients, it has the hyperparameters that its loss asks for, and in eval mode end-to-end
    heads answer end to end.

    Args:
        model: As for `LitYOLO`.
        num_classes: As for `LitYOLO`. Where the weights are for another number, the last layers of the class branch
            are drawn again at random; all other weights stay, and pruned networks stay pruned.
        kpt_shape: As for `LitYOLO`. Where the weights are for another shape, the last layers of the keypoint branch
            are drawn again at random.

    Raises:
        MissingPackageError: If Ultralytics is missing.
        MissingFileError: If there is no such configuration or file; near names are listed.
        ArgumentError: If `model` is not a network of a known task, `num_classes` is below 1, or `kpt_shape` is
            wrong.
    """
    require_ultralytics()
    from ultralytics.cfg import get_cfg

    if num_classes is not None and num_classes < 1:
        raise ArgumentError(f"num_classes must be at least 1, but got {num_classes}.")
    if kpt_shape is not None and not (len(kpt_shape) == 2 and kpt_shape[0] >= 1 and kpt_shape[1] in {2, 3}):
        raise ArgumentError(
            f"kpt_shape must be the number of keypoints, and 2 (x, y) or 3 (x, y, visible), but got {kpt_shape!r}."
        )
    if isinstance(model, str) and Path(model).suffix == ".pt":
        network = _from_weights(model, num_classes, kpt_shape)
    elif isinstance(model, str) and Path(model).suffix == ".ckpt":
        network = _from_checkpoint(model, num_classes, kpt_shape)
    else:
        network = _from_configuration(model, num_classes, kpt_shape)
    network.args = get_cfg(overrides={"task": task_of(network).name})
    network.nc = count_classes(network)  # what RT-DETR's loss asks for
    if getattr(network.model[-1], "one2one_cv2", None) is not None:
        network.end2end = True
    return network


def build_network(model: str) -> Any:
    """Build an Ultralytics network of any task, in eval mode: from a configuration, or with the weights of a file.

    Args:
        model: A configuration that Ultralytics knows (`"yolov8n-seg.yaml"`), or a `.pt` file.

    Raises:
        MissingPackageError: If Ultralytics is missing.
        MissingFileError: If there is no such configuration or file; near names are listed.
        ArgumentError: If the file cannot be read.
    """
    require_ultralytics()
    from ultralytics import RTDETR, YOLO

    with quiet_ultralytics():
        if Path(model).suffix == ".pt":
            network = load_weights(model)
        else:
            _configuration(model)
            network = (RTDETR if "rtdetr" in Path(model).stem else YOLO)(model).model
    return network.eval()


def configured_task(model: str) -> str:
    """Ultralytics' name of the task that a configuration's file is for; `"detect"` for heads that are not known.

    Raises:
        MissingFileError: If there is no such configuration; near names are listed.

    Example:
        >>> configured_task("yolov8n-seg.yaml")
        'segment'
    """
    task = task_of_head(_configuration(model)["head"][-1][2])
    return "detect" if task is None else task.name


def _configuration(model: str) -> dict[str, Any]:
    require_ultralytics()
    from ultralytics.nn.tasks import yaml_model_load

    try:
        config: dict[str, Any] = yaml_model_load(model)
    except FileNotFoundError:
        raise MissingFileError(
            f"Ultralytics has no configuration {model!r}, and there is no such file.{near(model)}"
        ) from None
    return config


def _from_configuration(
    model: str | dict[str, Any], num_classes: int | None, kpt_shape: Sequence[int] | None = None
) -> Any:
    from ultralytics.nn import tasks

    with quiet_ultralytics():
        if isinstance(model, dict):
            config = deepcopy(model)
        else:
            if Path(model).suffix not in {".yaml", ".yml"}:
                raise ArgumentError(f"model must end in .yaml, .pt or .ckpt, but got {model!r}.{near(model)}")
            config = _configuration(model)
        head = config["head"][-1][2]
        task = task_of_head(head)
        name = repr(model) if isinstance(model, str) else "this configuration"
        if task is None:
            raise ArgumentError(
                f"LitYOLO trains networks of the tasks {', '.join(TASK_NAMES)} (their head is one of "
                f"{', '.join(HEADS)}), but the head of {name} is {head}."
            )
        options = {}
        if kpt_shape is not None:
            if "kpt_shape" not in config:
                raise ArgumentError(f"kpt_shape is for pose networks, but {name} has a {head} head; leave it out.")
            options["data_kpt_shape"] = list(kpt_shape)
        return getattr(tasks, task.network)(config, nc=num_classes, verbose=False, **options)


def _from_weights(path: str, num_classes: int | None, kpt_shape: Sequence[int] | None) -> Any:
    source = load_weights(path)
    config = getattr(source, "yaml", None)
    if not isinstance(config, dict) or source.is_fused():
        raise ArgumentError(
            f"{path!r} holds no network that can be trained (its normalization is fused into its convolutions, or "
            f"it was not written by Ultralytics' trainer or `lit-prune export`); use the file from before export."
        )
    return _with_weights(source, num_classes, kpt_shape)


def _from_checkpoint(path: str, num_classes: int | None, kpt_shape: Sequence[int] | None) -> Any:
    config, weights, names = read_lit_checkpoint(path)
    source = _from_configuration(config, None)
    adopt_shapes_(source, weights)
    source.load_state_dict(weights)
    source.names = names or source.names
    return _with_weights(source, num_classes, kpt_shape)


def _with_weights(source: Any, num_classes: int | None, kpt_shape: Sequence[int] | None) -> Any:
    """A new network of the architecture and the weights of `source`, for its classes and keypoints, or for others."""
    classes = count_classes(source)
    network = _from_configuration(source.yaml, num_classes or classes, kpt_shape)
    if not _fresh_layers(network, source):
        adopt_widths_(network, source)
        network.load_state_dict(source.state_dict())
    else:
        adopt_widths_(network, source)
        with quiet_ultralytics():
            network.load(source, verbose=False)
    if num_classes in {None, classes}:
        network.names = source.names
    else:
        _say_redrawn("num_classes", num_classes, f"{classes} classes ({listed_names(source.names)})", "class")
    ours, theirs = (list(getattr(each.model[-1], "kpt_shape", [])) for each in (network, source))
    if ours != theirs:
        _say_redrawn("kpt_shape", ours, f"kpt_shape {theirs}", "keypoint")
    return network


def _say_redrawn(argument: str, value: Any, known: str, branch: str) -> None:
    rank_zero_info(
        f"{argument}={value} was asked for, but the weights are for {known}: the last layers of the {branch} branch "
        f"start at random and have to be trained. Leave {argument} out to keep them."
    )


def listed_names(names: Mapping[int, str], most: int = 5) -> str:
    """The names of some classes, for a message.

    Example:
        >>> listed_names({0: "cat", 1: "dog", 2: "cow"}, most=2)
        'cat, dog and 1 more'
    """
    shown = ", ".join(str(name) for name in list(names.values())[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def count_classes(network: Any) -> int:
    """The number of classes that a network of any task tells apart."""
    # Not of the configuration, which Ultralytics changes in place, and may share with another network.
    head = network.model[-1]
    return int(head.nc if hasattr(head, "nc") else head.linear.out_features)


def is_pruned(network: Any) -> bool:
    """Whether a network of Ultralytics has other widths than its configuration builds.

    Example:
        >>> network = build_detector("yolov8n.yaml", num_classes=2)
        >>> is_pruned(network)
        False
    """
    config = getattr(network, "yaml", None)
    if not isinstance(config, dict) or task_of_head(config["head"][-1][2]) is None:
        return False
    with torch.random.fork_rng(devices=[]):
        # Where nothing was pruned, a run draws what it would have drawn.
        dense = _from_configuration(config, count_classes(network)).state_dict()
    return any(name in dense and dense[name].shape != value.shape for name, value in network.state_dict().items())


def adopt_widths_(network: Any, source: Any) -> None:
    """Give a network, in place, the widths of a pruned one; the numbers of classes and keypoints stay its own.

    The values come with the loading: `network.load(source)` takes every tensor, but for the last layers of the class
    branch where the numbers of classes differ, and of the keypoint branch where the keypoints do. Those are
    drawn at random.

    Args:
        network: Built from the configuration of `source`, for any number of classes.
        source: The network to be like, pruned or not.

    Raises:
        ArgumentError: If it is of another architecture.

    Example:
        >>> network, source = (build_detector("yolov8n.yaml", num_classes=classes) for classes in (2, 3))
        >>> adopt_widths_(network, source)
        >>> network.model[-1].cv3[0][-1].out_channels
        2
    """
    weights = source.state_dict()
    fresh = []
    for name, layer in _fresh_layers(network, source):
        kept = {f"{name}.{end}": value for end, value in layer.named_parameters()}
        for key, value in kept.items():
            stored = weights[key]
            weights[key] = stored.new_empty((len(value), *stored.shape[1:]))
        if layer.weight.shape != weights[f"{name}.weight"].shape:
            fresh.append(layer)
    adopt_shapes_(network, weights)
    for layer in fresh:
        # As torch draws the weights of such a layer; the bias is as Ultralytics set it.
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)
        else:
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))


def _fresh_layers(network: Any, source: Any) -> list[tuple[str, Any]]:
    """The layers, by their names, with an output for each class or keypoint, if the two networks differ in these."""
    layers: list[tuple[str, Any]] = []
    if count_classes(network) != count_classes(source):
        layers += _last_layers(network, _CLASS_LAYERS)
    ours, theirs = (list(getattr(each.model[-1], "kpt_shape", [])) for each in (network, source))
    if ours != theirs:
        layers += _last_layers(network, _KEYPOINT_LAYERS)
    return layers


def _last_layers(network: Any, pattern: re.Pattern[str]) -> Iterator[tuple[str, Any]]:
    number = len(network.model) - 1
    for name, module in network.model[-1].named_modules():
        if pattern.fullmatch(name):
            sequence = isinstance(module, nn.Sequential)
            layer = module[-1] if sequence else module
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding)):
                yield f"model.{number}.{name}" + (f".{len(module) - 1}" if sequence else ""), layer
