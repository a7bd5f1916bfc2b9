"""The parts of a run, put together: every part is chosen here and nowhere else."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlrt.config.schema import Settings
from rlrt.distributed import sharding
from rlrt.distributed.world import ALONE, World
from rlrt.execution.monitor import Monitor
from rlrt.execution.parts import Parts
from rlrt.execution.resume import check_saved
from rlrt.execution.saver import Saver
from rlrt.execution.saving import SaveRule
from rlrt.execution.stop import Pace
from rlrt.methods.contexts import configured, resolved
from rlrt.methods.method import Method
from rlrt.model.allocator import keep_freed_memory
from rlrt.model.device import (
    check_cuda,
    compute_dtype,
    refuse_large_on_cpu,
    refuse_too_large,
    resolve_device,
    use_tensor_cores,
)
from rlrt.model.load import context_length, load, load_outline, set_stop_tokens
from rlrt.model.lora import add_adapters, drawn
from rlrt.model.offload import save_on_host
from rlrt.model.paths import check_head, paths_of
from rlrt.model.policy import Policy, adamw
from rlrt.model.precision import dtype_of, set_compute_dtype
from rlrt.model.prompting import PromptBuilder
from rlrt.model.slices import read
from rlrt.model.twin import outlined, share_twin, twin
from rlrt.records.folder import RunFolder
from rlrt.sampling.sampler import Sampler
from rlrt.sampling.solutions import Lessons, Solutions
from rlrt.sampling.source import Source
from rlrt.tasks.base import Task
from rlrt.training.evaluation import Suite
from rlrt.training.importance import Rule
from rlrt.training.learner import Learner
from rlrt.training.loop import Run
from rlrt.training.teacher import Teacher, holds_copy, runs_again
from rlrt.training.update import StepResult
from rlrt.types import Prompt, Rollout

log = logging.getLogger("rlrt")
FLOAT = 4
"""Bytes of a float32, which weights, gradients, moments and copies are."""


def load_model(
    settings: Settings, device: torch.device | None = None, bytes_each: float = FLOAT, world: World = ALONE
) -> tuple[Any, Any]:
    """The model of a run as it starts, and its tokenizer.

    Args:
        device: where its weights are put; None: where it will compute.
        bytes_each: bytes that stay on the device for each weight; the weights alone unless it is trained.
        world: the ranks that load it together.

    Raises:
        UserError: for a model that cannot be had, or a large one that nobody meant to train on a CPU.
    """
    config = settings.model
    model, tokenizer = read_model(settings, bytes_each, world)
    configure(settings, model, tokenizer)
    if config.lora is not None:
        add_adapters(model, config.lora, config.lora_alpha, config.lora_targets, settings.seed)
    return model.to(device or resolve_device(settings.device)), tokenizer


def read_model(settings: Settings, bytes_each: float = FLOAT, world: World = ALONE) -> tuple[Any, Any]:
    """The model as its folder holds it, on the CPU, with its own stop tokens and without adapters; and its tokenizer.

    Args:
        bytes_each, world: as of ``load_model``.

    Raises:
        UserError: for a model that cannot be had, or a large one that nobody meant to train on a CPU.
    """
    config = settings.model
    return load(config.path, config.revision, config.attn_implementation, size_check(settings, bytes_each, world))


def size_check(settings: Settings, bytes_each: float, world: World) -> Callable[[int], None]:
    """Check what a run asks of its device; returns the check of a model's number of weights.

    Raises:
        UserError: for a damaged checkpoint, or a device that cannot be used.
    """
    config = settings.model
    check_saved(config.path, world)
    chosen = resolve_device(settings.device)
    check_cuda(chosen)
    use_tensor_cores(chosen)

    def check_size(weights: int) -> None:
        refuse_large_on_cpu(config.path, weights, settings.device)
        refuse_too_large(config.path, weights, bytes_each, chosen)

    return check_size


def configure(settings: Settings, model: Any, tokenizer: Any) -> None:
    """Store stop tokens and precision in a model."""
    set_stop_tokens(model, tokenizer, settings.model.stop_tokens)
    set_compute_dtype(model, compute_dtype(settings.dtype, resolve_device(settings.device)))


def let_train(settings: Settings, model: Any) -> None:
    """Prepare a model for training: recompute activations where that is asked for."""
    model.train()
    if settings.model.gradient_checkpointing:
        # transformers 5.20 renamed the call
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()


@dataclass(frozen=True)
class Models:
    """The models of a run: the student, the teacher's beside it and the reference where there are such, and the tokenizer."""

    student: Any
    teacher: Any | None
    reference: Any | None
    tokenizer: Any


