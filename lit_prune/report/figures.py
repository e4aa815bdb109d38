"""Figures of events and of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_prune.errors import ArgumentError
from lit_prune.report.style import DENSE, EVENT, GRID, KEPT, RUNS, blank_figure, set_title, short_names
from lit_prune.report.tables import Event, History

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def channels_figure(events: Sequence[Event]) -> Figure:
    """Channels of every pruned group, dense and kept after the last event.

    Args:
        events: The events of one run, in order; at least one.

    Raises:
        ArgumentError: If there is no event.
        MissingPackageError: If matplotlib is missing.
    """
    if not events:
        raise ArgumentError("channels_figure needs at least one event, but got none.")
    dense: dict[str, int] = {}
    kept: dict[str, int] = {}
    for event in events:
        for name, (before, after) in event["channels"].items():
            dense.setdefault(name, before)
            kept[name] = after
    width = max(6.0, 1.2 + 0.155 * len(dense))
    figure, axes = blank_figure(width, 3.9)
    places = range(len(dense))
    axes.bar(places, list(dense.values()), width=0.82, color=DENSE, label="dense")
    axes.bar(places, list(kept.values()), width=0.82, color=KEPT, label="kept")
    axes.set_xticks(list(places), short_names(list(dense)), rotation=90, fontsize=6.5)
    axes.set_xlim(-0.8, len(dense) - 0.2)
    axes.set_ylabel("channels")
    total, left = sum(dense.values()), sum(kept.values())
    set_title(axes, f"Channels kept: {left:,} of {total:,} ({left / total:.0%})")
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower right", bbox_to_anchor=(1, 1.0))
    return figure


def history_figure(history: History, events: Sequence[Event]) -> Figure:
    """Mean average precision and multiply-adds over the epochs of one or more runs, with the prunings marked.

    Args:
        history: Name of each run to its epochs, each with ``epoch``, ``map`` and ``macs``.
        events: The prunings to mark.

    Raises:
        ArgumentError: If no run has an epoch.
        MissingPackageError: If matplotlib is missing.
    """
    if not any(history.values()):
        raise ArgumentError("history_figure needs the epochs of at least one run, but got none.")
    figure, axes = blank_figure(7.0, 4.6, rows=2, height_ratios=(2.2, 1))
    upper, lower = axes
    for number, (name, epochs) in enumerate((name, epochs) for name, epochs in history.items() if epochs):
        colour = RUNS[number % len(RUNS)]
        x = [epoch["epoch"] + 1 for epoch in epochs]
        upper.plot(x, [epoch["map"] for epoch in epochs], color=colour, lw=2, label=name)
        macs = [epoch["macs"] / 1e6 for epoch in epochs]
        lower.step([x[0] - 1, *x], [macs[0], *macs], where="pre", color=colour, lw=2)
        final = epochs[-1]["map"]
        # A run that ends before another has its figure above its end, where that one goes on below.
        goes_on = any(other[-1]["epoch"] > epochs[-1]["epoch"] for other in history.values() if other)
        is_best = final == max(other[-1]["map"] for other in history.values() if other)
        upper.annotate(
            f"{final:.3f}",
            (x[-1], final),
            xytext=(-4, 5) if goes_on else (4, 3 if is_best else -9),
            ha="right" if goes_on else "left",
            textcoords="offset points",
            color=colour,
            fontsize=8,
            annotation_clip=False,
        )
    last = max(epoch["epoch"] + 1 for epochs in history.values() for epoch in epochs)
    before = -float(last)
    for event in events:
        # Two that are close together stand on either side of their lines.
        is_close, before = event["epoch"] - before < 0.04 * last, event["epoch"]
        for one in axes:
            # Above the grid, which would hide a line on one of its own, and below the curves.
            one.axvline(event["epoch"], color=EVENT, lw=1, ls=(0, (4, 3)), zorder=1)
        upper.annotate(
            f"−{1 - event['macs'][1] / event['macs'][0]:.0%} MACs",
            (event["epoch"], 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(3 if is_close else -3, 0),
            textcoords="offset points",
            rotation=90,
            ha="left" if is_close else "right",
            va="bottom",
            fontsize=7.5,
            color=EVENT,
        )
    for one in axes:
        one.set_xlim(0, last)
        one.xaxis.get_major_locator().set_params(integer=True)
        one.grid(color=GRID)
    upper.set_ylim(bottom=0)
    lower.set_ylim(bottom=0)
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("mAP50-95")
    lower.set_ylabel("million MACs")
    lower.set_xlabel("epochs trained")
    set_title(upper, "Accuracy and work over the run")
    upper.legend(frameon=False, fontsize=8.5, ncols=len(history), loc="lower right", bbox_to_anchor=(1, 1.0))
    return figure
