"""A layer's decision as an image: where its channels lie, which stay, and the curve that said how many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lit_prune.common.packages import require
from lit_prune.select.clustering.decisions import Decision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1f2430", "#6b7280", "#e5e7eb"
_ACCENT = "#d9480f"


def draw_decision(decision: Decision, title: str = "") -> Figure:
    """Draw the channels of a layer, coloured by cluster, the kept ones marked; and the silhouette curve with its knee.

    Made without pyplot: it works on machines without a display and leaves no state behind.

    Args:
        decision: As a selection by clusters leaves it in its ``decisions``.
        title: Name of the layer.

    Returns:
        A figure; save it with ``figure.savefig(path)``.

    Raises:
        MissingPackageError: If matplotlib is missing.

    Example:
        >>> from lit_prune.select.clustering.decisions import decide, survey_channels
        >>> rows = np.random.default_rng(0).random((24, 10))
        >>> figure = draw_decision(decide(survey_channels(rows, "pca"), keep=8, method="medoid"), "model.1.conv")
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['embedding, first axis', 'clusters']
    """
    require("draw_decision", "matplotlib", extra="figures")
    from matplotlib.figure import Figure

    has_curve = len(decision.survey.silhouettes) > 0
    figure = Figure(figsize=(10.5, 5.2) if has_curve else (6.2, 5.2), dpi=130, facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2 if has_curve else 1, squeeze=False, width_ratios=[1.15, 1] if has_curve else None)[0]
    _draw_channels(axes[0], decision)
    if has_curve:
        _draw_curve(axes[1], decision)
    channels = len(decision.survey.points)
    heading = f"{len(decision.kept)} of {channels} channels stay"
    figure.suptitle(f"{title}: {heading}" if title else heading, x=0.01, ha="left", color=_INK, weight="bold", size=13)
    return figure


def _draw_channels(axes: Any, decision: Decision) -> None:
    x, y = decision.survey.points[:, :2].T
    kept = decision.kept
    colours = _cluster_colours(decision)
    if decision.clustering is not None:
        # Threads from each channel to the one that stands for it.
        labels = decision.clustering.labels
        stands_for = np.empty(len(kept), dtype=np.int64)
        stands_for[labels[kept]] = kept
        ends = stands_for[labels]
        axes.plot(np.stack([x, x[ends]]), np.stack([y, y[ends]]), color="#9ca3af", linewidth=0.7, alpha=0.6, zorder=1)
    gone = np.setdiff1d(np.arange(len(x)), kept)
    axes.scatter(x[gone], y[gone], s=34, c=colours[gone], edgecolors="white", linewidths=0.8, zorder=4, label="goes")
    axes.scatter(x[kept], y[kept], s=92, c=colours[kept], edgecolors=_INK, linewidths=1.3, zorder=3, label="stays")
    axes.set_xlabel("embedding, first axis", color=_MUTED)
    axes.set_ylabel("embedding, second axis", color=_MUTED)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.07)
    axes.set_title("Channels, near where they tell the same classes apart", loc="left", size=10, color=_INK)
    _legend(axes)
    _frame(axes)


def _draw_curve(axes: Any, decision: Decision) -> None:
    survey = decision.survey
    axes.plot(survey.counts, survey.silhouettes, color="#3b5bdb", linewidth=1.8, zorder=2)
    marks = [(survey.knee, "knee", _ACCENT, "-"), (len(decision.kept), "stay", _INK, "--")]
    if survey.knee == len(decision.kept):
        marks = [(survey.knee, "knee, and stay", _ACCENT, "-")]
    for count, name, colour, style in marks:
        if count is None:
            continue
        axes.axvline(count, color=colour, linewidth=1.3, linestyle=style, zorder=1, label=f"{name}: {count}")
        if survey.counts[0] <= count <= survey.counts[-1]:
            height = np.interp(count, survey.counts, survey.silhouettes)
            axes.scatter([count], [height], s=46, color=colour, edgecolors="white", linewidths=1.2, zorder=3)
    axes.set_xlabel("clusters", color=_MUTED)
    axes.set_ylabel("mean simplified silhouette", color=_MUTED)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_title("How well they fall into clusters", loc="left", size=10, color=_INK)
    _legend(axes, loc="lower right")
    _frame(axes)


def _cluster_colours(decision: Decision) -> Any:
    from matplotlib import colormaps

    channels = len(decision.survey.points)
    if decision.clustering is None:
        return np.tile(colormaps["turbo"](0.15), (channels, 1))
    # Clusters in the order of where they lie, so that neighbours differ a little and ends of the image a lot.
    middles = decision.survey.points[decision.clustering.medoids, :2]
    centre = middles - middles.mean(0)
    rank = np.argsort(np.argsort(np.arctan2(centre[:, 1], centre[:, 0])))
    shades = colormaps["turbo"](0.06 + 0.88 * rank / max(1, len(rank)))
    return shades[decision.clustering.labels]


def _legend(axes: Any, loc: str = "best") -> None:
    legend = axes.legend(loc=loc, frameon=True, framealpha=0.9, edgecolor=_GRID, labelcolor=_INK, fontsize=9)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_facecolor"):
            handle.set_facecolor("#9ca3af")


def _frame(axes: Any) -> None:
    axes.tick_params(colors=_MUTED, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
