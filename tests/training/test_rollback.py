import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import ChannelPruning
from lit_prune.errors import ArgumentError, PruningError
from lit_prune.surgery.held import held_by
from lit_prune.training.averaged_copies import copies_beside
from lit_prune.training.recovery import Recovery
from tests.toys import Classifier, loader, trainer, weight_averaging, widths


class Scored(Classifier):
    """Logs the score that it is told for each epoch."""

    scores = (0.9, 0.9, 0.5, 0.9, 0.9, 0.9)

    def on_validation_epoch_end(self):
        self.log("score", self.scores[self.trainer.current_epoch])


class Watch(pl.Callback):
    """Copies of everything, before and after the callback that comes between."""

    def __init__(self):
        self.seen = {}

    def on_train_epoch_start(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        self.seen[trainer.current_epoch] = copy.deepcopy(
            {
                "weights": dict(pl_module.named_parameters()),
                "buffers": dict(pl_module.named_buffers()),
                "state": {name: optimizer.state[p] for name, p in pl_module.named_parameters() if p in optimizer.state},
                "averages": [dict(each.named_parameters()) for each in (copy.view for copy in copies_beside(trainer))],
            }
        )


def pruning(epochs, max_drop=0.1, **options):
    return ChannelPruning(0.5, epochs, recovery=Recovery(max_drop=max_drop, monitor="score"), verbose=False, **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_event_that_costs_too_much_is_taken_back_to_the_bit(optimizer):
    before, after = Watch(), Watch()
    module, callback = Scored(optimizer=optimizer), pruning([2, 3])
    with pytest.warns(UserWarning, match=r"epoch 2 was taken back: score went from 0.9 to 0.5, .* Its 2 groups"):
        # Averages change with every batch, so those after the event are compared by shape.
        trainer(before, callback, after, *weight_averaging(), max_epochs=5).fit(module, loader(), loader())
    good, again = before.seen[2], after.seen[3]
    for part in ("weights", "buffers", "state", "averages"):
        torch.testing.assert_close(good[part], again[part], rtol=0, atol=0)
    assert before.seen[3]["weights"]["net.2.0.weight"].shape == (24, 16, 3, 3)
    # Nothing is left that may be pruned, and the training goes on to its end.
    assert len(module.losses) == 15
    assert widths(module) == widths(Scored())
    assert not callback.plan
    assert callback.record.barred == ["net.0.0", "net.2.0"]
    assert [event.get("taken_back", False) for event in callback.events] == [True, False]


def test_what_optimizers_hold_elsewhere_is_taken_back_too():
    class Slow(torch.optim.Adam):
        """Slow weights beside the state, and an optimizer inside."""

        def __init__(self, parameters):
            super().__init__(parameters, lr=1e-3)
            self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
            self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr=1e-3, momentum=0.9)

        def step(self, closure=None):
            loss = super().step(closure)
            self.inner.step()
            for parameter, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.lerp_(parameter.detach(), 0.5)
                self.state[parameter]["pair"] = [parameter.detach().clone()]
            return loss

    class Slowly(Scored):
        def configure_optimizers(self):
            return Slow(self.parameters())

    class Keep(pl.Callback):
        def __init__(self):
            self.seen = {}

        def on_train_epoch_start(self, trainer, pl_module):
            held = held_by(trainer.optimizers)
            self.seen[trainer.current_epoch] = copy.deepcopy([(each.name, each.value) for each in held])

    before, after = Keep(), Keep()
    with pytest.warns(UserWarning, match="was taken back"):
        trainer(before, pruning([2, 3]), after, max_epochs=4).fit(Slowly(), loader(), loader())
    good, again = before.seen[2], after.seen[3]
    assert len(good) == len(again)
    assert any(name.startswith("slow") for name, _ in good)

    def sort(seen):
        order = sorted(seen, key=lambda each: (each[0], each[1].shape, float(each[1].float().sum())))
        return [value for _, value in order]

    torch.testing.assert_close(sort(good), sort(again), rtol=0, atol=0)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_an_event_that_goes_by_gradients_waits_for_one_after_another_was_taken_back(criterion, accumulated):
    callback = pruning([2, 3], criterion=criterion, layers_per_event=1)
    fit = trainer(callback, max_epochs=5, accumulate_grad_batches=accumulated)
    with pytest.warns(UserWarning, match="was taken back"):
        fit.fit(Scored(), loader(), loader())
    assert [(event["epoch"], event.get("taken_back", False)) for event in callback.events] == [(2, True), (3, False)]


def test_what_recovers_stays():
    module, callback = Scored(), pruning([2, 3], max_drop=0.5)
    trainer(callback, max_epochs=5).fit(module, loader(), loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)


def test_the_last_event_is_judged_at_the_end():
    module, callback = Scored(), pruning(2)
    with pytest.warns(UserWarning, match="was taken back"):
        trainer(callback, max_epochs=3).fit(module, loader(), loader())
    assert widths(module) == widths(Scored())


def test_other_layers_go_on_being_pruned():
    module, callback = Scored(), pruning([2, 3], layers_per_event=1)
    with pytest.warns(UserWarning, match="taken back: .* Its 1 groups"):
        trainer(callback, max_epochs=5).fit(module, loader(), loader())
    assert widths(module)["net.2.0.weight"] == (32, 8, 3, 3)
    assert callback.events[1]["skipped"] == {"net.2.0": "was taken back before"}


def test_a_run_that_is_resumed_while_an_event_is_on_trial_takes_it_back_too(tmp_path):
    def fit(*callbacks, **options):
        torch.manual_seed(0)
        module = Scored(optimizer="adamw")
        with pytest.warns(UserWarning, match="was taken back"):
            trainer(pruning([2, 3]), *callbacks, max_epochs=5, enable_checkpointing=bool(callbacks)).fit(
                module, loader(), loader(), **options
            )
        return module.state_dict()

    whole = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    resumed = fit(ckpt_path=tmp_path / "epoch=2.ckpt")
    torch.testing.assert_close(whole, resumed, rtol=0, atol=0)


def test_a_metric_that_is_not_logged_is_an_error_with_the_nearest():
    callback = ChannelPruning(0.5, 2, recovery=Recovery(max_drop=0.1, monitor="scor"), verbose=False)
    module = Scored()
    with pytest.raises(PruningError, match=r"monitor='scor' is not logged\. Did you mean 'score'"):
        trainer(callback, max_epochs=4).fit(module, loader(), loader())
    assert widths(module) == widths(Scored())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -1.0, "monitor": "x"}, "max_drop must be 0 or more"),
        ({"max_drop": 0.1}, "go together"),
        ({"monitor": "x"}, "go together"),
        ({"mode": "best"}, "'max', 'min'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Recovery(**options)


class Sinking(Scored):
    """The score of each epoch, whatever was cut."""

    scores = (0.5, 0.8, 0.9, 0.85, 0.7, 0.9, 0.9)


def small_events(first=1, **options):
    recovery = Recovery(floor=0.75, monitor="score", **options)
    return ChannelPruning(0.6, list(range(first, 7)), round_to=2, recovery=recovery, verbose=False)


def test_events_go_on_until_one_would_take_the_metric_below_the_floor():
    module, callback = Sinking(), small_events()
    with pytest.warns(
        UserWarning, match=r"epoch 4 was taken back: score went from 0.85 to 0.7, and floor=0.75. No other"
    ):
        trainer(callback, max_epochs=7).fit(module, loader(), loader())
    # None before the metric has reached the floor, one an epoch, and the one of epoch 4 was too many.
    assert [(event["epoch"], event.get("taken_back", False)) for event in callback.events] == [
        (2, False),
        (3, False),
        (4, True),
    ]
    # The part of the amount that the second of six events leaves.
    assert callback.events[1]["channels"]["net.2.0"][1] == module.net[2][0].out_channels


def sunk(*callbacks, **options):
    """A run in which an event is taken back, to its end."""
    module, pruning = Sinking(), small_events()
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    told = "was taken back|callbacks used to create the checkpoint" if options else "was taken back"
    with pytest.warns(UserWarning, match=told):
        trainer(pruning, *callbacks, max_epochs=7, enable_checkpointing=saves).fit(
            module, loader(), loader(), **options
        )
    return module, pruning


def test_a_floor_holds_in_a_resumed_run_too(tmp_path):
    torch.manual_seed(0)
    module, _ = sunk(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    for epoch in (1, 3, 4, 5):
        resumed, _ = sunk(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert widths(resumed) == widths(module)
        torch.testing.assert_close(dict(resumed.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


def test_a_run_that_is_resumed_within_an_epoch_has_one_event_in_it_all_the_same(tmp_path):
    """Events that waited for the floor are overdue: each epoch has one of them, resumed or not."""
    torch.manual_seed(0)
    module, callback = sunk(ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1))
    for step in (7, 8, 10, 11):
        resumed, again = sunk(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert [event["epoch"] for event in again.events] == [event["epoch"] for event in callback.events]
        assert widths(resumed) == widths(module)


def test_where_a_lower_metric_is_better_the_floor_is_a_ceiling():
    class Rising(Scored):
        scores = (0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3)

    module, callback = Rising(), small_events(2, mode="min")
    callback.pruner.recovery.floor = 0.2
    with pytest.warns(UserWarning, match="floor=0.2"):
        trainer(callback, max_epochs=7).fit(module, loader(), loader())
    assert widths(module) == widths(Rising())


def test_without_a_metric_a_floor_says_nothing():
    with pytest.raises(ArgumentError, match="max_drop or floor, and monitor, go together"):
        Recovery(floor=0.5)
