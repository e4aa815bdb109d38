"""On a CUDA device: `make gpu-check`."""

import pytest
import torch
from torch import nn

from lit_prune.activations import ActivationExtractor, ClassMoments, collect_moments, read_batch
from lit_prune.common.running import untouched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield torch.rand(8, 3, 16, 16, generator=generator), torch.randint(3, (8,), generator=generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-3), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_moments_are_those_of_the_cpu(dtype, tolerance):
    expected = collect_moments(network(), ["0", "3"], map(read_batch, batches()))
    on_device = (read_batch([part.cuda() for part in batch]) for batch in batches())
    with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
        found = collect_moments(network().cuda(), ["0", "3"], on_device)
    for layer in expected:
        assert found[layer].mean.device.type == "cpu"
        assert torch.equal(found[layer].count, expected[layer].count)
        torch.testing.assert_close(found[layer].mean, expected[layer].mean, rtol=tolerance, atol=tolerance)


def test_random_states_of_the_device_are_put_back():
    net = network().cuda()
    before = torch.cuda.get_rng_state()
    with untouched(net):
        torch.rand(5, device="cuda")
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_maps_stay_on_the_device():
    with ActivationExtractor(network().cuda(), ["0"]) as extract:
        assert extract(torch.rand(2, 3, 16, 16, device="cuda"))["0"].is_cuda


def test_the_same_values_give_the_same_bits():
    values, labels = torch.randn(4096, 64, device="cuda"), torch.randint(10, (4096,), device="cuda")
    results = []
    for _ in range(3):
        metric = ClassMoments(64, 10).cuda()
        metric.update(values, labels)
        results.append(metric.compute().var)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
