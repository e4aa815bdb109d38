"""Whatever else a training has — schedulers, averages, profilers, checkpoints — goes on across an event."""

import copy
import csv

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler

from lit_prune import ChannelPruning, prune_
from lit_prune.training.averaged_copies import copies_beside
from tests.toys import LIGHTNING_AVERAGES, Classifier, loader, optimizers, trainer, widths

NARROW = (16, 8, 3, 3)


def pruning(epochs=(1, 2), **options):
    return ChannelPruning(0.5, list(epochs), verbose=False, **options)


# --- schedulers ---------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "one cycle": ("step", lambda sgd: lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=15)),
    "plateau": ("epoch", lambda sgd: lr_scheduler.ReduceLROnPlateau(sgd, factor=0.5, patience=0)),
    "cosine": ("epoch", lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, 5)),
    "warm restarts": ("step", lambda sgd: lr_scheduler.CosineAnnealingWarmRestarts(sgd, 4, 2)),
    "sequential": (
        "step",
        lambda sgd: lr_scheduler.SequentialLR(
            sgd,
            [lr_scheduler.LinearLR(sgd, 0.1, total_iters=4), lr_scheduler.ExponentialLR(sgd, 0.9)],
            milestones=[4],
        ),
    ),
}


class Scheduled(Classifier):
    def __init__(self, kind):
        super().__init__()
        self.interval, self.make = SCHEDULERS[kind]

    def validation_step(self, batch, batch_idx):
        # A plateau, whatever the network is.
        self.log("score", 1.0)

    def configure_optimizers(self):
        sgd = super().configure_optimizers()
        schedule = {"scheduler": self.make(sgd), "interval": self.interval, "monitor": "score"}
        return {"optimizer": sgd, "lr_scheduler": schedule}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedules_do_not_notice_an_event(kind, tmp_path):
    rates = []
    for callbacks in ([], [pruning()]):
        logger = CSVLogger(tmp_path, str(len(callbacks)))
        module = Scheduled(kind)
        trainer(LearningRateMonitor(), *callbacks, max_epochs=5, logger=logger, log_every_n_steps=1).fit(
            module, loader(), loader()
        )
        with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
            rates.append([float(row["lr-SGD"]) for row in csv.DictReader(file) if row["lr-SGD"]])
    assert widths(module)["net.2.0.weight"] == NARROW
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 2


# --- gradients ----------------------------------------------------------------------------------------------------


def test_gradients_that_are_being_accumulated_are_cut_and_go_on():
    """The first batch shows the inputs; the event is then in the midst of three batches whose gradients add up."""
    module, callback = Classifier(), pruning([0])
    reference = copy.deepcopy(module)
    run = trainer(callback, max_epochs=1, accumulate_grad_batches=3, gradient_clip_val=0.5)
    run.fit(module, loader())
    sgd = optimizers()["sgd"](reference.parameters())
    for number, (images, labels) in enumerate(loader()):
        (nn.functional.cross_entropy(reference(images), labels) / 3).backward()
        if number == 0:
            prune_(reference, callback.plan, [sgd])
    nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    sgd.step()
    for mine, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping(algorithm):
    module, largest = Classifier(), []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads:
                norm = torch.cat([grad.flatten() for grad in grads]).norm() if algorithm == "norm" else None
                largest.append(float(norm if norm is not None else max(grad.abs().max() for grad in grads)))

    trainer(pruning(), Watch(), gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == NARROW
    assert len(largest) >= 11
    assert max(largest) <= 1e-3 * (1 + 1e-4)


# --- averages -----------------------------------------------------------------------------------------------------

AVERAGES = {"swa": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=3)}
if LIGHTNING_AVERAGES:
    AVERAGES |= {
        "weights": lambda: pl.callbacks.WeightAveraging(use_buffers=True),
        "ema": lambda: pl.callbacks.EMAWeightAveraging(decay=0.9),
    }


@pytest.mark.parametrize("first", ["average", "pruning"])
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_is_resumed_in_the_shapes_of_the_pruned_network(average, first, tmp_path, monkeypatch):
    # Of SWA's learning rates torch 2.6 saves a function, which it does not load as plain data.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    def fit(*callbacks, **options):
        torch.manual_seed(0)
        module, both = Classifier(optimizer="adamw"), [AVERAGES[average](), pruning()]
        if first == "pruning":
            both.reverse()
        run = trainer(*both, *callbacks, max_epochs=5, enable_checkpointing=bool(callbacks))
        run.fit(module, loader(), **options)
        (copied,) = (copy.view for copy in copies_beside(run))
        assert widths(copied) == widths(module)
        return module.state_dict()

    whole = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    assert whole["net.2.0.weight"].shape == NARROW
    # After both events; SWA has not begun then, so the file has no average.
    torch.testing.assert_close(whole, fit(ckpt_path=tmp_path / "epoch=2.ckpt"), rtol=0, atol=0)


# --- checkpoints --------------------------------------------------------------------------------------------------


class Judged(Classifier):
    """Best before it is pruned."""

    def validation_step(self, batch, batch_idx):
        self.log("score", 1.0 - 0.1 * self.trainer.current_epoch)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


@pytest.mark.parametrize("reset", [True, False], ids=["again", "kept"])
def test_the_best_and_the_last_are_tested_whatever_their_shape(reset, tmp_path):
    from lit_prune.training.recovery import Recovery

    module = Judged()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="score", mode="max", save_top_k=-1, save_last=True)
    run = trainer(pruning(recovery=Recovery(reset_scores=reset)), saver, max_epochs=5, enable_checkpointing=True)
    run.fit(module, loader(), loader())
    final = copy.deepcopy(module)
    # With scores that Start again the best is that of the epoch of the last event.
    assert saver.best_model_path.endswith("epoch=2.ckpt" if reset else "epoch=0.ckpt")
    expected = {"best": NARROW if reset else (32, 16, 3, 3), "last": NARROW}
    for which in ("best", "last", "best"):
        (result,) = run.test(module, loader(), ckpt_path=which, verbose=False)
        assert widths(module)["net.2.0.weight"] == expected[which]
        stored = torch.load(saver.best_model_path if which == "best" else saver.last_model_path, weights_only=True)
        torch.testing.assert_close(dict(module.state_dict()), dict(stored["state_dict"]), rtol=0, atol=0)
        if which == "last":
            (mine,) = run.test(final, loader(), verbose=False)
            assert mine == result


# --- tools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_profilers(profiler, tmp_path):
    if profiler == "pytorch":
        from lightning.pytorch.profilers import PyTorchProfiler

        profiler = PyTorchProfiler(tmp_path, "profile", export_to_chrome=False)
    module = Classifier()
    trainer(pruning(), profiler=profiler, default_root_dir=tmp_path).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == NARROW


@pytest.mark.slow
def test_a_network_is_compiled_after_it_was_pruned():
    module = Classifier()
    trainer(pruning()).fit(module, loader())
    images = torch.rand(2, 3, 8, 8)
    compiled = torch.compile(module.net.eval(), backend="aot_eager")
    torch.testing.assert_close(compiled(images), module.net(images))


@pytest.mark.slow
def test_compiled_by_the_default_backend():
    module = Classifier()
    module.net = torch.compile(module.net)
    trainer(pruning()).fit(module, loader())
    assert widths(module)["net._orig_mod.2.0.weight"] == NARROW
