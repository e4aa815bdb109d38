"""What optimizers hold follows a cut as if it were sliced by hand, or is refused before anything is cut."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, prune_, shrink_
from lit_prune.errors import UnsupportedError
from lit_prune.surgery.layouts import in_place, kept_by, layouts
from tests.toys import loader, network

timm_optim = pytest.importorskip("timm.optim")

TORCH = "SGD Adam AdamW NAdam RAdam Adamax Adagrad Adadelta RMSprop Rprop ASGD Adafactor".split()
TIMM = (
    "adabelief adafactor adamp adamuon adan adopt lamb laprop lars lion madgrad mars muon nadamw novograd rmsproptf "
    "sgdp lookahead_adam"
).split()
# Older releases have not all of them, and their Adafactor factors other dimensions than `by_hand` says.
OLD_TIMM = not hasattr(timm_optim, "list_optimizers")
if OLD_TIMM:
    TIMM = [name for name in TIMM if name not in "adafactor adamuon adan adopt laprop mars muon".split()]


def create(name, net):
    if hasattr(torch.optim, name):
        options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        return getattr(torch.optim, name)(net.parameters(), lr=1e-3, **options)
    return timm_optim.create_optimizer_v2(net, opt=name, lr=1e-3)


def run(net, optimizer, steps):
    for images, labels in [*loader()][:steps]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()


def half(net):
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8))
    return graph.plan({group.name: range(1, group.size, 2) for group in graph.groups})


def by_hand(key, value, cut, dims):
    """``value`` with the indices of the parameter's dimension in each of its own."""
    if isinstance(value, list):
        return [by_hand(number, each, cut, dims) for number, each in enumerate(value)]
    if not torch.is_tensor(value) or value.dim() == 0:
        return value
    mine = range(dims)
    if isinstance(key, int):
        mine = [key] * value.dim()
    elif key == "exp_avg_sq_row" and dims > 1:
        # The last two dimensions are taken for the matrix, or the first two.
        mine = [0, *range(2, dims)]
    elif key == "exp_avg_sq_col" and dims > 1:
        mine = range(1, dims)
    for dim, of in enumerate(mine):
        if of in cut and value.shape[dim] > 1:
            value = value[(slice(None),) * dim + (cut[of],)]
    return value.clone()


@pytest.fixture
def eagerly():
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def start(make):
    torch.manual_seed(0)
    net = network()
    return net, make(net)


