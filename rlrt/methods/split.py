"""D of RLRT in two parts, by the view P_R of the solution without the question (from Purified OPSD, arXiv 2607.02234).

    D = log P_S - log P_T = (log P_S - log P_R) + (log P_R - log P_T)
                             wording               question

The first part is the distance from the solution's own wording: a model that is not told what is asked has it too. The second is
minus what the question adds to the solution. A control: if weights by ``wording`` do what weights by D do, the question has no
part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlrt.methods.signals import Signals, mean_where

PARTS = ("whole", "split", "wording", "question")
"""What weighs a token: D; D, and its parts are logged; one of the parts, and both are logged."""


@dataclass(frozen=True)
class SplitGap:
    """D and its parts.

    Attributes:
        whole_BT, wording_BT, question_BT: nats; zero outside the mask.
        has_B: bool; the rollouts of which both views are there.
    """

    whole_BT: Tensor
    wording_BT: Tensor
    question_BT: Tensor
    has_B: Tensor

    def part(self, name: str) -> Tensor:
        """The gap that a value of ``method.gap`` names."""
        return {"wording": self.wording_BT, "question": self.question_BT}.get(name, self.whole_BT)

    def metrics(self, where_BT: Tensor) -> dict[str, float]:
        """Means of the parts over the tokens ``where_BT`` of rollouts with both views, and the wording's share of D.

        The share is sum(wording * D) / sum(D^2); that of the question is the rest to 1. It is below 0 or above 1 where the
        parts point against each other.
        """
        where_BT = where_BT & self.has_B[:, None]
        if not bool(where_BT.any()):
            return {}
        measured = {"wording": self.wording_BT, "question": self.question_BT}
        values = {f"rlrt/gap_{name}_mean": mean_where(part, where_BT) for name, part in measured.items()}
        values |= {f"rlrt/gap_{name}_abs_mean": mean_where(part.abs(), where_BT) for name, part in measured.items()}
        whole, wording = self.whole_BT[where_BT].double(), self.wording_BT[where_BT].double()
        if bool((whole != 0).any()):
            values["rlrt/gap_wording_share"] = float((wording * whole).sum() / (whole * whole).sum())
        return values


def split_gap(signals: Signals) -> SplitGap:
    """The parts of D from the first two teacher contexts: the solution with the question, and without it."""
    teacher, alone = signals.teachers[:2]
    zeros_BT = torch.zeros_like(signals.logp_BT)
    has_B = teacher.has_B & alone.has_B
    where_BT = signals.mask_BT & has_B[:, None]
    return SplitGap(
        whole_BT=torch.where(where_BT, signals.logp_BT - teacher.logp_BT, zeros_BT),
        wording_BT=torch.where(where_BT, signals.logp_BT - alone.logp_BT, zeros_BT),
        question_BT=torch.where(where_BT, alone.logp_BT - teacher.logp_BT, zeros_BT),
        has_B=has_B,
    )
