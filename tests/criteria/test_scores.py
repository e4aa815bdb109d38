"""Criteria of users that break what they promise."""

import math

import pytest
import torch
from torch import nn

from lit_prune.criteria import Evidence, checked_scores
from tests.toys import Answers, two_groups


def fresh():
    return torch.arange(8.0)


def with_value(value):
    scores = fresh()
    scores[3] = value
    return {"0": scores}


@pytest.fixture(scope="module")
def evidence():
    return two_groups()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([fresh()], TypeError, "Answers must return a dict from group names to scores, but returned a list"),
        (None, TypeError, "returned a NoneType"),
        (
            {"0": fresh()[:3]},
            ValueError,
            r"each of the 8 channels of group '0'.*shape \(8,\), but returned shape \(3,\)",
        ),
        ({"0": fresh()[:, None]}, ValueError, r"returned shape \(8, 1\)"),
        ({"0": torch.tensor(1.0)}, ValueError, r"returned shape \(\)"),
        ({"0": fresh().tolist()}, TypeError, "real tensor of shape .*returned a list"),
        ({"0": fresh().numpy()}, TypeError, "returned a ndarray"),
        ({"0": fresh().to(torch.complex64)}, TypeError, "real tensor"),
        (with_value(math.nan), ValueError, "Answers scores 1 of the 8 channels of group '0' with NaN"),
        (with_value(math.inf), ValueError, "NaN or infinity"),
        ({"layer0": fresh()}, ValueError, "Answers scores 'layer0', which is not a group"),
        ({0: fresh()}, ValueError, "scores 0, which is not a group"),
    ],
)
def test_scores(evidence, answer, error, message):
    with pytest.raises(error, match=message):
        checked_scores(Answers(answer), evidence)


def test_scores_that_keep_the_promise(evidence):
    assert set(checked_scores(Answers({"0": fresh(), "2": fresh()[:6].int()}), evidence)) == {"0", "2"}
    assert checked_scores(Answers({}), evidence) == {}
    fewer = Evidence(evidence.network, evidence.graph, evidence.groups[:1])
    assert set(checked_scores(Answers({"0": fresh(), "2": fresh()[:6]}), fewer)) == {"0"}
    trained = nn.Parameter(fresh())
    assert not checked_scores(Answers({"0": trained}), evidence)["0"].requires_grad


def test_a_criterion_that_fails_is_named(evidence):
    with pytest.raises(ValueError, match="Answers failed: ZeroDivisionError: division by zero"):
        checked_scores(Answers(lambda evidence: 1 / 0), evidence)
