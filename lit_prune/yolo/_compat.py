"""What is private in torchmetrics' way over ranks, and used nevertheless, as in `lit_prune.common._compat`.

Of Ultralytics nothing private is used.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torchmetrics import Metric


class OwnGathering(Metric):
    """A metric that gathers its states in a way of its own.

    The public `dist_sync_fn` is given one tensor at a time, and not at all for a list that is empty on a rank.
    """

    def gather(self, names: Iterable[str], group: Any) -> None:
        """Replace the states of those names by those of all ranks."""
        raise NotImplementedError

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any | None = None) -> None:
        self.gather(self._reductions, process_group or self.process_group)
