"""Random trainings: networks that compute with widths, and steps that do more with them than to call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lit_prune import ChannelGraph, mask_, shrink_
from lit_prune.errors import TraceError
from lit_prune.training.inputs import CallRecorder, step_of
from lit_prune.training.seeing import ways_to_see
from testing.invariant import difference, randomise_
from tests.graph.fuzz_check import Refused, some_of, state_of
from tests.graph.fuzz_glue import GLUE, SPACE
from tests.graph.fuzz_networks import Network, networks

TOLERANCE = 1e-4
Use = Callable[[Any, Tensor, int], Tensor]


def _to_teacher(module: Any, x: Tensor, batch_idx: int) -> Tensor:
    with torch.no_grad():
        wanted = module.teacher[0](x)
    return F.mse_loss(module.net.stem(x), wanted)


def _hooked(module: Any, x: Tensor, batch_idx: int) -> Tensor:
    return module.kept.pop().square().mean()


def _by_turns(module: Any, x: Tensor, batch_idx: int) -> Tensor:
    return module.turns[batch_idx % 2](module.net.stem(x)).square().mean()


def _pulled(module: Any, x: Tensor, batch_idx: int) -> Tensor:
    mean = module.net.stem(x).mean((0, 2, 3))
    loss = x.new_zeros(()) if module.before is None else (mean * module.before).sum()
    module.before = mean.detach()
    return loss


def _centred(module: Any, x: Tensor, batch_idx: int) -> Tensor:
    mean = module.net.stem(x).mean((0, 2, 3))
    module.centre.mul_(0.9).add_(mean.detach(), alpha=0.1)
    return module.turns[0](mean[None, :, None, None] - module.centre[:, None, None]).square().sum()


def _noted(module: Any, x: Tensor, batch_idx: int) -> Tensor:
    module.notes.append(module.net.stem(x).detach())
    return module.turns[0](sum(module.notes)).square().mean()


def _computed_again(module: Any, x: Tensor, batch_idx: int) -> Tensor:
    return module.turns[0](torch.utils.checkpoint.checkpoint(module.net.stem, x, use_reentrant=False)).square().mean()


USES: dict[str, Use] = {
    "nothing": lambda module, x, _: x.new_zeros(()),
    "teacher": _to_teacher,
    "hook": _hooked,
    "turns": _by_turns,
    "state": _pulled,
    "buffer": _centred,
    "notes": _noted,
    "checkpoint": _computed_again,
    "width": lambda module, x, _: module.net.stem(x).square().mean((0, 2, 3)).sum() / module.net.stem.out_channels,
    "sparse": lambda module, x, _: sum(p.abs().sum() for p in module.net.parameters()),  # type: ignore[return-value]
    "weights prepared": lambda module, x, _: F.conv2d(module.net.stem(x), module.turns[0].weight.softmax(1)).sum(),
    "weights divided": lambda module, x, _: (module.net.stem(x) / module.net.stem.weight.mean()).tanh().square().sum(),
    "weights scaled": lambda module, x, _: module.turns[0](
        F.conv2d(x, module.net.stem.weight / len(module.net.stem.weight))
    ).sum(),
    "weights that cut": lambda module, x, _: (module.turns[0](module.net.stem(x)) * module.turns[0].weight.std()).sum(),
    "contrast": lambda module, x, _: F.cosine_similarity(*module.net.stem(x).mean((2, 3)).chunk(2), dim=1).sum(),
    "entropy": lambda module, x, _: -(module.net.stem(x).softmax(1) * module.net.stem(x).log_softmax(1)).sum(1).mean(),
    "norm": lambda module, x, _: module.net.stem(x).flatten(1).norm(dim=1).mean(),
    "through another": lambda module, x, _: module.turns[1](module.net.stem(x).detach()).square().mean(),
    "weights of another": lambda module, x, _: F.conv2d(module.net.stem(x), module.turns[0].weight).square().mean(),
    "closure": lambda module, x, _: module.call(x).square().mean(),
}


class Runner(nn.Module):
    """Makes steps within a forward: only there is a masked network the reference of a shrunk one."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.step = [training.training_step]

    def forward(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.step[0](batch, batch_idx)


class Training(pl.LightningModule):
    """A network, and what a step does beside its own loss.

    Args:
        net: The network.
        use: A name of :data:`USES`, or a function of :data:`GLUE` that stands between the features and the loss
            (``"loss of NAME"``) or another layer (``"layer behind NAME"``).
        place: Which of the network's values that takes.
    """

    def __init__(self, net: Network, use: str, place: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net, self.use, self.place = net, use, place
        width = net.stem.out_channels
        self.turns = nn.ModuleList([nn.Conv2d(width, 3, 1).double(), nn.Conv2d(width, 3, 3).double()])
        self.teacher = [nn.Conv2d(3, width, 1).double().requires_grad_(False)]
        self.kept: list[Tensor] = []
        self.notes: list[Tensor] = []
        self.before: Tensor | None = None
        self.register_buffer("centre", torch.zeros(width, dtype=torch.float64))
        conv = net.stem
        self.call = lambda x: self.turns[0](conv(x))
        if use == "hook":
            net.stem.register_forward_hook(lambda module, args, output: self.kept.append(output))
        self.runner = Runner(self)
        self.extra: nn.Module = nn.Identity()
        if use.startswith("layer behind "):
            self.extra = nn.LazyConv2d(3, 1, dtype=torch.float64)
            with torch.no_grad():
                values = net.values(torch.rand(2, 3, SPACE, SPACE, dtype=torch.float64))
                x = values[place % len(values)]
                self.extra(GLUE[use[13:]](x, x.shape[1]))
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                # Masks of another width would be other masks.
                module.p = 0.0
        self.train()
        for module in net.modules():
            if parametrize.is_parametrized(module):
                # Each look at a spectral norm moves it.
                module.eval()

    def twin(self) -> Training:
        """Another, made as this one was, with its weights."""
        other = Training(self.net.twin(), self.use, self.place)
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        loss = sum(each.square().mean() for each in self.net.read(self(x)))
        if self.use in USES:
            return loss + USES[self.use](self, x, batch_idx)
        name = self.use.split(maxsplit=2)[2]
        values = self.net.values(x)
        features = values[self.place % len(values)]
        return loss + self.extra(GLUE[name](features, features.shape[1])).square().mean()

    def __repr__(self) -> str:
        return f"Training({self.net!r}, {self.use!r}, {self.place})"


def step_holds(training: Training, seed: int) -> ChannelGraph:
    """After an event the next steps run, backwards too, and their losses are those of a masked twin.

    Raises:
        AssertionError: If they are not.
        Refused: If the step can't be seen, or not be cut as planned, and says so.
    """
    torch.manual_seed(seed)
    randomise_(training, seed)
    batches = [[torch.randn(2, 3, SPACE, SPACE, dtype=torch.float64)] for _ in range(3)]

    def started() -> Training:
        other = training.twin()
        torch.manual_seed(seed)
        with torch.no_grad():
            other.training_step(batches[0], 0)
        return other

    seen = training.twin()
    recorder = CallRecorder(seen)
    torch.manual_seed(seed)
    with torch.no_grad():
        seen.training_step(batches[0], 0)
    # Layers that take turns have all had theirs before an event.
    steps = [step_of(seen, batches[0], number) for number in range(1 + (training.use == "turns"))]
    way = ways_to_see(recorder.close(), [step for step in steps if step])[0]
    before = state_of(seen)
    try:
        graph = ChannelGraph.trace_calls(seen, way)
    except TraceError as error:
        raise Refused(str(error)) from error
    finally:
        assert state_of(seen) == before, "a trace has changed the module"
    plan = graph.plan(some_of(graph, np.random.default_rng(seed)))
    try:
        graph.rehearse(plan)
    except TraceError as error:
        raise Refused(str(error)) from error
    losses = []
    for module in (shrink_(started(), plan), mask_(started(), plan)):
        torch.manual_seed(seed)
        mine = [module.runner(batch, number + 1) for number, batch in enumerate(batches[1:])]
        losses.append([[loss.detach() for loss in mine]])
        mine[-1].backward()
    worst = difference(*losses)
    assert worst < TOLERANCE, f"differs by {worst:g}"
    return graph


@st.composite
def trainings(draw: st.DrawFn, most: int = 4) -> Training:
    """A training of a network of at most ``most`` steps."""
    names = st.sampled_from([*USES]) | st.sampled_from([*GLUE]).flatmap(
        lambda name: st.sampled_from([f"loss of {name}", f"layer behind {name}"])
    )
    network, use, place = draw(networks(most)), draw(names), draw(st.integers(0, most))
    try:
        training = Training(network, use, place)
        other = training.twin()
        for number in range(2):
            other.training_step([torch.rand(2, 3, SPACE, SPACE, dtype=torch.float64)], number).backward()
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError):
        # A function does not fit the width, or has no gradient.
        reject()
    return training
