import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS

from lit_prune import ChannelGraph, ChannelPruning, shrink_
from lit_prune.repair import prune_
from lit_prune.surgery.optimizers import check_optimizer
from lit_prune.training.averaged_copies import copies_beside
from lit_prune.training.checks import UnsupportedError, check_strategy
from lit_prune.training.ddp import check_comm_hooks, forget_shapes, wrap_again
from tests.toys import LIGHTNING_AVERAGES, Classifier, loader, network, optimizers, trainer, widths

KINDS = {
    "sgd": {},
    "adam": {},
    "adam-foreach": {"foreach": True},
    "adam-fused": {"fused": True},
    "adamw": {},
    "adamw-fused": {"fused": True},
    "adafactor": {},
    "rmsprop": {},
}


def trained(kind, steps=3):
    net = network()
    optimizer = optimizers()[kind.partition("-")[0]](net.parameters(), **KINDS[kind])
    run(net, optimizer, steps)
    return net, optimizer


def run(net, optimizer, steps):
    losses = []
    for images, labels in [*loader()][:steps]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def half(net):
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8))
    return graph.plan({group.name: range(1, group.size, 2) for group in graph.groups})


@pytest.mark.parametrize("kind", KINDS)
def test_steps_after_pruning_equal_those_of_a_fresh_network_with_the_sliced_state(kind):
    net, optimizer = trained(kind)
    plan = half(net)
    fresh = shrink_(copy.deepcopy(net), plan)
    before = copy.deepcopy(optimizer.state_dict())
    prune_(net, plan, [optimizer])

    # The fresh optimizer's state is cut by hand, by index.
    names = [name for name, _ in net.named_parameters()]
    for number, state in before["state"].items():
        for key, value in state.items():
            for dim, kept in plan.kept.get(names[number], {}).items():
                if torch.is_tensor(value) and value.dim() and value.shape[dim] > 1:
                    state[key] = state[key][(slice(None),) * dim + (kept,)]
    other = optimizers()[kind.partition("-")[0]](fresh.parameters(), **KINDS[kind])
    other.load_state_dict(before)

    assert run(net, optimizer, 3) == run(fresh, other, 3)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_parameters_stay_the_same_objects_with_their_hooks_and_gradients():
    net, optimizer = trained("sgd")
    before = {name: (parameter, parameter.grad.clone()) for name, parameter in net.named_parameters()}
    calls = []
    net[0][0].weight.register_hook(lambda grad: calls.append(grad.shape))
    plan = half(net)
    prune_(net, plan, [optimizer])
    for name, parameter in net.named_parameters():
        old, grad = before[name]
        assert parameter is old
        for dim, kept in plan.kept.get(name, {}).items():
            grad = grad.index_select(dim, kept)
        assert torch.equal(parameter.grad, grad)
    run(net, optimizer, 1)
    assert calls == [net[0][0].weight.shape]


def test_a_graph_that_is_alive_does_not_break_the_next_backward():
    net, optimizer = trained("sgd")
    alive = nn.functional.cross_entropy(net(torch.rand(2, 3, 8, 8)), torch.tensor([0, 1]))
    prune_(net, half(net), [optimizer])
    assert run(net, optimizer, 2)
    del alive


def test_state_that_cannot_be_cut_is_refused_and_nothing_changes():
    net, optimizer = trained("adam")
    plan = half(net)
    weight = net[2][0].weight
    optimizer.state[weight]["sketch"] = torch.zeros(7)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UnsupportedError, match=r"Adam keeps 'sketch' of shape \(7,\)"):
        prune_(net, plan, [optimizer])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape


def test_a_copy_that_does_not_fit_is_refused_and_nothing_changes():
    net, optimizer = trained("sgd")
    before = widths(net)
    with pytest.raises(ValueError, match="another network"):
        prune_(net, half(net), [optimizer], [network(8)])
    assert widths(net) == before


