"""The selection by what channels see: clusters of channels that tell the same classes apart."""

from lit_prune.select.clustering.plots import draw_decision
from lit_prune.select.clustering.selection import ClusterSelection

__all__ = ["ClusterSelection", "draw_decision"]
