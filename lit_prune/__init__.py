"""Remove the channels of a network while it trains."""

from lit_prune.graph import ChannelGraph
from lit_prune.plan import PruningPlan
from lit_prune.surgery import mask_, shrink_

__all__ = ["ChannelGraph", "PruningPlan", "mask_", "shrink_"]
