"""The four slots and how they make a method.

    sequence advantage  |  token credit  |  policy loss  |  auxiliary losses

A slot is a dataclass whose fields are its config keys and which is called on tensors. Base classes hold what a slot may
declare; the trainer reads the declarations and knows no method by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlrt.methods.contexts import Context, Default, context_of
from rlrt.methods.declared import Ablation, Alarm, Curve
from rlrt.methods.signals import Credited, Distributions, Signals, TeacherSignal
from rlrt.methods.statistic import Statistic


class Slot:
    """Base of all slots: declarations, and a state that is checkpointed (none by default)."""

    train_keys: ClassVar[tuple[str, ...]] = ()
    """Fields that take their value from the key of that name in ``train``, not from ``method``."""
    alarms: ClassVar[tuple[Alarm, ...]] = ()
    """Metrics that are watched while a run trains."""
    curves: ClassVar[tuple[Curve, ...]] = ()
    """Metrics that the report draws."""
    ablation: ClassVar[Ablation | None] = None
    """Keys that the report draws the final metric against."""
    tags: ClassVar[Mapping[str, str]] = {}
    """MLflow tags of a run: the tag's name, and the key of ``method`` whose value it shows."""

    def state_dict(self) -> dict[str, float]:
        """Numbers that the slot carries from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what ``state_dict`` gave."""

    def metrics(self) -> dict[str, float]:
        """Numbers of the slot's own to log each step."""
        return {}


class Advantage(Slot):
    """Rewards to one advantage per rollout."""

    needs_group: ClassVar[bool] = True
    """True where a group of one rollout carries no signal."""
    shapes_rewards: ClassVar[bool] = False
    """True where something is added to the rewards: equal rewards may then have different advantages."""

    def taught(self) -> str | None:
        """The template of the responses that are learned from in place of rollouts (``rlrt.sampling.solutions``); None: the
        policy samples."""
        return None

    def __call__(self, signals: Signals) -> Tensor:
        """advantage_B."""
        raise TypeError(f"{type(self).__name__} does not define __call__")


class Credit(Slot):
    """One advantage per rollout to one per token."""

    batch_statistics: ClassVar[bool] = False
    """True where groups affect each other through statistics of the batch."""
    multiplicative: ClassVar[bool] = True
    """True where a zero advantage stays zero, whatever the teacher says."""
    needs_entropy: ClassVar[bool] = False
    """True where the student's entropy is read."""
    needs_teacher: ClassVar[bool] = False
    """True where ``teacher_rows`` can be anything but empty."""

    def contexts(self) -> Sequence[Context | str]:
        """The teacher contexts that the credit reads, one entry of ``signals.teachers`` each; or their short spellings
        (``rlrt.methods.contexts.context_of``)."""
        return (Default(),)

    def statistics(self) -> Sequence[Statistic]:
        """Statistics of the distributions that the credit reads, of the student and of every teacher context."""
        return ()

    def teacher_rows(self, advantage_B: Tensor, signals: Signals) -> Tensor:
        """Bool_B: the rollouts whose credit a teacher can change. None by default."""
        return torch.zeros_like(signals.correct_B)

    def __call__(self, advantage_B: Tensor, signals: Signals) -> Credited:
        """Every token of a rollout gets its rollout's advantage."""
        return Credited(advantage_B[:, None] * signals.mask_BT)


