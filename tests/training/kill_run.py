"""A training that is killed at random moments and resumed: `python kill_run.py OUT KILLS`.

The parent only forks; each child trains from the last checkpoint, and is killed: by turns at any moment, within an
event, and within the writing of a checkpoint. The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import ChannelPruning
from lit_prune.training.recovery import Recovery
from tests.toys import Classifier, loader, trainer

torch.set_num_threads(1)


class Stages(pl.Callback):
    """Says in a file what is going on, so that kills within events and checkpoint writes can be counted."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def tell(self, what: str) -> None:
        self.file.write_text(what)


class Told(ChannelPruning):
    stages: Stages

    def _prune_if_due(self, trainer: Any) -> None:
        if any(epoch <= trainer.current_epoch and epoch not in self.record.done for epoch in self.agenda.events):
            self.stages.tell("event")
        super()._prune_if_due(trainer)
        self.stages.tell("training")


class ToldCheckpoint(ModelCheckpoint):
    stages: Stages

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        self.stages.tell("saving")
        super()._save_checkpoint(trainer, filepath)
        self.stages.tell("training")


def train(folder: Path) -> None:
    torch.manual_seed(0)
    stages = Stages(folder / "stage")
    module = Classifier(width=32, optimizer="adamw")
    pruning = Told(0.6, [1, 3, 5], recovery=Recovery(rewarm_steps=4), verbose=False)
    saver = ToldCheckpoint(folder, save_last=True, save_top_k=1)
    pruning.stages = saver.stages = stages
    last = folder / "last.ckpt"
    trainer(pruning, saver, max_epochs=8, enable_checkpointing=True).fit(
        module,
        loader(examples=48),
        ckpt_path=last if last.exists() else None,
    )
    torch.save(module.state_dict(), folder / "final.pt.part")
    (folder / "final.pt.part").rename(folder / "final.pt")


def attempt(folder: Path, seconds: float | None, within: str | None = None) -> str:
    """Run a child; kill it after so long, or so long after it has begun a stage. Returns what it was at, or 'done'."""
    stage = folder / "stage"
    stage.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        # The child's noise is not the parent's output.
        os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        code = 1
        try:
            train(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = None
    while within is not None and status is None and not (stage.exists() and stage.read_text() == within):
        time.sleep(0.0005)
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
    if seconds is not None and status is None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    if status is None:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return stage.read_text() if stage.exists() else "start"
    return "done" if os.WEXITSTATUS(status) == 0 else "failed"


def main(out: Path, kills: int) -> None:
    for name in ("whole", "killed"):
        (out / name).mkdir(parents=True)
    started = time.perf_counter()
    whole = attempt(out / "whole", None)
    length = time.perf_counter() - started
    draw = random.Random(0)
    at = []
    while len(at) < kills:
        within = (None, "event", "saving")[len(at) % 3]
        seconds = draw.uniform(0.3, 1.0) * length if within is None else draw.uniform(0, 0.005)
        at.append(attempt(out / "killed", seconds, within))
        if at[-1] in ("done", "failed"):
            if at.pop() == "failed":
                break
            # The run came to its end in between: the next kill meets a new one.
            compare(out)
            for file in (out / "killed").iterdir():
                file.unlink()
    end = attempt(out / "killed", None)
    sys.stdout.write(json.dumps({"whole": whole, "end": end, "killed_at": at, "equal": compare(out)}) + "\n")


def compare(out: Path) -> bool:
    first, second = (torch.load(out / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    equal = all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()
    if not equal:
        raise SystemExit("a resumed run ended with other weights")
    return equal


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
