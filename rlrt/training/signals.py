"""A step's rollouts as a method and the trainer's forward path see them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlrt.methods.signals import Signals
from rlrt.model.forward import Row, pad
from rlrt.types import Rollout


def signals_of(rollouts: Sequence[Rollout], step: int, special_ids: Sequence[int], exact: bool = True) -> Signals:
    """What a method may read, before anything is scored (log-probabilities and entropies are still zero).

    Args:
        exact: whether the rollouts were sampled by the weights that are trained now, by the trainer's arithmetic.
    """
    width = max(len(r.generation.token_ids) for r in rollouts)
    token_BT = pad([torch.tensor(r.generation.token_ids) for r in rollouts], width)
    length_B = torch.tensor([len(r.generation.token_ids) for r in rollouts])
    mask_BT = torch.arange(width)[None] < length_B[:, None]
    zeros_BT = torch.zeros(len(rollouts), width)
    return Signals(
        step=step,
        group_B=torch.tensor([r.group for r in rollouts]),
        reward_B=torch.tensor([r.grade.reward for r in rollouts]),
        correct_B=torch.tensor([r.grade.correct for r in rollouts]),
        seed_B=torch.tensor([r.seed for r in rollouts]),
        token_BT=token_BT,
        mask_BT=mask_BT,
        special_BT=torch.isin(token_BT, torch.tensor(list(special_ids), dtype=torch.long)) & mask_BT,
        logp_BT=zeros_BT,
        entropy_BT=zeros_BT.clone(),
        scored_B=torch.zeros(len(rollouts), dtype=torch.bool),
        sampler_logp_BT=None if exact else pad([r.generation.logp_T for r in rollouts], width),
        text_B=[r.text for r in rollouts],
    )


def student_rows(rollouts: Sequence[Rollout]) -> list[Row]:
    """The sequences that the student is scored and trained on."""
    return [Row(r.prompt_ids, r.generation.token_ids) for r in rollouts]
