"""What only a GPU can show: AMP with a scaler, fused optimizers, compiled kernels, pinned data. `make gpu-check`."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

from lit_prune import (
    ArgumentError,
    ChannelGraph,
    ChannelPruning,
    Distillation,
    Recovery,
    ScaleSparsity,
    mask_,
    plan_pruning,
    shrink_,
)
from lit_prune.cost import profile_latency
from lit_prune.select import LatencyBudget
from tests.toys import Classifier, loader, network, trainer, widths
from tests.training.setups import SETUPS, Setup
from tests.training.test_ddp import assert_equal, ranks_of, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

MIXED = ["32-true", "16-mixed", "bf16-mixed"]


def fit(module, **options):
    callback = ChannelPruning(0.5, [1, 2], verbose=False)
    trainer(callback, **{"accelerator": "gpu", **options}).fit(module, loader())
    return callback


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    "options",
    [{}, {"fused": True}, {"foreach": True}, {"capturable": True}],
    ids=["plain", "fused", "foreach", "capturable"],
)
def test_training_goes_on_in_every_precision_and_optimizer(precision, options):
    module = Classifier(optimizer="adamw", **options)
    callback = fit(module, precision=precision)
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)
    assert len(callback.events) == 2
    for parameter in module.parameters():
        assert parameter.isfinite().all()
        for value in module.trainer.optimizers[0].state[parameter].values():
            assert value.numel() == 1 or value.shape == parameter.shape


def test_the_gpu_decides_as_the_cpu_does():
    plans = []
    for accelerator in ("cpu", "gpu"):
        torch.manual_seed(0)
        module = Classifier()
        module.example_input_array = torch.zeros(1, 3, 8, 8)
        callback = ChannelPruning(0.5, 0, verbose=False)
        trainer(callback, accelerator=accelerator, max_epochs=1).fit(module, loader())
        plans.append(callback.plan)
    assert plans[0] == plans[1]


def test_shrunk_equals_masked_on_the_gpu():
    net = network(64).cuda().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.rand(4, 3, 32, 32, device="cuda")
    graph = ChannelGraph.trace(net, images)
    plan = graph.plan({group.name: range(0, group.size, 3) for group in graph.groups})
    reference = mask_(copy.deepcopy(net), plan)(images)
    torch.testing.assert_close(shrink_(net, plan)(images), reference, rtol=1e-4, atol=1e-4)


def test_channels_last_and_compiled():
    module = Classifier(optimizer="adamw").to(memory_format=torch.channels_last)
    module.net = torch.compile(module.net)
    fit(module)
    assert module.net._orig_mod[2][0].weight.shape == (16, 8, 3, 3)


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("name", SETUPS)
def test_what_a_step_does_is_seen(name, precision):
    kind, cut, whole = SETUPS[name]
    torch.manual_seed(0)
    module = kind()
    callback = ChannelPruning(0.5, 1, round_to=4, verbose=False)
    run = trainer(callback, accelerator="gpu", precision=precision, limit_val_batches=1, num_sanity_val_steps=0)
    run.fit(module, loader(), loader())
    sizes = {name: parameter.shape[0] for name, parameter in module.named_parameters()}
    assert {name: sizes[name] for name in (*cut, *whole)} == {**cut, **whole}
    assert all(parameter.isfinite().all() for parameter in module.parameters())


class Sequences(Setup):
    """Layers that have kernels of their own on a GPU, put together in the step."""

    def __init__(self, kind="LSTM"):
        super().__init__()
        self.enter = nn.Linear(24, 32)
        self.whole, self.cell = getattr(nn, kind)(32, 24, batch_first=True), getattr(nn, f"{kind}Cell")(24, 16)
        self.attention, self.mix = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(16, 4)

    def training_step(self, batch, batch_idx):
        x = F.gelu(self.enter(batch[0].flatten(2).transpose(1, 2)[..., :3].repeat(1, 1, 8)))
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        heads = self.mix(x).unflatten(2, (4, 8)).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        x, _ = self.whole(x)
        state = self.cell(x[:, -1])
        return self.note(F.cross_entropy(self.head(state[0] if isinstance(state, tuple) else state), batch[1]))


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_layers_with_kernels_of_their_own(kind, precision):
    sizes = []
    for accelerator in ("cpu", "gpu"):
        torch.manual_seed(0)
        module = Sequences(kind)
        callback = ChannelPruning(0.5, 1, round_to=4, verbose=False)
        options = {"precision": precision if accelerator == "gpu" else "32-true"}
        trainer(callback, accelerator=accelerator, **options).fit(module, loader())
        assert len(callback.events) == 1
        sizes.append({name: parameter.shape for name, parameter in module.named_parameters()})
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("precision", MIXED)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, precision):
    def run(epochs, **options):
        torch.manual_seed(0)
        module = Classifier(optimizer="adamw", fused=True)
        callbacks = [ChannelPruning(0.5, [1, 3], verbose=False)]
        if not options:
            callbacks.append(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
        trainer(
            *callbacks,
            accelerator="gpu",
            precision=precision,
            deterministic=True,
            max_epochs=epochs,
            enable_checkpointing=not options,
        ).fit(module, loader(), **options)
        return module

    whole, resumed = run(4), run(4, ckpt_path=tmp_path / "epoch=1.ckpt")
    for (name, expected), value in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, value), name


def at_the_first_step(precision, accelerator="gpu", **options):
    """A module right after an event before its first step, and the callback."""
    torch.manual_seed(0)
    module = Classifier()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    callback = ChannelPruning(0.5, 0, round_to=4, verbose=False, **options)
    found = {}

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                found.update({name: value.cpu().clone() for name, value in pl_module.state_dict().items()})

    trainer(callback, Keep(), accelerator=accelerator, precision=precision, max_epochs=1).fit(module, loader(64))
    return found, callback


@pytest.mark.parametrize("precision", MIXED)
def test_what_is_left_is_repaired_as_on_the_cpu(precision):
    expected, on_cpu = at_the_first_step("32-true", "cpu", repair=True)
    found, callback = at_the_first_step(precision, repair=True)
    sliced, _ = at_the_first_step("32-true", "cpu")
    assert callback.plan == on_cpu.plan
    exact = precision == "32-true"
    for layer, (before, after) in on_cpu.events[0]["repair"].items():
        assert callback.events[0]["repair"][layer] == pytest.approx((before, after), abs=1e-3 if exact else 0.05)
    for name, value in expected.items():
        if value.is_floating_point():
            changed = float((value - sliced[name]).norm())
            off = float((found[name] - value).norm())
            assert off <= (1e-3 if exact else 0.3) * (changed + 1e-2 * float(value.norm())), name


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_are_those_of_the_loss_whatever_it_was_scaled_by(precision, criterion):
    kept = []
    for accelerator in ("cpu", "gpu"):
        torch.manual_seed(0)
        # Nothing is learnt, so that the gradients are the same.
        module = Classifier(lr=0.0)
        callback = ChannelPruning(0.5, 1, criterion=criterion, selection="uniform", round_to=4, verbose=False)
        options = {"precision": precision if accelerator == "gpu" else "32-true"}
        trainer(callback, accelerator=accelerator, max_epochs=2, **options).fit(module, loader())
        kept.append(callback.plan.kept["net.2.0.weight"][0])
    assert len(kept[0]) == len(kept[1])
    assert len(set(kept[0].tolist()) & set(kept[1].tolist())) >= 0.9 * len(kept[0])


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("added", [lambda: Distillation(3.0), lambda: ScaleSparsity(0.1)], ids=["teacher", "sparsity"])
def test_what_is_added_to_gradients_is_scaled_as_they_are(precision, added):
    def run(*callbacks, **options):
        torch.manual_seed(0)
        module = Classifier(lr=1e-4)
        callback = ChannelPruning(0.5, 1, round_to=4, verbose=False)
        trainer(callback, *callbacks, accelerator="gpu", **options).fit(module, loader(64))
        return torch.cat([parameter.detach().flatten().cpu() for parameter in module.parameters()])

    # By the scale that it begins with steps overflow, and are left out.
    scaler = torch.amp.GradScaler(init_scale=16.0) if precision == "16-mixed" else None
    options = {"plugins": [MixedPrecision(precision, "cuda", scaler)]} if precision != "32-true" else {}
    expected, found, without = run(added()), run(added(), **options), run()
    assert (found - expected).norm() < 0.2 * (expected - without).norm()


class EverWorse(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("score", -float(self.current_epoch))


@pytest.mark.parametrize("precision", MIXED)
def test_what_is_taken_back_is_as_it_was(precision):
    def run(*callbacks, epochs):
        torch.manual_seed(0)
        module = EverWorse(optimizer="adamw", fused=True)
        options = {"precision": precision, "deterministic": True, "max_epochs": epochs}
        trainer(*callbacks, accelerator="gpu", **options).fit(module, loader(), loader())
        return module

    recovery = Recovery(max_drop=0.5, monitor="score")
    callback = ChannelPruning(0.5, 2, verbose=False, repair=True, recovery=recovery)
    expected = run(epochs=2)
    with pytest.warns(UserWarning, match="was taken back"):
        found = run(callback, epochs=3)
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("runtime", ["torch", "cudagraphs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_profile_tells_of_all_layers_and_a_clock_agrees_with_it(runtime, dtype):
    torch.manual_seed(0)
    net = network(256).eval()
    images = torch.rand(8, 3, 64, 64, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    table = profile_latency(net, images, runtime, networks=8)
    assert set(table.layers) == {"0.0", "1.conv", "2.0", "3.2"}
    assert all(layer.ms.max() > 0 for layer in table.layers.values())
    assert table.conditions["precision"] == str(dtype).removeprefix("torch.")
    assert table.conditions["layout"] == "channels_last"
    assert not next(net.parameters()).is_cuda
    selection = LatencyBudget(table, runtime=runtime)
    plan_pruning(net, images.float().cpu(), amount=0.1, selection=selection, round_to=8)
    assert selection.findings["clock_ms"] > 0


def test_what_cannot_be_captured_is_told():
    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(64)

        def forward(self, x):
            x = self.net(x)
            return x * (2 if float(x.detach().sum()) > 0 else 1)

    images = torch.rand(2, 3, 32, 32, device="cuda")
    with pytest.raises(ArgumentError, match="can't be captured as a CUDA graph"):
        profile_latency(Waits().eval(), images, "cudagraphs", networks=8)
    # The device is as it was.
    assert torch.ones(3, device="cuda").sum() == 3


def test_two_processes_on_one_gpu(tmp_path):
    first, second = on_two_ranks(tmp_path, gpus=1, backend="gloo")
    assert_equal(first, second)
    assert len(first["events"]) == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices here")
@pytest.mark.parametrize("options", [{"precision": "32-true"}, {"precision": "16-mixed"}, {"sync_batchnorm": True}])
def test_two_gpus(tmp_path, options):
    first, second = on_two_ranks(tmp_path, gpus=2, backend="nccl", trainer=options)
    assert_equal(first, second)
    assert len(first["events"]) == 3
    assert first["norms"] == ["SyncBatchNorm" if "sync_batchnorm" in options else "BatchNorm2d"] * 3


def on_two_ranks(out, **options):
    code, output = start(out, ranks=2, **options)
    assert code == 0, output
    return ranks_of(out)