def replicated(
    settings: Settings, device: torch.device, copies: tuple[bool, bool], each: float, world: World
) -> Models:
    """The models of a run in which every process holds whole weights, on ``device``.

    Args:
        copies: whether there is a teacher beside the student, and whether there is a reference.
        each, world: as ``bytes_each`` and ``world`` of ``load_model``.
    """
    student, tokenizer = load_model(settings, device, each, world)
    let_train(settings, student)
    moves = settings.teacher.weights != "frozen"
    return Models(
        student,
        twin(student, moves) if copies[0] else None,
        twin(student, moves=False) if copies[1] else None,
        tokenizer,
    )


def sharded(settings: Settings, device: torch.device, copies: tuple[bool, bool], each: float, world: World) -> Models:
    """The models of a run whose weights are sharded over its processes: ``replicated`` without a whole model in any of them."""
    config = settings.model
    check_size = size_check(settings, each, world)
    student, tokenizer, files = load_outline(config.path, config.revision, config.attn_implementation, check_size)
    configure(settings, student, tokenizer)
    given = {}
    if config.lora is not None:
        adapting = (config.lora, config.lora_alpha, config.lora_targets, settings.seed)
        given = drawn(student, *adapting) if files else {}
        add_adapters(student, *adapting)
    let_train(settings, student)
    moves = settings.teacher.weights != "frozen"
    teacher = outlined(student, moves) if copies[0] else None
    reference = outlined(student, moves=False) if copies[1] else None
    sharding.share_fsdp(student, device, dtype_of(student))
    if files:
        read(student, device, files, given)
        if paths_of(student).attention == "plain":
            check_head(student)
    for one in (teacher, reference):
        if one is not None:
            share_twin(one, student, device)
    return Models(student, teacher, reference, tokenizer)


def prompt_builder(settings: Settings, tokenizer: Any) -> PromptBuilder:
    """The builder of a run's prompts."""
    config = settings.model
    return PromptBuilder(
        tokenizer,
        config.style,
        config.prompt_template,
        config.thinking,
        settings.teacher.template,
        config.bos,
        config.examples,
    )


def build_learner(settings: Settings, world: World = ALONE, method: Method | None = None) -> Learner:
    """Model, optimiser, teacher and method of a run, at step 0; shared by the ranks of ``world``.

    Args:
        method: the run's; None: a new one.
    """
    method = method or copy.deepcopy(settings.method)
    train_config, teacher_config = settings.train, settings.teacher
    device = resolve_device(settings.device, world.local_rank)
    shares = world.size > 1 and settings.distributed.strategy == "fsdp"
    rerun = runs_again(method, train_config.minibatches)
    beside = (holds_copy(teacher_config.weights, rerun), train_config.kl_coef > 0)
    # without adapters also gradients, two moments and copies of the model
    each = FLOAT * (4 + sum(beside) if settings.model.lora is None else 1) / (world.size if shares else 1)
    made = (sharded if shares else replicated)(settings, device, beside, each, world)
    model = made.student
    if device.type == "cpu":
        keep_freed_memory()
    configured_context = configured(
        teacher_config.context, teacher_config.on_unique_correct, hides_own=not method.distils
    )
    teacher = Teacher(model, made.teacher, teacher_config.weights, teacher_config.sync_steps, teacher_config.ema_rate)
    if world.size > 1 and not shares:
        sharding.share_ddp(model)
    rests = train_config.offload == "optimiser" and device.type != "cpu"
    if settings.model.offload_activations and device.type != "cpu":
        save_on_host(model)
    if device.type == "cpu" and (train_config.offload != "none" or settings.model.offload_activations):
        log.info(
            "nothing is moved to the host: on a CPU everything is there (train.offload, model.offload_activations)"
        )
    optimiser = adamw(model, train_config.lr, (train_config.beta1, train_config.beta2), train_config.weight_decay)
    return Learner(
        policy=Policy(model, made.tokenizer, optimiser, settings.engine.temperature, rests),
        method=method,
        teacher=teacher,
        contexts=[resolved(context, configured_context) for context in method.contexts()],
        builder=prompt_builder(settings, made.tokenizer),
        reference=made.reference,
        train=train_config,
        max_context_tokens=teacher_config.max_context_tokens,
        max_new_tokens=settings.engine.max_new_tokens,
        context_length=context_length(model, settings.model.context_length),
        world=world,
        importance=Rule.of(train_config, settings.engine.importance_clip),
        too_long=teacher_config.too_long,
    )


