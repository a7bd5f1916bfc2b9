"""Checkpoints from a card: what is written is the state at the step's end, though training changes it meanwhile."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.execution.build import build_learner
from rlrt.execution.saver import Saver
from rlrt.execution.snapshot import restore_checkpoint, trainer_tensors
from rlrt.execution.stop import Pace
from rlrt.training.learner import Learner


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of all that a checkpoint holds."""
    return {name: tensor.detach().cpu().clone() for name, tensor in trainer_tensors(learner, weights=True).items()}


@torch.no_grad()
def step(learner: Learner) -> None:
    """One optimiser step by a gradient of ones, and the teacher after it."""
    for parameter in learner.policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.policy.optimiser.step()
    learner.teacher.follow()


def beside_training(device: str) -> tuple[bool, str]:
    """Save twice through the same host buffers while the optimiser goes on, and take each checkpoint over."""
    overrides = (f"device={device}", "teacher.weights=ema", "train.steps=9", "train.lr=1e-3", "tracking=none")
    settings = load(composed(overrides), overrides=overrides)
    learner, other = build_learner(settings), build_learner(settings)
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        with Saver(learner, Path(place), settings.train, Pace(lambda: math.inf)) as saver:
            states = {}
            for number in (1, 2):
                step(learner)
                states[number] = state_of(learner)
                saver.save(number, None)
                step(learner)  # while it is written
        for number, expected in states.items():
            restore_checkpoint(other, Path(place) / f"step_{number}", settings.model.attn_implementation)
            found = state_of(other)
            wrong += [f"step {number}: {n}" for n in expected if not torch.equal(found[n], expected[n])]
    return not wrong, f"{len(states[1])} tensors twice, {len(wrong)} differ {wrong[:3]}"
