"""What a Trainer holds beside the model, kept in step with it: optimizers, averaged copies, DDP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.errors import UnsupportedError
from lit_prune.lookup import class_names, tensors_of
from lit_prune.plan import PruningPlan
from lit_prune.surgery import accepts_pruned, select, shrink_, targets

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# By class name, along the bases: importing them all would cost the packages that they come from.
_CANNOT_STRATEGIES = {
    "FSDPStrategy": "FSDP flattens and shards parameters when it wraps the model",
    "ModelParallelStrategy": "parallelised parameters are DTensors, which can't change their shape",
    "DeepSpeedStrategy": "DeepSpeed partitions parameters when it wraps the model",
    "XLAStrategy": "XLA compiles the step for fixed shapes",
    "XLAFSDPStrategy": "XLA shards parameters when it wraps the model",
    "SingleDeviceXLAStrategy": "XLA compiles the step for fixed shapes",
}
_CANNOT_OPTIMIZERS = {
    "LBFGS": "it keeps one flat vector of all parameters",
    "ZeroRedundancyOptimizer": "it shards its state over the ranks",
}


# What PowerSGD's state remembers of DDP's buckets.
_BUCKET_MEMORY = ("error_dict", "p_memory_dict", "q_memory_dict")


def prune_(
    module: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[Optimizer] = (),
    copies: Sequence[nn.Module] = (),
) -> None:
    """Shrink a network in place together with all that holds something of its shape.

    Parameters stay the same objects, so parameter groups, schedulers and hooks stay valid. Optimizer state and
    gradients keep the values of what is left.

    Args:
        module: The network that the plan was made for.
        plan: What to keep.
        optimizers: Optimizers over its parameters.
        copies: Averaged copies (EMA, SWA) whose tensors have the same names, or some of them.

    Raises:
        UnsupportedError: If an optimizer holds state that can't be cut; then nothing has changed.
        ValueError: If the plan does not fit; then nothing has changed.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> adam = torch.optim.AdamW(net.parameters())
        >>> net(torch.rand(1, 3, 4, 4)).sum().backward()
        >>> adam.step()
        >>> keep = torch.arange(6)
        >>> plan = PruningPlan({"0.weight": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}})
        >>> prune_(net, plan, [adam])
        >>> adam.state[net[1].weight]["exp_avg"].shape
        torch.Size([4, 6, 1, 1])
    """
    prepare(module, plan, optimizers, copies)()


def prepare(
    module: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[Optimizer] = (),
    copies: Sequence[nn.Module] = (),
) -> Callable[[], None]:
    """The first half of :func:`prune_`, with all that can be refused in it; what it returns is the second.

    Between the two, ranks can agree that none has refused.
    """
    changes = [change for optimizer in optimizers for change in _state_changes(optimizer, _cuts(module, plan))]
    plans = [(module, plan), *((copy, plan.only(dict(tensors_of(copy)))) for copy in copies)]
    for network, part in plans:
        targets(network, part)

    def commit() -> None:
        for network, part in plans:
            shrink_(network, part)
        for state, key, value in changes:
            state[key] = value

    return commit


def check_state(module: nn.Module, plan: PruningPlan, optimizers: Sequence[Optimizer]) -> None:
    """Raise an UnsupportedError for state of an optimizer that could not follow a plan."""
    for optimizer in optimizers:
        for _ in _state_changes(optimizer, _cuts(module, plan)):
            pass


def _cuts(module: nn.Module, plan: PruningPlan) -> dict[nn.Parameter, Mapping[int, Tensor]]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {parameters[name]: dims for name, dims in plan.kept.items() if name in parameters}


def _state_changes(
    optimizer: Optimizer, cuts: Mapping[nn.Parameter, Mapping[int, Tensor]]
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Each entry of the state that has to change, with its cut value; raises before anything is written."""
    check_optimizer(optimizer)
    for parameter, dims in cuts.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            # A step counter has one element whatever the shape of the parameter is.
            if isinstance(value, Tensor) and (value.numel() > 1 or value.shape == parameter.shape):
                yield optimizer.state[parameter], key, select(value, _dims_of(optimizer, key, value, parameter, dims))


