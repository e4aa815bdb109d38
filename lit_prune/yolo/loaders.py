"""Loaders that Ultralytics' data sets ask for: one that acts before each epoch, and whole batches for each rank."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class EpochLoader(DataLoader[Any]):
    """A DataLoader that calls a function before each pass, before its workers start.

    Args:
        *args: As for `DataLoader`.
        before_epoch: What to call.
        **kwargs: As for `DataLoader`.
    """

    def __init__(self, *args: Any, before_epoch: Callable[[], None], **kwargs: Any) -> None:
        self.before_epoch = before_epoch
        super().__init__(*args, **kwargs)

    def __iter__(self) -> Any:
        # A generator, so that nothing is done before the first batch is asked for: of a run that is resumed, the
        # Trainer makes the iterator before it knows the epoch.
        self.before_epoch()
        yield from super().__iter__()


class WholeBatches(DistributedSampler[Any]):
    """Gives each rank whole batches of a data set, in order; every image once.

    Images of a rectangular data set are sorted by shape and padded to the shape of their batch, so a batch has to
    stay together. Being a `DistributedSampler`, it is left alone by Lightning.

    Args:
        dataset: An Ultralytics data set.
        num_replicas: Number of ranks.
        rank: This one.
        batch_size: Images of a batch of a data set that is not rectangular.

    Attributes:
        batches: Number of batches of all ranks.

    Example:
        >>> from types import SimpleNamespace
        >>> dataset = SimpleNamespace(batch=[0, 0, 1, 1, 2])
        >>> [list(WholeBatches(dataset, num_replicas=2, rank=rank)) for rank in range(2)]
        [[0, 1, 4], [2, 3]]
    """

    def __init__(self, dataset: Any, num_replicas: int, rank: int, batch_size: int = 1) -> None:
        # The base class would ask the process group for what is given here, and pads the ranks to one length.
        self.dataset: Dataset[Any] = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        whole = dataset.batch if hasattr(dataset, "batch") else np.arange(len(dataset)) // batch_size
        self.batches = int(max(whole, default=-1)) + 1
        self.indices = [index for index, batch in enumerate(whole) if batch % num_replicas == rank]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
