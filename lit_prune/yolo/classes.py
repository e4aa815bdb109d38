"""The classes of a network against those of its data: which names hold, and what is said where they differ."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_prune.errors import ArgumentError
from lit_prune.yolo.networks import count_classes, listed_names


def match_classes(network: Any, names: Mapping[int, str], data: str, *, training: bool) -> None:
    """Compare a network's classes with its data's, and name those of the network where they have no names yet.

    Of as many classes, those of weights keep their names, but in training, where the data says what is learned.

    Args:
        network: As `build_detector` builds it; its `names` may change.
        names: The data's: class to name.
        data: What the data is called in messages.
        training: Whether the network is about to be trained on it.

    Raises:
        ArgumentError: If the network has fewer classes than the data.

    Example:
        >>> from lit_prune.yolo import build_detector
        >>> network = build_detector("yolov8n.yaml", num_classes=2)
        >>> match_classes(network, {0: "cat", 1: "dog"}, "data.yaml", training=True)
        >>> network.names
        {0: 'cat', 1: 'dog'}
    """
    ours, theirs = count_classes(network), len(names)
    if ours < theirs:
        advice = (
            f"give the model num_classes={theirs}" if training else "take the data that it was trained on, or its like"
        )
        raise ArgumentError(f"{data} has {theirs} classes, but the network has {ours}: {advice}.")
    if ours > theirs:
        rank_zero_warn(
            f"The network has {ours} classes ({listed_names(network.names)}), but {data} has {theirs} "
            f"({listed_names(names)}): of the others there is nothing to learn or to measure. To train a network for "
            f"these {theirs} alone, give the model num_classes={theirs}."
        )
        return
    known = dict(network.names)
    if known == dict(names):
        return
    if known in _unnamed(ours):
        network.names = dict(names)
    elif training:
        rank_zero_info(
            f"The network's classes ({listed_names(known)}) are now named as those of {data} ({listed_names(names)})."
        )
        network.names = dict(names)
    else:
        rank_zero_warn(
            f"The network's classes ({listed_names(known)}) are named otherwise than those of {data} "
            f"({listed_names(names)}): if they are others, or in another order, scores say nothing. The network keeps "
            "its names."
        )


def _unnamed(classes: int) -> list[dict[int, str]]:
    """What a network's `names` are that nobody has named: numbers, or Ultralytics' placeholders."""
    return [{number: form.format(number) for number in range(classes)} for form in ("{}", "class{}")]
