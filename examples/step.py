"""One step of RLRT with the numbers of one rollout: ``python examples/step.py > docs/step.md`` writes the page.

The step is the first step of ``python -m rlrt.run method=rlrt``: same prompts, same seeds, same rollouts. The package computes
the numbers; ``tests/test_step_page.py`` compares the page with what this script prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.schema import Settings
from rlrt.execution.build import build_learner
from rlrt.methods.rlrt import teacher_weight
from rlrt.sampling.sampler import Sampler
from rlrt.sampling.source import Source
from rlrt.training.batch import signals_of
from rlrt.training.learner import Learner
from rlrt.training.update import StepResult, learn
from rlrt.types import Rollout

OVERRIDES = ("method=rlrt", "device=cpu")
COLUMNS = ("log P_S", "log P_T", "D", "weight", "factor", "token advantage", "loss term", "gradient")

PAGE = """# One step of RLRT, number by number

The page follows one rollout of the embedded model through the first step of `python -m rlrt.run method=rlrt`.
`python examples/step.py > docs/step.md` wrote the page. `examples/one_page.py` has the same step as code without the package.

## Prompt and response

The prompt asks for {target} from the numbers {numbers}:

    {student_prompt}

The student samples the response at temperature 1, token by token:

    {response}

In the package: `rlrt/model/prompting.py:PromptBuilder.student`, `rlrt/engines/hf.py:HfEngine.sample`.

## Reward

The verifier checks the response. Each operation must be right and must use each number once, every value must stay within 0 and
99, and the last value must be the target. The response passes, so the reward of the rollout is R = {reward}.

In the package: `rlrt/tasks/countdown.py:Countdown.grade`.

## Group

The student samples {size} responses to each of the {prompts} prompts of the step. The {size} rollouts of one prompt are a
group. The page follows rollout {number} of this group:

{group}

In the package: `rlrt/sampling/source.py:Source.take`, `rlrt/sampling/sampler.py:Sampler.__call__`.

## Advantage

The mean reward of the group is {mean}, and the standard deviation is {std}. The advantage of the rollout is
A = ({reward} - {mean}) / {std} = {advantage}. A group whose rewards are all equal has A = 0 and teaches nothing.

In the package: `rlrt/methods/grpo.py:group_advantage`.

## Teacher context

The teacher is the student itself with another prompt. The teacher's prompt shows a correct sibling: the first correct
rollout of the group with another text. The teacher samples nothing; the teacher scores the response that the student sampled.

    {teacher_prompt}

In the package: `rlrt/methods/contexts.py:Sibling.texts`, `rlrt/training/batch.py:teacher_rows`,
`rlrt/model/prompting.py:PromptBuilder.teacher`.

## D

For each token of the response, D = log P_S - log P_T: the log-probability under the student minus the log-probability under
the teacher. D is largest at token {high}: the probability is {high_s} under the student and {high_t} under the teacher.
D is smallest at token {low}: the probability is {low_s} under the student and {low_t} under the teacher. Where
arithmetic or the format leaves only one token, student and teacher are both sure of the token, and D is 0.

In the package: `rlrt/training/scoring.py:update_pass` (student), `rlrt/training/scoring.py:score_before_update` (teacher),
`rlrt/methods/rlrt.py:TeacherWeight.__call__` (D).

## Weight

The weight of a token is exp(sign(A) D), clipped to the range from {low_clip} to {high_clip} (eps_w = {eps_w}). A is positive
here, so a token that the teacher did not expect has a weight above 1. The factor mixes the weight with 1: factor = (1 - lam) +
lam weight with lam = {lam}. The token advantage is A times the factor. A wrong rollout has the factor 1 at every token, and so
has a correct rollout without a correct sibling.

In the package: `rlrt/methods/rlrt.py:teacher_weight`, `rlrt/methods/rlrt.py:TeacherWeight.__call__`.

{table}

The columns "loss term" and "gradient" are in thousandths; the next two paragraphs explain both columns.

## Loss

The step has N = {tokens} response tokens in {rollouts} rollouts, and every token counts alike. The policy ratio is 1, since
the step has one mini-batch and the policy is still the policy that sampled. So clipping changes nothing, and the loss term of a
token is -(token advantage) / N.

In the package: `rlrt/methods/grpo.py:clipped_loss`, `rlrt/methods/aggregate.py:token_weights`,
`rlrt/training/loss.py:micro_loss`.

## Gradient

The policy ratio is 1, but the gradient of the policy ratio is the gradient of log P_S. The derivative of log P_S with respect
to the logit of the sampled token is 1 - P_S (softmax), so the gradient of the loss term with respect to that logit is
(token advantage) (P_S - 1) / N. A negative gradient raises the logit. A token that the student is sure of (P_S near 1) has
almost no gradient, whatever the weight is. The trainer has no code for this formula; autograd computes the gradient.

In the package: `rlrt/training/loss.py:minibatch_step`.

## The step

The loss of the step is the sum of the loss terms of all {tokens} tokens: {loss}. The gradient of the loss over all parameters
has the norm {norm}; a norm above {max_norm} would be clipped. AdamW then takes one step with learning rate {lr}. A teacher
scored {taught} correct rollouts of the step; the mean of D over the tokens of these rollouts is {gap}.

