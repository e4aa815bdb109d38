"""Labels of boxes in a figure, placed so that none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 6.2  # of the letters, in points
_PAD = 0.2  # around the letters, in multiples of their size
_AWAY = (1.4, 1.6)  # from the corner of the box, in points
_STEP, _STEPS = 9.0, 4  # further away from it, where the nearer places are taken, in points


def place_labels(axes: Axes, labels: Sequence[tuple[str, str, Sequence[float]]]) -> None:
    """Write a label at a corner of each box: where it fits into the axes, and hides no label that is there already.

    Tried in turn are the corners outside of the box, above and below, those inside of it, and then the same further
    away. Where all are taken the label goes where it hides least.

    Args:
        axes: Where the boxes are drawn; their place in the figure and their limits are final.
        labels: Of each box the text, the colour behind it, and x0, y0, x1, y1, with y pointing downwards.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> _ = axes.set(xlim=(0, 64), ylim=(64, 0))
        >>> place_labels(axes, [("seven", "black", (8, 20, 24, 40)), ("one", "black", (8, 20, 24, 40))])
        >>> [text.get_verticalalignment() for text in axes.texts]
        ['bottom', 'top']
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure: Any = axes.figure
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    taken: list[Any] = []
    for text, colour, (x0, y0, x1, y1) in labels:
        label = axes.annotate(
            text,
            (x0, y0),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_SIZE,
            fontweight="bold",
            color="white",
            clip_on=True,
            bbox={"boxstyle": f"square,pad={_PAD}", "fc": colour, "ec": "none"},
        )
        places: list[Any] = []
        for step, outside, left, above in product(range(_STEPS), *[(True, False)] * 3):
            upwards, rightwards = above == outside, left
            away = _AWAY[1] + _STEP * step
            place = {
                "xy": (x0 if left else x1, y0 if above else y1),
                "position": (_AWAY[0] * (1 if rightwards else -1), away * (1 if upwards else -1)),
                "va": "bottom" if upwards else "top",
                "ha": "left" if rightwards else "right",
            }
            _move(label, place)
            extent = label.get_window_extent(renderer).padded(_PAD * _SIZE * figure.dpi / 72)
            inside = _common(extent, frame)
            hidden = sum(_common(extent, other) for other in taken)
            places.append((extent.width * extent.height - inside + hidden, len(places), place, extent))
        # Of places that are equally good to the pixel, the first.
        _, _, place, extent = min(places, key=lambda found: (round(found[0]), found[1]))
        _move(label, place)
        taken.append(extent)


def _move(label: Any, place: dict[str, Any]) -> None:
    label.xy = place["xy"]
    label.set(position=place["position"], va=place["va"], ha=place["ha"])


def _common(first: Any, second: Any) -> float:
    """The area that two boxes of matplotlib have in common."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return float(max(width, 0) * max(height, 0))
