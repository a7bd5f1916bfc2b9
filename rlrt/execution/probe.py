"""Does the teacher's context help? Asked once, before a run's first update, on prompts and rollouts of its own.

A few dozen prompts get a group of rollouts each, as in a step. What the teacher is shown of them is what the run's own
context class says. Three things are then measured:

- accuracy: the engine answers from the teacher's prompt too. Each rollout that has a teacher counts once on either side, by its
  own verdict, and by the share right of the answers to its teacher's prompt. So a prompt weighs alike on both sides, and
  choosing rollouts by their siblings favours none: whether a rollout has a correct sibling says nothing about itself;
- D = log P_S - log P_T per token, from the trainer's own forward path, on correct and on wrong rollouts. Over all rollouts of
  the student its mean is a divergence, KL(P_S || P_T), and so not below 0 for the best teacher either: what tells a teacher
  that knows the answer is that D is lower on correct rollouts than on wrong ones;
- room: rollouts that have a context whose prompt is too long.

Seeds are streams of their own (``rlrt.seeds``), so the run's numbers are those that it would have without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from rlrt.config.schema import Settings, Teacher
from rlrt.methods.contexts import Context, Sibling, configured, resolved
from rlrt.methods.declared import Alarm
from rlrt.methods.method import Method
from rlrt.model.forward import Row
from rlrt.sampling.draw import groups_of, judged
from rlrt.sampling.sampler import Sampler
from rlrt.seeds import permutation
from rlrt.statistics import around_ratio, bootstrap_intervals
from rlrt.tasks.base import Task
from rlrt.training.batch import signals_of, student_rows, teacher_rows
from rlrt.training.learner import Learner
from rlrt.training.loop import Run
from rlrt.training.scoring import score_together
from rlrt.types import Prompt, Rollout

STEPS = 2
"""The probe takes the prompts of so many steps at most, so that it costs a short run little."""
ANSWERS = 2
"""Responses sampled to each different prompt of the teacher."""
FEWEST = 8
"""Prompts that an interval is computed over, at least."""
COMPARE = "python -m rlrt.preflight --teacher compares templates"
ALARMS = (
    Alarm(
        "teacher/probe_helps",
        f"the teacher answers worse with its context than the student does without; {COMPARE}",
        below=-0.5,
    ),
    Alarm(
        "teacher/probe_helps",
        "nothing shows that the teacher's context helps: it does not answer better with it, and D on correct rollouts is not "
        f"below D on wrong ones, by 95 % intervals; {COMPARE}",
        below=0.5,
    ),
)
"""What is watched of a probe."""


@dataclass(frozen=True)
class Verdicts:
    """What the teacher did with B rollouts.

    Attributes:
        has_B: bool; the rollouts that have a teacher.
        too_long: rollouts that have none because its prompt is too long.
        right_B: share right of the answers to the rollout's teacher prompt; NaN where there are none.
        gap_BT: D, nats; 0 where there is none.
        mask_BT: bool; the tokens of rollouts that have a teacher.
    """

    has_B: Tensor
    too_long: int
    right_B: Tensor
    gap_BT: Tensor
    mask_BT: Tensor


def probed_context(method: Method, teacher: Teacher) -> int | None:
    """The index of the context that should help: the first that is no wrong sibling. None: the method has no such.

    Args:
        teacher: the config section, which says what the method's ``default`` context is.
    """
    if not method.needs_teacher:
        return None
    default = configured(teacher.context, teacher.on_unique_correct)
    contexts = [resolved(context, default) for context in method.contexts()]
    return next((k for k, c in enumerate(contexts) if not (isinstance(c, Sibling) and not c.correct)), None)


def is_probed(settings: Settings) -> bool:
    """True for a run that asks whether its teacher's context helps."""
    return settings.teacher.probe_prompts > 0 and probed_context(settings.method, settings.teacher) is not None


def prompts_for(settings: Settings, task: Task, bounded: bool = True) -> list[Prompt]:
    """The prompts that are probed, a function of the seed: ``teacher.probe_prompts`` of them.

    Args:
        bounded: at most those of ``STEPS`` steps.
    """
    most = STEPS * settings.train.prompts_per_step if bounded else len(task.train)
    count = min(settings.teacher.probe_prompts, most, len(task.train))
    order = permutation(len(task.train), settings.seed, "probe")
    return [task.train[i] for i in order[:count]]


