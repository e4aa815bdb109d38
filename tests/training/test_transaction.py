"""Each step of an event fails in turn: before the cut all is as it was, after it the run ends."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration
from lit_prune.errors import HalfPrunedError, PruningError
from lit_prune.policy.steps import AFTER, BEFORE, carry_out
from lit_prune.select import ClusterSelection
from lit_prune.training.averaged_copies import copies_beside
from lit_prune.training.recovery import Recovery
from tests.toys import Classifier, loader, trainer, weight_averaging

USED_BY = ("lit_prune.policy.policy.carry_out", "lit_prune.training.pruner.carry_out")


class InjectedError(Exception):
    """Nothing that lit_prune could expect."""


class Injection:
    """Fails in one step of the event, before or after what the step does."""

    def __init__(self, monkeypatch, step="", when="before"):
        self.step, self.when, self.seen = step, when, []
        for place in USED_BY:
            monkeypatch.setattr(place, self)

    def __call__(self, step, action):
        def failing():
            self.seen.append(step)
            if (step, self.when) == (self.step, "before"):
                raise InjectedError(f"no {step}")
            result = action()
            if (step, self.when) == (self.step, "after"):
                raise InjectedError(f"no more after {step}")
            return result

        return carry_out(step, failing)


class State(pl.Callback):
    """All that an event may change, as it is before the callback that comes next, and whenever it is asked."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            self.trainer, self.before = trainer, self.now(trainer)

    def now(self, trainer):
        module, optimizer = trainer.lightning_module, trainer.optimizers[0]
        return copy.deepcopy(
            {
                "weights": {name: (id(p), p.detach()) for name, p in module.named_parameters()},
                "gradients": {name: p.grad for name, p in module.named_parameters()},
                "buffers": dict(module.named_buffers()),
                "widths": [child.out_channels for child in module.modules() if hasattr(child, "out_channels")],
                "optimizer": {name: optimizer.state[p] for name, p in module.named_parameters()},
                "averages": [dict(each.view.state_dict()) for each in copies_beside(trainer)],
                "random": torch.get_rng_state(),
                "record": [c.pruner.record.state_dict() for c in trainer.callbacks if isinstance(c, ChannelPruning)],
                "scores": [
                    (c.best_model_score, dict(c.best_k_models))
                    for c in trainer.callbacks
                    if isinstance(c, ModelCheckpoint)
                ],
            }
        )


def fit(tmp_path, **options):
    torch.manual_seed(0)
    state, module = State(), Classifier(optimizer="adamw")
    pruning = ChannelPruning(
        0.5,
        2,
        selection=ClusterSelection(embedding="none", calibration=Calibration(batches=2, batch_size=4)),
        recovery=Recovery(max_drop=9.0, monitor="val_loss", mode="min", rewarm_steps=2),
        round_to=1,
        verbose=False,
        **options,
    )
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val_loss")
    run = trainer(
        state, pruning, *weight_averaging(), saver, EarlyStopping("val_loss", patience=9), enable_checkpointing=True
    )
    run.fit_with = lambda: run.fit(module, loader(), loader())
    return run, state, module


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_these_are_the_steps(tmp_path, monkeypatch):
    injection = Injection(monkeypatch)
    run, _, module = fit(tmp_path)
    run.fit_with()
    assert injection.seen == [*BEFORE, *AFTER]
    assert module.net[2][0].out_channels == 16


def test_a_step_has_to_be_known():
    with pytest.raises(LookupError, match="'polish' is not a step of an event"):
        carry_out("polish", lambda: None)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", BEFORE)
def test_before_the_cut_all_is_as_it_was(tmp_path, monkeypatch, step, when):
    Injection(monkeypatch, step, when)
    run, state, _ = fit(tmp_path)
    with pytest.raises(PruningError, match=rf"Pruning at epoch 2 failed, and the network is as it was\. no .*{step}"):
        run.fit_with()
    assert_same(state.now(run), state.before)


@pytest.mark.parametrize("step", BEFORE)
def test_a_run_that_may_goes_on_as_if_there_had_been_no_event(tmp_path, monkeypatch, step):
    Injection(monkeypatch, step)
    run, _, module = fit(tmp_path, on_error="continue")
    with pytest.warns(UserWarning, match=f"the network is as it was. no {step}"):
        run.fit_with()
    torch.manual_seed(0)
    plain = Classifier(optimizer="adamw")
    trainer(*weight_averaging()).fit(plain, loader(), loader())
    assert module.losses == plain.losses


@pytest.mark.parametrize("on_error", ["raise", "continue"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", AFTER)
def test_after_it_the_run_ends_and_names_the_checkpoint(tmp_path, monkeypatch, step, when, on_error):
    Injection(monkeypatch, step, when)
    run, _, _ = fit(tmp_path, on_error=on_error)
    with pytest.raises(
        HalfPrunedError, match=r"broke while it was being pruned at epoch 2.*epoch=1\.ckpt\. no .*" + step
    ):
        run.fit_with()
    assert run.current_epoch == 2


@pytest.mark.parametrize("step", ["cut", "unwrap", "wrap", "record"])
def test_taking_back_is_a_transaction_too(tmp_path, monkeypatch, step):
    class Falls(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("score", 1.0 - self.current_epoch)

    pruning = ChannelPruning(0.5, [1, 2], recovery=Recovery(max_drop=0.1, monitor="score"), verbose=False)
    injection = Injection(monkeypatch, step)
    injection.step = ""

    class Arm(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            injection.step = step if trainer.current_epoch == 2 else ""

    with pytest.raises(
        HalfPrunedError, match=f"being taken back at epoch 2.*No checkpoint has been written yet.*no {step}"
    ):
        trainer(Arm(), pruning).fit(Falls(), loader(), loader())
