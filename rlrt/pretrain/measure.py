"""What a start must show, measured on held-out problems and recorded beside the weights as ``start.json``."""

from __future__ import annotations

from typing import Any

import torch

from rlrt.model.forward import Row, pad, score
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.sampling.sampler import Sampler
from rlrt.training.contexts import sibling_contexts
from rlrt.training.evaluation import Suite, evaluate
from rlrt.types import Prompt, Rollout, Sampling

SAMPLES = 8


class _WithExample(PromptBuilder):
    """Writes every prompt in the teacher's format, shown its reference solution."""

    def student(self, prompt: Prompt) -> list[int]:
        assert prompt.solution is not None
        return self.teacher(prompt, prompt.solution)


def start_numbers(model: Any, tokenizer: Any, engine: Any, task: Any, prompt: str, template: str) -> dict[str, float]:
    """Accuracy without and with a correct example, and the gap D on correct rollouts.

    Args:
        model, tokenizer: what is measured.
        engine: samples; its temperature is used.
        task: a prepared task.
        prompt, template: the model's prompt template and the teacher's.

    Returns:
        the evaluation's metrics, ``teacher/avg_at_8`` and ``teacher/gain`` (with an example, and times as often),
        ``gap/abs_mean`` (nats, correct rollouts with a sibling).
    """
    policy = Policy(model, tokenizer, torch.optim.SGD(model.parameters(), lr=0.0), engine.temperature)
    plain, shown = (cls(tokenizer, "plain", prompt, None, template) for cls in (PromptBuilder, _WithExample))
    sampler = Sampler(engine, policy, plain, task, seed=0)
    numbers = evaluate([Suite("", sampler, task.heldout)], SAMPLES, Sampling(engine.temperature))
    with_example = Sampler(engine, policy, shown, task, seed=0)(task.heldout, SAMPLES, ("evaluation",))
    share = sum(r.grade.correct for r in with_example) / len(with_example)
    numbers["teacher/avg_at_8"] = share
    numbers["teacher/gain"] = share / numbers[f"eval/avg_at_{SAMPLES}"]
    numbers["gap/abs_mean"] = gap_on_correct(policy, plain, sampler(task.heldout, SAMPLES, ("evaluation",)))
    return {name: round(value, 6) for name, value in numbers.items()}


def gap_on_correct(policy: Policy, builder: PromptBuilder, rollouts: list[Rollout]) -> float:
    """Mean |D| over the tokens of correct rollouts that have a correct sibling, nats."""
    student, teacher = [], []
    for rollout, context in zip(rollouts, sibling_contexts(rollouts, "plain"), strict=True):
        if rollout.grade.correct and context is not None:
            response = rollout.generation.token_ids
            student.append(Row(rollout.prompt_ids, response))
            teacher.append(Row(builder.teacher(rollout.prompt, context), response))
    width = max(len(row.response_ids) for row in student)
    gap = (
        score(policy.model, student, policy.temperature, 16384, width)[0]
        - score(policy.model, teacher, policy.temperature, 16384, width)[0]
    )
    mask = pad([torch.ones(len(row.response_ids)) for row in student], width).bool()
    return float(gap[mask].abs().double().mean())
