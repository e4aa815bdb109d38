"""After a cut: what is left answers as the whole network did, as far as it can be predicted; no training."""

from lit_prune.repair.prune import prune_
from lit_prune.repair.repair import Repair, Repaired, as_repair, repaired

__all__ = ["Repair", "Repaired", "as_repair", "prune_", "repaired"]
