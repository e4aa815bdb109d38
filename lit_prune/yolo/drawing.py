"""Detections drawn on their images, as a matplotlib figure that is crisp in print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_prune.common.packages import require
from lit_prune.errors import ArgumentError
from lit_prune.report.style import INK
from lit_prune.yolo.batches import Detections
from lit_prune.yolo.captions import place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One colour a class, told apart on dark and light ground alike; white text is readable on each.
_COLOURS = "#d1495b #1f6f8b #3a7d44 #b3541e #6b4e9b #8c6d1f #b0417f #20807a #4a5fb0 #5c6670".split()
_MATCH_IOU = 0.5
_MASK_ALPHA = 0.45
_SEEN = 0.5  # from which confidence on a keypoint is drawn, as Ultralytics does


def draw_detections(
    images: Tensor,
    found: Mapping[str, Detections] | Detections,
    targets: Detections | None = None,
    names: Mapping[int, str] | None = None,
    side: float = 1.9,
) -> Figure:
    """Draw the boxes, labels and scores of one or more networks on the same images: a row each, for comparison.

    Args:
        images: (N, 3, H, W) in 0..1.
        found: For each image a dict of `boxes` (k, 4; x0, y0, x1, y1 in pixels), `scores` (k,) and `labels` (k,), as
            `LitYOLO.detect` returns it; or a row's title to such a list, one per network. `masks`, `keypoints` and
            `rotated` are drawn where there are any.
        targets: The true objects, `boxes` and `labels` of each image: those that were not found are dashed, labels
            of boxes that fit no object have a cross, and a legend says so.
        names: Class names by label; by default the label itself.
        side: Width of one image in the figure, in inches.

    Returns:
        A figure; `figure.savefig(path)` writes it.

    Raises:
        ArgumentError: If there are no images, or a row does not have one entry per image.
        MissingPackageError: If matplotlib is missing.

    Example:
        >>> nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}]
        >>> figure = draw_detections(torch.rand(1, 3, 64, 64), {"dense": nothing, "pruned": nothing})
        >>> len(figure.axes)
        2
    """
    rows = found if isinstance(found, Mapping) else {"": found}
    _check_rows(images, rows, targets)
    require("draw_detections", "matplotlib", extra="figures")
    # A Figure of its own, not one of pyplot's: that would change the state of whoever plots in the same process.
    from matplotlib.figure import Figure

    ratio = images.shape[2] / images.shape[3]
    margin = 0.34 if any(rows) else 0.02
    strip = 0.02 if targets is None else 0.3
    width, height = margin + len(images) * side, strip + len(rows) * side * ratio
    figure = Figure(figsize=(width, height), dpi=200)
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    gap = 0.035
    figure.subplots_adjust(left=margin / width, right=1 - 0.02 / width, bottom=strip / height, top=1 - 0.02 / height)
    figure.subplots_adjust(wspace=gap, hspace=gap)
    if targets is not None:
        _add_legend(figure, margin / width)
    pixels = images.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    for line, (title, detections) in zip(grid, rows.items(), strict=True):
        for number, axes in enumerate(line):
            axes.imshow(pixels[number], interpolation="lanczos", aspect="auto")
            axes.set(xlim=(0, images.shape[3]), ylim=(images.shape[2], 0), xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            truth = None if targets is None else _on_cpu(targets[number])
            _draw_image(axes, _on_cpu(detections[number]), truth, names)
        if title:
            line[0].set_ylabel(title, fontsize=9, fontweight="bold", color=INK, labelpad=5)
    return figure


def match_objects(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which detections are right, and which objects were found, at an IoU of 0.5; each object counts once.

    Args:
        found: `boxes` (k, 4) and `labels` (k,), best score first.
        truth: `boxes` (n, 4) and `labels` (n,).

    Returns:
        Two masks, (k,) and (n,).

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> twice = {"boxes": box.repeat(2, 1), "labels": torch.tensor([1, 1])}
        >>> match_objects(twice, {"boxes": box, "labels": torch.tensor([1])})
        (tensor([ True, False]), tensor([True]))
    """
    from torchvision.ops import box_iou

    overlap = box_iou(found["boxes"].float(), truth["boxes"].float())
    overlap[found["labels"][:, None] != truth["labels"][None]] = 0
    right = torch.zeros(len(found["labels"]), dtype=torch.bool)
    seen = torch.zeros(len(truth["labels"]), dtype=torch.bool)
    for number, row in enumerate(overlap):
        free = torch.where(seen, 0, row)
        if len(free) and free.max() >= _MATCH_IOU:
            right[number] = True
            seen[free.argmax()] = True
    return right, seen


