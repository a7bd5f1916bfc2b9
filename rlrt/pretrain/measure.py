"""Measure the embedded model on held-out problems; ``start.json`` in the weights' folder records the result."""

from __future__ import annotations

from typing import Any

import torch

from rlrt.methods.contexts import Sibling
from rlrt.model.forward import Row, pad, score
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.sampling.sampler import Sampler
from rlrt.training.evaluation import Suite, evaluate
from rlrt.types import Prompt, Rollout, Sampling


class _WithExample(PromptBuilder):
    """Prompt builder that gives every prompt the teacher's format, with the reference solution as context."""

    def student(self, prompt: Prompt) -> list[int]:
        assert prompt.solution is not None
        return self.teacher(prompt, prompt.solution)


def start_numbers(
    model: Any, tokenizer: Any, engine: Any, task: Any, prompt: str, template: str, samples: int = 8
) -> dict[str, float]:
    """Return the accuracy without and with a correct example, and the gap D on correct rollouts.

    Args:
        model, tokenizer: the model and tokenizer to measure.
        engine: engine that samples, at its own temperature.
        task: a prepared task.
        prompt, template: the model's prompt template and the teacher's.
        samples: of each problem.

    Returns:
        the evaluation's metrics (of a mixture also by source), ``teacher/avg_at_k`` (accuracy with an example),
        ``teacher/gain`` (its ratio to the accuracy without one), ``gap/abs_mean`` (nats, correct rollouts with a sibling).
    """
    policy = Policy(model, tokenizer, torch.optim.SGD(model.parameters(), lr=0.0), engine.temperature)
    builders = (PromptBuilder, _WithExample)
    plain, with_solution = (cls(tokenizer, "plain", prompt, None, template, bos="always") for cls in builders)
    sampler = Sampler(engine, policy, plain, task, seed=0)
    sources = dict.fromkeys(p.source for p in task.heldout)
    suites = [Suite(source, sampler, [p for p in task.heldout if p.source == source]) for source in sources]
    numbers = evaluate(suites, samples, Sampling(engine.temperature))
    with_example = Sampler(engine, policy, with_solution, task, seed=0)(task.heldout, samples, ("evaluation",))
    share = sum(r.grade.correct for r in with_example) / len(with_example)
    numbers[f"teacher/avg_at_{samples}"] = share
    numbers["teacher/gain"] = share / numbers[f"eval/avg_at_{samples}"]
    numbers["gap/abs_mean"] = gap_on_correct(policy, plain, sampler(task.heldout, samples, ("evaluation",)))
    return {name: round(value, 6) for name, value in numbers.items()}


def gap_on_correct(policy: Policy, builder: PromptBuilder, rollouts: list[Rollout]) -> float:
    """Return the mean |D| over the tokens of correct rollouts that have a correct sibling, nats."""
    student, teacher = [], []
    for rollout, context in zip(rollouts, Sibling().texts(rollouts), strict=True):
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
