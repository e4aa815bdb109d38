import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lit_prune import ChannelGraph, ChannelPruning
from lit_prune.criteria import Criterion
from lit_prune.errors import PruningError, UnsupportedError
from lit_prune.schedule import AtEpochs, AtSteps
from tests.toys import Classifier, loader, optimizers, trainer, widths


def pruning(amount=0.5, epochs=1, **options):
    return ChannelPruning(amount, epochs, **{"verbose": False, **options})


class Logged(pl.Callback):
    """What is in the metrics, and how wide the network is, at the end of each epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module):
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("pruning/")}
        self.epochs.append((metrics, widths(pl_module)["net.2.0.weight"][0]))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("example", [None, torch.zeros(1, 3, 8, 8)], ids=["first batch", "example_input_array"])
@pytest.mark.parametrize("epochs", [[0], [1, 3], [0, 2, 3]])
def test_the_network_shrinks_at_each_epoch_and_trains_on(example, epochs):
    module, callback, logged = Classifier(), pruning(0.5, epochs), Logged()
    module.example_input_array = example
    dense = count(module)
    trainer(callback, logged).fit(module, loader())
    parts = AtEpochs(epochs).events(4)
    expected = []
    for epoch in range(4):
        part = max([0.0, *(part for at, part in parts.items() if at <= epoch)])
        expected.append(32 - 8 * round(32 * 0.5 * part / 8))
    assert [width for _, width in logged.epochs] == expected
    assert [event["epoch"] for event in callback.events] == epochs
    assert len(module.losses) == 12
    assert callback.events[0]["params"][0] == dense
    assert callback.events[-1]["params"][1] == count(module) == logged.epochs[-1][0]["pruning/params"]
    graph = ChannelGraph.trace(module, torch.zeros(1, 3, 8, 8))
    assert callback.events[-1]["macs"][1] == graph.macs == logged.epochs[-1][0]["pruning/macs"]
    before = ChannelGraph.trace(Classifier(), torch.zeros(1, 3, 8, 8))
    sizes = [sum(group.size for group in each.groups) for each in (before, graph)]
    assert callback.events[-1]["gone"] == {"channels": 1 - sizes[1] / sizes[0], "macs": 1 - graph.macs / before.macs}
    assert all(set(metrics) == {"pruning/params", "pruning/macs", "pruning/channels"} for metrics, _ in logged.epochs)
    assert callback.plan.sizes["net.2.0.weight"] == {0: 32, 1: 16}


@pytest.mark.parametrize("kind", [kind for kind in optimizers() if kind != "lbfgs"])
def test_every_parameter_goes_on_learning(kind):
    module, callback = Classifier(optimizer=kind), pruning(0.5, 1)
    after = {}

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 0:
                after.update({name: parameter.clone() for name, parameter in pl_module.named_parameters()})

    trainer(callback, Watch()).fit(module, loader())
    assert after["net.2.0.weight"].shape == (16, 8, 3, 3)
    assert all(not torch.equal(after[name], parameter) for name, parameter in module.named_parameters())
    for parameter in module.parameters():
        for value in module.trainer.optimizers[0].state[parameter].values():
            assert not torch.is_tensor(value) or value.numel() <= 1 or value.dim() == parameter.dim()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision):
    module, callback = Classifier(), pruning(0.5, [1, 2])
    trainer(callback, precision=precision).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)


def test_float16_with_a_scaler():
    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in module.parameters())

    # Lightning's "16-mixed" is bfloat16 on a CPU; the plugin is not.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    module = Classifier(optimizer="adamw")
    trainer(pruning(0.5, [1, 2]), Watch(), plugins=MixedPrecision("16-mixed", "cpu", scaler)).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)
    assert scaler.get_scale() == 2.0**8


def test_training_without_a_due_event_is_that_without_the_callback():
    runs = []
    for callbacks in ([], [pruning(0.5, 3)]):
        torch.manual_seed(3)
        module = Classifier()
        trainer(*callbacks, max_epochs=4).fit(module, loader(shuffle=True))
        runs.append(module.losses)
    assert runs[0][:9] == runs[1][:9]
    assert runs[0][9:] != runs[1][9:]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def run(*callbacks, **options):
        torch.manual_seed(0)
        module, callback = Classifier(optimizer="adamw"), pruning(0.6, [1, 3])
        trainer(callback, *callbacks, max_epochs=5, enable_checkpointing=bool(callbacks)).fit(
            module, loader(), **options
        )
        return module, callback

    whole, record = run(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    for epoch in range(4):
        resumed, again = run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert widths(resumed) == widths(whole)
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
        )
        assert again.plan == record.plan
        assert [event["epoch"] for event in again.events] == [1, 3]


def test_a_run_resumed_from_the_last_batch_of_an_epoch_prunes_when_the_next_begins(tmp_path):
    """There Lightning enters the next epoch without its start."""

    def run(*callbacks, **options):
        torch.manual_seed(0)
        module, callback = Classifier(optimizer="adamw"), pruning(0.5, [1, 2])
        trainer(callback, *callbacks, enable_checkpointing=bool(callbacks)).fit(module, loader(), **options)
        return module.state_dict(), [event["step"] for event in callback.events]

    whole, _ = run(ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1))
    for step in (3, 6, 9):
        resumed, steps = run(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert steps == [3, 6]
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_a_run_resumed_within_an_epoch_keeps_to_its_steps(tmp_path):
    def run(*callbacks, **options):
        callback = pruning(0.5, AtSteps([2, 7]))
        trainer(callback, *callbacks, enable_checkpointing=bool(callbacks)).fit(Classifier(), loader(), **options)
        return callback.events

    run(ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1))
    for step in (1, 2, 4, 7, 8):
        events = run(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert [event["step"] for event in events] == [2, 7]


def test_events_that_never_came_are_named_at_the_end():
    module, callback = Classifier(), pruning(0.5, [1, 3])
    stop = EarlyStopping("val_loss", mode="max", patience=0, check_on_train_epoch_end=False)
    with pytest.warns(UserWarning, match=r"ended before the pruning at epochs \[3\]"):
        trainer(callback, stop).fit(module, loader(), loader())
    assert len(callback.events) == 1


def test_a_fast_dev_run_is_no_run_to_be_pruned_in():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lit_prune")
        module = Classifier()
        trainer(pruning(0.5, [2, 3]), fast_dev_run=True).fit(module, loader())
    assert len(module.losses) == 1


def test_a_missed_event_is_made_up_for(tmp_path):
    module = Classifier()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(saver, max_epochs=3, enable_checkpointing=True).fit(module, loader())
    callback = pruning(0.5, [0, 1])
    trainer(callback, max_epochs=4).fit(module, loader(), ckpt_path=tmp_path / "epoch=2.ckpt")
    assert [(event["epoch"], event["ratio"]) for event in callback.events] == [(3, 0.5)]


def test_weights_of_any_stage_load_into_any_network(tmp_path):
    module, callback = Classifier(), pruning(0.5, 2)
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run = trainer(callback, saver, enable_checkpointing=True)
    run.fit(module, loader(), loader())
    run.validate(module, loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert widths(module)["net.2.0.weight"] == (32, 16, 3, 3)
    fresh = Classifier()
    trainer(pruning(0.5, 2)).validate(fresh, loader(), ckpt_path=tmp_path / "epoch=3.ckpt", verbose=False)
    assert widths(fresh)["net.2.0.weight"] == (16, 8, 3, 3)


@pytest.mark.parametrize("example", [None, torch.zeros(1, 3, 8, 8)], ids=["first batch", "example_input_array"])
def test_events_within_an_epoch(example):
    module, callback, seen = Classifier(), pruning(0.5, AtSteps([2, 7])), []
    module.example_input_array = example

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(widths(pl_module)["net.2.0.weight"][0])

    trainer(callback, Watch()).fit(module, loader())
    assert seen == [32] * 2 + [24] * 5 + [16] * 5
    assert [(event["epoch"], event["step"]) for event in callback.events] == [(0, 2), (2, 7)]


def test_steps_beyond_the_run_are_refused_before_the_first():
    module = Classifier()
    with pytest.raises(ValueError, match="which has 12 steps, 0 to 11"):
        trainer(pruning(0.5, AtSteps([2, 12]))).fit(module, loader())
    assert module.losses == []


def test_the_record_of_another_network_is_dropped():
    callback = pruning(0.5, 1)
    for _ in range(2):
        module = Classifier()
        trainer(callback, max_epochs=2).fit(module, loader())
        assert len(callback.events) == 1
        assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)


def test_layers_per_event_takes_the_largest_first_to_the_full_amount():
    module, callback = Classifier(), pruning(0.5, [1, 2, 3], layers_per_event=1)
    trainer(callback).fit(module, loader())
    assert [event["channels"] for event in callback.events] == [{"net.2.0": [32, 16]}, {"net.0.0": [16, 8]}, {}]


def test_a_lightning_module_whose_networks_are_called_one_by_one():
    class Parts(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder, self.head, self.net = self.net[:3], self.net[3:], None

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    module, callback = Parts(), pruning(0.5, 1)
    trainer(callback, max_epochs=2).fit(module, loader())
    assert widths(module)["encoder.0.0.weight"] == (8, 3, 3, 3)
    # The step hands these on as they are.
    assert widths(module)["encoder.2.0.weight"] == (16, 8, 3, 3)


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": 0.0}, ValueError, r"amount must be a ratio in \(0, 1\)"),
        ({"amount": 1.0}, ValueError, "amount must be a ratio"),
        ({"amount": 1.5}, ValueError, "but got 1.5"),
        ({"amount": -0.1}, ValueError, "amount must be a ratio"),
        ({"amount": True}, ValueError, "amount must be a ratio"),
        ({"amount": None}, ValueError, "but got Uniform"),
        ({"epochs": []}, ValueError, "epochs is empty"),
        ({"epochs": [-1]}, ValueError, "epochs must be whole numbers"),
        ({"criterion": "magnitud"}, ValueError, "Did you mean 'magnitude'"),
        ({"criterion": Criterion}, TypeError, "criterion must be one of"),
        ({"selection": "globall"}, ValueError, "Did you mean 'global'"),
        ({"blocks": []}, ValueError, "blocks is empty"),
        ({"blocks": 1}, TypeError, "blocks must be a list"),
        ({"exclude": "head"}, TypeError, "exclude must be a list"),
        ({"round_to": 0}, ValueError, "round_to must be at least 1"),
        ({"min_channels": 0}, ValueError, "min_channels must be at least 1"),
        ({"layers_per_event": 0}, ValueError, "layers_per_event must be at least 1"),
        ({"layers_per_event": 1, "selection": "macs"}, ValueError, "can't meet a budget"),
        ({"on_error": "ignore"}, ValueError, "'raise', 'continue'"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_given(options, error, message):
    with pytest.raises(error, match=message):
        pruning(**options)


class Broken(Classifier):
    def forward(self, x):
        return super().forward(x.flatten(1))


class NoChannels(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Softmax(1), nn.BatchNorm1d(192))


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (Classifier, {"epochs": [1, 9]}, ValueError, r"epochs=\[1, 9\] goes beyond the run, which has 4 epochs"),
        (Classifier, {"blocks": [7]}, ValueError, "no block 7: net has blocks 0 to 3"),
        (Classifier, {"blocks": ["backbone.*"]}, ValueError, "'backbone.*' matches no layer"),
        (Classifier, {"exclude": ["hed"]}, ValueError, "'hed' matches no layer"),
        (Classifier, {"blocks": [3]}, ValueError, "leave nothing that could be pruned"),
        (Classifier, {"exclude": ["*"]}, ValueError, "leave nothing that could be pruned"),
        (Classifier, {"round_to": 32}, ValueError, "round_to=32, and the widest layer.*, net.2.0, has 32 channels"),
        (NoChannels, {}, ValueError, "no convolution and no linear layer"),
        (Broken, {}, PruningError, "net.0.0: .*example_input_array"),
        (lambda: Classifier(optimizer="lbfgs"), {}, UnsupportedError, "LBFGS"),
    ],
)
def test_what_does_not_fit_is_refused_before_training_and_changes_nothing(module, options, error, message):
    module = module()
    module.example_input_array = torch.zeros(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(error, match=message):
        trainer(pruning(**options)).fit(module, loader())
    assert module.losses == []
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("options", "example", "message"),
    [
        ({}, False, "give Classifier an `example_input_array`"),
        (
            {"amount": None, "selection": "clusters"},
            True,
            "selection by weights alone",
        ),
    ],
)
def test_before_wrap_takes_what_it_can_know(options, example, message):
    module = Classifier()
    if example:
        module.example_input_array = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=message):
        trainer(pruning(epochs="before_wrap", **options)).fit(module, loader())
    assert widths(module) == widths(Classifier())


def test_pruned_before_it_is_wrapped_with_an_optimizer_that_cannot_follow():
    module, callback = Classifier(optimizer="lbfgs"), pruning(epochs="before_wrap")
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    trainer(callback, max_epochs=2).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)
    assert len(callback.events) == 1


class FailsAtTwo(Criterion):
    def __call__(self, evidence):
        if evidence.graph["net.2.0"].size < 32:
            raise ValueError("this criterion fails at the second event")
        return {group.name: torch.arange(float(group.size)) for group in evidence.groups}


def test_an_event_that_fails_leaves_the_network_and_stops():
    module, callback = Classifier(), pruning(0.5, [1, 2], criterion=FailsAtTwo())
    with pytest.raises(PruningError, match=r"Pruning at epoch 2 failed, and the network is as it was\. this criterion"):
        trainer(callback).fit(module, loader())
    assert len(module.losses) == 6
    assert widths(module)["net.2.0.weight"] == (24, 16, 3, 3)
    assert [event["epoch"] for event in callback.events] == [1]
    assert not module._load_state_dict_pre_hooks


def test_an_event_that_fails_can_be_gone_past():
    module, callback = Classifier(), pruning(0.5, [1, 2], criterion=FailsAtTwo(), on_error="continue")
    with pytest.warns(UserWarning, match="Pruning at epoch 2 failed"):
        trainer(callback).fit(module, loader())
    assert len(module.losses) == 12
    assert widths(module)["net.2.0.weight"] == (24, 16, 3, 3)


def test_an_event_that_removes_nothing_says_so():
    module, callback = Classifier(), pruning(0.05, 1)
    with pytest.warns(UserWarning, match="removed nothing: .*round_to"):
        trainer(callback, max_epochs=2).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (32, 16, 3, 3)


def test_a_criterion_that_can_judge_nothing_is_an_error():
    module, callback = Classifier(), pruning(criterion="batchnorm", blocks=[0, 1])
    module.net[0][1], module.net[1].norm = nn.Identity(), nn.Identity()
    with pytest.raises(PruningError, match="BatchNormScale can judge none of the 1 groups"):
        trainer(callback).fit(module, loader())


def test_one_table_an_event_and_no_warning(capsys):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lit_prune")
        trainer(pruning(0.5, [1, 2], verbose=True)).fit(Classifier(), loader())
    printed = capsys.readouterr().out
    assert printed.count("Pruned at epoch") == 2
    assert "net.2.0" in printed
    trainer(pruning(0.5, [1, 2])).fit(Classifier(), loader())
    assert "Pruned" not in capsys.readouterr().out


# --- old names ----------------------------------------------------------------------------------------------------


def test_before_wrap_of_old_still_works():
    module = Classifier(optimizer="lbfgs")
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    with pytest.warns(FutureWarning, match=r"before_wrap=True is deprecated: write epochs='before_wrap'"):
        callback = pruning(epochs=0, before_wrap=True)
    trainer(callback, max_epochs=2).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="it takes epochs=0"):
        pruning(epochs=[0, 1], before_wrap=True)


def test_round_to_none_of_old_is_eight():
    with pytest.warns(FutureWarning, match="round_to=None is deprecated: write round_to=8"):
        assert pruning(round_to=None).pruner.policy.round_to == 8


def test_layers_too_narrow_for_round_to_stay_and_the_table_says_so(capsys):
    module, callback = Classifier(), pruning(0.5, 1, round_to=16, verbose=True)
    trainer(callback, max_epochs=2).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 16, 3, 3)
    assert callback.events[0]["skipped"] == {"net.0.0": "has no more channels than round_to=16"}
    told = " ".join(capsys.readouterr().out.split())
    assert "left as is: net.0.0 (has no more channels than round_to=16)" in told
    assert "gone so far: 33% of these channels" in told
    assert "not the target: kept widths are multiples of `round_to`" in told


def test_all_but_amount_and_epochs_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        ChannelPruning(0.5, 1, ["net.*"])
