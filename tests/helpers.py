"""Small worlds that several tests share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from rlrt.config.compose import composer
from rlrt.config.load import load
from rlrt.config.schema import Settings
from rlrt.methods.signals import Signals, TeacherSignal
from rlrt.paths import CONFIG
from rlrt.types import Generation, Grade, Prompt, Rollout

METHODS = sorted(p.stem for p in (CONFIG / "method").glob("*.yaml"))
MODELS = sorted(p.stem for p in (CONFIG / "model").glob("[!_]*.yaml"))
ONE_STEP = (
    "train.steps=1",
    "train.prompts_per_step=2",
    "train.eval_every=0",
    "eval.prompts=2",
    "eval.samples_per_prompt=2",
)


def settings(*overrides: str) -> Settings:
    """Checked settings from overrides."""
    return load(composed(overrides), overrides=overrides)


def composed(overrides: Sequence[str]) -> Any:
    """``compose.composed`` through one composer for all tests of a process: a twentieth of a second, not a fifth."""
    _, compose, hydra = one_composer()
    hydras = GlobalHydra.instance()
    before, hydras.hydra = hydras.hydra, hydra
    try:
        whole = compose(overrides)
    finally:
        hydras.hydra = before
    return OmegaConf.masked_copy(whole, [str(k) for k in whole if k != "hydra"])


@functools.cache
def one_composer() -> tuple[Any, Callable[[Sequence[str]], Any], Any]:
    """A composer that stays open (its context is kept for that), and Hydra's state that belongs to it."""
    context = composer()
    compose = context.__enter__()
    return context, compose, GlobalHydra.instance().hydra


def method_of(name: str, *overrides: str) -> Any:
    """A shipped method with its shipped keys."""
    return settings(f"method={name}", *overrides).method


def signals(
    reward_B: list[float],
    group_B: list[int],
    length_B: list[int],
    logp_BT: torch.Tensor | None = None,
    teacher_logp_BT: torch.Tensor | None = None,
    has_teacher_B: list[bool] | None = None,
    dtype: torch.dtype = torch.float64,
    step: int = 1,
) -> Signals:
    """Signals of rollouts with the given rewards (1 is correct) and lengths."""
    rollouts, width = len(reward_B), max(length_B)
    mask_BT = torch.arange(width)[None] < torch.tensor(length_B)[:, None]
    zeros_BT = torch.zeros(rollouts, width, dtype=dtype)
    has_B = torch.tensor(has_teacher_B if has_teacher_B is not None else [True] * rollouts)
    teachers = [] if teacher_logp_BT is None else [TeacherSignal(has_B, teacher_logp_BT.to(dtype), zeros_BT.clone())]
    return Signals(
        step=step,
        group_B=torch.tensor(group_B),
        reward_B=torch.tensor(reward_B, dtype=dtype),
        correct_B=torch.tensor([r >= 1 for r in reward_B]),
        seed_B=torch.arange(rollouts) + 7,
        token_BT=torch.zeros(rollouts, width, dtype=torch.long),
        mask_BT=mask_BT,
        special_BT=torch.zeros_like(mask_BT),
        logp_BT=zeros_BT if logp_BT is None else logp_BT.to(dtype),
        entropy_BT=zeros_BT.clone(),
        scored_B=torch.ones(rollouts, dtype=torch.bool),
        teachers=teachers,
    )


def rollout(group: int, sample: int, correct: bool, text: str = "x", solution: str | None = "ref") -> Rollout:
    """A graded rollout without a model."""
    prompt = Prompt(id=f"p{group}", text=f"q{group}", answer=None, solution=solution)
    generation = Generation([1, 2], torch.zeros(2), torch.zeros(2), truncated=False)
    return Rollout(prompt, group, sample, 0, [0], generation, text, Grade(correct, float(correct)))
