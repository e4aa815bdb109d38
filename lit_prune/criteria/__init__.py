"""How important is a channel: criteria by name, and the base class for your own."""

from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.magnitude import BatchNormScale, Magnitude, Random, batch_norm_scales, power_sums

CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "batchnorm": BatchNormScale,
    "random": Random,
}

__all__ = [
    "CRITERIA",
    "BatchNormScale",
    "Criterion",
    "Evidence",
    "Magnitude",
    "Random",
    "batch_norm_scales",
    "power_sums",
]
