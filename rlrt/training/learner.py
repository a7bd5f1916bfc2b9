"""What an update needs besides rollouts, and what it reads of them: the teacher's contexts, log-probabilities, entropies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlrt.distributed.world import ALONE, World
from rlrt.methods.method import Method, context_of
from rlrt.methods.signals import Signals, TeacherSignal
from rlrt.model.forward import Row, score
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.training.contexts import reference_text, sibling_contexts, sibling_of_kind
from rlrt.training.teacher import Teacher
from rlrt.types import Rollout


@dataclass
class Learner:
    """Everything an update needs besides the rollouts.

    Attributes:
        policy, method, teacher, builder: the parts.
        reference: the step-0 model for the KL penalty, or None.
        train, teacher_config: the config sections.
        max_new_tokens: of the engine; the constant denominator of Dr.GRPO.
        context_length: tokens that a prompt and its response may have together.
        world: the processes that share scoring and update.
        importance_clip: where rollouts come from an engine with weights or arithmetic of its own, the largest importance weight
            of a token; None for the trainer's own weights.
    """

    policy: Policy
    method: Method
    teacher: Teacher
    builder: PromptBuilder
    reference: Any
    train: Any
    teacher_config: Any
    max_new_tokens: int
    context_length: int
    world: World = ALONE
    importance_clip: float | None = None

    def teacher_views(
        self, rollouts: Sequence[Rollout], wanted_B: Tensor
    ) -> tuple[list[list[Row | None]], dict[str, float]]:
        """For every context that the method reads, the teacher's sequence of every rollout that wants one and can have one;
        and the counts of both, by the first context."""
        views, too_long = [], 0
        written: dict[tuple[str, str, str], list[int]] = {}  # the rollouts of a group share a context
        limit = min(self.teacher_config.max_context_tokens, self.context_length - self.max_new_tokens)
        for kind in self.method.credit.contexts():
            rows: list[Row | None] = []
            for rollout, text, wanted in zip(rollouts, self.texts(rollouts, kind), wanted_B.tolist(), strict=True):
                row = None
                if wanted and text is not None:
                    shown = (rollout.prompt.text, rollout.prompt.instruction, text)
                    prompt_ids = written.get(shown) or self.builder.teacher(rollout.prompt, text)
                    written[shown] = prompt_ids
                    if len(prompt_ids) <= limit:
                        row = Row(prompt_ids, rollout.generation.token_ids)
                    else:
                        too_long += 1
                rows.append(row)
            views.append(rows)
        wanted, has = int(wanted_B.sum()), sum(r is not None for r in views[0])
        return views, {
            "teacher/share": has / len(rollouts),
            "teacher/wanted_without_share": (wanted - has) / len(rollouts),
            "teacher/too_long_share": too_long / len(rollouts) / len(views),
        }

    def texts(self, rollouts: Sequence[Rollout], kind: str) -> list[str | None]:
        """What the teacher is shown for each rollout in one of a credit's contexts."""
        context = context_of(kind)
        if context is None:
            raise AssertionError(f"{kind!r} is no teacher context: the config check lets none through")
        verdict, number = context
        if verdict != "default":
            return sibling_of_kind(rollouts, verdict == "correct", number)
        if self.teacher_config.context == "sibling":
            return sibling_contexts(rollouts, self.teacher_config.on_unique_correct)
        return [reference_text(r.prompt, self.teacher_config.context) for r in rollouts]

    def scores(self, requests: Sequence[tuple[Any, Sequence[Row]]], width: int) -> list[tuple[Tensor, Tensor]]:
        """logp_BT and entropy_BT of each request's rows under its model; requests to one model share one forward pass."""
        found: list[tuple[Tensor, Tensor]] = [(torch.zeros(0, width), torch.zeros(0, width))] * len(requests)
        for model in {id(m): m for m, _ in requests}.values():
            mine = [i for i, (m, rows) in enumerate(requests) if m is model and rows]
            if not mine:
                continue
            together = [row for i in mine for row in requests[i][1]]
            logp, entropy = score(model, together, self.policy.temperature, self.train.token_budget, width, self.world)
            start = 0
            for i in mine:
                end = start + len(requests[i][1])
                found[i], start = (logp[start:end], entropy[start:end]), end
        return found

    def score(
        self, signals: Signals, rows: Sequence[Row], wanted_B: Tensor, views: Sequence[Sequence[Row | None]]
    ) -> None:
        """Fill in what a credit reads: the student's log-probabilities and entropies of the wanted rollouts, and the
        teacher's in every context of those that have it; both by the trainer's own forward path, in one pass where student
        and teacher are one model."""
        width = signals.mask_BT.shape[1]
        index = wanted_B.nonzero()[:, 0]
        requests: list[tuple[Any, Sequence[Row]]] = [(self.policy.model, [rows[i] for i in index.tolist()])]
        requests += [(self.teacher.model, [row for row in view if row is not None]) for view in views]
        (logp, entropy), *taught = self.scores(requests, width)
        if len(index):
            signals.logp_BT[index], signals.entropy_BT[index] = logp, entropy
            signals.scored_B[index] = True
        signals.teachers = []
        for view, (logp, entropy) in zip(views, taught, strict=True):
            has_B = torch.tensor([row is not None for row in view])
            signal = TeacherSignal(has_B, torch.zeros_like(signals.logp_BT), torch.zeros_like(signals.logp_BT))
            signal.logp_BT[has_B], signal.entropy_BT[has_B] = logp, entropy
            signals.teachers.append(signal)
