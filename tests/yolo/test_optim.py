import itertools
import math

import pytest
import torch
from torch import nn

from lit_prune.yolo import build_detector
from lit_prune.yolo.optim import build_optimizer, lr_factor, parameter_groups


def test_groups_are_those_of_ultralytics():
    network = build_detector("yolov8n.yaml", num_classes=10)
    weights, others = parameter_groups(network.parameters(), weight_decay=0.01)

    names = {id(parameter): name for name, parameter in network.named_parameters()}
    norms = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    biases = {name for name, _ in network.named_parameters() if name.endswith(".bias")}
    assert {names[id(p)] for p in others["params"]} == norms | biases
    assert {names[id(p)] for p in weights["params"]} == set(names.values()) - norms - biases - {
        "model.22.dfl.conv.weight"
    }
    assert (weights["weight_decay"], others["weight_decay"]) == (0.01, 0.0)


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad = False
    assert [len(group["params"]) for group in parameter_groups(layer.parameters(), 0.1)] == [0, 1]


def test_optimizers():
    def build(name, momentum):
        groups = parameter_groups(nn.Linear(2, 2).parameters(), 0.1)
        return build_optimizer(name, groups, lr=0.1, momentum=momentum)

    adamw, sgd, still = build("adamw", 0.8), build("sgd", 0.8), build("sgd", 0.0)

    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[1]["betas"] == (0.8, 0.999)
    assert sgd.param_groups[0]["nesterov"]
    assert sgd.param_groups[0]["momentum"] == 0.8
    assert not still.param_groups[0]["nesterov"]


def _course(**options):
    return [
        lr_factor(step, **{"warmup": 4, "total": 20, "schedule": "cosine", "final": 0.1} | options)
        for step in range(21)
    ]


def test_warmup_rises_by_equal_steps_to_the_highest_rate():
    course = _course()
    assert [a - b for a, b in zip(course[1:5], course[:4], strict=True)] == pytest.approx([0.2] * 4)
    assert course[4] == max(course) == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_ends_at_the_final_rate(schedule):
    course = _course(schedule=schedule)
    assert all(a >= b for a, b in itertools.pairwise(course[4:]))
    assert course[-1] == pytest.approx(0.1)
    assert lr_factor(99, warmup=4, total=20, schedule=schedule, final=0.1) == pytest.approx(0.1)


def test_cosine_and_linear_follow_their_formulas():
    assert _course()[8] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 4 / 16)) / 2)
    assert _course(schedule="linear")[8] == pytest.approx(0.1 + 0.9 * 12 / 16)
    assert _course(schedule="constant")[4:] == [1] * 17


def test_no_warmup_starts_at_the_highest_rate():
    assert _course(warmup=0)[0] == 1