def assemble(
    settings: Settings,
    parts: Parts,
    learner: Learner,
    position: int,
    monitor: Monitor | None,
    folder: RunFolder,
    stop_requested: Callable[[], bool],
    pace: Pace,
    saver: Saver,
    pending: dict[str, Any] | None = None,
) -> Run:
    """Put together everything that the loop needs.

    Args:
        position: updates done.
        monitor: where numbers go; None on ranks that write nothing.
        stop_requested: True once the run should save and end early.
        pace: says within a step whether its end would come too late.
        saver: writes checkpoints.
        pending: rollouts that an earlier life had sampled ahead.
    """
    config, engine = settings.train, parts.engine
    learner.policy.rest()  # those of a checkpoint
    world = learner.world.second_channel() if config.sample_ahead else learner.world
    engine.join(world)
    learner.asked_to_end = pace.too_late
    overlong = (config.overlong_cache, config.overlong_weight)
    sampler = Sampler(engine, learner.policy, learner.builder, parts.task, settings.seed, overlong, world=world)
    lessons = lessons_of(settings, learner)
    source = (
        Source(sampler, config, settings.seed, position + 1, pending)
        if lessons is None
        else Solutions(sampler, config, settings.seed, lessons)
    )

    def asked_to_end() -> bool:  # one rank of several may not end alone: the others' threads would meet it no more
        return pace.too_late() or (world.size == 1 and source.closing())

    engine.asked_to_end = asked_to_end  # type: ignore[method-assign]

    def save(step: int) -> None:
        folder.check_mine()
        folder.record.sync()
        folder.samples.sync()
        saver.save(step, source.state())

    def record(step: int, metrics: dict[str, float]) -> None:
        pace.boundary()
        seconds = saver.boundary()
        if monitor is not None:
            monitor.record(step, metrics | seconds)

    return Run(
        source=source,
        suites=suites_of(settings, parts, learner.policy, learner.builder, learner.world),
        learner=learner,
        train=config,
        eval=settings.eval,
        position=position,
        record=record,
        keep_samples=partial(monitor.samples, about=partial(about, sampler)) if monitor is not None else keep_nothing,
        save=save,
        save_due=SaveRule(config, folder.checkpoints, learner.world),
        release=(lambda: None) if config.sample_ahead else engine.release,
        stop_requested=stop_requested,
    )


def lessons_of(settings: Settings, learner: Learner) -> Lessons | None:
    """What writes the responses of a run that is taught them; None for a run that samples its own.

    Raises:
        UserError: for a template that cannot be used.
    """
    template = learner.method.advantage.taught()
    if template is None:
        return None
    return Lessons(learner.builder, template, learner.policy.stop_ids, settings.engine.max_new_tokens)


def keep_nothing(step: int, rollouts: list[Rollout], result: StepResult) -> None:
    """For ranks that write nothing."""


def about(sampler: Sampler, rollout: Rollout) -> dict[str, Any]:
    """What is stored of a rollout for a person beside its numbers: the texts of its tokens, the prompt as it was sent, and the
    answers that were compared, where the task has and says them."""
    policy, prompt = sampler.policy, rollout.prompt
    read: str | None = None
    with contextlib.suppress(Exception):  # a user's own task may raise anything, and this is for the eye alone
        read = sampler.task.extracted(prompt, sampler.builder.opening + rollout.text)
    return {
        "pieces": policy.spell(rollout.generation.token_ids),
        "asked": str(policy.tokenizer.decode(rollout.prompt_ids)),
        "expected": prompt.final,
        "extracted": read,
    }


def suites_of(
    settings: Settings, parts: Parts, policy: Policy, builder: PromptBuilder, world: World = ALONE
) -> list[Suite]:
    """The suites of a run's evaluation: the task's held-out prompts, those of each source of a mixture, or the benchmarks of
    ``eval.suites``."""
    count = settings.eval.prompts
    suites: list[tuple[str, Task, list[Prompt]]] = [(n, task, list(task.heldout)) for n, task in parts.suites.items()]
    if not suites:
        names = dict.fromkeys(p.source for p in parts.task.heldout)
        suites = [(name, parts.task, [p for p in parts.task.heldout if p.source == name]) for name in names]
    return [
        Suite(
            name,
            Sampler(parts.engine, policy, builder, task, seed=settings.eval.seed, world=world),
            prompts[:count] if count else prompts,
        )
        for name, task, prompts in suites
    ]
