import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_prune import ChannelPruning
from lit_prune.training.recovery import Recovery, Rewarming
from tests.toys import Classifier, loader, trainer


class Falling(Classifier):
    """Its score falls at every pruning and never gets back to where it was."""

    def on_validation_epoch_end(self):
        self.log("score", 1.0 - 0.1 * (self.trainer.current_epoch >= 2) + 0.001 * self.trainer.current_epoch)


def run(tmp_path, reset, **options):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="score", mode="max")
    stopper = EarlyStopping("score", mode="max", patience=2)
    pruning = ChannelPruning(0.5, 2, recovery=Recovery(reset_scores=reset), verbose=False)
    fit = trainer(pruning, saver, stopper, max_epochs=6, enable_checkpointing=True)
    fit.fit(Falling(), loader(), loader())
    return saver, fit


def test_scores_start_anew_after_an_event(tmp_path):
    saver, fit = run(tmp_path, reset=True)
    assert fit.current_epoch == 6
    assert saver.best_model_path.endswith("epoch=5.ckpt")
    # The best dense one stays where it is.
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=1.ckpt", "epoch=5.ckpt"}


def test_scores_are_kept_on_demand(tmp_path):
    saver, fit = run(tmp_path, reset=False)
    assert fit.current_epoch == 4
    assert saver.best_model_path.endswith("epoch=1.ckpt")


class Wavering(Classifier):
    """Its score after each of nine epochs; every event costs some."""

    scores = (0.7, 0.9, 0.8, 0.5, 0.6, 0.4, 0.1, 0.3, 0.2)

    def on_validation_epoch_end(self):
        self.log("score", self.scores[self.trainer.current_epoch])


@pytest.mark.parametrize("name", ["{epoch}", "best"])
def test_the_best_files_of_every_width_stay(tmp_path, name):
    saver = ModelCheckpoint(tmp_path, filename=name, monitor="score", mode="max", save_top_k=2)
    pruning = ChannelPruning(0.5, [3, 6], verbose=False)
    trainer(pruning, saver, max_epochs=9, enable_checkpointing=True).fit(Wavering(), loader(), loader())

    files = {path: torch.load(path, weights_only=True) for path in tmp_path.iterdir()}
    assert sorted(file["epoch"] for file in files.values()) == [1, 2, 3, 4, 7, 8]
    widths = {file["epoch"]: len(file["state_dict"]["net.2.0.bias"]) for file in files.values()}
    assert widths == {1: 32, 2: 32, 3: 24, 4: 24, 7: 16, 8: 16}
    best = next(path for path in files if str(path) == saver.best_model_path)
    assert files[best]["epoch"] == 7


def rates(schedule, rewarm):
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    scheduler = schedule(sgd)
    rewarming = Rewarming([sgd], rewarm)
    seen = []
    for _ in range(8):
        before = parameter.item()
        parameter.grad = -torch.ones(1)
        sgd.step()
        scheduler.step()
        seen.append(parameter.item() - before)
    rewarming.close()
    return seen, sgd.param_groups[0]["lr"]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda sgd: torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5),
        lambda sgd: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 10),
        lambda sgd: torch.optim.lr_scheduler.OneCycleLR(sgd, 1.0, total_steps=10),
        lambda sgd: torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1 / (1 + step)),
    ],
)
def test_the_schedule_never_sees_the_rise(schedule):
    plain, last = rates(schedule, 0)
    risen, same = rates(schedule, 4)
    assert last == same
    assert risen == pytest.approx([rate * min(1, (step + 1) / 5) for step, rate in enumerate(plain)], rel=1e-4)


def test_a_run_resumed_within_the_rise_goes_on_with_it(tmp_path):
    def fit(*callbacks, **options):
        torch.manual_seed(0)
        module = Classifier()
        pruning = ChannelPruning(0.5, 1, recovery=Recovery(rewarm_steps=5), verbose=False)
        trainer(pruning, *callbacks, enable_checkpointing=bool(callbacks)).fit(module, loader(), **options)
        return module

    whole = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    # Epoch 1 has three of the five steps.
    resumed = fit(ckpt_path=tmp_path / "epoch=1.ckpt")
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_the_rise_makes_a_difference_and_leaves_no_hook():
    losses = []
    for steps in (0, 5):
        torch.manual_seed(0)
        module = Classifier()
        trainer(ChannelPruning(0.5, 1, recovery=Recovery(rewarm_steps=steps), verbose=False)).fit(module, loader())
        assert not module.trainer.optimizers[0]._optimizer_step_pre_hooks
        losses.append(module.losses)
    assert losses[0][:4] == losses[1][:4]
    assert losses[0][4] != losses[1][4]


def test_a_negative_rise_is_refused():
    with pytest.raises(ValueError, match="rewarm_steps must be 0 or more"):
        Recovery(rewarm_steps=-1)
