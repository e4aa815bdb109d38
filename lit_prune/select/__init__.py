"""From scores to channels: selections by name, and the base class for your own."""

from lit_prune.errors import SelectionError
from lit_prune.select.base import Bundle, Selection, Target, bundled, lowest, units
from lit_prune.select.budget import Budget
from lit_prune.select.budgets import Budgets, MacsBudget, ParamsBudget, SizeBudget
from lit_prune.select.clustering.selection import ClusterSelection
from lit_prune.select.isomorphic import Isomorphic
from lit_prune.select.latency_budget import LatencyBudget
from lit_prune.select.limited import Limited
from lit_prune.select.memory_budget import MemoryBudget
from lit_prune.select.named import NamedWidths
from lit_prune.select.spread import Global, Spread, Uniform
from lit_prune.select.weighted import Weighted

SELECTIONS: dict[str, type[Selection]] = {
    "uniform": Uniform,
    "global": Global,
    "isomorphic": Isomorphic,
    "macs": MacsBudget,
    "params": ParamsBudget,
    "clusters": ClusterSelection,
}

__all__ = [
    "SELECTIONS",
    "Budget",
    "Budgets",
    "Bundle",
    "ClusterSelection",
    "Global",
    "Isomorphic",
    "LatencyBudget",
    "Limited",
    "MacsBudget",
    "MemoryBudget",
    "NamedWidths",
    "ParamsBudget",
    "Selection",
    "SelectionError",
    "SizeBudget",
    "Spread",
    "Target",
    "Uniform",
    "Weighted",
    "bundled",
    "lowest",
    "units",
]
