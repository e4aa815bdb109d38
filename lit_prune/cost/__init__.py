"""What a network costs: parameters, multiply-adds, memory of activations, and latency that was measured."""

from typing import TYPE_CHECKING

from lit_prune.common.lazy import lazily

if TYPE_CHECKING:
    from lit_prune.cost.activation_memory import peak_memory
    from lit_prune.cost.counts import Cost
    from lit_prune.cost.latency import Latency, measure_latency
    from lit_prune.cost.profile import LatencyTable, profile_latency
    from lit_prune.cost.side_by_side import measure_side_by_side

__all__ = [
    "Cost",
    "Latency",
    "LatencyTable",
    "measure_latency",
    "measure_side_by_side",
    "peak_memory",
    "profile_latency",
]

__getattr__, __dir__ = lazily(__name__, __file__)
