"""What a metric says of each layer when it alone is cut: as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from lit_prune.report.style import blank_figure, set_title, short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layers = Mapping[str, Any]
"""``metric``, ``mode``, ``dense`` (its value of the whole network), and ``groups``: name to ratio to ``cut`` and, where
it was measured, ``repaired``: its values when so much of this group alone is gone."""


def layers_table(found: Layers) -> Table:
    """A row for each group, those that cost most first.

    Args:
        found: What was measured.

    Example:
        >>> found = {"metric": "map", "mode": "max", "dense": 0.8, "groups": {"0": {"0.5": {"cut": 0.7}}}}
        >>> layers_table(found).row_count
        1
    """
    ways, ratios = _ways(found), _ratios(found)
    shown = Table(
        title=f"{found['metric']} when one group alone is cut; {found['dense']:.4g} of the whole network",
        title_style="bold",
        header_style="bold",
        caption="cut / repaired" if len(ways) > 1 else ways[0],
        caption_justify="left",
    )
    shown.add_column("group", overflow="fold")
    for ratio in ratios:
        shown.add_column(f"−{float(ratio):.0%}", justify="right", no_wrap=True)
    sign = -1 if found["mode"] == "max" else 1

    def worst(item: tuple[str, Any]) -> float:
        return max(float(sign * scores[ways[-1]]) for scores in item[1].values())

    for name, scores in sorted(found["groups"].items(), key=worst, reverse=True):
        cells = [" / ".join(f"{scores[ratio][way]:.3g}" for way in ways) if ratio in scores else "" for ratio in ratios]
        shown.add_row(name, *cells)
    return shown


def layers_figure(found: Layers) -> Figure:
    """How much worse the metric is, a column for each group and a row for each ratio; one picture for each way.

    Args:
        found: What was measured.

    Raises:
        MissingPackageError: If matplotlib is missing.
    """
    ways, ratios, names = _ways(found), _ratios(found), [*found["groups"]]
    sign = 1 if found["mode"] == "max" else -1
    drops = {
        way: np.array(
            [
                [sign * (found["dense"] - found["groups"][name].get(ratio, {}).get(way, np.nan)) for name in names]
                for ratio in ratios
            ]
        )
        for way in ways
    }
    most = max(1e-6, *(float(np.nan_to_num(each).max()) for each in drops.values()))
    figure, axes = blank_figure(
        max(6.0, 1.6 + 0.17 * len(names)), 1.4 + (0.5 + 0.3 * len(ratios)) * len(ways), len(ways)
    )
    rows = axes if len(ways) > 1 else [axes]
    for way, one in zip(ways, rows, strict=True):
        image = one.imshow(drops[way], aspect="auto", cmap="magma_r", vmin=0, vmax=most)
        one.set_yticks(range(len(ratios)), [f"−{float(ratio):.0%}" for ratio in ratios])
        one.set_xticks([])
        one.set_ylabel(way)
    rows[-1].set_xticks(range(len(names)), short_names(names), rotation=90, fontsize=6.5)
    set_title(rows[0], f"Drop of {found['metric']} when one group alone is cut")
    figure.colorbar(image, ax=rows, shrink=0.8)
    return figure


def _ways(found: Layers) -> list[str]:
    every = [scores for ratios in found["groups"].values() for scores in ratios.values()]
    return [way for way in ("cut", "repaired") if all(way in scores for scores in every)]


def _ratios(found: Layers) -> list[str]:
    return sorted({ratio for ratios in found["groups"].values() for ratio in ratios}, key=float)
