"""Mean average precision over several ranks. Importing this module imports torchmetrics' detection metrics."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision


class GatheredMeanAveragePrecision(MeanAveragePrecision):
    """torchmetrics' `MeanAveragePrecision`, for ranks that saw different numbers of images.

    torchmetrics gathers what it keeps of each image in an operation of its own. A rank with fewer images is through
    with them earlier, and the ranks then meet in different operations, and hang or fail.
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
