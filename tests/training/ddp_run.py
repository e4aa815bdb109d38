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
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from lit_prune import ChannelPruning, PruningPlan, accept_pruned
from lit_prune.common.ranks import from_rank_zero
from lit_prune.criteria import Criterion, Magnitude, OptimalBrainSurgeon, Taylor
from lit_prune.policy.steps import carry_out
from lit_prune.select import LatencyBudget
from lit_prune.training.recovery import Recovery
from tests.select.test_latency_budget import toy_ms, toy_table
from tests.toys import Classifier, loader, trainer, widths
from tests.training.setups import SETUPS

torch.set_num_threads(1)


class RankDependent(Criterion):
    """Scores that differ between ranks."""

    def __call__(self, evidence: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        return {group.name: torch.rand(group.size, generator=generator) for group in evidence.groups}


# Where the last rank can be made to fail, and with which call of it.
PLACES = {
    "first look": ("lit_prune.training.pruner.ChannelGraph.trace_calls", 1),
    "trace": ("lit_prune.training.pruner.ChannelGraph.trace_calls", 2),
    "criterion": ("lit_prune.criteria.Magnitude.__call__", 1),
    "selection": ("lit_prune.select.Uniform.__call__", 1),
    "rehearsal": ("lit_prune.graph.ChannelGraph.rehearse", 1),
    "check before the cut": ("lit_prune.surgery.prepare.targets", 1),
    "cut": ("lit_prune.surgery.prepare.shrink_", 1),
    "activations": ("lit_prune.training.calibration_data.read_batch", 1),
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


def break_last_rank_in(step: str) -> None:
    """Let one step of the event fail on the last rank."""

    def failing(name: str, action: Any) -> Any:
        def checked() -> Any:
            if name == step and on_last_rank():
                raise ValueError(f"this rank fails in {step}")
            return action()

        return carry_out(name, checked)

    for module in ("policy.policy", "training.pruner"):
        mock.patch(f"lit_prune.{module}.carry_out", failing).start()


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

    mock.patch("lit_prune.policy.policy.from_rank_zero", other).start()


def on_last_rank() -> bool:
    return torch.distributed.get_rank() == torch.distributed.get_world_size() - 1


class Sharded(Classifier):
    """Wrapped by FSDP2, as its users write it."""

    def configure_model(self) -> None:
        if not isinstance(next(self.parameters()), DTensor):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Partly(Classifier):
    """Has layers that its steps never use."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.idle = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3))


class Falling(Classifier):
    """Its score falls at the first event, on each rank by another amount."""

    def on_validation_epoch_end(self) -> None:
        self.log("score", 1.0 if self.trainer.current_epoch < 1 else 0.5 + 0.2 * self.global_rank)


class Plain(Classifier):
    """Learns the same of half a batch on each of two ranks: no norm over the batch, and all data in their order."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, module in list(self.net.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent, _, last = name.rpartition(".")
                setattr(self.net.get_submodule(parent), last, nn.GroupNorm(1, module.num_features))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        # Lightning's own sampler shuffles what is trained on.
        ranks = self.trainer.world_size
        examples = data(16).dataset
        sampler: Any = DistributedSampler(examples, ranks, self.global_rank, shuffle=False)
        return DataLoader(examples, batch_size=16 // ranks, sampler=sampler)


MODULES: dict[str, Any] = {"partly used": Partly, "falling": Falling, "plain": Plain, "sharded": Sharded}
MODULES |= {name: kind for name, (kind, _, _) in SETUPS.items()}


def synchronise_on_cpu(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What SyncBatchNorm computes on GPUs; torch refuses it elsewhere."""
    if not self.training:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)
    sums = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
    mean, square = torch.distributed.nn.functional.all_reduce(sums) / torch.distributed.get_world_size()
    with torch.no_grad():
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(square - mean.square(), self.momentum)
    scale = self.weight / (square - mean.square() + self.eps).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


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
            getattr(pl_module, "net", pl_module).register_forward_pre_hook(lambda net, args: self._note(net.buffers()))

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
            digest.update(full.detach().double().cpu().numpy().tobytes())
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
                "norms": [type(module).__name__ for module in pl_module.modules() if "Norm" in type(module).__name__],
                "events": self.pruning.events,
            },
            self.out / f"rank{trainer.global_rank}.pt",
        )


def by_clock() -> LatencyBudget:
    """What a clock can reach, which is out of reach by the table."""
    table = toy_table()
    return LatencyBudget(table, 0.15 * table.dense_ms, runtime=lambda network, images: 0.2 * toy_ms(network))


def data(batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    return loader(examples=48, batch_size=batch_size)


def main(out: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    if "fails" in options:
        break_last_rank(options["fails"])
    if "fails in step" in options:
        break_last_rank_in(options["fails in step"])
    if options.get("chooses otherwise"):
        choose_otherwise_on_last_rank()
    gpus = options.get("gpus", 0)
    if options.get("trainer", {}).get("sync_batchnorm") and not gpus:
        mock.patch.object(nn.SyncBatchNorm, "forward", synchronise_on_cpu).start()
        mock.patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle", return_value=None).start()
    criterion = {"rank": RankDependent(), "taylor": Taylor(), "obs": OptimalBrainSurgeon(2, 8)}.get(
        options.get("criterion", ""), Magnitude()
    )
    callback = ChannelPruning(
        None if options.get("selection") == "clock" else 0.6,
        options.get("epochs", [1, 2, 3]),
        criterion=criterion,
        verbose=False,
        selection=by_clock() if options.get("selection") == "clock" else options.get("selection", "uniform"),
        recovery=Recovery(**options.get("recovery", {})),
        repair=options.get("repair", False),
        on_error=options.get("on_error", "raise"),
    )
    sharded = options.get("strategy") == "fsdp2"
    kind = MODULES["sharded" if sharded else options["module"]] if sharded or "module" in options else Classifier
    module = kind(optimizer=options.get("optimizer", "adamw"))
    if options.get("example"):
        module.example_input_array = torch.zeros(2, 3, 8, 8)
    ranks = options.get("ranks", 2)
    strategy: Any = "auto"
    if ranks > 1:
        strategy = options.get("strategy") or DDPStrategy(**options.get("ddp", {}))
    if gpus:
        devices = [torch.device("cuda", rank % gpus) for rank in range(ranks)]
        strategy = DDPStrategy(parallel_devices=devices, process_group_backend=options["backend"])
    if sharded:
        strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
    run = trainer(
        callback,
        *([Hooked()] if options.get("hooked") else []),
        *([ModelCheckpoint(out, filename="{epoch}", save_top_k=-1)] if options.get("saves") else []),
        Dump(out, callback),
        # Seven epochs of three steps after the last event.
        max_epochs=10,
        enable_checkpointing=bool(options.get("saves")),
        devices="auto" if gpus else ranks // options.get("nodes", 1),
        accelerator="auto" if gpus else "cpu",
        num_nodes=options.get("nodes", 1),
        strategy=strategy,
        **options.get("trainer", {}),
    )
    if options.get("accept"):
        accept_pruned(module)
    validation = data(16 // ranks) if options.get("recovery") else None
    training = None if kind is Plain else data(16 // ranks)
    run.fit(module, training, validation, ckpt_path=options.get("resumes"))
    torch.save(widths(module), out / f"main{run.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
