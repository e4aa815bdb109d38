"""Scales of BatchNorms go to zero where the loss does not need them, as a term of the loss would have it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_prune import ArgumentError, ChannelPruning, ScaleSparsity
from tests.toys import Classifier, fitted


def scales(module):
    return torch.cat([layer.weight.detach() for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_as_a_term_of_the_loss_would_have_it(accumulate):
    class Explicit(Classifier):
        def training_step(self, batch, batch_idx):
            norms = [layer for layer in self.modules() if isinstance(layer, nn.BatchNorm2d)]
            return F.cross_entropy(self(batch[0]), batch[1]) + 0.05 * sum(norm.weight.abs().sum() for norm in norms)

    # Where an epoch ends within an accumulation, the term counts for less than a whole step.
    expected = fitted(kind=Explicit, accumulate_grad_batches=accumulate, limit_train_batches=2)
    found = fitted(ScaleSparsity(0.05), accumulate_grad_batches=accumulate, limit_train_batches=2)
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), rtol=1e-4, atol=1e-5)
    assert float(scales(found).abs().sum()) < float(scales(fitted(limit_train_batches=2)).abs().sum())


def test_it_ends_when_it_is_told_and_goes_with_a_pruning():
    pruning = ChannelPruning(0.5, [2], criterion="batchnorm", selection="global", verbose=False)
    module = fitted(ScaleSparsity(0.05, until=2), pruning)
    assert pruning.events
    assert len(scales(module)) < len(scales(Classifier()))
    torch.testing.assert_close(
        dict(fitted(ScaleSparsity(0.05, until=0)).state_dict()), dict(fitted().state_dict()), rtol=0, atol=0
    )


def test_a_penalty_is_positive():
    with pytest.raises(ArgumentError, match="penalty must be positive"):
        ScaleSparsity(0.0)
