"""Checks what a criterion returns before anything rests on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_prune.common.answers import answered, check_names
from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.errors import ArgumentError, ArgumentTypeError, LitPruneError
from lit_prune.graph import ChannelGroup


def checked_scores(criterion: Criterion, evidence: Evidence) -> dict[str, Tensor]:
    """What ``criterion`` says of the groups that take part.

    Raises:
        ArgumentTypeError: If it is not a mapping from names to tensors.
        ArgumentError: If a name is unknown, or scores have another shape than ``(size,)`` or are not finite; the
            message names the criterion and the group.
    """
    who = type(criterion).__name__
    try:
        answer = criterion(evidence)
    except (ValueError, RuntimeError, LitPruneError):
        raise
    except Exception as error:
        raise ArgumentError(f"{who} failed: {type(error).__name__}: {error}") from error
    scores = answered(f"{who} must return a dict from group names to scores", answer)
    check_names(f"{who} scores", scores, (group.name for group in evidence.graph.groups))
    return {
        group.name: _checked_score(who, group, scores[group.name]) for group in evidence.groups if group.name in scores
    }


def _checked_score(who: str, group: ChannelGroup, score: Any) -> Tensor:
    if not isinstance(score, Tensor) or score.is_complex():
        raise ArgumentTypeError(
            f"{who} must score group {group.name!r} by a real tensor of shape ({group.size},), but returned a "
            f"{type(score).__name__}."
        )
    if score.shape != (group.size,):
        raise ArgumentError(
            f"{who} must return one score for each of the {group.size} channels of group {group.name!r}, a tensor of "
            f"shape ({group.size},), but returned shape {tuple(score.shape)}."
        )
    wrong = int((~torch.isfinite(score)).sum())
    if wrong:
        raise ArgumentError(
            f"{who} scores {wrong} of the {group.size} channels of group {group.name!r} with NaN or infinity, which "
            "rank nothing. Look whether the weights are finite; a group that can't be judged is left out of the dict."
        )
    return score.detach()
