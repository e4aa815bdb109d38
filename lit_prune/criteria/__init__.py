"""How important is a channel: criteria by name, and the base class for your own."""

from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.changes import Changes
from lit_prune.criteria.magnitude import BatchNormScale, Magnitude, Random, batch_norm_scales, power_sums
from lit_prune.criteria.taylor import Taylor

CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "batchnorm": BatchNormScale,
    "random": Random,
    "taylor": Taylor,
}

__all__ = [
    "CRITERIA",
    "BatchNormScale",
    "Changes",
    "Criterion",
    "Evidence",
    "Magnitude",
    "Random",
    "Taylor",
    "batch_norm_scales",
    "power_sums",
]
