"""The parts that an update needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlrt.distributed.world import ALONE, World
from rlrt.errors import Interrupted
from rlrt.methods.contexts import Context
from rlrt.methods.method import Method
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.training.importance import Rule
from rlrt.training.teacher import Teacher


@dataclass
class Learner:
    """Everything an update needs besides the rollouts.

    Attributes:
        policy, method, teacher, builder: the parts.
        contexts: what the teacher is shown, one entry for each context that the credit or a dense term reads.
        reference: the step-0 model for the KL penalty, or None.
        train: the config section.
        max_context_tokens: the longest prompt that the teacher may have.
        too_long: what a rollout gets whose teacher's prompt does not fit (``teacher.too_long``).
        max_new_tokens: of the engine; the constant denominator of Dr.GRPO.
        context_length: tokens that a prompt and its response may have together.
        world: the ranks that share scoring and update.
        importance: the importance weights of rollouts by an engine with weights or arithmetic of its own.
        asked_to_end: True if the run should end before the step does.
    """

    policy: Policy
    method: Method
    teacher: Teacher
    builder: PromptBuilder
    contexts: Sequence[Context]
    reference: Any
    train: Any
    max_context_tokens: int
    max_new_tokens: int
    context_length: int
    world: World = ALONE
    importance: Rule = Rule()
    too_long: str = "no_teacher"
    asked_to_end: Callable[[], bool] = lambda: False

    def check_stop(self, joint: bool = False) -> None:
        """End the step here if the run should end before the step does.

        Args:
            joint: True where all ranks ask together; else only a run of one process asks.

        Raises:
            Interrupted: then.
        """
        asked = self.world.any(self.asked_to_end()) if joint else self.world.size == 1 and self.asked_to_end()
        if asked:
            raise Interrupted
