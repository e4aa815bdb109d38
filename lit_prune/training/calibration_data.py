"""The calibration pass inside of a Trainer: its data, its precision, its ranks; training is not affected."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_prune.activations.calibration import Calibration
from lit_prune.activations.objects import CalibrationBatch, Reader, read_batch
from lit_prune.errors import CalibrationError
from lit_prune.training._compat import add_task, before_transfer
from lit_prune.training.entrance import own_reader

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

# Lists of a data set that are longer than this hold its content, not its state.
_CONTENT = 1000


def calibration_batches(
    trainer: Trainer,
    pl_module: LightningModule,
    calibration: Calibration,
    of_all_ranks: bool = False,
    read: Reader | None = None,
) -> Iterator[CalibrationBatch]:
    """This rank's part of the calibration data of a running Trainer.

    Training afterwards is bit for bit the same as without it: the data comes from a loader of its own over a copy of
    the data set's state, in the main process, under random states that are put back by whoever runs the network. The
    batches are those of the calibration, whatever the batch size of training and the number of ranks.

    Data comes from the method ``calibration_dataloader()`` of the LightningModule or the LightningDataModule where
    there is one (for data without augmentation, say), else from the train DataLoader.

    Args:
        trainer: In ``fit``.
        pl_module: Its LightningModule.
        calibration: How much data.
        of_all_ranks: All of it, on each rank.
        read: Finds inputs and objects in a batch; by default the method ``calibration_batch(batch)`` of the
            LightningModule where there is one, else :func:`lit_prune.activations.read_batch`.

    Raises:
        CalibrationError: If there is no single DataLoader to take data from.
        ArgumentTypeError: If a batch is not known.
    """
    read = read or own_reader(pl_module) or read_batch
    rank, ranks = (0, 1) if of_all_ranks else (trainer.global_rank, trainer.world_size)
    with _progress(trainer, _part_of(calibration.batches, ranks)) as advance:
        for batch in _own_batches(_source(trainer, pl_module), calibration, rank, ranks):
            yield read(_to_device(trainer, pl_module, batch))
            advance()


def _source(trainer: Trainer, pl_module: LightningModule) -> DataLoader[Any]:
    given: Any = getattr(trainer, "train_dataloader", None)
    name = "The train data"
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        hook = getattr(owner, "calibration_dataloader", None)
        if callable(hook):
            given, name = hook(), f"What {type(owner).__name__}.calibration_dataloader() returns"
            break
    if not isinstance(given, DataLoader):
        raise CalibrationError(
            f"{name} is a {type(given).__name__}, but calibration takes a part of one DataLoader. Write a method "
            "`calibration_dataloader()` that returns one, on the LightningModule or the LightningDataModule; and where "
            "its batches are of another form than those of training, a method `calibration_batch(batch)`."
        )
    return given


def _own_batches(loader: DataLoader[Any], calibration: Calibration, rank: int, ranks: int) -> Iterator[Any]:
    """This rank's part of the calibration batches, from a loader that has nothing in common with ``loader``."""
    dataset = _independent(loader.dataset)
    options: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": 0}
    numbers: Iterable[int]
    if isinstance(dataset, IterableDataset):
        # Whether its stream differs between ranks is the data set's own affair, as it is in training.
        size = None if loader.batch_size is None else calibration.batch_size
        numbers = range(_part_of(calibration.batches, ranks))
        own: DataLoader[Any] = DataLoader(dataset, batch_size=size, **options)
    elif loader.batch_sampler is None and not _samples_batches(loader):
        # The data set's items are batches.
        chosen = _spread_out(len(dataset), calibration.batches)
        numbers = range(rank, len(chosen), ranks)
        own = DataLoader(dataset, batch_size=None, sampler=[chosen[number] for number in numbers], **options)
    else:
        size = calibration.batch_size
        chosen = _spread_out(len(dataset), calibration.batches * size)
        whole = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        numbers = range(rank, len(whole), ranks)
        mine = [whole[number] for number in numbers]
        options |= {"batch_size": None, "sampler": mine} if loader.batch_sampler is None else {"batch_sampler": mine}
        own = DataLoader(dataset, **options)
    batches = iter(own)
    for number in numbers:
        # Random augmentation of a batch is the same on whatever rank it falls.
        _seed(number)
        yield from islice(batches, 1)


def _samples_batches(loader: DataLoader[Any]) -> bool:
    """Whether its data set is asked for a whole batch at once, by a list of indices."""
    return isinstance(next(iter(_independent(loader.sampler)), None), list)


def _spread_out(size: int, wanted: int) -> list[int]:
    """``wanted`` indices evenly over ``size``: data that is sorted by class shows all of its classes."""
    if wanted >= size:
        return list(range(size))
    return [index * size // wanted for index in range(wanted)]


def _part_of(batches: int, ranks: int) -> int:
    return -(-batches // ranks)


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)


def _independent(dataset: Any) -> Any:
    """A copy of a data set whose state (random generators, positions in streams) is its own; the content is shared.

    What can't be copied (open files) is used as it is.
    """
    memo: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = [dataset]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (Tensor, np.ndarray)) or (
            isinstance(value, (list, tuple, set, Mapping)) and len(value) > _CONTENT
        ):
            memo[id(value)] = value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            waiting.extend(vars(value).values())
    try:
        return copy.deepcopy(dataset, memo)
    except Exception:
        return dataset


def _to_device(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = before_transfer(pl_module, batch)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextmanager
def _progress(trainer: Trainer, total: int) -> Iterator[Callable[[], None]]:
    """A bar in the Trainer's own progress display, if it has one that is on; call to advance it."""
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
        progress = bar.progress
        task = add_task(bar, total, "Calibration")

        def advance() -> None:
            progress.update(task, advance=1)
            bar.refresh()

        try:
            yield advance
        finally:
            # Lightning finds its tasks by their place in the list: hide this one, never remove it.
            progress.update(task, visible=False)
    elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

        with Tqdm(total=total, desc="Calibration", leave=False) as line:

            def advance_line() -> None:
                line.update()

            yield advance_line
    else:
        yield lambda: None
