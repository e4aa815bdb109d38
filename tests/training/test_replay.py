"""A step is made with any batch, in eval mode if that will do, and what it can't be made with is named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_prune.common.running import untouched
from lit_prune.errors import CalibrationError
from lit_prune.training.replay import Replay
from lit_prune.training.step import StepCall
from tests.toys import Classifier

BATCH = [torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])]


class Noting(Classifier):
    """Fails in a mode; notes the modes that it was in, and what it draws."""

    fails = ()
    modes = None

    def training_step(self, batch, batch_idx):
        type(self).modes.append((self.training, self.net[0][1].training))
        self.losses.append(float(torch.rand(())))
        if self.training in self.fails:
            raise ValueError("Not so.")
        return F.cross_entropy(self(batch[0]), batch[1])


def replay(fails):
    class Here(Noting):
        pass

    Here.fails, Here.modes = fails, []
    module = Here().train()
    return module, Replay(module, StepCall("", ([], 3)))


@pytest.mark.parametrize(
    ("fails", "modes"),
    [((), [(False, False)] * 2), ((False,), [(False, False), (True, False), (True, False)])],
)
def test_modes(fails, modes):
    module, step = replay(fails)
    state = torch.get_rng_state()
    held = step.read(BATCH)
    with untouched(module):
        loss = step.make(*held.inputs)
    assert loss.dim() == 0
    assert module.modes == modes
    assert module.losses == []
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_tried_once():
    module, step = replay(())
    for _ in range(3):
        step.read(BATCH)
    assert len(module.modes) == 1


def test_what_fails_either_way_is_named():
    module, step = replay((False, True))
    with pytest.raises(
        CalibrationError, match=r"step of Here .* ValueError: Not so\. .*write a method `calibration_batch"
    ):
        step.read(BATCH)
    assert module.training
    assert module.losses == []


def test_what_draws_masks_is_still():
    module, step = replay((False,))
    module.net.append(nn.Dropout(0.9))
    step = Replay(module, StepCall("", ([], 0)))
    held = step.read(BATCH)
    with untouched(module):
        assert step.make(*held.inputs) == step.make(*held.inputs)
