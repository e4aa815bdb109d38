"""What only a GPU can show: AMP with a scaler, fused optimizers, compiled kernels, pinned data. `make gpu-check`."""

import copy

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, ChannelPruning, mask_, shrink_
from tests.toys import Classifier, loader, network, trainer, widths
from tests.training.test_ddp import assert_equal, ranks_of, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


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
