"""AntiSD (arXiv 2605.11609): move away from the self-distillation teacher, while it is unsure enough to be worth it.

    u    = log P_T(y_t) - log P_S(y_t)
    phi  = (softplus(u) - log 2) / 2
    A_t  = A - lam phi(u_t),   lam = antisd_lambda g
    g   -> 0 when the batch's median teacher entropy falls under low H_warm,  -> 1 at high H_warm or above, else as it was

H_warm is the mean of that median over the first steps, in which lam = 0. The gate moves once a step: where a live teacher is
scored before each mini-batch, by what the first mini-batch with a teacher shows, at the weights with which the step begins.
phi is 0 at u = 0, bounded below by -log(2)/2, and grows like u/2: what the teacher strongly expects is pushed down, what it
does not expect hardly more than left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from rlrt.keys import key
from rlrt.methods.grpo import MAX_LOG_GAP
from rlrt.methods.method import Credit
from rlrt.methods.signals import Credited, Signals


def repulsion(gap_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """phi(u) = (softplus(u) - log 2) / 2 with u = log P_T - log P_S, clamped to +-20."""
    return (softplus(gap_BT.clamp(-MAX_LOG_GAP, MAX_LOG_GAP)) - math.log(2)) / 2


@dataclass
class Repulsion(Credit):
    """AntiSD's credit; its gate is state, and is checkpointed."""

    needs_teacher = True
    batch_statistics = True
    multiplicative = False

    antisd_lambda: float = key("strength of the push away from the teacher, with an open gate", least=0)
    antisd_low: float = key("share of H_warm under which the gate closes", least=0, most=1)
    antisd_high: float = key("share of H_warm from which the gate opens again", least=1)
    antisd_warm_steps: int = key("steps that measure H_warm, without any push", "steps", least=1)
    _warm: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _open: bool = field(default=True, init=False, repr=False)
    _moved: int = field(default=0, init=False, repr=False)

    def teacher_rows(self, advantage_B: Tensor, signals: Signals) -> Tensor:
        """All rollouts; their teacher's entropy moves the gate also where nothing is pushed."""
        return signals.mask_BT.any(1)

    def __call__(self, advantage_B: Tensor, signals: Signals) -> Credited:
        """A - lam phi(u) on the tokens of rollouts with a teacher."""
        plain_BT = advantage_B[:, None] * signals.mask_BT
        if not signals.teachers:
            return Credited(plain_BT)
        teacher = signals.teachers[0]
        where_BT = signals.mask_BT & teacher.has_B[:, None]
        if not bool(where_BT.any()):
            return Credited(plain_BT)
        median = float(teacher.entropy_BT[where_BT].median())
        warming = self._move_gate(median, signals.step)
        lam = 0.0 if warming or not self._open else self.antisd_lambda
        push_BT = repulsion(teacher.logp_BT - signals.logp_BT) * where_BT
        metrics = {
            "antisd/lambda": lam,
            "antisd/teacher_entropy_median": median,
            "antisd/push_mean": float(push_BT[where_BT].double().mean()),
        }
        return Credited(plain_BT - lam * push_BT, metrics=metrics)

    def _move_gate(self, median: float, step: int) -> bool:
        """Measure, or open and close, at the first call of a step; returns whether it still measures."""
        warming, first = step <= self.antisd_warm_steps, step != self._moved
        self._moved = step
        if first and warming:
            self._warm[step] = median
        elif first and self._warm:
            level = math.fsum(self._warm.values()) / len(self._warm)
            opens, holds = median >= self.antisd_high * level, median >= self.antisd_low * level
            self._open = opens or (self._open and holds)
        return warming

    def state_dict(self) -> dict[str, float]:
        """The medians of the first steps by their step, and the gate.

        A run that ends within a step saves what that step has moved, and its next life runs the step again: a median then
        replaces its own earlier value, and the gate's second move by the same median changes nothing.
        """
        return {f"warm_{step}": value for step, value in self._warm.items()} | {"open": float(self._open)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take them over."""
        warm = {name.removeprefix("warm_"): value for name, value in state.items() if name.startswith("warm_")}
        self._warm = {int(step): value for step, value in warm.items()}
        self._open = bool(state.get("open", 1.0))