def _dims_of(
    optimizer: Optimizer, key: str, value: Tensor, parameter: nn.Parameter, dims: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    sizes = [] if value.dim() != parameter.dim() else [*zip(value.shape, parameter.shape, strict=True)]
    # Factored moments (Adafactor) have size 1 where they are a mean over the dimension.
    if not sizes or any(mine not in (1, full) for mine, full in sizes):
        raise UnsupportedError(
            f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape "
            f"{tuple(parameter.shape)}: it is not known how to cut that. Use SGD, Adam, AdamW, RMSprop or Adafactor."
        )
    return {dim: kept for dim, kept in dims.items() if sizes[dim][0] == sizes[dim][1]}


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise an UnsupportedError for an optimizer whose state can't follow."""
    inner = getattr(optimizer, "optimizer", optimizer)
    for name in class_names(inner):
        if name in _CANNOT_OPTIMIZERS:
            raise UnsupportedError(
                f"ChannelPruning can't prune under {name}, for {_CANNOT_OPTIMIZERS[name]}. Use SGD, Adam, AdamW or "
                "Adafactor, or prune once with ChannelPruning(epochs='before_wrap')."
            )


def check_strategy(trainer: Trainer) -> None:
    """Raise an UnsupportedError for a strategy under which parameters can't change their shape."""
    for name in class_names(trainer.strategy):
        if name in _CANNOT_STRATEGIES:
            raise UnsupportedError(
                f"ChannelPruning can't prune during training under {name}, for {_CANNOT_STRATEGIES[name]}. Use "
                "strategy='ddp' or a single device; or prune once with ChannelPruning(epochs='before_wrap')."
            )


def check_callbacks(trainer: Trainer) -> None:
    """Raise an UnsupportedError for callbacks that can't work beside ChannelPruning.

    Masks of weights would come back over the cut ones; and two ChannelPruning would each keep half of one record.
    """
    if sum("ChannelPruning" in class_names(callback) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
        raise UnsupportedError(
            "There are two ChannelPruning in this Trainer, and a network has one record of what was pruned. Give all "
            "`epochs` to one of them; `selection=Weighted(...)` takes more from some layers than from others."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if "ModelPruning" in class_names(callback):
            raise UnsupportedError(
                f"{type(callback).__name__} sets weights to zero behind masks, and ChannelPruning cuts the same "
                "weights away. Take one of them out of the Trainer's callbacks."
            )


def check_launcher(trainer: Trainer, module: nn.Module) -> None:
    """Raise an UnsupportedError where the main process will load shrunk weights and does not know how.

    ``ddp_spawn`` and its kin train in child processes; at the end the weights are loaded into the module of the main
    process, in which no callback ever ran.
    """
    launcher = getattr(trainer.strategy, "launcher", None)
    if "_MultiProcessingLauncher" in class_names(launcher) and not accepts_pruned(module):
        raise UnsupportedError(
            "Under ddp_spawn, ddp_fork and ddp_notebook the main process loads the weights of its children, and here "
            "it would refuse their shapes. Call `lit_prune.accept_pruned(model)` before `fit`, or use strategy='ddp'."
        )


def forget_shapes(trainer: Trainer) -> None:
    """Drop what was made for the old shapes: compiled code, cast copies of weights, DDP's wrapper and its buckets."""
    torch.compiler.reset()
    torch.clear_autocast_cache()
    strategy: Any = trainer.strategy
    if isinstance(strategy.model, nn.parallel.DistributedDataParallel):
        strategy._lit_prune_hooks = _comm_hooks(trainer)
        for _, state in strategy._lit_prune_hooks:
            _start_anew(state)
        # The old wrapper's hooks must be gone before the new ones come.
        strategy.model = strategy.lightning_module
        strategy._pl_static_graph_delay_done = False


def wrap_again(trainer: Trainer) -> None:
    """Make DDP's wrapper for the new shapes where :func:`forget_shapes` has dropped one; ranks wait for each other."""
    strategy: Any = trainer.strategy
    hooks = vars(strategy).pop("_lit_prune_hooks", None)
    if hooks is not None:
        strategy.configure_ddp()
        if not strategy.model._comm_hooks:
            # Those that the strategy does not know of, for the user has registered them on the wrapper.
            for hook, state in hooks:
                strategy.model.register_comm_hook(state, hook)


def check_comm_hooks(trainer: Trainer) -> None:
    """Raise an UnsupportedError for a DDP communication hook that remembers tensors of the old buckets."""
    for hook, state in _comm_hooks(trainer):
        held = {name for name, value in getattr(state, "__dict__", {}).items() if _holds_tensors(value)}
        if held - set(_BUCKET_MEMORY):
            raise UnsupportedError(
                f"The communication hook {getattr(hook, '__qualname__', hook)} keeps tensors in its "
                f"{type(state).__name__} ({', '.join(sorted(held))}): it is not known how they follow when DDP is "
                "wrapped again. Use a hook without such state, or PowerSGD."
            )


def _comm_hooks(trainer: Trainer) -> list[tuple[Any, Any]]:
    return list(getattr(trainer.strategy.model, "_comm_hooks", ()))


def _holds_tensors(value: Any) -> bool:
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(each, Tensor) for each in values)


def _start_anew(state: Any) -> None:
    """PowerSGD remembers errors by bucket, and has to wait again until the new wrapper's buckets are settled."""
    for name in _BUCKET_MEMORY:
        memory = getattr(state, name, None)
        if isinstance(memory, dict):
            memory.clear()
            state.iter = 0


def print_above_progress(trainer: Trainer, table: Table) -> None:
    """Print a table; through the console of a rich progress bar where there is one, for it redraws its last lines."""
    progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
    console = getattr(progress, "console", None) or Console()
    console.print(table)


def tell_loggers(trainer: Trainer, table: Table, step: int) -> None:
    """Give the table of an event to the loggers that take text: TensorBoard, Weights & Biases, MLflow, Comet."""
    text = StringIO()
    Console(file=text, width=100, no_color=True).print(table)
    for logger in trainer.loggers:
        known = class_names(logger)
        target: Any = logger
        if "TensorBoardLogger" in known:
            target.experiment.add_text("pruning", f"```\n{text.getvalue()}```", step)
        elif "WandbLogger" in known:
            target.log_text("pruning", columns=["step", "event"], data=[[step, text.getvalue()]])
        elif "MLFlowLogger" in known:
            target.experiment.log_text(target.run_id, text.getvalue(), f"pruning/step_{step}.txt")
        elif "CometLogger" in known:
            target.experiment.log_text(text.getvalue(), step=step)
