"""Metrics over several ranks that saw different numbers of images."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric


class GathersUnevenly(Metric):
    """Comes before a metric whose states are lists of tensors, and gathers them in one operation.

    torchmetrics gathers each list in operations of its own. A rank that saw fewer images is through with them earlier,
    or, if it saw none, sends another shape, and the ranks then hang or fail.
    """

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any | None = None) -> None:
        mine = {
            name: [value.cpu() if isinstance(value, Tensor) else value for value in getattr(self, name)]
            for name in self._reductions
        }
        group = process_group or self.process_group
        ranks: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(ranks, mine, group=group)
        for name in mine:
            values = [value for rank in ranks for value in rank[name]]
            setattr(self, name, [value.to(self.device) if isinstance(value, Tensor) else value for value in values])
