"""How all figures look: colours, axes, titles, names of layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lit_prune.common.packages import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSE = "#c9d3df"
KEPT = "#1f6f8b"
EVENT = "#d1495b"
INK = "#22303c"
GRID = "#e3e8ee"
RUNS = ("#d9822b", "#1f6f8b", "#6b4e9b", "#3a7d44")


def blank_figure(width: float, height: float, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes.

    Raises:
        MissingPackageError: If matplotlib is missing.
    """
    require("A figure", "matplotlib", extra="figures")
    # A Figure of its own, not one of pyplot's: that would change the state of whoever plots in the same process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    axes = figure.subplots(rows, **options)
    for one in axes if rows > 1 else [axes]:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color("#9aa7b4")
        one.tick_params(colors=INK, labelsize=8)
        one.xaxis.label.set_color(INK)
        one.yaxis.label.set_color(INK)
        one.set_axisbelow(True)
    return figure, axes


def set_title(axes: Axes, text: str) -> None:
    """Say above the axes, on the left, what they show."""
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold", color=INK)


def short_names(names: list[str]) -> list[str]:
    """Names without the beginning and the end that all have in common."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[: shared + 1] == parts[0][: shared + 1] for part in parts):
        shared += 1
    return [re.sub(r"\.conv(?=#|$)", "", ".".join(part[shared:])) for part in parts]
