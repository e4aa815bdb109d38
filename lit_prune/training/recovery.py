"""What follows an event: best scores start again, and the learning rate rises again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from lit_prune.common.arguments import check_choice, check_number, check_whole
from lit_prune.common.names import class_names
from lit_prune.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass
class Recovery:
    """How training recovers from the loss of channels.

    An average over steps (EMA) recovers later than the weights do. It remembers about ``1 / (1 - decay)`` steps, 1,000
    at 0.999, and until that many have passed since an event, validation and checkpoints of the average still reflect
    the network before it. Where epochs are short, take a decay that remembers far fewer steps than lie between two
    events.

    Args:
        reset_scores: Let ``ModelCheckpoint`` and ``EarlyStopping`` start again: the best score of a wider network would
            outdo every narrower one, and patience would end before the network has recovered. Files stay, so that
            there are up to ``save_top_k`` of every width; ``best_model_path`` is the best since the last event. A
            ``filename`` without the epoch gets a version for each width: ``best.ckpt``, ``best-v1.ckpt``.
        rewarm_steps: Optimizer steps over which the learning rate rises from near zero to what the schedule says; 0 for
            none.
        max_drop: How far ``monitor`` may fall. If it lies lower than this below what it was before an event when the
            next one is due, or when training ends, the event is taken back: weights, optimizer state and averaged
            copies are those before it, training goes on from there, and the groups that it pruned are left alone from
            then on. ``None`` takes nothing back. Until then checkpoints also hold the network before the event.
        floor: What ``monitor`` may not fall below (with ``mode="min"``: rise above). An event after which it does is
            taken back in the same way, and no other follows: with many small events a network becomes as small as it
            goes. Events are carried out one by one, and not before the metric has reached the floor.
        monitor: Name of the logged metric.
        mode: ``"max"`` where a higher metric is better, ``"min"`` where a lower one is.

    Raises:
        ArgumentError: If ``rewarm_steps`` or ``max_drop`` is negative, ``mode`` unknown, or ``monitor`` missing.

    Example:
        >>> recovery = Recovery(floor=0.79, monitor="val/map")
        >>> [recovery.is_beyond_floor(score) for score in (0.8, 0.78, float("nan"), None)]
        [False, True, True, False]
    """

    reset_scores: bool = True
    rewarm_steps: int = 0
    max_drop: float | None = None
    floor: float | None = None
    monitor: str | None = None
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        check_whole("rewarm_steps", self.rewarm_steps, least=0)
        check_choice("mode", self.mode, ("max", "min"))
        if self.max_drop is not None:
            check_number("max_drop", self.max_drop)
            if not self.max_drop >= 0:
                raise ArgumentError(f"max_drop must be 0 or more, but got {self.max_drop}.")
        if self.floor is not None:
            check_number("floor", self.floor)
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise ArgumentTypeError(f"monitor is the name of a logged metric, but got {self.monitor!r}.")
        if self.takes_back != (self.monitor is not None):
            raise ArgumentError("max_drop or floor, and monitor, go together: the one says how far the other may fall.")

    @property
    def takes_back(self) -> bool:
        """Whether events are taken back that cost too much."""
        return self.max_drop is not None or self.floor is not None

    def is_beyond_floor(self, score: float | None) -> bool:
        """Whether the metric is worse than the floor; never where one of them is not known."""
        if self.floor is None or score is None:
            return False
        # NaN is.
        return not (score >= self.floor if self.mode == "max" else score <= self.floor)


class Rewarming:
    """Scales the learning rate while an optimizer steps, and puts it back for the scheduler.

    Schedulers that compute a rate from the last one never see the scaled rate, so the schedule stays what it is.

    Args:
        optimizers: All optimizers; each has a rise of its own.
        steps: Length of the rise.
        taken: Steps that each has taken already, for a resumed run.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> sgd = torch.optim.SGD([weight], lr=1.0)
        >>> rewarming = Rewarming([sgd], steps=3)
        >>> weight.grad = -torch.ones(1)
        >>> for _ in range(5):
        ...     sgd.step()
        >>> round(weight.item(), 4), sgd.param_groups[0]["lr"], rewarming.taken
        (3.5, 1.0, [3])
    """

    def __init__(self, optimizers: Sequence[Optimizer], steps: int, taken: Sequence[int] | None = None) -> None:
        self.steps = steps
        self.taken = [0] * len(optimizers) if taken is None else list(taken)
        self._rates: dict[int, list[Any]] = {}
        self._handles: list[Any] = []
        for number, optimizer in enumerate(optimizers):
            self._handles.append(optimizer.register_step_pre_hook(self._before(number)))
            self._handles.append(optimizer.register_step_post_hook(self._after(number)))

    def close(self) -> None:
        """Leave the optimizers alone."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, number: int) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self.taken[number] >= self.steps:
                return
            self._rates[number] = [group["lr"] for group in optimizer.param_groups]
            ratio = (self.taken[number] + 1) / (self.steps + 1)
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * ratio

        return hook

    def _after(self, number: int) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            rates = self._rates.pop(number, None)
            if rates is None:
                return
            self.taken[number] += 1
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

        return hook


def reset_scores(trainer: Trainer) -> None:
    """Let the Trainer's callbacks forget the best score so far; what they have saved stays where it is."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        known = class_names(callback)
        if "EarlyStopping" in known:
            callback.wait_count = 0
            callback.best_score = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
        elif "ModelCheckpoint" in known and callback.monitor is not None:
            callback.best_k_models = {}
            callback.best_model_score = None
            callback.current_score = None
            callback.kth_best_model_path = ""
            callback.kth_value = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