class PolicyLoss(Slot):
    """Log-probabilities and token advantages to one loss per token."""

    def __call__(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """loss_BT; read only where the mask is True."""
        raise TypeError(f"{type(self).__name__} does not define __call__")

    def clipped(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Bool_BT: tokens whose gradient the trust region holds back. None by default."""
        return torch.zeros_like(logp_BT, dtype=torch.bool)


class Auxiliary(Slot):
    """A loss on whole next-token distributions, added to the policy loss."""

    needs_teacher: ClassVar[bool] = False
    """True where only rollouts with a teacher contribute."""
    exclusive: ClassVar[bool] = False
    """True if rollouts with a teacher skip the policy loss."""
    shared_denominator: ClassVar[bool] = False
    """True where all tokens of the mini-batch make the denominator, as in the policy loss; otherwise this term's own tokens."""

    weighs_tokens: ClassVar[bool] = False
    """True if the term weighs tokens; its teacher entropies are then computed before the loss."""

    has_ratio: ClassVar[bool] = False
    """True if the term multiplies by ``Distributions.ratio_N`` itself."""

    def contexts_beside(self) -> Sequence[Context | str]:
        """The teacher contexts that the term reads beside the first one, which is the config's; none by default."""
        return ()

    def teacher_rows(self, signals: Signals) -> Tensor:
        """Bool_B: the rollouts that this term wants a teacher for. All by default."""
        return torch.ones_like(signals.correct_B)

    def factor(self, step: int) -> float:
        """Factor of the whole term at an update (from 1), for coefficients that follow a schedule; 1 by default."""
        return 1.0

    def token_weights(self, teacher: TeacherSignal, mask_BT: Tensor) -> Tensor:
        """Weights of the term's tokens over a whole mini-batch; asked for where the term declares ``weighs_tokens``.

        Args:
            teacher: the teacher's view of the mini-batch, entropies included.
            mask_BT: bool; the tokens of rollouts that have a teacher.
        """
        raise TypeError(f"{type(self).__name__} does not define token_weights")

    def __call__(self, distributions: Distributions) -> Tensor:
        """loss_N."""
        raise TypeError(f"{type(self).__name__} does not define __call__")

    def observe(self, entropy: float) -> None:
        """Receive the mean entropy of the step's rollouts (nats), for coefficients that adapt."""


def known(values: Sequence[Context | str]) -> list[Context]:
    """Contexts from themselves or their short spellings.

    Raises:
        ValueError: for what is no context.
    """
    contexts = [context for value in values if (context := context_of(value)) is not None]
    if len(contexts) < len(values):
        raise ValueError(f"expected teacher contexts, got {list(values)!r}")
    return contexts


@dataclass
class Method:
    """A choice in each slot.

    Attributes:
        name: how it is called in tables.
        advantage, credit: the first two slots.
        policy_loss: the third, or None for methods that learn from the auxiliary losses alone.
        auxiliary: the fourth; any number of terms.
    """

    name: str
    advantage: Advantage
    credit: Credit
    policy_loss: PolicyLoss | None
    auxiliary: list[Auxiliary]

    def slots(self) -> dict[str, Slot]:
        """Every filled slot by a stable name."""
        slots: dict[str, Slot] = {"advantage": self.advantage, "credit": self.credit}
        if self.policy_loss is not None:
            slots["policy_loss"] = self.policy_loss
        return slots | {f"auxiliary_{i}": term for i, term in enumerate(self.auxiliary)}

    @property
    def needs_teacher(self) -> bool:
        """True if a slot asks for a teacher."""
        return self.credit.needs_teacher or self.distils

    @property
    def distils(self) -> bool:
        """True if an auxiliary loss reads the teacher's distributions."""
        return any(term.needs_teacher for term in self.auxiliary)

    def contexts(self) -> list[Context]:
        """The teacher contexts of the credit, and after them those that dense terms read beside the first.

        Raises:
            ValueError: for what is no context.
        """
        contexts = known(self.credit.contexts())
        for term in self.auxiliary:
            contexts += [context for context in known(term.contexts_beside()) if context not in contexts]
        return contexts

    @property
    def credit_contexts(self) -> int:
        """How many of ``contexts()`` the credit reads; they are the first ones."""
        return len(self.credit.contexts())

    def places_beside(self, term: Auxiliary) -> list[int]:
        """The places in ``contexts()`` of the contexts that a term reads beside the first."""
        contexts = self.contexts()
        return [contexts.index(context) for context in known(term.contexts_beside())]

    def dense_places(self) -> list[int]:
        """The places in ``contexts()`` of those that dense terms read. A rollout that lacks one of them has no teacher for any
        dense term."""
        beside = {place for term in self.auxiliary if term.needs_teacher for place in self.places_beside(term)}
        return sorted({0} | beside) if self.distils else []

    def declared(self) -> dict[str, Any]:
        """The slots' declarations for report and MLflow, as plain values for a run's manifest."""
        slots = list(self.slots().values())
        return {
            "curves": [dataclasses.asdict(curve) for slot in slots for curve in slot.curves],
            "ablations": [dataclasses.asdict(slot.ablation) for slot in slots if slot.ablation is not None],
            "tags": {tag: key for slot in slots for tag, key in slot.tags.items()},
        }

    def teacher_rows(self, advantage_B: Tensor, signals: Signals) -> Tensor:
        """Bool_B: rollouts for which some slot wants a teacher."""
        wanted_B = self.credit.teacher_rows(advantage_B, signals)
        for term in self.auxiliary:
            if term.needs_teacher:
                wanted_B = wanted_B | term.teacher_rows(signals)
        return wanted_B

    @staticmethod
    def taught_rows(term: Auxiliary, has_teacher_B: Tensor, signals: Signals) -> Tensor:
        """Bool_B: rollouts with a teacher that a term wants one for; a teacher may be there for another slot's sake."""
        return has_teacher_B & term.teacher_rows(signals)

    def left_to_terms(self, has_teacher_B: Tensor, signals: Signals) -> Tensor:
        """Bool_B: rollouts that the policy loss leaves to an exclusive term."""
        left_B = torch.zeros_like(has_teacher_B)
        for term in self.auxiliary:
            if term.exclusive:
                left_B = left_B | self.taught_rows(term, has_teacher_B, signals)
        return left_B

    def touched_rows(self, advantage_BT: Tensor, has_teacher_B: Tensor, signals: Signals) -> Tensor:
        """Bool_B: rollouts that some term of the loss touches; the others need no forward and no backward pass."""
        touched = torch.zeros_like(has_teacher_B)
        if self.policy_loss is not None:
            touched = (advantage_BT != 0).any(1)
        for term in self.auxiliary:
            own = self.taught_rows(term, has_teacher_B, signals) if term.needs_teacher else torch.ones_like(touched)
            touched = touched | own
        return touched

    def state_dict(self) -> dict[str, Any]:
        """The state of every slot, for a checkpoint."""
        return {name: slot.state_dict() for name, slot in self.slots().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        for name, slot in self.slots().items():
            slot.load_state_dict(state.get(name, {}))
