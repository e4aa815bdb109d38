"""What the pruner asks of whatever trains the network: Lightning's Trainer, Ultralytics' trainer, or another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn
from torch.optim import Optimizer

from lit_prune.activations import Calibration, CalibrationBatch
from lit_prune.activations.objects import Reader
from lit_prune.plan import PruningPlan


class Host(Protocol):
    """A training run, as the pruner sees it.

    Attributes:
        network: The live network; the names of its tensors are those of the plan.
        optimizers: Over its parameters.
        epoch: That is about to begin or under way, from 0.
        step: Optimizer steps so far.
        ranks: Number of processes that train together.
        validates: Whether the run has validations.
    """

    @property
    def network(self) -> nn.Module: ...  # noqa: D102

    @property
    def optimizers(self) -> Sequence[Optimizer]: ...  # noqa: D102

    @property
    def epoch(self) -> int: ...  # noqa: D102

    @property
    def step(self) -> int: ...  # noqa: D102

    @property
    def ranks(self) -> int: ...  # noqa: D102

    @property
    def validates(self) -> bool: ...  # noqa: D102

    def check(self, plan: PruningPlan) -> None:
        """Raise an UnsupportedError for what can't follow when the network is cut to ``plan``."""

    def averages(self) -> Mapping[str, nn.Module]:
        """Averaged copies beside the network: where each is kept, to a module with the network's names."""

    def averages_within(self, warn: bool = True) -> Mapping[str, str]:
        """Prefix of each average inside of the network to that of what it is an average of; ``warn`` of unsure ones."""

    def batches(
        self, calibration: Calibration, of_all_ranks: bool = False, read: Reader | None = None
    ) -> Iterator[CalibrationBatch]:
        """This rank's part of the calibration data, or all of it, on the network's device; training is not affected.

        Asked for again, they are the same. What reads them finds inputs and objects in the run's own batches.
        """

    def precision(self) -> AbstractContextManager[None]:
        """Within, forwards run in the precision that the run trains in."""

    def metrics(self) -> Mapping[str, float]:
        """The latest value of each metric that is logged."""

    def forget_scores(self) -> None:
        """Let whatever watches a best score start again."""

    def unwrap(self) -> None:
        """Drop what was made for the old shapes (compiled code, buckets); no other rank is waited for."""

    def wrap(self) -> None:
        """Make what the new shapes need, all ranks together."""

    def checkpoint(self) -> str | None:
        """The newest checkpoint of this run; ``None`` where there is none."""
