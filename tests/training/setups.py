"""Trainings that do more than the forward of one network: what only a whole step shows."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.toys import Classifier


def block(enters: int, leaves: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(enters, leaves, 3, padding=1), nn.BatchNorm2d(leaves), nn.ReLU())


class Setup(pl.LightningModule):
    """What the others have in common."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.losses: list[float] = []

    def note(self, loss: Tensor) -> Tensor:
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Adversarial(Setup):
    """Two networks, two optimizers, a gradient penalty; neither is entered through a forward of the module."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(8, 16 * 16), nn.Unflatten(1, (16, 4, 4)), nn.ReLU(), nn.ConvTranspose2d(16, 3, 2, 2), nn.Tanh()
        )
        self.critic = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.LeakyReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 1)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for_generator, for_critic = self.optimizers()
        real = batch[0]
        noise = torch.linspace(-1, 1, len(real) * 8, device=real.device).reshape(-1, 8)
        fake = self.generator(noise)
        mixed = (real / 2 + fake.detach() / 2).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        loss = self.critic(fake.detach()).mean() - self.critic(real).mean() + slope.square().mean()
        for_critic.zero_grad()
        self.manual_backward(loss)
        for_critic.step()
        self.toggle_optimizer(for_generator)
        for_generator.zero_grad()
        self.manual_backward(self.note(-self.critic(self.generator(noise)).mean()))
        for_generator.step()
        self.untoggle_optimizer(for_generator)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.generator.parameters()), torch.optim.SGD(self.critic.parameters(), 0.01)


class Distilled(Setup):
    """Features of one layer are held to those of a teacher, which is no child and keeps its widths."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(block(3, 16), block(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
        torch.manual_seed(1)
        self.teacher = [nn.Sequential(block(3, 16)).requires_grad_(False)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        features = self.net[0](batch[0])
        with torch.no_grad():
            wanted = self.teacher[0].to(self.device)(batch[0])
        return self.note(F.cross_entropy(self.net[1:](features), batch[1]) + F.mse_loss(features, wanted))


class Tasks(Setup):
    """Heads take turns; the second is not in the first batch, and the third only in validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.trunk = nn.Sequential(block(3, 16), block(16, 24))
        self.heads = nn.ModuleDict({"a": nn.Conv2d(24, 4, 1), "b": nn.Conv2d(24, 4, 3), "c": nn.Conv2d(24, 4, 2)})

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.heads[task](self.trunk(x)).mean((2, 3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.note(F.cross_entropy(self(batch[0], "ab"[batch_idx % 2]), batch[1]))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self(batch[0], "c"), batch[1]))


class Hooked(Setup):
    """A U-shaped network whose skips go by hooks, and whose deepest block is computed again in the backward pass."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.down, self.deep = nn.ModuleList([block(3, 8), block(8, 16)]), block(16, 24)
        self.up = nn.ModuleList([block(24 + 16, 16), block(16 + 8, 8)])
        self.last = nn.Conv2d(8, 4, 1)
        self.skips: dict[int, Tensor] = {}
        for number, child in enumerate(self.down):
            child.register_forward_hook(lambda module, args, output, number=number: self.keep(number, output))

    def keep(self, number: int, output: Tensor) -> None:
        self.skips[number] = output

    def forward(self, x: Tensor) -> Tensor:
        for child in self.down:
            x = F.max_pool2d(child(x), 2)
        x = checkpoint(self.deep, x, use_reentrant=False)
        for number, child in zip((1, 0), self.up, strict=True):
            x = child(torch.cat([F.interpolate(x, scale_factor=2.0), self.skips[number]], 1))
        return self.last(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.note(F.cross_entropy(self(batch[0]).mean((2, 3)), batch[1]))


class Parts(Setup):
    """Parts glued together in the step, one of them through another method than its forward."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.encoder = Classifier().net[:3]
        self.mix, self.head = nn.Linear(32, 24), nn.Linear(24, 4)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        for part in self.encoder:
            x = part(x)
        return self.note(F.cross_entropy(self.head(F.gelu(self.mix(x.mean((2, 3))))), batch[1]))


SETUPS: dict[str, tuple[type[Setup], dict[str, int], dict[str, int]]] = {
    # What an event at half leaves, and what has to stay.
    "adversarial": (Adversarial, {"generator.3.weight": 8, "critic.0.weight": 8, "critic.2.weight": 12}, {}),
    "distilled": (Distilled, {"net.1.0.weight": 12}, {"net.0.0.weight": 16}),
    "tasks": (Tasks, {"trunk.0.0.weight": 8, "trunk.1.0.weight": 12}, {"heads.a.weight": 4, "heads.b.weight": 4}),
    "hooked": (Hooked, {"down.1.0.weight": 8, "deep.0.weight": 12, "up.0.0.weight": 8}, {"last.weight": 4}),
    "parts": (Parts, {"encoder.2.0.weight": 16, "mix.weight": 12}, {"head.weight": 4}),
}