@pytest.mark.parametrize("name", [*TORCH, *TIMM, *([] if OLD_TIMM else [pytest.param("kron", marks=pytest.mark.slow)])])
@pytest.mark.filterwarnings("ignore:.*opt_einsum")
def test_a_step_after_the_cut_is_that_of_state_sliced_by_hand(name, eagerly):
    net, optimizer = start(lambda net: create(name, net))
    torch.manual_seed(1)
    run(net, optimizer, 3)
    plan = half(net)
    fresh = shrink_(copy.deepcopy(net), plan)
    saved = copy.deepcopy(optimizer.state_dict())
    numbers = {id(p): number for number, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    for parameter_name, parameter in net.named_parameters():
        state = saved["state"].get(numbers[id(parameter)], {})
        for key in state:
            state[key] = by_hand(key, state[key], plan.kept.get(parameter_name, {}), parameter.dim())
    other = create(name, fresh)
    other.load_state_dict(saved)
    for mine, theirs in zip(optimizer.param_groups, other.param_groups, strict=True):
        theirs.update(copy.deepcopy({key: value for key, value in mine.items() if key != "params"}))
    if hasattr(optimizer, "rng"):
        other.rng = copy.deepcopy(optimizer.rng)
    prune_(net, plan, [optimizer])
    for each, its in ((net, optimizer), (fresh, other)):
        torch.manual_seed(2)
        run(each, its, 2)
    for parameter, twin in zip(net.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-6, atol=1e-7)


class Sam(torch.optim.Optimizer):
    """Steps by an optimizer of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.05})
        self.base = torch.optim.SGD(self.param_groups, lr=0.05, momentum=0.9)

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old"] = parameter.detach().clone()
        return self.base.step(closure)


class Slow(torch.optim.SGD):
    """Keeps slow weights beside its state, in one of several ways, and steps toward them."""

    def __init__(self, parameters, how):
        weights, others = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
        super().__init__([{"params": weights}, {"params": others}], lr=0.05, momentum=0.9)
        copies = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]
        everything = [p for group in self.param_groups for p in group["params"]]
        flat = [each for group in copies for each in group]
        self.slow = {
            "by group": copies,
            "flat": tuple(flat),
            "by parameter": dict(zip(everything, flat, strict=True)),
            "by id": OrderedDict(zip(map(id, everything), flat, strict=True)),
            "nested": {p: {"slow": [each]} for p, each in zip(everything, flat, strict=True)},
        }.get(how)
        if how == "in groups":
            for group, mine in zip(self.param_groups, copies, strict=True):
                group["slow"] = mine
        if how == "on parameters":
            for p, each in zip(everything, flat, strict=True):
                p.slow = each
        self.pairs = lambda: zip(everything, flat, strict=True)

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for parameter, slow in self.pairs():
            slow.lerp_(parameter, 0.5)
            parameter.copy_(slow)


HOW = ["by group", "flat", "by parameter", "by id", "nested", "in groups", "on parameters"]


@pytest.mark.parametrize("how", HOW)
def test_what_lies_beside_the_state_is_cut_with_its_parameter(how):
    net, optimizer = start(lambda net: Slow([*net.parameters()], how))
    run(net, optimizer, 2)
    plan = half(net)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    wanted = {
        names[id(p)]: by_hand("slow", slow, plan.kept.get(names[id(p)], {}), p.dim()) for p, slow in optimizer.pairs()
    }
    prune_(net, plan, [optimizer])
    assert all(torch.equal(slow, wanted[names[id(p)]]) for p, slow in optimizer.pairs())
    run(net, optimizer, 2)


def test_an_optimizer_inside_of_another_is_cut_too():
    net, optimizer = start(lambda net: Sam(net.parameters()))
    run(net, optimizer, 2)
    buffers = {p: optimizer.base.state[p]["momentum_buffer"].clone() for p in net.parameters()}
    plan = half(net)
    prune_(net, plan, [optimizer])
    for name, parameter in net.named_parameters():
        wanted = by_hand("", buffers[parameter], plan.kept.get(name, {}), parameter.dim())
        assert torch.equal(optimizer.base.state[parameter]["momentum_buffer"], wanted)
    run(net, optimizer, 2)


class Keeping(torch.optim.SGD):
    """Keeps in its state what it is told to."""

    def __init__(self, parameters, what):
        super().__init__(parameters, lr=0.05)
        self.what = what

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].update(self.what(parameter))


class Projector:
    def __init__(self, parameter):
        self.matrix = torch.rand(len(parameter), 2)


class Quantised(torch.Tensor):
    pass


def rotation(size):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(size))).Q


REFUSED = {
    "rotation": (lambda p: {"basis": [rotation(size) for size in p.shape]}, r"'basis\[0\]'.*another basis"),
    "object": (lambda p: {"projector": Projector(p)}, "'projector'.*Projector can't be cut"),
    "subclass": (lambda p: {"low": torch.zeros_like(p).as_subclass(Quantised)}, "'low'.*Quantised can't be cut"),
    "blocks": (lambda p: {"codes": torch.zeros_like(p, dtype=torch.uint8)}, "'codes'.*quantised in blocks"),
    "sketch": (lambda p: {"sketch": torch.zeros(3, 7)}, r"'sketch' of shape \(3, 7\).*not known"),
    "one memory": (lambda p: dict(zip("ab", torch.zeros(2, *p.shape), strict=True)), "'a'.*the same memory"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_cut_is_refused_with_its_key_and_nothing_changes(kind):
    what, message = REFUSED[kind]
    net, optimizer = start(lambda net: Keeping(net.parameters(), what))
    run(net, optimizer, 1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UnsupportedError, match=f"Keeping keeps {message}.*Use SGD"):
        prune_(net, half(net), [optimizer])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_state_whose_readings_differ_is_refused():
    # Of square weights alone nobody can say whether two matrices are one for each dimension or two of the weight's.
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    optimizer = Keeping(net.parameters(), lambda p: {"pair": [torch.rand(8, 8), torch.rand(8, 8)]})
    net(torch.rand(2, 8)).sum().backward()
    optimizer.step()
    graph = ChannelGraph.trace(net, torch.zeros(1, 8))
    with pytest.raises(UnsupportedError, match=r"'pair\[0\]'.*several readings fit"):
        prune_(net, graph.plan({graph.groups[0].name: [1, 2]}), [optimizer])


def test_a_tensor_that_looks_like_a_parameter_and_lies_nowhere_is_refused():
    net, optimizer = start(lambda net: torch.optim.SGD(net.parameters(), lr=0.05))
    optimizer.anchor = [net[0][0].weight.detach().clone()]
    with pytest.raises(UnsupportedError, match=r"SGD holds 'anchor\[0\]' of shape \(16, 3, 3, 3\).*nothing tells"):
        prune_(net, half(net), [optimizer])


def test_flat_state_is_cut_by_the_elements_of_its_parameter():
    net, optimizer = start(lambda net: Keeping(net.parameters(), lambda p: {"flat": p.detach().flatten().clone()}))
    torch.nn.functional.cross_entropy(net(torch.rand(2, 3, 8, 8)), torch.tensor([0, 1])).backward()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    prune_(net, half(net), [optimizer])
    assert all(torch.equal(optimizer.state[p]["flat"], p.detach().flatten()) for p in net.parameters())


@pytest.mark.skipif(OLD_TIMM, reason="this release of timm has no such optimizer")
def test_state_whose_form_goes_by_the_shape_is_refused_by_trying_a_step():
    net, optimizer = start(lambda net: timm_optim.create_optimizer_v2(net, opt="adafactorbv", lr=1e-3))
    run(net, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    weights, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with pytest.raises(UnsupportedError, match=r"AdafactorBigVision could not take a step.*'exp_avg_sq_r'.*Use SGD"):
        prune_(net, half(net), [optimizer])
    # To try is to leave no trace.
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    torch.testing.assert_close(dict(net.state_dict()), dict(weights), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_readings_of_a_shape():
    assert in_place((8, 8), (8, 8)) in set(layouts((8, 8), (8, 8)))
    assert len(set(layouts((8, 8), (8, 8)))) == 4
    assert not [*layouts((5,), (8, 3))]
    cut = {0: torch.tensor([1]), 1: torch.tensor([0, 2])}
    assert {dim: kept.tolist() for dim, kept in kept_by(((1, 2), (0, 2)), (2, 3), cut).items()} == {
        0: [0, 2],
        1: [3, 5],
    }
