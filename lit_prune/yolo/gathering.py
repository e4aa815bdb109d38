"""Metrics over several ranks that saw different numbers of images."""

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lit_prune.yolo._compat import OwnGathering


class GathersUnevenly(OwnGathering):
    """Comes before a metric whose states are lists of tensors, and gathers them in one operation.

    torchmetrics gathers each list in operations of its own. A rank that saw fewer images is through with them earlier,
    or, if it saw none, sends another shape, and the ranks then hang or fail.
    """

    def gather(self, names: Iterable[str], group: Any) -> None:
        """Replace the lists of those names by those of all ranks."""
        mine = {
            name: [value.cpu() if isinstance(value, Tensor) else value for value in getattr(self, name)]
            for name in names
        }
        ranks: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(ranks, mine, group=group)
        for name in mine:
            values = [value for rank in ranks for value in rank[name]]
            setattr(self, name, [value.to(self.device) if isinstance(value, Tensor) else value for value in values])
