"""From scores to channels: selections by name, and the base class for your own."""

from lit_prune.errors import SelectionError
from lit_prune.select.base import Bundle, Selection, Target, bundled, lowest, units
from lit_prune.select.clustering.selection import ClusterSelection
from lit_prune.select.spread import Global, MacsBudget, Spread, Uniform
from lit_prune.select.weighted import Weighted

SELECTIONS: dict[str, type[Selection]] = {
    "uniform": Uniform,
    "global": Global,
    "macs": MacsBudget,
    "clusters": ClusterSelection,
}

__all__ = [
    "SELECTIONS",
    "Bundle",
    "ClusterSelection",
    "Global",
    "MacsBudget",
    "Selection",
    "SelectionError",
    "Spread",
    "Target",
    "Uniform",
    "Weighted",
    "bundled",
    "lowest",
    "units",
]