def students(sampler: Sampler, prompts: Sequence[Prompt], samples: int) -> list[Rollout]:
    """A group of rollouts of each prompt, without the context; those that the verifier judged."""
    return judged(sampler(prompts, samples, ("probe",)))


def measured(
    learner: Learner, sampler: Sampler, rollouts: Sequence[Rollout], context: Context, release: Callable[[], None]
) -> Verdicts:
    """What the teacher does when it is shown ``context`` by the learner's prompt builder.

    Args:
        rollouts: of the student, all judged.
        release: lets the engine give back its memory, before anything is scored.
    """
    own = dataclasses.replace(learner, contexts=[context])
    everyone = torch.ones(len(rollouts), dtype=torch.bool)
    rows, _, too_long = teacher_rows(own, rollouts, everyone)
    right_B = answers(learner, sampler, rollouts, rows[0])
    release()
    learner.check_stop(joint=True)
    signals = signals_of(rollouts, 0, learner.policy.special_ids, sampler.engine.exact)
    has_B = torch.tensor([row is not None for row in rows[0]])
    index = has_B.nonzero()[:, 0].tolist()
    every = student_rows(rollouts)
    student = (learner.policy.model, [every[i] for i in index])
    teacher = (learner.teacher.model, [row for row in rows[0] if row is not None])
    (logp, *_), (teacher_logp, *_) = score_together(learner, [student, teacher], signals.mask_BT.shape[1])
    gap_BT = torch.zeros_like(signals.logp_BT)
    gap_BT[has_B] = logp - teacher_logp
    return Verdicts(has_B, too_long, right_B, gap_BT, signals.mask_BT & has_B[:, None])


