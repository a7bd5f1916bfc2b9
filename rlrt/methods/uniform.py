"""No token credit: every token of a rollout has the rollout's advantage."""

from __future__ import annotations

from dataclasses import dataclass

from rlrt.methods.method import Credit


@dataclass
class UniformCredit(Credit):
    """Every token gets its rollout's advantage, as in GRPO and its relatives."""
