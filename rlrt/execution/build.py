"""The composition root: every part of a run is chosen here and nowhere else."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from rlrt.config.schema import Settings
from rlrt.distributed import sharding
from rlrt.distributed.world import ALONE, World
from rlrt.execution.monitor import Monitor
from rlrt.execution.resume import check_saved, save_checkpoint
from rlrt.model.allocator import keep_freed_memory
from rlrt.model.load import context_length, load, set_stop_tokens
from rlrt.model.lora import add_adapters
from rlrt.model.policy import Policy, adamw
from rlrt.model.precision import set_compute_dtype
from rlrt.model.prompting import PromptBuilder
from rlrt.records.folder import RunFolder
from rlrt.sampling.sampler import Sampler
from rlrt.sampling.source import Source
from rlrt.training.evaluation import Suite
from rlrt.training.learner import Learner
from rlrt.training.loop import Run
from rlrt.training.teacher import Teacher, frozen_copy, runs_again

log = logging.getLogger("rlrt")


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is a GPU where there is one: the first, or one for each process of this machine."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu" if name == "auto" else name)


def load_model(settings: Settings, device: torch.device | None = None) -> tuple[Any, Any]:
    """The model of a run as it starts, on the device (None: where it will compute), and its tokenizer."""
    config = settings.model
    check_saved(config.path)
    model, tokenizer = load(config.path, config.revision, config.attn_implementation)
    set_stop_tokens(model, tokenizer, config.stop_tokens)
    set_compute_dtype(model, torch.float32 if settings.dtype == "float32" else torch.bfloat16)
    if config.lora is not None:
        add_adapters(model, config.lora, config.lora_alpha, config.lora_targets, settings.seed)
    return model.to(device or resolve_device(settings.device)), tokenizer


def prompt_builder(settings: Settings, tokenizer: Any) -> PromptBuilder:
    """How a run writes its prompts."""
    config = settings.model
    return PromptBuilder(tokenizer, config.style, config.prompt_template, config.thinking, settings.teacher.template)


def build_learner(settings: Settings, world: World = ALONE) -> Learner:
    """Model, optimiser, teacher and method of a run, at step 0; shared by the processes of ``world``."""
    train_config, teacher_config = settings.train, settings.teacher
    device = resolve_device(settings.device, world.local_rank)
    shares = world.size > 1 and settings.distributed.strategy == "fsdp"
    model, tokenizer = load_model(settings, torch.device("cpu") if shares else device)
    model.train()
    if device.type == "cpu":
        keep_freed_memory()
    if settings.model.gradient_checkpointing:
        model.activation_checkpointing_enable()
    rerun = runs_again(settings.method, train_config.minibatches)
    teacher = Teacher(model, teacher_config.weights, teacher_config.sync_steps, teacher_config.ema_rate, rerun)
    reference = frozen_copy(model) if train_config.kl_coef > 0 else None
    if shares:
        for one in {id(m): m for m in (model, teacher.model, reference) if m is not None}.values():
            sharding.share_fsdp(one, device)
    elif world.size > 1:
        sharding.share_ddp(model)
    optimiser = adamw(model, train_config.lr, (train_config.beta1, train_config.beta2), train_config.weight_decay)
    return Learner(
        policy=Policy(model, tokenizer, optimiser, settings.engine.temperature),
        method=settings.method,
        teacher=teacher,
        builder=prompt_builder(settings, tokenizer),
        reference=reference,
        train=train_config,
        teacher_config=teacher_config,
        max_new_tokens=settings.engine.max_new_tokens,
        context_length=context_length(model, settings.model.context_length),
        world=world,
        importance_clip=getattr(settings.engine, "importance_clip", None),
    )


@contextlib.contextmanager
def closing(*parts: Any) -> Iterator[None]:
    """Let parts end what they started (a verifier's processes, an engine), however the run ends."""
    try:
        yield
    finally:
        for part in parts:
            if hasattr(part, "close"):
                part.close()


def assemble(
    settings: Settings,
    learner: Learner,
    position: int,
    monitor: Monitor | None,
    folder: RunFolder,
    pending: dict[str, Any] | None = None,
) -> Run:
    """The loop's parts.

    Args:
        position: updates done.
        monitor: where numbers go; None in processes that write nothing.
        pending: rollouts that an earlier life had sampled ahead.
    """
    config, engine = settings.train, settings.engine
    world = learner.world.twin() if config.sample_ahead else learner.world
    parts = (engine, learner.policy, learner.builder, settings.data)
    if hasattr(engine, "world"):  # one engine for all processes
        engine.world = world
    sampler = Sampler(*parts, seed=settings.seed, overlong_cache=config.overlong_cache, world=world)
    source = Source(sampler, config, settings.seed, position + 1, pending)

    def save(step: int) -> None:
        folder.record.sync()
        folder.samples.sync()
        save_checkpoint(learner, folder.checkpoints, step, config.keep_last, source.state())

    return Run(
        source=source,
        suites=suites_of(settings, learner.policy, learner.builder, learner.world),
        learner=learner,
        train=config,
        eval=settings.eval,
        position=position,
        record=monitor.record if monitor is not None else lambda step, metrics: None,
        keep_samples=(
            partial(monitor.samples, spell=learner.policy.spell)
            if monitor is not None
            else lambda step, rollouts, result: None
        ),
        save=save,
        release=engine.release,
    )


def suites_of(settings: Settings, policy: Policy, builder: PromptBuilder, world: World = ALONE) -> list[Suite]:
    """What a run is evaluated on: the task's held-out prompts, or the benchmarks of ``eval.suites``."""
    count = settings.eval.prompts
    tasks = {"": settings.data} if not settings.eval.suites else settings.eval.suites
    parts = (settings.engine, policy, builder)
    return [
        Suite(
            name,
            Sampler(*parts, task, seed=settings.eval.seed, world=world),
            list(task.heldout[:count] if count else task.heldout),
        )
        for name, task in tasks.items()
    ]
