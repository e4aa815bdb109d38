"""How long a network's layers take on a device: measured, as a table, for every combination of widths."""

from typing import TYPE_CHECKING

from lit_prune.common.lazy import lazily

if TYPE_CHECKING:
    from lit_prune.cost.profile.latency_table import LatencyTable, LayerTimes
    from lit_prune.cost.profile.layer_widths import is_transposed, widths_of
    from lit_prune.cost.profile.profiling import export_profile, profile_latency, read_profile
    from lit_prune.cost.profile.runtime import Runtime
    from lit_prune.cost.profile.runtimes import Stopwatch, runtime_of

__all__ = [
    "LatencyTable",
    "LayerTimes",
    "Runtime",
    "Stopwatch",
    "export_profile",
    "is_transposed",
    "profile_latency",
    "read_profile",
    "runtime_of",
    "widths_of",
]

__getattr__, __dir__ = lazily(__name__, __file__)