In the package: `rlrt/training/update.py:learn` (the step as a whole), `rlrt/model/policy.py:Policy.step`.
"""


@dataclass
class Step:
    """The first step of a run.

    Attributes:
        settings, learner: of the run.
        rollouts: of the step.
        advantage_B: the advantage of each rollout.
        result: what the update left.
    """

    settings: Settings
    learner: Learner
    rollouts: list[Rollout]
    advantage_B: Tensor
    result: StepResult


def first_step() -> Step:
    """Run the first step."""
    settings = load(composed(OVERRIDES), overrides=OVERRIDES)
    settings.data.prepare()
    learner = build_learner(settings)
    sampler = Sampler(settings.engine, learner.policy, learner.builder, settings.data, settings.seed)
    rollouts = Source(sampler, settings.train, settings.seed).take(1).rollouts
    signals = signals_of(rollouts, 1, learner.policy.special_ids)
    advantage_B = learner.method.advantage(signals)
    return Step(settings, learner, rollouts, advantage_B, learn(learner, rollouts, signals, settings.train.lr))


def choose(step: Step) -> int:
    """Return the first rollout that had a teacher and has one attempt, as its sibling has."""
    for i, (rollout, sibling) in enumerate(zip(step.rollouts, step.result.shown, strict=True)):
        if sibling is not None and ";" not in sibling + rollout.text:
            return i
    raise LookupError("no rollout of the step fits the page")


def token_columns(step: Step, i: int) -> dict[str, Tensor]:
    """Return the numbers of every token of rollout ``i`` by column; the loss term and the gradient in thousandths."""
    length = len(step.rollouts[i].generation.token_ids)
    logp, gap, factor, advantage = (step.result.tokens[n][i, :length] for n in ("logp", "gap", "weight", "advantage"))
    weight = teacher_weight(gap[None], step.advantage_B[i, None], step.learner.method.credit.epsilon_w, True)[0]
    thousandth = advantage * 1000 / token_count(step)
    columns = (logp, logp - gap, gap, weight, factor, advantage, -thousandth, thousandth * (logp.exp() - 1))
    return dict(zip(COLUMNS, columns, strict=True))


def token_count(step: Step) -> int:
    """Return the number of response tokens of the step."""
    return sum(len(rollout.generation.token_ids) for rollout in step.rollouts)


def number(value: Any) -> str:
    """Write a number with three decimals, and no minus sign before a zero."""
    return f"{round(float(value), 3) + 0.0:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page() -> str:
    """Return the page."""
    step = first_step()
    i = choose(step)
    settings, learner, metrics, rollout = step.settings, step.learner, step.result.metrics, step.rollouts[i]
    credit, builder, decode = learner.method.credit, learner.builder, learner.policy.tokenizer.decode
    target, numbers = rollout.prompt.text.split(":")
    group = [r for r in step.rollouts if r.group == rollout.group]
    reward = torch.tensor([r.grade.reward for r in group])
    columns = token_columns(step, i)
    names = [f"{n} `{token}`" for n, token in enumerate(learner.policy.spell(rollout.generation.token_ids), 1)]
    tokens = [[name, *(number(column[t]) for column in columns.values())] for t, name in enumerate(names)]
    high, low = int(columns["D"].argmax()), int(columns["D"].argmin())
    student, teacher = columns["log P_S"].exp(), columns["log P_T"].exp()
    return PAGE.format(
        target=target,
        numbers=", ".join(numbers.split()),
        student_prompt=decode(builder.student(rollout.prompt)),
        response=decode(rollout.generation.token_ids),
        reward=f"{rollout.grade.reward:g}",
        size=len(group),
        prompts=settings.train.prompts_per_step,
        number=rollout.sample + 1,
        group=table(
            ["rollout", "reward", "response"],
            [[str(r.sample + 1), f"{r.grade.reward:g}", f"`{r.text}`"] for r in group],
        ),
        mean=number(reward.mean()),
        std=number(reward.std()),
        advantage=number(step.advantage_B[i]),
        teacher_prompt=decode(builder.teacher(rollout.prompt, step.result.shown[i])),
        high=names[high],
        high_s=number(student[high]),
        high_t=number(teacher[high]),
        low=names[low],
        low_s=number(student[low]),
        low_t=number(teacher[low]),
        low_clip=f"{1 - credit.epsilon_w:g}",
        high_clip=f"{1 + credit.epsilon_w:g}",
        eps_w=credit.epsilon_w,
        lam=credit.lambda_init,
        table=table(["token", *COLUMNS], tokens),
        tokens=token_count(step),
        rollouts=len(step.rollouts),
        loss=number(metrics["policy/loss"]),
        norm=number(metrics["policy/grad_norm"]),
        max_norm=f"{settings.train.max_grad_norm:g}",
        lr=settings.train.lr,
        taught=sum(text is not None for text in step.result.shown),
        gap=number(metrics["rlrt/gap_mean"]),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(page(), end="")
