"""A step of a training as a call of its network: made again on stand-ins, with nothing logged or optimised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric

from lit_prune.common._compat import tree_flatten, tree_map_only
from lit_prune.graph import Call
from lit_prune.training.kept_weights import kept_as_they_are

_NO_OPS = (
    "log log_dict print manual_backward toggle_optimizer untoggle_optimizer clip_gradients configure_gradient_clipping"
).split()


# Methods of optimizers and schedules that change nothing.
_READING = ("get_last_lr", "state_dict")


@dataclass(frozen=True)
class StepCall(Call):
    """A method that makes a step with a batch, called on the live module while other tensors stand in for its own.

    Attributes:
        name: The method: ``training_step`` or ``validation_step`` of a LightningModule, ``forward`` of a network that
            returns its loss.
    """

    name: str = "training_step"
    is_step = True

    @property
    def in_train_mode(self) -> bool:
        """But for a validation."""
        return self.name != "validation_step"

    @property
    def is_of_training(self) -> bool:
        """Whether it is the training step of a LightningModule."""
        return self.name == "training_step"

    def enter(self, network: nn.Module) -> Any:
        """Make the step; nothing is logged, no metric and no optimizer is changed, and there is no backward pass."""
        with _nothing_else_happens(network), kept_as_they_are(network):
            return getattr(network, self.name)(*self.args, **self.kwargs)


@contextmanager
def _nothing_else_happens(network: Any) -> Iterator[None]:
    """While open, a step has no effect beside what it returns, as far as Lightning and torchmetrics go."""
    trainer = _trainer_of(network)
    with ExitStack() as stack:
        stack.enter_context(_NoBackward())
        if trainer is not None:
            stack.enter_context(trainer.precision_plugin.forward_context())
            stack.enter_context(_without_loggers(trainer))
            for optimizer in trainer.optimizers:
                stack.enter_context(_holding(optimizer, step=_idle_step, zero_grad=_nothing))
            stack.enter_context(_holding(network, **_idle_methods(network, trainer)))
        for module in network.modules():
            if isinstance(module, Metric):
                stack.enter_context(_holding(module, forward=_mean_of_all, update=_nothing, compute=_mean_of_all))
        yield


def _trainer_of(network: Any) -> Any:
    try:
        return network.trainer
    except (AttributeError, RuntimeError):
        # It is no LightningModule, or not in a run.
        return None


def _idle_methods(module: Any, trainer: Any) -> dict[str, Any]:
    """In place of what a LightningModule's step calls to log and to optimise."""
    return {
        **dict.fromkeys(_NO_OPS, _nothing),
        "toggled_optimizer": lambda *_, **__: nullcontext(),
        "all_gather": lambda data, *_, **__: _from_all_ranks(data, trainer.world_size),
        "optimizers": _idle(module.optimizers()),
        "lr_schedulers": _idle(module.lr_schedulers()),
    }


@contextmanager
def _holding(owner: Any, **values: Any) -> Iterator[None]:
    """While open, an object has other attributes."""
    missing = object()
    before = {name: vars(owner).get(name, missing) for name in values}
    try:
        # A module's own `__setattr__` may do more.
        vars(owner).update(values)
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = value


@contextmanager
def _without_loggers(trainer: Any) -> Iterator[None]:
    before = trainer.loggers
    trainer.loggers = [_Ignored() for _ in before]
    try:
        yield
    finally:
        trainer.loggers = before


class _NoBackward(TorchFunctionMode):
    """While open, there is no backward pass, and gradients that are asked for are zero."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:
            return None
        if func is torch.autograd.grad:
            inputs = args[1] if len(args) > 1 else kwargs["inputs"]
            return tuple(torch.zeros_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))
        return func(*args, **kwargs)


class _Ignored:
    """A logger, or what one has: whatever is asked of it, nothing happens."""

    def __getattr__(self, name: str) -> _Ignored:
        return self

    def __call__(self, *_: Any, **__: Any) -> _Ignored:
        return self


class _Idle:
    """An optimizer or a schedule that can be read, and does nothing."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._source, name)
        return _nothing if callable(value) and name not in _READING else value

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        return _idle_step(closure)

    def toggle_model(self, *_: Any, **__: Any) -> Any:
        return nullcontext()


def _idle(found: Any) -> Callable[..., Any]:
    idle = [_Idle(each) for each in found] if isinstance(found, (list, tuple)) else found and _Idle(found)
    return lambda *_, **__: idle


def _idle_step(closure: Callable[[], Any] | None = None, *_: Any, **__: Any) -> Any:
    return closure() if callable(closure) else None


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _mean_of_all(*args: Any, **kwargs: Any) -> Tensor:
    """What stands for a metric, which may be a loss as well: a number that all of its inputs enter."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    return torch.stack([torch.zeros(()), *(tensor.detach().float().mean() for tensor in tensors)]).sum()


def _from_all_ranks(data: Any, ranks: int) -> Any:
    return data if ranks == 1 else tree_map_only(Tensor, lambda tensor: torch.stack([tensor] * ranks), data)
