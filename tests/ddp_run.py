"""A training on several ranks, started as users start theirs: `python ddp_run.py OUT '{...}'`.

Each rank writes what it holds at the end to OUT/rank<r>.pt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lit_prune import ChannelPruning, accept_pruned
from lit_prune.criteria import Criterion, Magnitude
from tests.toys import Classifier, loader, trainer, widths

torch.set_num_threads(1)


class RankDependent(Criterion):
    """Scores that differ between ranks."""

    def __call__(self, evidence: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        return {group.name: torch.rand(group.size, generator=generator) for group in evidence.groups}


class FailsOnOne(Criterion):
    """Fails on the last rank alone."""

    def __call__(self, evidence: Any) -> dict[str, Tensor]:
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            raise ValueError("this rank cannot score")
        return Magnitude()(evidence)


class Sharded(Classifier):
    """Wrapped by FSDP2, as its users write it."""

    def configure_model(self) -> None:
        if not isinstance(next(self.parameters()), DTensor):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Dump(pl.Callback):
    def __init__(self, out: Path, pruning: ChannelPruning) -> None:
        self.out, self.pruning = out, pruning

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = trainer.optimizers[0].state
        torch.save(
            {
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
    criterion = {"rank": RankDependent, "fails": FailsOnOne}.get(options.get("criterion", ""), Magnitude)()
    callback = ChannelPruning(
        0.6,
        options.get("epochs", [1, 2, 3]),
        criterion=criterion,
        verbose=False,
        before_wrap=options.get("before_wrap", False),
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
        Dump(out, callback),
        max_epochs=5,
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
