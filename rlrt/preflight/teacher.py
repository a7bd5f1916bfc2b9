"""``python -m rlrt.preflight --teacher [overrides]``: whether the teacher's context helps, with the run's template and others.

The model is read and sampled from, as a run's probe does (``rlrt.execution.probe``); nothing is trained and no folder is left.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rlrt.config.schema import Settings
from rlrt.distributed.cards import see_own_card
from rlrt.distributed.world import ALONE
from rlrt.errors import UserError
from rlrt.execution import probe
from rlrt.execution.build import prompt_builder
from rlrt.execution.execute import prepared
from rlrt.execution.parts import Parts, cards_for_engine, closing
from rlrt.methods.contexts import Answer, Context
from rlrt.preflight.finding import Finding
from rlrt.preflight.plan import Planned
from rlrt.reporting.terminal import say, table
from rlrt.sampling.sampler import Sampler
from rlrt.training.learner import Learner
from rlrt.types import Prompt

OWN = "teacher.template"
"""Name of the run's own template."""
TEMPLATES = {
    "instruction last": "{prompt}\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question.",
    "instruction first": "Correctly solve the question below. A correct solution is given after it.\n\n{prompt}\n\n"
    "Correct solution:\n\n{solution}",
    "question last": "Correct solution of the question below:\n\n{solution}\n\n{prompt}",
    "solution alone": "{prompt}\n\n{solution}",
    "bar": "{prompt}|{solution}",
}
"""Templates that a run's own is compared with, by name: where the instruction and the question stand, and without words."""
ANSWER_ONLY = "answer only"
ANSWER_TEMPLATE = "{prompt}\nThe correct answer is {solution}."
"""Name and template of the last row, which shows the data's final answer (``teacher.context=answer``)."""
HEADINGS = ["template", "context", "too long", "with", "without", "95 %", "D correct", "D wrong", "helps"]
HELPS = {1.0: "yes", 0.0: "not shown", -1.0: "worse"}
"""Values of ``teacher/probe_helps`` in words."""


def views(settings: Settings, own: Context) -> dict[str, tuple[str, Context]]:
    """Template and context of every row, by its name; the run's own first, and no template twice."""
    mine = settings.teacher.template
    rows = {OWN: (mine, own)}
    rows |= {name: (text, own) for name, text in TEMPLATES.items() if text != mine}
    return rows | {ANSWER_ONLY: (ANSWER_TEMPLATE, Answer())}


Compared = dict[str, dict[str, float] | str]
"""By a template's name the metrics of a probe, or the sentence by which the template is refused."""


def compare(settings: Settings, parts: Parts, learner: Learner, prompts: Sequence[Prompt]) -> Compared:
    """Probe each template on the same rollouts.

    Raises:
        UserError: where the verifier judged no rollout.
    """
    which = probe.probed_context(parts.method, settings.teacher)
    assert which is not None
    sampler = Sampler(parts.engine, learner.policy, learner.builder, parts.task, settings.seed)
    rollouts = probe.students(sampler, prompts, settings.train.rollouts_per_prompt)
    if not rollouts:
        raise UserError(
            f"data: the verifier of {type(parts.task).__name__} judged no rollout of {len(prompts)} prompts."
        )
    results: Compared = {}
    for name, (template, context) in views(settings, learner.contexts[which]).items():
        teacher = dataclasses.replace(settings.teacher, template=template)
        builder = prompt_builder(dataclasses.replace(settings, teacher=teacher), learner.policy.tokenizer)
        try:
            builder.check_parity(prompts)
        except UserError as error:
            results[name] = str(error)
            continue
        shown = dataclasses.replace(learner, builder=builder)
        verdicts = probe.measured(shown, sampler, rollouts, context, parts.engine.release)
        results[name] = probe.numbers(rollouts, verdicts, len(prompts))
    return results


def cells(name: str, found: Mapping[str, float] | str) -> list[str]:
    """A row of the table."""
    if isinstance(found, str):
        return [name, "refused", *["-"] * (len(HEADINGS) - 2)]

    def value(key: str, form: str) -> str:
        number = found.get(f"teacher/probe_{key}")
        return "-" if number is None else format(number, form)

    low, high = value("help_low", "+.2f"), value("help_high", "+.2f")
    shares = [value("share", ".2f"), value("too_long_share", ".2f"), value("with", ".3f"), value("without", ".3f")]
    gaps = [value("gap_correct", ".3f"), value("gap_wrong", ".3f")]
    helps = found.get("teacher/probe_helps")
    return [name, *shares, "-" if low == "-" else f"{low} to {high}", *gaps, "-" if helps is None else HELPS[helps]]


def report(settings: Settings, results: Compared, prompts: int) -> list[str]:
    """The lines that the command prints, of so many prompts."""
    lines = [
        f"{prompts} prompts x {settings.train.rollouts_per_prompt} rollouts of {settings.model.path}; method "
        f"{settings.method.name}, teacher.context={settings.teacher.context}",
        "context: share of the rollouts that have a teacher; with, without: right with and without it, and the 95 %",
        "interval of the difference; D in nats per token; helps: by that interval, or by D lower on correct rollouts",
        "",
        table([HEADINGS, *(cells(name, found) for name, found in results.items())]),
        "",
    ]
    own = results[OWN]
    if not isinstance(own, str):
        rung = [alarm for alarm in probe.ALARMS if alarm.metric in own and alarm.rings(own[alarm.metric])]
        lines += [str(Finding("warning", "teacher", alarm.sentence)) for alarm in rung[:1]]
    for name, (template, _) in views(settings, Context()).items():
        found = results[name]
        text = f"{name}: {template!r}" + (" with teacher.context=answer" if name == ANSWER_ONLY else "")
        lines.append(text if not isinstance(found, str) else f"{text}: {found}")
    return [*lines, "", "nothing was trained"]


def preflight_teacher(planned: Planned) -> int:
    """Compare templates, print the table, and return the exit code.

    Raises:
        UserError: for several jobs, a method whose teacher is shown nothing that should help, no prompts, and whatever a run
            would be refused for.
    """
    if planned.several:
        raise UserError("--teacher looks at one run; leave -m out and name one job.")
    _, settings = planned.jobs[0]
    if probe.probed_context(settings.method, settings.teacher) is None:
        raise UserError(
            f"--teacher: method {settings.method.name} shows no teacher anything that should help; set method=rlrt or another "
            "method with a teacher."
        )
    if settings.teacher.probe_prompts == 0:
        raise UserError(
            "teacher.probe_prompts: --teacher asks at least one prompt, got 0; set teacher.probe_prompts=32."
        )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    aside = cards_for_engine(settings)
    if settings.engine.own_card:
        see_own_card()
    with tempfile.TemporaryDirectory(prefix="rlrt-teacher-") as folder:
        settings, parts, learner = prepared(settings, ALONE)
        with closing(parts):
            parts.engine.settle(Path(folder), aside)
            prompts = probe.prompts_for(settings, parts.task, bounded=False)
            results = compare(settings, parts, learner, prompts)
    for line in report(settings, results, len(prompts)):
        say(line)
    return 0
