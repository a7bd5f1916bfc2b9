"""DIVER (arXiv 2509.26209): a rollout's diversity in its group, scaled by its correctness, added to the reward.

    R' = R + coef * correct * diversity,   then GRPO's group normalisation

``textual``: 1 - mean over siblings of symmetric BLEU-5 (n-gram weights .02 .1 .15 .25 .38). ``formula``: the share of a
rollout's formulas that no sibling has, at most .68. The released code differs from the paper; this follows the paper. A rollout
without siblings, or without formulas, has diversity 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.grpo import group_advantage
from rlrt.methods.method import Advantage
from rlrt.methods.signals import Signals

WEIGHTS = (0.02, 0.1, 0.15, 0.25, 0.38)
"""Of 1-grams to 5-grams; they sum to .9, as published."""
CHARACTERS = 1000
"""Of a text that are compared."""
FORMULA = re.compile(r"\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]|[^\s,;$]+=[^\s,;$]+", re.DOTALL)
"""Mathematics in LaTeX, or an equation without white space."""
FORMULA_CAP = 0.68


def bleu(candidate: Sequence[Hashable], reference: Sequence[Hashable], smoothing: float) -> float:
    """BLEU of one sequence against another: brevity penalty times exp(sum_n w_n log p_n), p_n the clipped precision of n-grams.

    Orders longer than the candidate are left out. 0 for an empty sequence on either side.

    Args:
        smoothing: matches that an order without any is counted with; 0: one such order makes the BLEU 0.
    """
    if not candidate or not reference:
        return 0.0
    total = 0.0
    for n, weight in enumerate(WEIGHTS, 1):
        if len(candidate) < n:
            break
        grams = Counter(tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1))
        others = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        matches = sum(min(count, others[gram]) for gram, count in grams.items()) or smoothing
        if not matches:
            return 0.0
        total += weight * math.log(matches / grams.total())
    brevity = min(0.0, 1.0 - len(reference) / len(candidate))
    return math.exp(brevity + total)


def textual_diversity(group: Sequence[Sequence[Hashable]], smoothing: float) -> list[float]:
    """For each sequence of a group, 1 - mean over the others of (BLEU(a, b) + BLEU(b, a)) / 2; ``smoothing`` as in ``bleu``."""
    size = len(group)

    def both(i: int, j: int) -> float:
        return (bleu(group[i], group[j], smoothing) + bleu(group[j], group[i], smoothing)) / 2

    pairs = {(i, j): both(i, j) for i in range(size) for j in range(i)}
    return [
        1.0 - math.fsum(pairs[max(i, j), min(i, j)] for j in range(size) if j != i) / (size - 1) if size > 1 else 0.0
        for i in range(size)
    ]


def formula_diversity(group: Sequence[str]) -> list[float]:
    """For each text of a group, the share of its different formulas that no other text has, at most .68."""
    sets = [{re.sub(r"\s+", "", f) for f in FORMULA.findall(text)} for text in group]
    result = []
    for i, mine in enumerate(sets):
        others: set[str] = set().union(*(s for j, s in enumerate(sets) if j != i))
        result.append(min(FORMULA_CAP, len(mine - others) / len(mine)) if mine and len(sets) > 1 else 0.0)
    return result


@dataclass
class DiversityAdvantage(Advantage):
    """GRPO's advantage of a reward that also counts diversity."""

    shapes_rewards = True

    scale_by_std: bool = key("divide a group's advantages by their standard deviation")
    diversity_coef: float = key("weight of the diversity in the reward", least=0)
    diversity_kind: str = key("what is compared", choices=("textual", "formula"))
    diversity_unit: str = key("what textual diversity counts n-grams of", choices=("tokens", "words"))
    diversity_smoothing: float = key(
        "matches that an n-gram order without any is counted with; 0: one such order makes a BLEU 0", least=0, most=1
    )
    diversity_steps: int = key("steps for which diversity is rewarded", "steps", least=0)

    def __call__(self, signals: Signals) -> Tensor:
        """advantage_B."""
        reward_B = signals.reward_B
        if self.diversity_coef and signals.step <= self.diversity_steps:
            bonus = self.diversity(signals) * signals.correct_B
            reward_B = reward_B + self.diversity_coef * bonus.to(reward_B.dtype)
        return group_advantage(reward_B, signals.group_B, self.scale_by_std)

    def diversity(self, signals: Signals) -> Tensor:
        """Each rollout's diversity among those of its group."""
        result = torch.zeros(len(signals), dtype=torch.float64)
        for group in signals.group_B.unique().tolist():
            index = (signals.group_B == group).nonzero()[:, 0]
            if self.diversity_kind == "formula":
                values = formula_diversity([signals.text_B[i] for i in index.tolist()])
            elif self.diversity_unit == "words":
                words = [signals.text_B[i][:CHARACTERS].split() for i in index.tolist()]
                values = textual_diversity(words, self.diversity_smoothing)
            else:
                tokens = [signals.token_BT[i][signals.mask_BT[i]].tolist()[:CHARACTERS] for i in index.tolist()]
                values = textual_diversity(tokens, self.diversity_smoothing)
            result[index] = torch.tensor(values, dtype=torch.float64)
        return result