def answers(learner: Learner, sampler: Sampler, rollouts: Sequence[Rollout], rows: Sequence[Row | None]) -> Tensor:
    """Share right of ``ANSWERS`` responses to each rollout's teacher prompt; NaN where it has none, where the engine does not
    take so long a prompt, or where the verifier failed. Each different prompt is answered once."""
    engine = sampler.engine
    most = engine.longest()
    asked: dict[tuple[int, ...], Prompt] = {}
    for rollout, row in zip(rollouts, rows, strict=True):
        if row is not None and (most is None or len(row.prompt_ids) + engine.max_new_tokens <= most):
            asked.setdefault(tuple(row.prompt_ids), rollout.prompt)
    right: dict[tuple[int, ...], float] = {}
    # no more tokens at once than a step's rollouts have: the teacher's prompts are longer
    student = max((len(r.prompt_ids) for r in rollouts), default=0) + engine.max_new_tokens
    longest = max(map(len, asked), default=0) + engine.max_new_tokens
    at_once = max(1, engine.max_rows * student // max(student, longest) // ANSWERS)
    for start in range(0, len(asked), at_once):
        part = list(asked)[start : start + at_once]
        given = sampler([asked[ids] for ids in part], ANSWERS, ("probe", "teacher"), shown=part, load=start == 0)
        for ids, group in zip(part, groups_of(given, ANSWERS), strict=True):
            if known := judged(group):
                right[ids] = sum(r.grade.correct for r in known) / len(known)
    values = [torch.nan if row is None else right.get(tuple(row.prompt_ids), torch.nan) for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def numbers(rollouts: Sequence[Rollout], verdicts: Verdicts, prompts: int) -> dict[str, float]:
    """The metrics of a probe (docs/metrics.md); a mean of nothing, and an interval over fewer than ``FEWEST`` prompts, is left
    out.

    Args:
        rollouts: of the student, all judged.
        prompts: that were asked.
    """
    group_B = torch.tensor([r.group for r in rollouts])
    correct_B = torch.tensor([r.grade.correct for r in rollouts])
    answered_B = ~verdicts.right_B.isnan()
    gap_B = (verdicts.gap_BT * verdicts.mask_BT).sum(1, dtype=torch.float64)
    tokens_B = verdicts.mask_BT.sum(1)

    def by_prompt(value_B: Tensor) -> list[float]:
        sums = torch.zeros(prompts, dtype=torch.float64).index_add_(0, group_B, value_B.double())
        return [float(v) for v in sums]

    found = {
        "teacher/probe_prompts": float(prompts),
        "teacher/probe_share": float(verdicts.has_B.double().mean()),
        "teacher/probe_too_long_share": verdicts.too_long / len(rollouts),
    }
    counted = by_prompt(answered_B)
    found |= compared(
        ("with", "without", "help"),
        (by_prompt(verdicts.right_B.nan_to_num()), counted),
        (by_prompt(correct_B & answered_B), counted),
    )
    found |= compared(
        ("gap_correct", "gap_wrong", "gap_difference"),
        (by_prompt(gap_B * correct_B), by_prompt(tokens_B * correct_B)),
        (by_prompt(gap_B * ~correct_B), by_prompt(tokens_B * ~correct_B)),
    )
    return found | helps(found)


def helps(found: Mapping[str, float]) -> dict[str, float]:
    """``teacher/probe_helps``: 1 where an interval shows that the context helps, -1 where one shows that it makes the answers
    worse, 0 where neither is shown; nothing without an interval."""
    low, high = found.get("teacher/probe_help_low"), found.get("teacher/probe_help_high")
    apart = found.get("teacher/probe_gap_difference_high")
    if high is not None and high < 0:
        return {"teacher/probe_helps": -1.0}
    if low is None and apart is None:
        return {}
    shown = (low is not None and low > 0) or (apart is not None and apart < 0)
    return {"teacher/probe_helps": float(shown)}


def compared(
    names: tuple[str, str, str],
    first: tuple[list[float], list[float]],
    second: tuple[list[float], list[float]],
) -> dict[str, float]:
    """Two ratios of sums over prompts, and the first minus the second with its 95 % interval over prompts.

    Args:
        names: of the three.
        first, second: sum and count of each prompt.
    """
    one, other, difference = (f"teacher/probe_{name}" for name in names)
    sides = {name: side for name, side in ((one, first), (other, second)) if sum(side[1]) > 0}
    found = {name: sum(sums) / sum(counts) for name, (sums, counts) in sides.items()}
    if len(sides) < 2:
        return found
    found[difference] = found[one] - found[other]
    if min(sum(count > 0 for count in counts) for _, counts in sides.values()) >= FEWEST:
        apart = [[a - b] for a, b in zip(around_ratio(*first), around_ratio(*second), strict=True)]
        ((_, low, high),) = bootstrap_intervals([apart])
        found |= {f"{difference}_low": low, f"{difference}_high": high}
    return found


def probe(settings: Settings, run: Run, say: Callable[[str], None]) -> dict[str, float]:
    """Probe the teacher of a run, say the outcome in one line, and return its metrics; nothing where it is not asked for."""
    which = probed_context(settings.method, settings.teacher)
    if which is None or not is_probed(settings):
        return {}
    begin, learner, training = perf_counter(), run.learner, run.source.sampler
    parts = (training.engine, learner.policy, learner.builder, training.task)
    sampler = Sampler(*parts, seed=settings.seed, world=learner.world)
    prompts = prompts_for(settings, training.task)
    rollouts = students(sampler, prompts, settings.train.rollouts_per_prompt)
    found: dict[str, float] = {}
    if rollouts:
        verdicts = measured(learner, sampler, rollouts, learner.contexts[which], run.release)
        found = numbers(rollouts, verdicts, len(prompts))
        say(sentence(found))
    return found | {"time/probe_s": perf_counter() - begin}


def sentence(found: Mapping[str, float]) -> str:
    """The outcome of a probe in one line."""

    def value(name: str, form: str) -> str:
        number = found.get(f"teacher/probe_{name}")
        return "unknown" if number is None else format(number, form)

    words = f"teacher: {value('prompts', '.0f')} prompts, {value('share', '.0%')} of their rollouts have a context"
    if found["teacher/probe_too_long_share"]:
        words += f", {value('too_long_share', '.0%')} one that is too long"
    if "teacher/probe_help" in found:
        words += f"; right {value('with', '.3f')} with it, {value('without', '.3f')} without"
    if "teacher/probe_help_low" in found:
        words += (
            f" ({value('help', '+.3f')}, 95 % interval {value('help_low', '+.3f')} to {value('help_high', '+.3f')})"
        )
    if found["teacher/probe_share"]:
        words += f"; mean D {value('gap_correct', '.3f')} nats on correct rollouts, {value('gap_wrong', '.3f')} on wrong ones"
    return words
