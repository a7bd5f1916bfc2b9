"""Entropy bonus: L -= c_H * mean over tokens of H_t, the policy's exact entropy with its gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.method import Auxiliary
from rlrt.methods.signals import Distributions


def entropy(logp_NV: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """H = -sum_v p log p, nats; differentiable. Accepts any leading shape."""
    return -(logp_NV.exp() * logp_NV).sum(-1)


@dataclass
class EntropyBonus(Auxiliary):
    """Touches every rollout, also where the advantage is 0.

    With ``entropy_target`` the coefficient adapts: c_H <- max(0, c_H + entropy_rate * (target - H)) after each step.
    """

    entropy_coef: float = key("weight c_H of the bonus (its start, where it adapts)", least=0)
    entropy_target: float | None = key("entropy toward which c_H adapts; null: c_H is constant", "nats", least=0)
    entropy_rate: float = key("how fast c_H adapts", "1/nats", least=0)
    _coef: float | None = field(default=None, init=False)

    @property
    def coefficient(self) -> float:
        """c_H now."""
        return self.entropy_coef if self._coef is None else self._coef

    def __call__(self, distributions: Distributions) -> Tensor:
        """-c_H H at each token."""
        return -self.coefficient * entropy(distributions.logp_NV)

    def observe(self, entropy: float) -> None:
        """Adapt the coefficient."""
        if self.entropy_target is not None:
            self._coef = max(0.0, self.coefficient + self.entropy_rate * (self.entropy_target - entropy))

    def metrics(self) -> dict[str, float]:
        """c_H now."""
        return {"policy/entropy_coef": self.coefficient}

    def state_dict(self) -> dict[str, float]:
        """The adapted coefficient."""
        return {} if self._coef is None else {"coef": self._coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over the adapted coefficient."""
        self._coef = state.get("coef")
