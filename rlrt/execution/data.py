"""Read the data of a run, and refuse data that the run cannot use, before anything is trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.execution.parts import Parts
from rlrt.methods.contexts import configured, from_data
from rlrt.model.prompting import PromptBuilder
from rlrt.sampling.sampler import step_prompts
from rlrt.sampling.solutions import Lessons
from rlrt.tasks.base import Task
from rlrt.tasks.benchmark import Benchmark
from rlrt.tasks.cells import example_of
from rlrt.tasks.questions import KEYS, plain
from rlrt.training.learner import Learner
from rlrt.types import Prompt

log = logging.getLogger("rlrt")
LONGEST_TRIED = 32
"""The longest prompts by letters, of which the longest by tokens is looked for."""
PARITY_TRIED = 64
"""Prompts, spread over all, whose student and teacher are compared."""


def prepare_data(parts: Parts) -> None:
    """Read the problems: the task's, and the benchmarks'. A problem of a benchmark is left out of training, also a nearly
    equal one (the task's attribute ``duplicates``, where it has it, may say otherwise).

    Raises:
        UserError: for data that cannot be had or read, or whose ids repeat.
    """
    task = parts.task
    prepare_task(task)
    prepare_suites(parts.suites)
    same = KEYS[getattr(task, "duplicates", "near")]
    tested = {same(p.text): p.text for suite in parts.suites.values() for p in suite.heldout}
    dropped = [p for p in task.train if same(p.text) in tested]
    if dropped:
        task.train = [p for p in task.train if same(p.text) not in tested]
        near = [p for p in dropped if plain(p.text) != plain(tested[same(p.text)])]
        example = (
            f", for example {example_of(near[0].text)} for {example_of(tested[same(near[0].text)])}" if near else ""
        )
        log.warning(
            "data: dropped %d problems that the evaluation suites hold (%d of them nearly the same%s)",
            len(dropped),
            len(near),
            example,
        )


def prepare_task(task: Task) -> None:
    """Read a task's problems, and refuse those whose ids repeat: seeds and records know a problem by its id alone.

    Raises:
        UserError: for data that cannot be had or read, or two problems of one id.
    """
    task.prepare()
    name = type(task).__name__
    for part in ("train", "heldout"):
        if not getattr(task, part, None):
            raise UserError(
                f"data: expected {name}.prepare to set {part} to a list of prompts, got {getattr(task, part, 'nothing')!r}."
            )
    check_ids({"train": task.train, "heldout": task.heldout}, "data")


def check_ids(parts: Mapping[str, Sequence[Prompt]], key: str) -> None:
    """Refuse an id that names two prompts of one part, or different questions in two parts.

    Args:
        parts: prompts by the name of their part.
        key: the section of the config that they come from, for messages.

    Raises:
        UserError: naming the id and both questions.
    """
    known: dict[str, tuple[str, str]] = {}
    for part, prompts in parts.items():
        for prompt in prompts:
            if not isinstance(prompt.id, str):
                raise UserError(
                    f"{key}: expected a text as the id of every problem, got {prompt.id!r:.80} for {prompt.text!r:.80}."
                )
            first = known.get(prompt.id)
            if first is None:
                known[prompt.id] = (part, prompt.text)
            elif first[0] == part or first[1] != prompt.text:
                raise UserError(
                    f"{key}: expected an id of its own for every problem, got {prompt.id!r} for {first[1]!r:.80} "
                    f"({first[0]}) and for {prompt.text!r:.80} ({part}); give each Prompt an id that no other has."
                )


def prepare_suites(suites: Mapping[str, Benchmark]) -> None:
    """Read benchmarks; what one drops is said at once. Those with equal verifiers share one.

    Raises:
        UserError: for a benchmark that cannot be had or read, or whose ids repeat.
    """
    first: dict[Any, Benchmark] = {}
    for name, suite in suites.items():
        suite.prepare()
        check_ids({name: suite.heldout}, f"eval.suites.{name}")
        suite.share(first.setdefault((suite.verifier, suite.verifier_timeout_s, suite.verifier_workers), suite))
        if suite.dropped:
            log.warning("eval.suites.%s: dropped %s; %d problems are left", name, suite.report(), len(suite.heldout))


def drop_long_prompts(task: Task, builder: PromptBuilder) -> None:
    """Drop prompts over ``data.max_prompt_tokens`` (where the task has one), and report all that was dropped.

    Raises:
        UserError: if none is left.
    """
    if all(task.prompt_limit(p) is None for p in (*task.train, *task.heldout)):
        return
    task.train = within(task.train, "training", task, builder)
    task.heldout = within(task.heldout, "held-out", task, builder)
    if said := task.report():
        log.warning(
            "data: dropped %s; %d training and %d held-out problems are left",
            said,
            len(task.train),
            len(task.heldout),
        )


def drop_untaught(task: Task, lessons: Lessons | None) -> None:
    """Drop the training problems that have no response to be taught, and report them; nothing for a run that samples.

    Raises:
        UserError: if none is left.
    """
    if lessons is None:
        return
    reasons = Counter[str]()
    kept = []
    for prompt in task.train:
        reason = lessons.unfit(prompt)
        if reason is None:
            kept.append(prompt)
        else:
            reasons[f"{prompt.source}: {reason}" if prompt.source else reason] += 1
    said = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
    if not kept:
        raise UserError(
            f"method.response_template: no training problem has a response that can be taught ({said}); give data with "
            "solutions, raise engine.max_new_tokens, or teach another text, such as {answer}."
        )
    for name, count in lost_sources(task.train, kept).items():
        raise UserError(
            f"data.sources.{name}: none of its {count} training problems has a response that can be taught ({said}); leave the "
            "source out, or teach a text that all sources have (method.response_template)."
        )
    if said:
        log.warning("data: dropped %s; %d training problems are left", said, len(kept))
    if any(lessons.builder.shown(prompt) for prompt in kept) and lessons.unlike_examples:
        log.warning(
            "method.response_template: the worked examples before the question (model.examples) have a space between prompt "
            "and answer, and what is taught has none: begin it with a space, %r",
            f" {lessons.template}",
        )
    task.train = kept


def lost_sources(before: Sequence[Prompt], after: Sequence[Prompt]) -> dict[str, int]:
    """Return how many prompts each source of a mixture had before, of those that have none after."""
    left = {prompt.source for prompt in after}
    return dict(Counter(prompt.source for prompt in before if prompt.source not in left))


def within(prompts: Sequence[Prompt], kind: str, task: Task, builder: PromptBuilder) -> list[Prompt]:
    """The prompts that are not longer than the task takes; the others are counted.

    Raises:
        UserError: if none is left.
    """
    short = []
    for prompt in prompts:
        limit = task.prompt_limit(prompt)
        if limit is None or len(builder.student(prompt)) <= limit:
            short.append(prompt)
        else:
            task.dropped[f"prompt over {limit} tokens"] += 1
    for source, count in lost_sources(prompts, short).items():
        section = f"data.sources.{source}" if source else "data"
        limit = next(task.prompt_limit(p) for p in prompts if p.source == source)
        raise UserError(
            f"{section}.max_prompt_tokens: all {count} {kind} prompts are longer than {limit} tokens; raise it."
        )
    return short


def check_prompts(parts: Parts, learner: Learner) -> None:
    """Refuse prompts that leave no room for a full response, and prompts where student and teacher differ by more than the
    context.

    Raises:
        UserError: naming the keys.
    """
    prompts = prompts_of(parts)
    check_fit(prompts, learner.builder, learner.context_length, parts.engine.max_new_tokens)
    check_control_tokens(parts.task, prompts, learner.builder)
    tell_lacking_examples(prompts, learner.builder)
    if parts.method.needs_teacher:
        learner.builder.check_parity(prompts[:: max(1, len(prompts) // PARITY_TRIED)])


def tell_lacking_examples(prompts: Sequence[Prompt], builder: PromptBuilder) -> None:
    """Warn of prompts that have fewer worked examples than the model asks for; these are sent with what there is."""
    lacking = sum(len(builder.shown(prompt)) < builder.examples for prompt in prompts)
    if lacking:
        log.warning(
            "model.examples: %d asked for, and %d of %d prompts have fewer, since their data has no more (data.examples)",
            builder.examples,
            lacking,
            len(prompts),
        )


def check_control_tokens(task: Task, prompts: Sequence[Prompt], builder: PromptBuilder) -> None:
    """Count the problems whose texts spell control tokens of the model, which are encoded as plain text.

    Raises:
        UserError: for such a problem where ``data.special_tokens`` is ``refuse``.
    """
    found = [(prompt, tokens) for prompt in prompts if (tokens := builder.control_tokens(prompt))]
    if not found:
        return
    prompt, tokens = next(((p, t) for p, t in found if task.refuses_control_tokens(p)), found[0])
    example = f"for example {tokens[0]!r} in {prompt.text[:60]!r}"
    if task.refuses_control_tokens(prompt):
        raise UserError(
            f"data.special_tokens: {len(found)} problems spell control tokens of this model ({example}); clean the data, or "
            "set data.special_tokens=escape."
        )
    log.warning(
        "data: %d problems spell control tokens of this model (%s); they are encoded as plain text", len(found), example
    )


def prompts_of(parts: Parts) -> list[Prompt]:
    """All prompts that a run may sample from."""
    tested = [p for suite in parts.suites.values() for p in suite.heldout]
    return [*parts.task.train, *parts.task.heldout, *tested]


def check_fit(prompts: Sequence[Prompt], builder: PromptBuilder, context_length: int, max_new_tokens: int) -> None:
    """Refuse prompts that a response of full length would not fit behind.

    Raises:
        UserError: naming the keys.
    """
    longest = longest_prompt(builder, prompts)
    if longest + max_new_tokens > context_length:
        raise UserError(
            f"engine.max_new_tokens: a prompt of {longest} tokens and a response of {max_new_tokens} do not fit into the "
            f"model's context of {context_length} tokens; lower engine.max_new_tokens or data.max_prompt_tokens."
        )


def longest_prompt(builder: PromptBuilder, prompts: Sequence[Prompt]) -> int:
    """The tokens of the longest prompt, searched among the longest by characters, those of worked examples included."""
    return max(len(builder.student(p)) for p in sorted(prompts, key=builder.letters)[-LONGEST_TRIED:])


def check_data(settings: Settings, parts: Parts) -> None:
    """Refuse data that a run cannot use: fewer prompts than a step takes, or no text for a teacher that is to be shown one.

    Raises:
        UserError: naming the keys.
    """
    teacher, method, train = settings.teacher, settings.method, parts.task.train
    step_prompts(train, settings.seed, 1, settings.train.prompts_per_step, parts.task.shares)
    if not parts.suites and settings.eval.prompts > len(parts.task.heldout):
        log.warning(
            "eval.prompts: %d asked for, the data has %d held out", settings.eval.prompts, len(parts.task.heldout)
        )
    if not method.needs_teacher:
        return
    source = from_data(configured(teacher.context, teacher.on_unique_correct))
    if source is None:
        return
    kind = source.called
    lacking = sum(not source.text_of(p) for p in train)
    if lacking == len(train):
        raise UserError(
            f"teacher.context: method {method.name} shows the teacher the data's {kind} texts, and the data has none; "
            "give data that has, or set teacher.context=sibling and teacher.on_unique_correct=plain."
        )
    if lacking:
        log.warning("%d of %d training prompts have no %s text: no teacher there", lacking, len(train), kind)
