"""How a run shows its network: a step that is watched, made again on stand-ins, and later ones that use more of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lit_prune.graph import Call
from lit_prune.graph.recording import Pairs, parted
from lit_prune.training.inputs import CallRecorder, step_of
from lit_prune.training.latecomers import Latecomers
from lit_prune.training.pruner import Pruner
from lit_prune.training.step import StepCall


class FirstLook:
    """Lets a pruner see a network by what is seen of its steps.

    Args:
        pruner: What is to see.

    Example:
        >>> import torch
        >>> from lit_prune import ChannelPruning
        >>> net, pruner = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), ChannelPruning(0.5, 1, round_to=1).pruner
        >>> look = FirstLook(pruner)
        >>> look.open(net)
        >>> _ = net(torch.rand(3, 4))
        >>> look.show(net, dict), pruner.sees
        (True, True)
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._watch: CallRecorder | None = None
        # The first step, until it was seen.
        self._step: StepCall | None = None
        self._step_is_due = False
        self._latecomers = Latecomers()

    @property
    def is_open(self) -> bool:
        """Whether calls are watched."""
        return self._watch is not None

    @property
    def saw_nothing(self) -> bool:
        """Whether calls are watched, and none has come so far."""
        return self._watch is not None and self._watch.is_empty

    def open(self, network: nn.Module) -> None:
        """Watch how the network is entered."""
        self._watch = CallRecorder(network)

    def expect_step(self, is_due: bool) -> None:
        """Say whether the coming step is to be made again on stand-ins."""
        self._step_is_due = is_due

    def before_step(self, network: nn.Module, batch: Any, batch_idx: int) -> None:
        """Note what a step is made with, where that is asked."""
        if self._watch is not None:
            self._watch.batch = batch
        if self._step_is_due:
            self._step_is_due, self._step = False, step_of(network, batch, batch_idx)

    def skip_step(self) -> None:
        """Take the next step in place of this one, which tells nothing."""
        self._step_is_due, self._step = self._step is not None, None

    def calls(self) -> list[Call] | None:
        """The calls that were watched; ``None`` where none were. Ends the watch."""
        watch, self._watch = self._watch, None
        return None if watch is None else watch.close()

    def show(self, network: nn.Module, averages: Callable[[], Pairs]) -> bool:
        """Let the pruner see the network by what was watched.

        Args:
            network: The live network.
            averages: Tells those within it.

        Returns:
            Whether there was anything to see.

        Raises:
            PruningError: As for :meth:`Pruner.see`.
            ArgumentError: As for :meth:`Pruner.see`.
        """
        watch, step, self._step = self._watch, self._step, None
        calls, sight = self.calls(), self._pruner.sight
        if calls is None and step is None:
            return False
        forwards, steps = parted(sight.known) if self._pruner.sees else (calls or [], [])
        entries = sight.entries if watch is None else watch.entries
        self._pruner.see(network, forwards, steps if step is None else [step], averages(), entries)
        return True

    def watch_late(self, network: nn.Module) -> None:
        """From now on look out for layers that no step has used."""
        self._latecomers.watch(network, self._pruner.sight.idle)

    def after_step(self, network: nn.Module, batch: Any, batch_idx: int, name: str = "training_step") -> None:
        """Note a step that has used what the first did not.

        Args:
            network: Made it.
            batch: Its batch.
            batch_idx: The number of the batch.
            name: The method that makes it.
        """
        if self._latecomers.came() and (step := step_of(network, batch, batch_idx, name)) is not None:
            self._pruner.late.append(step)

    def close(self) -> None:
        """Watch no more."""
        self.calls()
        self._latecomers.close()
        self._step = None
