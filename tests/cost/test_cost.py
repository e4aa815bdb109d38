import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_prune.common.names import count_parameters
from lit_prune.cost.counts import Cost
from lit_prune.cost.latency import measure_latency


def _torchvision(name: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def _yolo(name: str) -> nn.Module:
    from lit_prune.yolo import build_detector

    return build_detector(name)


@pytest.mark.parametrize(
    ("build", "name", "size"),
    [
        (_yolo, "yolov8n.yaml", 64),
        (_torchvision, "resnet18", 64),
        (_torchvision, "mobilenet_v3_small", 64),
        (_torchvision, "densenet121", 64),
    ],
)
def test_macs_are_half_of_torchs_flops(build, name, size):
    network = build(name).eval()
    images = torch.zeros(2, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)

    cost = Cost.of(network, images)

    assert cost.macs * len(images) * 2 == counter.get_total_flops()
    assert cost.params == sum(p.numel() for p in network.parameters())


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(layer, layer)) == 20


class _Probe(nn.Module):
    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name
        self.child = nn.Dropout()

    def forward(self, x):
        self.log.append(self.name)
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.child(x)


def test_networks_take_turns_and_modes_return():
    log: list[str] = []
    networks = {name: _Probe(log, name) for name in ("a", "b", "c")}
    networks["b"].child.eval()

    found = measure_latency(networks, torch.zeros(4, 3, 8, 16), repeats=3, warmup=1)

    rounds = ["".join(log[start : start + 3]) for start in range(0, len(log), 3)]
    assert len(rounds) == 4
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds[1:])) == 3  # every network goes first once
    assert networks["a"].training
    assert networks["a"].child.training
    assert not networks["b"].child.training
    one = found["a"]
    assert (one.repeats, one.batch_size, one.image_size, one.device) == (3, 4, (8, 16), "cpu")
    assert one.threads == torch.get_num_threads()
    assert 0 < one.fastest_ms <= one.median_ms
    assert one.to_dict()["batch_size"] == 4
    assert "batch 4, 8×16" in str(one)


def test_modes_return_after_an_error():
    network = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        measure_latency({"net": network}, torch.zeros(1, 4))
    assert network.training


@pytest.mark.parametrize(
    ("networks", "inputs", "options", "message"),
    [
        ({}, (torch.zeros(1, 3),), {}, "at least one network"),
        ({"net": nn.Identity()}, (3,), {}, "at least one network and one input tensor"),
        ({"net": nn.Identity()}, (torch.zeros(1, 3),), {"repeats": 0}, "repeats must be at least 1"),
        ({"net": nn.Identity()}, (torch.zeros(1, 3),), {"warmup": -1}, "warmup must be 0 or more"),
    ],
)
def test_wrong_arguments_of_measure_latency(networks, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(networks, *inputs, **options)
