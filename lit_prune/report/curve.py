"""A metric against what networks cost: which of them are worth their cost, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lit_prune.report.style import DENSE, EVENT, GRID, KEPT, blank_figure, set_title
from lit_prune.report.tables import add_costs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = dict[str, Any]
"""A network: ``amount`` (what was asked for), ``metrics`` by name, ``params``, ``macs``, and where it is known
``latency_ms`` and ``checkpoint``."""


def cost_of(points: Sequence[Point]) -> str:
    """What networks are compared by: their latency where all have it told, else their multiply-adds."""
    return "latency_ms" if all("latency_ms" in point for point in points) else "macs"


def with_front(points: Sequence[Point], metric: str, mode: str = "max") -> list[Point]:
    """The points, the dearest first, each with ``pareto``: whether no other is as good and costs less.

    Args:
        points: Networks.
        metric: Which of their metrics counts.
        mode: ``"max"`` or ``"min"``: which is better.

    Example:
        >>> points = [
        ...     {"amount": name, "metrics": {"map": score}, "params": 1, "macs": macs}
        ...     for name, score, macs in [("dense", 0.8, 100), ("0.2", 0.8, 80), ("0.4", 0.6, 60), ("0.5", 0.7, 50)]
        ... ]
        >>> [(point["amount"], point["pareto"]) for point in with_front(points, "map")]
        [('dense', False), ('0.2', True), ('0.4', False), ('0.5', True)]
    """
    cost, sign = cost_of(points), 1 if mode == "max" else -1
    marked, best = [], float("-inf")
    for point in sorted(points, key=lambda point: (point.get(cost, 0.0), -sign * point["metrics"][metric])):
        score = sign * point["metrics"][metric]
        marked.append({**point, "pareto": score > best})
        best = max(best, score)
    return marked[::-1]


def curve_table(points: Sequence[Point], metric: str) -> Table:
    """A row for each network, the Pareto points marked.

    Args:
        points: Of :func:`with_front`.
        metric: Which of their metrics counts.
    """
    shown = Table(title_style="bold", header_style="bold", caption="★ no other is as good and costs less")
    shown.add_column("", no_wrap=True)
    shown.add_column("amount", justify="right", no_wrap=True)
    shown.add_column(metric, justify="right", no_wrap=True)
    columns = {"parameters": "params", "multiply-adds": "macs"}
    for point, cells in zip(points, add_costs(shown, points, columns, "ms by the table"), strict=True):
        shown.add_row("★" if point["pareto"] else "", point["amount"], f"{point['metrics'][metric]:.4g}", *cells)
    return shown


def curve_figure(points: Sequence[Point], metric: str) -> Figure:
    """The metric over the cost; a line joins the Pareto points.

    Args:
        points: Of :func:`with_front`; at least two.
        metric: Which of their metrics counts.

    Raises:
        MissingPackageError: If matplotlib is missing.
    """
    cost = cost_of(points)
    scale, unit = (1.0, "milliseconds by the table") if cost == "latency_ms" else (1e6, "million multiply-adds")
    figure, axes = blank_figure(6.0, 3.9)
    front = [point for point in points if point["pareto"]]
    axes.axhline(points[0]["metrics"][metric], color=DENSE, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.plot([p[cost] / scale for p in front], [p["metrics"][metric] for p in front], color=KEPT, lw=1.6, zorder=2)
    for point in points:
        x, y = point[cost] / scale, point["metrics"][metric]
        axes.scatter(x, y, color=KEPT if point["pareto"] else EVENT, s=26, zorder=3)
        axes.annotate(point["amount"], (x, y), xytext=(4, -10), textcoords="offset points", fontsize=7.5)
    axes.set_xlabel(unit)
    axes.set_ylabel(metric)
    axes.grid(color=GRID)
    set_title(axes, f"{metric} against cost")
    return figure