def test_optimizers_that_cannot_follow_are_refused_by_name():
    net = network()
    with pytest.raises(UnsupportedError, match="under LBFGS, for it keeps one flat vector"):
        check_optimizer(LBFGS(net.parameters()))
    with pytest.raises(UnsupportedError, match="ZeroRedundancyOptimizer"):
        check_optimizer(ZeroRedundancyOptimizer.__new__(ZeroRedundancyOptimizer))


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy"])
def test_strategies_that_cannot_are_refused_and_named(name):
    run = trainer()
    run.strategy.__class__ = type(name, (type(run.strategy),), {})
    with pytest.raises(UnsupportedError, match=f"{name}, for .*strategy='ddp'"):
        check_strategy(run)
    run.strategy.__class__ = type("MyDDP", (DDPStrategy,), {})
    check_strategy(run)


def test_masks_of_another_callback_are_refused_before_training():
    masks = ModelPruning("l1_unstructured", amount=0.5)
    run, model = trainer(ChannelPruning(0.5, 1), masks), Classifier()
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(UnsupportedError, match="ModelPruning sets weights to zero behind masks"):
        run.fit(model, loader())

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("average", [*["WeightAveraging"] * LIGHTNING_AVERAGES, "StochasticWeightAveraging"])
def test_averaged_copies_shrink_with_the_same_plan(average):
    from lightning.pytorch import callbacks

    made = (
        callbacks.WeightAveraging()
        if average == "WeightAveraging"
        else callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    )
    seen = []

    class Watch(callbacks.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.extend(
                (trainer.current_epoch, widths(each) == widths(pl_module))
                for each in (copy.view for copy in copies_beside(trainer))
            )

    module = Classifier()
    trainer(made, ChannelPruning(0.5, [1, 2], verbose=False), Watch(), max_epochs=4).fit(module, loader())
    assert {epoch for epoch, _ in seen} >= {1, 2, 3}
    assert all(same for _, same in seen)
    assert widths(module)["net.0.0.weight"] == (8, 3, 3, 3)


@pytest.fixture
def wrapped():
    """A Trainer whose strategy has wrapped a network by DDP, in a group of one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    run = trainer()
    run.strategy._lightning_module = network()

    def wrap():
        run.strategy.model = DistributedDataParallel(run.strategy.lightning_module)

    run.strategy.configure_ddp = wrap
    wrap()
    yield run
    torch.distributed.destroy_process_group()


def test_powersgd_goes_on_with_the_buckets_of_the_new_wrapper(wrapped):
    state = PowerSGDState(None, start_powerSGD_iter=2, matrix_approximation_rank=1, min_compression_rate=0.1)
    wrapped.strategy.model.register_comm_hook(state, powerSGD_hook)
    net, old = wrapped.strategy.lightning_module, wrapped.strategy.model
    sgd = optimizers()["sgd"](net.parameters())
    run(old, sgd, 3)
    assert state.iter == 3
    assert state.p_memory_dict
    check_comm_hooks(wrapped)
    prune_(net, half(net), [sgd])
    wrap_again(wrapped, forget_shapes(wrapped))
    assert state.iter == 0
    assert not state.error_dict
    assert not state.p_memory_dict
    assert wrapped.strategy.model is not old
    assert wrapped.strategy.model._comm_hooks == [(powerSGD_hook, state)]
    run(wrapped.strategy.model, sgd, 3)
    assert state.iter == 3
    assert state.p_memory_dict


def test_a_hook_that_remembers_buckets_in_its_own_way_is_refused_by_name(wrapped):
    class Momentum:
        def __init__(self):
            self.by_bucket = {0: torch.zeros(7)}

    def hook_with_memory(state, bucket):
        return allreduce_hook(None, bucket)

    wrapped.strategy.model.register_comm_hook(Momentum(), hook_with_memory)
    with pytest.raises(UnsupportedError, match=r"hook_with_memory keeps tensors in its Momentum \(by_bucket\)"):
        check_comm_hooks(wrapped)
