"""Whether what is private in Lightning is there, and still means what it meant."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, StochasticWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import multiprocessing
from rich.progress import Progress

from lit_prune.training import _compat
from tests.toys import weight_averaging


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    few = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0}
    return Trainer(default_root_dir=tmp_path, **few, **quiet, **options)


class Watching(BoringModel):
    """Notes what is known of the checkpoint before its weights are in the module."""

    seen: object = None

    def watch(self, trainer):
        self.register_load_state_dict_pre_hook(lambda *_: setattr(self, "seen", _compat.loaded_checkpoint(trainer)))


def test_the_checkpoint_is_known_before_its_weights_are_loaded(tmp_path):
    first = trainer(tmp_path)
    first.fit(BoringModel())
    first.save_checkpoint(tmp_path / "a.ckpt")
    module, second = Watching(), trainer(tmp_path)
    module.watch(second)
    second.validate(module, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert "state_dict" in module.seen
    assert _compat.loaded_checkpoint(second) == {}


def test_averages_lie_where_they_are_looked_for(tmp_path):
    assert _compat.AVERAGE in vars(StochasticWeightAveraging(swa_lrs=0.1))
    for averaging in weight_averaging():
        trainer(tmp_path, callbacks=[averaging]).fit(BoringModel())
        assert isinstance(_compat.average_of(averaging), torch.optim.swa_utils.AveragedModel)
        # Two batches were one step each, which a checkpoint notes.
        assert averaging.state_dict() == {"latest_update_step": 2}
        assert not _compat.is_new_step_(averaging, 2)
        assert _compat.is_new_step_(averaging, 3)
        assert averaging.state_dict() == {"latest_update_step": 3}


def test_spawned_processes_have_their_launcher():
    assert inspect.isclass(getattr(multiprocessing, _compat.SPAWNING_LAUNCHER))


def test_a_ddp_strategy_remembers_its_first_step():
    strategy = DDPStrategy()
    # Lightning 2.5 had no such delay; where there is one, it is told by this alone.
    if "_pl_static_graph_delay_done" in inspect.getsource(DDPStrategy):
        strategy._pl_static_graph_delay_done = True
    _compat.expect_first_step_(strategy)
    assert strategy._pl_static_graph_delay_done is False


@pytest.mark.parametrize("owner", [LightningModule, LightningDataModule])
def test_a_hook_before_the_transfer_runs_whoever_has_it(owner, tmp_path):
    class Data(LightningDataModule):
        pass

    module, data = BoringModel(), Data()
    target = module if owner is LightningModule else data
    target.on_before_batch_transfer = lambda batch, index: batch + 1
    used = trainer(tmp_path)
    used.fit(module, BoringModel().train_dataloader()) if target is module else None
    if target is data:
        data.train_dataloader = BoringModel().train_dataloader
        Data.on_before_batch_transfer = target.on_before_batch_transfer
        used.fit(module, data)
    assert _compat.before_transfer(module, torch.zeros(1)) == 1


def test_a_bar_makes_tasks_in_its_colours():
    bar = RichProgressBar()
    bar.progress = Progress(disable=True)
    task = _compat.add_task(bar, 3, "Calibration")
    (made,) = bar.progress.tasks
    assert (made.id, made.total) == (task, 3)
    assert made.description.endswith("Calibration")


def test_no_checkpoint_is_an_empty_one():
    assert _compat.loaded_checkpoint(SimpleNamespace()) == {}
