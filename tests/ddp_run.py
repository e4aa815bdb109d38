"""A training on several ranks, started as users start theirs: `python ddp_run.py OUT '{...}'`.

Each rank writes what it holds at the end to OUT/rank<r>.pt.
"""

from __future__ import annotations

import hashlib
import json
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lit_prune import ChannelPruning, PruningPlan, accept_pruned
from lit_prune.criteria import Criterion, Magnitude
from lit_prune.ranks import from_rank_zero
from tests.toys import Classifier, loader, trainer, widths

torch.set_num_threads(1)


class RankDependent(Criterion):
    """Scores that differ between ranks."""

    def __call__(self, evidence: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        return {group.name: torch.rand(group.size, generator=generator) for group in evidence.groups}


# Where the last rank can be made to fail, and with which call of it.
PLACES = {
    "first look": ("lit_prune.pruner.ChannelGraph.trace_calls", 1),
    "trace": ("lit_prune.pruner.ChannelGraph.trace_calls", 2),
    "criterion": ("lit_prune.criteria.Magnitude.__call__", 1),
    "selection": ("lit_prune.select.Uniform.__call__", 1),
    "rehearsal": ("lit_prune.graph.ChannelGraph.rehearse", 1),
    "check before the cut": ("lit_prune.trainer.targets", 1),
    "cut": ("lit_prune.trainer.shrink_", 1),
}


def break_last_rank(place: str) -> None:
    target, call = PLACES[place]
    original, calls = pkgutil.resolve_name(target), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call and on_last_rank():
            raise ValueError(f"this rank fails in {place}")
        return original(*args, **kwargs)

    mock.patch(target, staticmethod(failing) if target.endswith("trace_calls") else failing).start()


def choose_otherwise_on_last_rank() -> None:
    """The last rank turns a deaf ear to rank 0, and keeps as many channels, but others."""

    def other(plan: PruningPlan) -> PruningPlan:
        plan = from_rank_zero(plan)
        if not on_last_rank():
            return plan
        state = plan.state_dict()
        for name, dims in state["kept"].items():
            for dim, kept in dims.items():
                size = state["sizes"][name][dim]
                dims[dim] = (size - 1 - kept).flip(0)
        return PruningPlan.from_state_dict(state)

    mock.patch("lit_prune.event.from_rank_zero", other).start()


def on_last_rank() -> bool:
    return torch.distributed.get_rank() == torch.distributed.get_world_size() - 1


class Sharded(Classifier):
    """Wrapped by FSDP2, as its users write it."""

    def configure_model(self) -> None:
        if not isinstance(next(self.parameters()), DTensor):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Hooked(pl.Callback):
    """Registers a communication hook on the wrapper, as one does where Lightning would not."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)
        trainer.strategy.model.register_comm_hook(state, powerSGD_hook)


class Dump(pl.Callback):
    """Comes after the pruning: what the ranks hold after each event and step, and all of it at the end."""

    def __init__(self, out: Path, pruning: ChannelPruning) -> None:
        self.out, self.pruning = out, pruning
        self.trail: list[str] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # DDP has made the buffers equal by the time that the network is entered, but where gradients accumulate.
        if isinstance(trainer.strategy, DDPStrategy) and trainer.accumulate_grad_batches == 1:
            pl_module.net.register_forward_pre_hook(lambda net, args: self._note(net.buffers()))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note_all(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._note_all(trainer, pl_module)

    def _note_all(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = trainer.optimizers[0].state
        held = [value for p in pl_module.parameters() for value in state[p].values() if isinstance(value, Tensor)]
        self._note([*pl_module.parameters(), *held])

    def _note(self, tensors: Iterable[Tensor]) -> None:
        digest = hashlib.sha256()
        for tensor in tensors:
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            digest.update(full.detach().double().numpy().tobytes())
        self.trail.append(digest.hexdigest())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = trainer.optimizers[0].state
        torch.save(
            {
                "trail": self.trail,
                "losses": pl_module.losses,
                "weights": dict(pl_module.named_parameters()),
                "buffers": dict(pl_module.named_buffers()),
                "optimizer": [dict(state[parameter]) for parameter in pl_module.parameters()],
                "digest": self.pruning.plan.digest,
                "kept": self.pruning.plan.state_dict()["kept"],
                "widths": widths(pl_module),
                "wrapper": type(trainer.strategy.model).__name__,
                "events": self.pruning.events,
            },
            self.out / f"rank{trainer.global_rank}.pt",
        )


def data(batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    return loader(examples=48, batch_size=batch_size)


def main(out: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    if "fails" in options:
        break_last_rank(options["fails"])
    if options.get("chooses otherwise"):
        choose_otherwise_on_last_rank()
    criterion = RankDependent() if options.get("criterion") == "rank" else Magnitude()
    callback = ChannelPruning(
        0.6,
        options.get("epochs", [1, 2, 3]),
        criterion=criterion,
        verbose=False,
        before_wrap=options.get("before_wrap", False),
        on_error=options.get("on_error", "raise"),
    )
    sharded = options.get("strategy") == "fsdp2"
    module = (Sharded if sharded else Classifier)(optimizer=options.get("optimizer", "adamw"))
    if options.get("example"):
        module.example_input_array = torch.zeros(2, 3, 8, 8)
    ranks = options.get("ranks", 2)
    strategy: Any = "auto"
    if ranks > 1:
        strategy = options.get("strategy") or DDPStrategy(**options.get("ddp", {}))
    if sharded:
        strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
    run = trainer(
        callback,
        *([Hooked()] if options.get("hooked") else []),
        Dump(out, callback),
        # Seven epochs of three steps after the last event.
        max_epochs=10,
        devices=ranks // options.get("nodes", 1),
        num_nodes=options.get("nodes", 1),
        strategy=strategy,
        **options.get("trainer", {}),
    )
    if options.get("accept"):
        accept_pruned(module)
    run.fit(module, data(16 // ranks))
    torch.save(widths(module), out / f"main{run.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