def _add_legend(figure: Figure, left: float) -> None:
    """What dashes and crosses mean, below the images."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    missed = Patch(facecolor="none", edgecolor=INK, ls=(0, (2, 2)), lw=1.3)
    wrong = Line2D([], [], color=INK, marker="x", ls="none", ms=4.5, mew=1.4)
    figure.legend(
        [missed, wrong],
        ["dashed: an object that was missed", "label with a cross: a box that fits no object of its class"],
        loc="lower left",
        bbox_to_anchor=(left, 0),
        ncols=2,
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
        handlelength=1.6,
        handleheight=1.1,
        borderaxespad=0.1,
    )


def _draw_image(
    axes: Axes,
    found: Mapping[str, Tensor],
    truth: Mapping[str, Tensor] | None,
    names: Mapping[int, str] | None,
) -> None:
    from matplotlib.patches import Rectangle

    right = torch.ones(len(found["labels"]), dtype=torch.bool)
    if truth is not None:
        right, seen = match_objects(found, truth)
        for x0, y0, x1, y1 in truth["boxes"][~seen].tolist():
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="white", lw=1.3, ls=(0, (2, 2))))
    labels = []
    for number, label in enumerate(found["labels"].tolist()):
        colour = _COLOURS[label % len(_COLOURS)]
        _draw_shape(axes, {name: found[name][number] for name in found}, colour)
        name = str(label) if names is None else names.get(label, str(label))
        text = f"{name}  {found['scores'][number]:.2f}" + ("" if right[number] else " ×")
        labels.append((text, colour, found["boxes"][number].tolist()))
    place_labels(axes, labels)


def _draw_shape(axes: Axes, entry: Mapping[str, Tensor], colour: str) -> None:
    """One object: its box, turned if it is rotated, and its mask or keypoints, if any."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Polygon

    if "masks" in entry:
        height, width = entry["masks"].shape
        layer = entry["masks"][..., None].float() * torch.tensor(to_rgba(colour, _MASK_ALPHA))
        axes.imshow(layer.numpy(), extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    x0, y0, x1, y1 = entry["boxes"].tolist()
    corners = torch.tensor([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if "rotated" in entry:
        centre, extent, angle = entry["rotated"][:2], entry["rotated"][2:4], entry["rotated"][4]
        along = torch.stack([angle.cos(), angle.sin()]) * extent[0] / 2
        across = torch.stack([-angle.sin(), angle.cos()]) * extent[1] / 2
        corners = centre + torch.stack([along + across, along - across, -along - across, -along + across])
    axes.add_patch(Polygon(corners.tolist(), fill=False, ec="white", lw=2.6, alpha=0.55))
    axes.add_patch(Polygon(corners.tolist(), fill=False, ec=colour, lw=1.5))
    if "keypoints" in entry:
        points = entry["keypoints"]
        seen = points[:, 2] > _SEEN if points.shape[1] == 3 else torch.ones(len(points), dtype=torch.bool)
        x, y = points[seen, :2].T.tolist()
        axes.scatter(x, y, s=9, c=colour, edgecolors="white", linewidths=0.6, zorder=3)


def _check_rows(images: Tensor, rows: Mapping[str, Detections], targets: Detections | None) -> None:
    if images.ndim != 4 or not len(images) or images.shape[1] != 3:
        raise ArgumentError(f"images must be (N, 3, H, W) with N at least 1, but got {tuple(images.shape)}.")
    everything: dict[str, Sequence[Any]] = {f"found {title!r}": row for title, row in rows.items()}
    if targets is not None:
        everything["targets"] = targets
    if not rows:
        raise ArgumentError("found must have at least one row of detections, but is empty.")
    for what, row in everything.items():
        if len(row) != len(images):
            raise ArgumentError(f"{what} must have one entry for each of the {len(images)} images, but has {len(row)}.")


def _on_cpu(entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in entry.items()}
