import contextlib

import torch
from torch import nn

from lit_prune.graph import Call
from lit_prune.training.inputs import CallRecorder, call_of_example, calls_from_state, calls_to_state, first_example
from tests.toys import Classifier


class TwoNets(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2), nn.ReLU())

    def forward(self, x):
        return self.second(self.first(x))


def test_a_call_of_the_whole_is_one_call():
    net = TwoNets()
    recorder = CallRecorder(net)
    net(torch.rand(5, 4))
    net(torch.rand(5, 4))
    calls = recorder.close()
    assert [(call.module, call.args[0].shape) for call in calls] == [("", (1, 4))]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_calls_of_parts_are_recorded_each_with_its_inputs():
    net = TwoNets()
    recorder = CallRecorder(net)
    net.second(net.first(torch.rand(5, 4)) * 2)
    net.first(torch.rand(5, 7, 4))
    assert [(call.module, tuple(call.args[0].shape)) for call in recorder.close()] == [
        ("first", (1, 4)),
        ("second", (1, 3)),
        ("first", (1, 7, 4)),
    ]


def test_a_call_that_fails_does_not_hide_later_ones():
    net = TwoNets()
    recorder = CallRecorder(net)
    with contextlib.suppress(RuntimeError):
        net(torch.rand(5, 9))
    net.second(torch.rand(5, 3))
    assert [call.module for call in recorder.close()] == ["", "second"]


def test_a_step_that_is_sent_through_forward_is_no_call_of_the_network():
    module = Classifier()
    recorder = CallRecorder(module)
    original = module.forward

    def step(batch):
        module.forward = original
        return module(batch[0])

    module.forward = step
    module([torch.rand(2, 3, 8, 8)])
    assert [(call.module, tuple(call.args[0].shape)) for call in recorder.close()] == [("", (1, 3, 8, 8))]


def test_the_first_example_is_taken_only_where_all_tensors_agree():
    call = Call("", (torch.rand(4, 2),), {"mask": torch.rand(4), "scale": 2})
    assert first_example(call).args[0].shape == (1, 2)
    assert first_example(call).kwargs["scale"] == 2
    odd = Call("", (torch.rand(4, 2), torch.rand(3)))
    assert [tensor.shape for tensor in first_example(odd).args] == [(4, 2), (3,)]


def test_an_example_is_passed_as_lightning_does():
    cpu = torch.device("cpu")
    assert len(call_of_example(torch.rand(2, 3), cpu).args) == 1
    assert len(call_of_example((torch.rand(2, 3), torch.rand(2)), cpu).args) == 2
    assert set(call_of_example({"x": torch.rand(2, 3)}, cpu).kwargs) == {"x"}


def test_calls_survive_a_checkpoint_as_plain_data(tmp_path):
    calls = [
        first_example(Call("net", (torch.rand(4, 2), [None, 3]), {"mask": torch.ones(4).bool(), "how": 2.5})),
        first_example(Call("", ({"ids": torch.arange(6).reshape(3, 2)},))),
    ]
    torch.save(calls_to_state(calls), tmp_path / "calls")
    again = calls_from_state(torch.load(tmp_path / "calls", weights_only=True), torch.device("cpu"))
    for before, after in zip(calls, again, strict=True):
        assert before.module == after.module
        torch.testing.assert_close(before.args, after.args, rtol=0, atol=0)
        torch.testing.assert_close(dict(before.kwargs), dict(after.kwargs), rtol=0, atol=0)
    assert calls_to_state([Call("", (object(),))]) is None
